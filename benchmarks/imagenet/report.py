"""Records summed up: accuracy, its spread, what it costs; a table and a picture."""

import numpy as np


def summary(rows):
    """Accuracies of one method on one data set, by aggregation.

    Parameters
    ----------
    rows : list of dict
        One for each image: what `score` of a contestant returns as ``"right"``, and ``"seconds"``.

    Returns
    -------
    summary : dict
        ``"accuracy"`` for 1 ... K orders: the mean over the groups of k orders. ``"spread"``:
        their sample standard deviation, None where there is one group. ``"standard_error"``: that
        of the mean accuracy, which comes of the number of images. ``"images_per_second"``.
    """
    names = ("accuracy", "spread", "standard_error")
    result = {"images_per_second": len(rows) / sum(row["seconds"] for row in rows)}
    result |= {name: {} for name in names}
    for how in rows[0]["right"]:
        columns = zip(*(row["right"][how] for row in rows))
        groups = [np.array([list(hits) for hits in column], dtype=int) for column in columns]
        spread = [g.mean(0).std(ddof=1) if g.shape[1] > 1 else None for g in groups]
        # an image may be right in some of the groups
        error = [g.mean(1).std() / len(rows) ** 0.5 for g in groups]
        for name, values in zip(names, ([g.mean() for g in groups], spread, error)):
            result[name][how] = [v if v is None else float(v) for v in values]
    return result


def lines_of(result, how):
    """(accuracy, spread, standard error, flops) of 1 ... K orders."""
    how = how if how in result["accuracy"] else next(iter(result["accuracy"]))
    columns = (result[name][how] for name in ("accuracy", "spread", "standard_error"))
    return list(zip(*columns, result["flops"]))


def shown(results):
    """What table and plot show: of data sets that are parts of one, that."""
    parts = {each for data in results.values() for each in data.get("parts", [])}
    return {name: data for name, data in results.items() if name not in parts}


def table(results, how):
    """Markdown: a line for each data set, method and number of orders."""
    heads = ["data", "images", "classes", "method", "orders", "accuracy", "standard error"]
    heads += ["TFLOP/image", "images/s"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for name, data in shown(results).items():
        for method, result in data["methods"].items():
            rows = lines_of(result, how)
            for k, (accuracy, spread, error, flops) in enumerate(rows, 1):
                mean = f"{accuracy:.4f}" + (f" ± {spread:.4f}" if spread is not None else "")
                speed = f"{result['images_per_second']:.3g}" if k == len(rows) else ""
                orders = "" if method == "diffusion" else k
                cells = [name, data["images"], data["classes"], method, orders, mean]
                cells += [f"{error:.4f}", f"{flops / 1e12:.3g}", speed]
                lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def plot(results, how, path):
    """Accuracy against operations, with the spread over groups of orders."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    ax, markers = figure.add_subplot(), {"any-order": "o", "raster": "s", "diffusion": "*"}
    for i, (name, data) in enumerate(shown(results).items()):
        for method, result in data["methods"].items():
            accuracy, spread, _, flops = zip(*lines_of(result, how))
            ax.errorbar(
                np.array(flops) / 1e12,
                accuracy,
                [s or 0 for s in spread],
                fmt=f"{markers[method]}-",
                color=f"C{i}",
                markersize=4,
                label=f"{name}, {method}",
            )
    ax.set(xlabel="TFLOP per image", ylabel="top-1 accuracy", xscale="log")
    ax.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize="small", ncols=1 + len(shown(results)) // 10)
    figure.savefig(path, dpi=150, format="png")
