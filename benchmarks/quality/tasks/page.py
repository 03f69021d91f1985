"""Write the page of the table of tasks from its results."""

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
INTRO = """# Default parameters on a table of tasks

This page compares `AnyOrderARClassifier` with other classifiers, all with default parameters, and
with the small ResNet of [the test of the claims](claims.md), trained on 16 views per image. The
tasks need no download unless a package is named. Nothing was tuned on these test data.

`python benchmarks/tasks`; {machine}, one thread per job. Numbers are means over the seeds, which
draw the split, the images and the weights. *Accuracy* has its standard deviation. *Nats* is the
mean negative log-probability of the true class. *ECE* is the expected calibration error with 15
bins. A dash means that a classifier has no probabilities. *Fit* is the CPU time of one `fit`.
*Predict* is the CPU time of `predict` per image or row, in batches.
"""
ABOUT = {
    "digits": "scikit-learn's handwritten digits, 8 x 8",
    "glyphs": "ten letters in many fonts and colours, 32 x 32",
    "textures": "patches of two photographs, 16 x 16; the class is the area that a patch is from, "
    "and test patches come from stripes that training does not show",
    "characters": "100 made-up characters with 20 images each, 32 x 32",
    "animals": "silhouettes of ten animals, 28 x 28 (package `animal-mnist`)",
    "iris": "a table",
    "wine": "a table",
    "breast cancer": "a table",
    "digits as a table": "the digits as 64 columns, not as images",
}
# Why probabilities are less well calibrated on a task
REASONS = {
    "textures": "Patches that are held out in training overlap with training patches. Of those, "
    "88.6 % are correct ([views and the posterior](benchmarks.md#views-and-the-posterior)). A "
    "temperature that is fitted on them is therefore too low for patches from other stripes.",
}


def cell(rows, name):
    _, scale, places = COLUMNS[name]
    values = [row[name] * scale for row in rows if name in row]
    if not values:
        return "-"
    spread = f" ± {np.std(values, ddof=1):.{places}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{places}f}" + (spread if name == "accuracy" else "")


def table_of(rows):
    """Return the table of one task, with the most accurate classifier first."""
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
    """Return a sentence with the values that the defaults chose."""
    known = [row["chosen"] for row in rows if "chosen" in row]
    several = {k: sorted({choice[k] for choice in known}) for k in known[0]}
    told = {
        k: " or ".join(f"{v:.3g}" if isinstance(v, float) else str(v) for v in values)
        for k, values in several.items()
    }
    return (
        f"The defaults chose {told['tokens']} tokens, {told['codes']} codes, {told['layers']} "
        f"layers of width {told['width']} and {told['epochs']} epochs. The temperature is "
        f"{told['temperature']}."
    )


def by_chance(rows):
    """Return a sentence with the ECE of a perfectly calibrated classifier, if it is known."""
    known = [row["chance_ece"] for row in rows if "chance_ece" in row and "chosen" in row]
    if not known:
        return []
    return [
        "Perfectly calibrated probabilities of `AnyOrderARClassifier()` would have an ECE of "
        f"{100 * np.mean(known):.1f} % on this test set.",
        "",
    ]


def write_page(rows, folder):
    machines = " and ".join(sorted({row["machine"] for row in rows}))
    lines = [INTRO.format(machine=machines)]
    for name in dict.fromkeys(row["task"] for row in rows):
        mine = [row for row in rows if row["task"] == name]
        sizes = f"{mine[0]['n']} training and {mine[0]['n_test']} test samples"
        lines += [f"## {name.capitalize()}", "", f"{ABOUT[name].capitalize()}; {sizes}.", ""]
        lines += [*table_of(mine), "", chosen(mine), "", *by_chance(mine)]
        lines += [REASONS[name], ""] if name in REASONS else []
    text = "\n".join(lines)
    write_all(folder, {"tasks.md": lambda path: Path(path).write_text(text, encoding="utf-8")})
