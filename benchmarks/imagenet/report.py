"""Summary of records: accuracy, its spread and its cost, as a table and a plot."""

import numpy as np

from ..common import table as markdown_table


def summary(rows):
    """Summarize one method on one data set, by aggregation.

    Parameters
    ----------
    rows : list of dict
        For each image ``"right"``, the result of a contestant's `score`, and ``"seconds"``.

    Returns
    -------
    summary : dict
        ``"accuracy"`` for 1 ... K orders, the mean over the groups of k orders; ``"spread"``, the
        sample standard deviation of the groups (None for one group); ``"standard_error"`` of the
        mean accuracy, due to the number of images; ``"images_per_second"``.
    """
    names = ("accuracy", "spread", "standard_error")
    result = {"images_per_second": len(rows) / sum(row["seconds"] for row in rows)}
    result |= {name: {} for name in names}
    for aggregation in rows[0]["right"]:
        columns = zip(*(row["right"][aggregation] for row in rows))
        groups = [np.array([list(hits) for hits in column], dtype=int) for column in columns]
        spread = [g.mean(0).std(ddof=1) if g.shape[1] > 1 else None for g in groups]
        # an image can be right in some of the groups
        error = [g.mean(1).std() / len(rows) ** 0.5 for g in groups]
        for name, values in zip(names, ([g.mean() for g in groups], spread, error)):
            result[name][aggregation] = [v if v is None else float(v) for v in values]
    return result


def curve(result, aggregation):
    """Return (accuracy, spread, standard error, flops) for 1 ... K orders."""
    if aggregation not in result["accuracy"]:  # the diffusion classifier has none
        (aggregation,) = result["accuracy"]
    columns = (result[name][aggregation] for name in ("accuracy", "spread", "standard_error"))
    return list(zip(*columns, result["flops"]))


def combined(results):
    """Return the results without data sets that are parts of a combination."""
    parts = {part for data in results.values() for part in data.get("parts", [])}
    return {name: data for name, data in results.items() if name not in parts}


def table(results, aggregation):
    """Return a table with a row for each data set, method and number of orders."""
    heads = ["data", "images", "classes", "method", "orders", "accuracy", "standard error"]
    heads += ["TFLOP/image", "images/s"]
    lines = []
    for name, data in combined(results).items():
        for method, result in data["methods"].items():
            rows = curve(result, aggregation)
            for k, (accuracy, spread, error, flops) in enumerate(rows, 1):
                mean = f"{accuracy:.4f}" + (f" ± {spread:.4f}" if spread is not None else "")
                speed = f"{result['images_per_second']:.3g}" if k == len(rows) else ""
                orders = "" if method == "diffusion" else k
                cells = [name, data["images"], data["classes"], method, orders, mean]
                lines.append([*cells, f"{error:.4f}", f"{flops / 1e12:.3g}", speed])
    return markdown_table(heads, lines)


def plot(results, aggregation, path):
    """Plot accuracy against operations, with the spread over groups of orders."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    ax, markers = figure.add_subplot(), {"any-order": "o", "raster": "s", "diffusion": "*"}
    for i, (name, data) in enumerate(combined(results).items()):
        for method, result in data["methods"].items():
            accuracy, spread, _, flops = zip(*curve(result, aggregation))
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
    figure.legend(
        loc="outside right upper", fontsize="small", ncols=1 + len(combined(results)) // 10
    )
    figure.savefig(path, dpi=150, format="png")
