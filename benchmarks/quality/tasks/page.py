"""The page docs/tasks.md."""

import numpy as np

from ... import common

COLUMNS = {
    "accuracy": ("Accuracy", 100, 1),
    "nats": ("Nats", 1, 3),
    "ece": ("ECE, %", 100, 1),
    "fit_s": ("Fit, s", 1, 0),
    "ms": ("Predict, ms", 1, 2),
}
INTRO = """
This page compares `AnyOrderARClassifier` with other classifiers, all with default parameters, and
with the small ResNet of [the test of the claims](claims.md), trained on 16 views per image. The
tasks need no download unless a package is named. Nothing was tuned on these test data.

`python -m benchmarks.quality.tasks`; {machine}, one thread per job. Numbers are means over the
seeds, which draw the split, the images and the weights. *Accuracy* has its standard deviation.
*Nats* is the mean negative log-probability of the true class. *ECE* is the expected calibration
error with 15 bins. A dash means that a classifier has no probabilities. *Fit* is the CPU time of
one `fit`. *Predict* is the CPU time of `predict` per image or row, in batches.
"""
ABOUT = {
    "digits": "scikit-learn's handwritten digits, 8 x 8",
    "glyphs": "ten letters in many fonts and colours, 32 x 32",
    "textures": "patches of two photographs, 16 x 16; the class is the area that a patch is from, "
    "and test patches come from stripes that training does not show",
    "characters": "100 synthetic characters with 20 images each, 32 x 32",
    "animals": "silhouettes of ten animals, 28 x 28 (package `animal-mnist`)",
    "iris": "a table",
    "wine": "a table",
    "breast cancer": "a table",
    "digits as a table": "the digits as 64 columns, not as images",
}
# Why probabilities are less well calibrated on a task
NOTES = {
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


def task_table(rows):
    """Return the table of one task, the most accurate contestant first."""
    groups = {}
    for row in rows:
        groups.setdefault(row["contestant"], []).append(row)
    names = sorted(groups, key=lambda name: -np.mean([r["accuracy"] for r in groups[name]]))
    lines = []
    for name in names:
        label = name if name.endswith(("ResNet", "scaled")) else f"`{name}`"
        lines.append([label, *(cell(groups[name], c) for c in COLUMNS), len(groups[name])])
    return common.table(["", *(title for title, _, _ in COLUMNS.values()), "Seeds"], lines)


def defaults(rows):
    """Return a sentence with the values that the defaults chose."""
    choices = [row["chosen"] for row in rows if "chosen" in row]
    text = {}
    for key in choices[0]:
        values = sorted({choice[key] for choice in choices})
        text[key] = " or ".join(f"{v:.3g}" if isinstance(v, float) else str(v) for v in values)
    return (
        f"The defaults chose {text['tokens']} tokens, {text['codes']} codes, {text['layers']} "
        f"layers of width {text['width']} and {text['epochs']} epochs. The temperature is "
        f"{text['temperature']}."
    )


def chance(rows):
    """Return a sentence with the ECE of a perfectly calibrated classifier, if it is known."""
    known = [row["chance_ece"] for row in rows if "chance_ece" in row and "chosen" in row]
    if not known:
        return ""
    return (
        "Perfectly calibrated probabilities of `AnyOrderARClassifier()` would have an ECE of "
        f"{100 * np.mean(known):.1f} % on this test set."
    )


def page(results):
    machines = " and ".join(sorted({row["machine"] for row in results}))
    blocks = []
    for name in dict.fromkeys(row["task"] for row in results):
        rows = [row for row in results if row["task"] == name]
        first = ABOUT[name][0].upper() + ABOUT[name][1:]
        blocks += [
            f"## {name.capitalize()}",
            f"{first}; {rows[0]['n']} training and {rows[0]['n_test']} test samples.",
            task_table(rows),
            defaults(rows),
            chance(rows),
            NOTES.get(name, ""),
        ]
    return common.page(
        "Default parameters on a table of tasks", INTRO.strip().format(machine=machines), *blocks
    )
