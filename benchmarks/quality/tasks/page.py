"""The page of the table of tasks, from its record."""

from pathlib import Path

import numpy as np

from skaocls.files import write_all

COLUMNS = {
    "accuracy": ("Accuracy", 100, 1),
    "nats": ("Nats", 1, 3),
    "ece": ("ECE, %", 100, 1),
    "fit_s": ("Fit, s", 1, 0),
    "ms": ("Predict, ms", 1, 2),
}
INTRO = """# Defaults on a table of tasks

What `Clf().fit(X, y).score(...)` gives on tasks that need no download: the classifier of this
library with all parameters at their defaults, beside others with theirs, and the small ResNet of
[the claims](claims.md) with 16 views of each image. Nothing was tuned on these test data.

`python benchmarks/tasks`; {machine}, one thread for each job. Means over the seeds (of split,
images and weights) with their standard deviation; seconds are CPU seconds of one `fit`,
milliseconds those of `predict` for one image or row, in batches. Nats are the mean negative
log-probability of the true class, ECE is the expected calibration error in 15 bins; a dash is for
classifiers that give no probabilities.
"""
ABOUT = {
    "digits": "handwritten digits of scikit-learn, 8 x 8",
    "glyphs": "ten letters in many fonts and colours, 32 x 32",
    "textures": "which area of two photographs a patch of 16 x 16 is from, in stripes that no "
    "training patch shows",
    "characters": "100 made-up characters with 20 images each, 32 x 32",
    "animals": "silhouettes of ten animals, 28 x 28 (package `animal-mnist`)",
    "iris": "a table",
    "wine": "a table",
    "breast cancer": "a table",
    "digits as a table": "the digits as 64 columns, not as images",
}
# Why a goal that is met elsewhere is not met there
REASONS = {
    "textures": "Training patches overlap each other, and held-out ones too: of those 88.6 % are "
    "right ([views and the posterior](benchmarks.md#views-and-the-posterior)), and a temperature "
    "that calibrates them is too low for patches from other stripes.",
}


def cell(rows, name):
    _, scale, places = COLUMNS[name]
    values = [row[name] * scale for row in rows if name in row]
    if not values:
        return "-"
    spread = f" ± {np.std(values, ddof=1):.{places}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{places}f}" + (spread if name == "accuracy" else "")


def table_of(rows):
    """One task: a line for each contestant, the most accurate first."""
    names = list(dict.fromkeys(row["contestant"] for row in rows))
    mine = {name: [row for row in rows if row["contestant"] == name] for name in names}
    names.sort(key=lambda name: -np.mean([row["accuracy"] for row in mine[name]]))
    head = [*(title for title, _, _ in COLUMNS.values()), "Seeds"]
    lines = ["| | " + " | ".join(head) + " |", "|---|" + "---:|" * len(head)]
    for name in names:
        shown = name if name.endswith(("ResNet", "scaled")) else f"`{name}`"
        cells = [*(cell(mine[name], column) for column in COLUMNS), str(len(mine[name]))]
        lines.append(f"| {shown} | " + " | ".join(cells) + " |")
    return lines


def chosen(rows):
    """What the defaults became."""
    known = [row["chosen"] for row in rows if "chosen" in row]
    several = {k: sorted({choice[k] for choice in known}) for k in known[0]}
    told = {
        k: " or ".join(f"{v:.3g}" if isinstance(v, float) else str(v) for v in values)
        for k, values in several.items()
    }
    return (
        f"Chosen by default: {told['tokens']} tokens of {told['codes']} codes, a prior of "
        f"{told['layers']} layers of width {told['width']}, {told['epochs']} epochs, temperature "
        f"{told['temperature']}."
    )


def by_chance(rows):
    """What the calibration error would be if there were none, or nothing where it is not known."""
    known = [row["chance_ece"] for row in rows if "chance_ece" in row and "chosen" in row]
    if not known:
        return []
    return [
        f"An ECE of {100 * np.mean(known):.1f} % is chance: that of `AnyOrderARClassifier()` "
        "with labels drawn from its own probabilities.",
        "",
    ]


def write_page(rows, folder):
    machines = " and ".join(sorted({row["machine"] for row in rows}))
    lines = [INTRO.format(machine=machines)]
    for name in dict.fromkeys(row["task"] for row in rows):
        mine = [row for row in rows if row["task"] == name]
        sizes = f"{mine[0]['n']} to train on, {mine[0]['n_test']} to test"
        lines += [f"## {name.capitalize()}", "", f"{ABOUT[name].capitalize()}; {sizes}.", ""]
        lines += [*table_of(mine), "", chosen(mine), "", *by_chance(mine)]
        lines += [REASONS[name], ""] if name in REASONS else []
    text = "\n".join(lines)
    write_all(folder, {"tasks.md": lambda path: Path(path).write_text(text, encoding="utf-8")})
