"""The page docs/claims.md and its plots, from the record of a run."""

import json
from pathlib import Path

import matplotlib
import numpy as np
from answers import (
    ANY_ORDER,
    DEFAULTS,
    DIFFUSION,
    MASKED,
    OURS,
    SHARED,
    Results,
    answers,
    interval,
    one_order,
    shortcut,
    usual,
)
from contestants import DISCRIMINATIVE, GENERATIVE
from shifts import SHIFTS

from skaocls.files import write_all
from skaocls.scoring.aggregation import AGGREGATIONS

matplotlib.use("Agg")
import matplotlib.pyplot as plt

CLAIMS = {
    "more orders": "More orders are better",
    "one order": "Averaging beats any one order",
    "diffusion, accuracy": "More accurate than a diffusion classifier",
    "diffusion, compute": "At up to 25 times less compute",
    "shared trunk, accuracy": "A trunk shared by all classes is as accurate",
    "shared trunk, compute": "And needs 25 times less than the diffusion classifier",
    "discriminative": "Level with strong discriminative models",
    "discriminative, defaults": "Level with them at our defaults",
    "shifts": "Harder to fool by distribution shift",
    "shifts, defaults": "Harder to fool by it at our defaults",
    "shortcuts": "Harder to fool by shortcuts",
    "shortcuts, defaults": "Harder to fool by them at our defaults",
}
OTHERS = [name for name in (*GENERATIVE, *DISCRIMINATIVE) if name != DEFAULTS]
COLOURS = {name: f"C{i}" for i, name in enumerate(OTHERS)} | {DEFAULTS: "black"}
# Those that answer the better the longer they look
STAGED = (OURS, DIFFUSION, MASKED, SHARED, DEFAULTS)
STYLES = ("-", "--", ":", "-.", (0, (1, 4)))
INTRO = Path(__file__).with_name("intro.md")
PUBLISHED = """
`python benchmarks/imagenet --data imagenet=FOLDER --data imagenet-a=FOLDER` puts published weights
to the same sums on ImageNet, V2, A, R, Sketch, C and ObjectNet folders: the prior averaged over 1
to 20 orders, the same in raster order, and a diffusion classifier on DiT weights, with the
operations of each. It has not been run on the real data here, which is not at hand.
"""
REMEDIES = Path(__file__).with_name("remedies.md")
TUNING = Path(__file__).parents[1] / "results" / "claims-tuning.json"


def write_page(record, folder):
    """Write claims.md and claims-*.png into a folder, all of them or none."""
    results = Results(record)
    plots = {
        "claims-cost.png": plot_cost,
        "claims-orders.png": plot_orders,
        "claims-shifts.png": plot_shifts,
    }
    text = page(record, results)
    writers = {"claims.md": lambda path: Path(path).write_text(text, encoding="utf-8")}
    for name, plot in plots.items():
        writers[name] = lambda path, plot=plot: save(plot(results), path)
    folder.mkdir(parents=True, exist_ok=True)
    write_all(folder, writers)


def save(figure, path):
    figure.savefig(path, dpi=110, format="png")
    plt.close(figure)


def page(record, results):
    about = record["about"]
    versions = ", ".join(f"{k} {about[k]}" for k in ("torch", "scikit-learn", "numpy"))
    many = len(about["commits"]) > 1
    seeds = ", ".join(map(str, results.seeds))
    sections = [
        "# Are the claims true?",
        INTRO.read_text(encoding="utf-8").strip(),
        f"`python benchmarks/claims`, commit{'s' * many} {', '.join(about['commits'])}; "
        f"{about['machine']}; {about['core_hours']:.1f} core hours; {versions}. Seeds {seeds}; "
        "± is half of Student's 95 % interval over them.",
        "## Answers",
        sentences(results),
        "## Accuracy and cost",
        accuracy_table(results),
        "![Accuracy against operations](claims-cost.png)",
        "## Orders",
        orders_table(results),
        "![Accuracy against the number of orders](claims-orders.png)",
        "## Distribution shift",
        shift_table(results),
        "![Accuracy under shift](claims-shifts.png)",
        "## Shortcuts",
        shortcut_table(results),
        *remedies(results),
        "## Settings",
        settings_table(results),
        "## Published weights",
        PUBLISHED.strip(),
    ]
    return "\n\n".join(sections) + "\n"


def grid(heads, rows):
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    return "\n".join(lines + [f"| {' | '.join(map(str, row))} |" for row in rows])


def percent(values):
    value, half = interval(values)
    return f"{100 * value:.1f}" + (f" ± {100 * half:.1f}" if len(values) > 1 else "")


def sentences(results):
    """One for each claim: what was found on each task."""
    found, lines = answers(results), []
    for claim, title in CLAIMS.items():
        parts = [part(row) for row in found if row["claim"] == claim]
        if parts:
            lines.append(f"- **{title}.** {'; '.join(parts)}.")
    return "\n".join(lines)


def part(row):
    value, half = row["value"], row["half"]
    if row["unit"] == "times":
        low, middle, high = (10**v for v in (value - half, value, value + half))
        number = f"{middle:.3g} times ({low:.2g} to {high:.2g})"
    else:
        number = f"{100 * value:+.1f} ± {100 * half:.1f} points"
    return f"{row['task']}: {row['verdict']}, {number} ({row['meaning']})"


def accuracy_table(results):
    rows = []
    for task in results.tasks:
        for name in results.contestants(task):
            shown = results.shown(name)
            cells = [task, label(name, shown), percent(results.accuracy(task, name))]
            cells += calibration(results, task, name, shown)
            flops = results.points(task, name, "flops", **shown).mean()
            seconds = results.points(task, name, "seconds", **shown).mean()
            fit = np.mean([row["fit_seconds"] for row in results.standard(task, name)])
            cells += [f"{flops / 1e6:.3g}", f"{1000 * seconds:.2g}", f"{fit:.0f}"]
            rows.append(cells)
            if name in (*ANY_ORDER, DIFFUSION):
                rows.append(raced(results, task, name, shown))
    heads = ["task", "contestant", "accuracy, %", "NLL", "ECE, %", "NLL, tempered"]
    heads += ["ECE, tempered, %", "MFLOP an image", "ms an image", "training, s"]
    return grid(heads, rows)


def label(name, shown):
    if name in ANY_ORDER:
        return f"{name}, {shown['orders']} orders"
    if name == DIFFUSION:
        return f"{name}, {shown['steps']} timesteps"
    return f"{name}, {shown['masks']} masks" if name == MASKED else name


def calibration(results, task, name, shown):
    points = results.standard(task, name)[0]["points"]
    if "nll" not in points[0]:
        return ["-"] * 4  # decides without probabilities
    cells = []
    for suffix in ("", "_tempered"):
        cells.append(f"{results.points(task, name, f'nll{suffix}', **shown).mean():.3f}")
        cells.append(f"{100 * results.points(task, name, f'ece{suffix}', **shown).mean():.1f}")
    return cells


def raced(results, task, name, shown):
    """The row of the same contestant when it drops classes on the way."""
    search, key = ("elimination", "steps") if name == DIFFUSION else ("racing", "orders")
    points = results.standard(task, name)[0]["points"]
    counts = [p[key] for p in points if p.get("search") == search]
    setting = {key: min(shown[key], max(counts)), "search": search}
    flops = results.points(task, name, "flops", **setting).mean()
    seconds = results.points(task, name, "seconds", **setting).mean()
    accuracy = percent(results.points(task, name, **setting))
    what = f"{label(name, setting)}, {search}"
    return [task, what, accuracy, "", "", "", "", f"{flops / 1e6:.3g}", f"{1000 * seconds:.2g}", ""]


def orders_table(results):
    """Accuracy of each number of orders and aggregation, and of each single order."""
    counts = sorted({p["orders"] for p in results.standard(results.tasks[0], OURS)[0]["points"]})
    rows = [
        [f"{k} order{'s' * (k > 1)}, {how}"]
        + [percent(results.points(t, OURS, orders=k, aggregation=how)) for t in results.tasks]
        for how in AGGREGATIONS
        for k in counts
    ]
    singles = [one_order(results, task) for task in results.tasks]
    rows += [[name] + [percent(single[name]) for single in singles] for name in singles[0]]
    orders = {
        task: [row["fixed_orders"] for row in results.standard(task, OURS)]
        for task in results.tasks
    }
    for name, of in (("mean", np.mean), ("worst", np.min), ("best", np.max)):
        cells = [percent([of(row["random"]) for row in orders[task]]) for task in results.tasks]
        rows.append([f"one random order, {name} of them", *cells])
    cells = [percent([row["disagreement"] for row in orders[task]]) for task in results.tasks]
    rows.append(["two random orders disagree", *cells])
    return grid(["accuracy, %", *results.tasks], rows)


def shift_table(results):
    heads = ["share of the accuracy lost, %", "contestant", *SHIFTS, "mean"]
    rows = []
    for task in results.tasks:
        for name in results.contestants(task):
            cells = [f"{100 * results.drops(task, name, shift).mean():.1f}" for shift in SHIFTS]
            rows.append([task, name, *cells, percent(results.drops(task, name))])
    text = grid(heads, rows)
    unseen = [
        [name, percent([row["unseen_fonts"] for row in results.standard("glyphs", name)])]
        for name in results.contestants("glyphs")
    ]
    return text + "\n\n" + grid(["glyphs, accuracy on unseen fonts, %", ""], unseen)


def shortcut_table(results):
    names = dict.fromkeys(row["job"]["contestant"] for row in results.find("shortcut"))
    rows = [
        [kind, name]
        + [
            percent(shortcut(results, kind, name, key))
            for key in ("agreeing", "random", "conflicting", "fooled")
        ]
        for kind in results.kinds
        for name in names
    ]
    heads = ["digits with a mark", "contestant", "accuracy, mark as in training, %"]
    return grid([*heads, "mark at random, %", "mark of another class, %", "fooled, %"], rows)


def remedies(results):
    """What was tried where ours loses, or nothing."""
    rows = results.find("remedy")
    if not rows:
        return []
    table = []
    keys = "task", "kind", "variant"
    for values in dict.fromkeys(tuple(row["job"].get(key) for key in keys) for row in rows):
        found = results.find("remedy", **dict(zip(keys, values)))
        seconds = np.mean([row["fit_seconds"] for row in found])
        task, kind, variant = values
        for reads in zip(*(row["readings"] for row in found)):
            how = ", ".join(f"{k}={v}" for k, v in reads[0]["reading"].items()) or "as usual"
            cells = [percent([read[key] for read in reads]) for key in ("accuracy", "single")]
            cells.append("" if kind else percent([read["drop"] for read in reads]))
            where = f"{task}, {kind}" if kind else task
            table.append([where, variant, how, *cells, f"{seconds:.0f}"])
    heads = ["task", "trained", "read", "accuracy, %", "one order, %", "lost by shifts, %"]
    return [
        "## Remedies",
        REMEDIES.read_text(encoding="utf-8").strip(),
        grid([*heads, "training, s"], table),
    ]


def settings_table(results):
    """What was tried, and with what success on held-out training images; the chosen in bold."""
    if not TUNING.exists():
        return ""
    rows = []
    chosen = {
        (row["job"]["task"], row["job"]["contestant"]): row["job"]["params"]
        for row in results.find("standard")
    }
    for row in json.loads(TUNING.read_text(encoding="utf-8"))["results"]:
        task, name, params = (row["job"][key] for key in ("task", "contestant", "params"))
        bold = "**" if chosen.get((task, name)) == params else ""
        cells = [task, name, f"`{json.dumps(params)}`" if params else "defaults"]
        cells += [f"{bold}{100 * row['accuracy']:.1f}{bold}", f"{row['fit_seconds']:.0f}"]
        rows.append(cells)
    return grid(["task", "contestant", "parameters", "held-out accuracy, %", "training, s"], rows)


def lines_of(results, task):
    """Curves of accuracy against operations, by contestant and search."""
    curves = {}
    for name in (n for n in STAGED if n in results.contestants(task)):
        points = usual(results.standard(task, name)[0]["points"])
        for search in dict.fromkeys(p.get("search") for p in points):
            settings = [
                {k: p[k] for k in ("orders", "steps", "masks", "aggregation", "search") if k in p}
                for p in points
                if p.get("search") == search
            ]
            x = [results.points(task, name, "flops", **s).mean() for s in settings]
            y = np.array([results.points(task, name, **s) for s in settings])
            curves[name, search] = np.array(x), y
    return curves


def plot_cost(results):
    figure, axes = panels(results.tasks)
    for ax, task in zip(axes, results.tasks):
        for (name, search), (x, y) in lines_of(results, task).items():
            style = {"color": COLOURS[name], "linestyle": "--" if search else "-"}
            named = f"{name}, {search}" if search else name
            ax.plot(x, 100 * y.mean(1), marker="o", markersize=4, label=named, **style)
        for name in results.contestants(task):
            if name not in STAGED:
                x = results.points(task, name, "flops").mean()
                y = results.accuracy(task, name).mean()
                ax.plot(x, 100 * y, "x", markersize=7, color=COLOURS[name], label=name)
        ax.set(xscale="log", xlabel="operations for an image", title=task)
    axes[0].set_ylabel("accuracy, %")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    return figure


def plot_orders(results):
    figure, axes = panels(results.tasks)
    for ax, task in zip(axes, results.tasks):
        points = results.standard(task, OURS)[0]["points"]
        for how in AGGREGATIONS:
            counts = [p["orders"] for p in points if p.get("aggregation") == how]
            y = [results.points(task, OURS, orders=k, aggregation=how).mean() for k in counts]
            ax.plot(counts, 100 * np.array(y), "o-", markersize=4, label=how)
        for style, (name, y) in zip(STYLES, one_order(results, task).items()):
            ax.axhline(100 * y.mean(), color="grey", linestyle=style, linewidth=1, label=name)
        ax.set(xlabel="orders", title=task)
    axes[0].set_ylabel("accuracy, %")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def plot_shifts(results):
    figure, axes = plt.subplots(
        len(results.tasks), len(SHIFTS), figsize=(2 * len(SHIFTS), 2.2 * len(results.tasks)),
        sharex=True, sharey=True, squeeze=False, layout="constrained",
    )  # fmt: skip
    for row, task in zip(axes, results.tasks):
        row[0].set_ylabel(f"{task}\naccuracy, %")
        for ax, shift in zip(row, SHIFTS):
            ax.set_title(shift.replace("_", " "), fontsize="small")
            for name in results.contestants(task):
                found = results.standard(task, name)
                y = [np.mean([r["unshifted"] for r in found])]
                y += np.mean([r["shifts"][shift] for r in found], axis=0).tolist()
                ax.plot(range(6), 100 * np.array(y), lw=1, color=COLOURS[name], label=name)
    for ax in axes[-1]:
        ax.set_xlabel("severity")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=8)
    return figure


def panels(tasks):
    figure, axes = plt.subplots(
        1, len(tasks), figsize=(4.2 * len(tasks), 4.6), squeeze=False, layout="constrained"
    )
    return figure, axes[0]
