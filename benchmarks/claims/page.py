"""The page docs/claims.md and its plots, written from the record of a run."""

import json
from pathlib import Path

import matplotlib
import numpy as np

from skaocls.scoring.aggregation import AGGREGATIONS

from .. import common
from .answers import (
    ANY_ORDER,
    DEFAULTS,
    DIFFUSION,
    MASKED,
    OURS,
    SHARED,
    Results,
    answers,
    default_aggregation,
    interval,
    one_order,
    shortcut,
)
from .contestants import DISCRIMINATIVE, GENERATIVE
from .measures import EARLY_STOPPED, ELIMINATION
from .shifts import SHIFTS

matplotlib.use("Agg")
import matplotlib.pyplot as plt

CLAIMS = {
    "more orders": "More orders are more accurate",
    "one order": "The average is more accurate than any single order",
    "diffusion, accuracy": "More accurate than a diffusion classifier",
    "diffusion, compute": "Up to 25 times less compute than diffusion",
    "shared trunk, accuracy": "A shared trunk is as accurate as the published architecture",
    "shared trunk, compute": "A shared trunk needs 25 times less compute than diffusion",
    "discriminative": "As accurate as strong discriminative models",
    "discriminative, defaults": "As accurate as strong discriminative models, with our defaults",
    "shifts": "More robust to distribution shift",
    "shifts, defaults": "More robust to distribution shift, with our defaults",
    "shortcuts": "More robust to shortcuts",
    "shortcuts, defaults": "More robust to shortcuts, with our defaults",
    "shortcuts, bounded": "More robust to shortcuts, with bounded evidence",
}
OTHERS = [name for name in (*GENERATIVE, *DISCRIMINATIVE) if name != DEFAULTS]
COLOURS = {name: f"C{i}" for i, name in enumerate(OTHERS)} | {DEFAULTS: "black"}
# Models whose accuracy depends on the number of orders, timesteps or masks
STAGED = (OURS, DIFFUSION, MASKED, SHARED, DEFAULTS)
STYLES = ("-", "--", ":", "-.", (0, (1, 4)))
INTRO = Path(__file__).with_name("intro.md")
PUBLISHED = """
`python -m benchmarks.imagenet --data imagenet=FOLDER --data imagenet-a=FOLDER` makes the
same comparison with published weights, on image folders of ImageNet, ImageNet-V2, -A, -R, -Sketch,
-C and ObjectNet. The script scores the images with 1 to 20 orders, in raster order, and with a
diffusion classifier that uses published DiT weights. The script also counts the operations of each
method. It has not been run on the real ImageNet data, because these data were not available.
"""
REMEDIES = Path(__file__).with_name("remedies.md")
TUNING = common.RESULTS / "claims-tuning.json"


def write_page(record, folder):
    """Write claims.md and claims-*.png into a folder."""
    results = Results(record)
    common.write_page(folder / "claims.md", page(record, results))
    for name, plot in (("cost", plot_cost), ("orders", plot_orders), ("shifts", plot_shifts)):
        figure = plot(results)
        figure.savefig(folder / f"claims-{name}.png", dpi=110)
        plt.close(figure)


def page(record, results):
    about = record["about"]
    versions = ", ".join(f"{k} {about[k]}" for k in ("torch", "scikit-learn", "numpy"))
    many = len(about["commits"]) > 1
    seeds = ", ".join(map(str, results.seeds))
    about_run = (
        f"Measured with `python -m benchmarks.claims` at the commit{'s' * many} "
        f"{', '.join(about['commits'])}, on {about['machine']}. The run took "
        f"{about['core_hours']:.1f} core hours with {versions}. Seeds {seeds}; ± is half the width "
        "of Student's 95 % interval over the seeds."
    )
    return common.page(
        "Are the claims true?",
        INTRO.read_text(encoding="utf-8").strip(),
        about_run,
        "## Results",
        verdict_table(results),
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
    )


def percent(values):
    value, half = interval(values)
    return f"{100 * value:.1f}" + (f" ± {100 * half:.1f}" if len(values) > 1 else "")


def verdict_table(results):
    """Return a table with the verdict on each claim and task."""
    found = answers(results)
    rows = [
        [title, row["task"], row["verdict"], estimate(row), row["meaning"]]
        for claim, title in CLAIMS.items()
        for row in found
        if row["claim"] == claim
    ]
    return common.table(["claim", "task", "verdict", "estimate", "measured as"], rows)


def estimate(row):
    """Return the estimate of a claim with its 95 % interval, as text."""
    value, half = row["value"], row["half"]
    if row["unit"] == "times":
        low, middle, high = (10**v for v in (value - half, value, value + half))
        return f"{middle:.3g} times ({low:.2g} to {high:.2g})"
    return f"{100 * value:+.1f} ± {100 * half:.1f} points"


def accuracy_table(results):
    rows = []
    for task in results.tasks:
        for name in results.contestants(task):
            setting = results.table_setting(name)
            cells = [task, label(name, setting), percent(results.accuracy(task, name))]
            cells += calibration(results, task, name, setting)
            flops = results.points(task, name, "flops", **setting).mean()
            seconds = results.points(task, name, "seconds", **setting).mean()
            fit = np.mean([row["fit_seconds"] for row in results.standard(task, name)])
            cells += [f"{flops / 1e6:.3g}", f"{1000 * seconds:.2g}", f"{fit:.0f}"]
            rows.append(cells)
            if name in (*ANY_ORDER, DIFFUSION):
                rows.append(fast_search_row(results, task, name, setting))
    heads = ["task", "model", "accuracy, %", "NLL", "ECE, %", "NLL, tempered"]
    heads += ["ECE, tempered, %", "MFLOP per image", "ms per image", "training, s"]
    return common.table(heads, rows)


def label(name, setting):
    if name in ANY_ORDER:
        return f"{name}, {setting['orders']} orders"
    if name == DIFFUSION:
        return f"{name}, {setting['steps']} timesteps"
    return f"{name}, {setting['masks']} masks" if name == MASKED else name


def calibration(results, task, name, setting):
    points = results.standard(task, name)[0]["points"]
    if "nll" not in points[0]:
        return ["-"] * 4  # has no probabilities
    cells = []
    for suffix in ("", "_tempered"):
        cells.append(f"{results.points(task, name, f'nll{suffix}', **setting).mean():.3f}")
        cells.append(f"{100 * results.points(task, name, f'ece{suffix}', **setting).mean():.1f}")
    return cells


def fast_search_row(results, task, name, setting):
    """Return the row of the same model with early-stopped scoring or elimination."""
    search, key = (ELIMINATION, "steps") if name == DIFFUSION else (EARLY_STOPPED, "orders")
    points = results.standard(task, name)[0]["points"]
    counts = [p[key] for p in points if p.get("search") == search]
    setting = {key: min(setting[key], max(counts)), "search": search}
    flops = results.points(task, name, "flops", **setting).mean()
    seconds = results.points(task, name, "seconds", **setting).mean()
    accuracy = percent(results.points(task, name, **setting))
    cells = [task, f"{label(name, setting)}, {search}", accuracy, "", "", "", ""]
    return [*cells, f"{flops / 1e6:.3g}", f"{1000 * seconds:.2g}", ""]


def orders_table(results):
    """Return accuracies for each number of orders and aggregation, and for single orders."""
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
    for name, summary in (("mean", np.mean), ("worst", np.min), ("best", np.max)):
        cells = [percent([summary(r["random"]) for r in orders[task]]) for task in results.tasks]
        rows.append([f"one random order, {name}", *cells])
    cells = [percent([row["disagreement"] for row in orders[task]]) for task in results.tasks]
    rows.append(["images on which two random orders disagree", *cells])
    return common.table(["accuracy, %", *results.tasks], rows)


def shift_table(results):
    heads = ["accuracy lost, % of the unshifted accuracy", "model", *SHIFTS, "mean"]
    rows = []
    for task in results.tasks:
        for name in results.contestants(task):
            cells = [f"{100 * results.drops(task, name, shift).mean():.1f}" for shift in SHIFTS]
            rows.append([task, name, *cells, percent(results.drops(task, name))])
    unseen = [
        [name, percent([row["unseen_fonts"] for row in results.standard("glyphs", name)])]
        for name in results.contestants("glyphs")
    ]
    fonts = common.table(["glyphs, accuracy on unseen fonts, %", ""], unseen)
    return [*common.table(heads, rows), "", *fonts]


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
    heads = ["shortcut on digits", "model", "accuracy, mark as in training, %"]
    return common.table(
        [*heads, "mark at random, %", "mark of another class, %", "misled, %"], rows
    )


def remedies(results):
    """Return the section on changes of our method, or an empty list if no change was run."""
    rows = results.find("remedy")
    if not rows:
        return []
    table = []
    keys = "task", "kind", "variant"
    for values in dict.fromkeys(tuple(row["job"].get(key) for key in keys) for row in rows):
        found = results.find("remedy", **dict(zip(keys, values)))
        seconds = np.mean([row["fit_seconds"] for row in found])
        task, kind, variant = values
        for runs in zip(*(row["results"] for row in found)):
            setting = ", ".join(f"{k}={v}" for k, v in runs[0]["setting"].items()) or "unchanged"
            cells = [percent([run[key] for run in runs]) for key in ("accuracy", "single")]
            cells.append("" if kind else percent([run["drop"] for run in runs]))
            data = f"{task}, {kind}" if kind else task
            training = "unchanged" if variant == "as chosen" else variant
            table.append([data, training, setting, *cells, f"{seconds:.0f}"])
    heads = ["task", "change of training", "change of scoring", "accuracy, %", "one order, %"]
    heads += ["lost by shifts, %"]
    return [
        "## Remedies",
        REMEDIES.read_text(encoding="utf-8").strip(),
        common.table([*heads, "training, s"], table),
    ]


def settings_table(results):
    """Return the candidate settings with their held-out accuracy, the chosen ones in bold."""
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
    return common.table(
        ["task", "model", "parameters", "held-out accuracy, %", "training, s"], rows
    )


def cost_curves(results, task):
    """Return curves of accuracy against operations, by contestant and search."""
    curves = {}
    for name in (n for n in STAGED if n in results.contestants(task)):
        points = default_aggregation(results.standard(task, name)[0]["points"])
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
        for (name, search), (x, y) in cost_curves(results, task).items():
            style = {"color": COLOURS[name], "linestyle": "--" if search else "-"}
            full_name = f"{name}, {search}" if search else name
            ax.plot(x, 100 * y.mean(1), marker="o", markersize=4, label=full_name, **style)
        for name in results.contestants(task):
            if name not in STAGED:
                x = results.points(task, name, "flops").mean()
                y = results.accuracy(task, name).mean()
                ax.plot(x, 100 * y, "x", markersize=7, color=COLOURS[name], label=name)
        ax.set(xscale="log", xlabel="operations per image", title=task)
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
