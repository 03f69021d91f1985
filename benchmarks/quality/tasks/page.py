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
The classifier of this library with default parameters, on tasks that need no download. It is
compared with scikit-learn's classifiers, also with default parameters unless the table shows
others, and with the small ResNet of [the claims](claims.md), trained on 16 views of each image.
Nothing was tuned on the test data.

`python -m benchmarks.quality.tasks`; {machine}, one thread for each job. Accuracy is the mean over
the seeds with its standard deviation; a seed determines the split, the images and the weights.
*Fit* is the CPU time of one `fit`, *predict* that of `predict` per image or row, in batches. *Nats*
are the mean negative log-probability of the true class. *ECE* is the expected calibration error in
15 bins. A dash marks classifiers without probabilities.
"""
ABOUT = {
    "digits": "scikit-learn's handwritten digits, 8 x 8",
    "glyphs": "ten letters in many fonts and colours, 32 x 32",
    "textures": "patches of 16 x 16 from two photographs, to be assigned to twelve areas; the test "
    "patches come from stripes that no training patch shows",
    "characters": "100 synthetic characters with 20 images each, 32 x 32",
    "animals": "silhouettes of ten animals, 28 x 28 (package `animal-mnist`)",
    "iris": "a table",
    "wine": "a table",
    "breast cancer": "a table",
    "digits as a table": "the digits as 64 columns, not as images",
}
NOTES = {
    "textures": "Training patches overlap each other and also the held-out ones, of which 88.6 % "
    "are right ([views and the posterior](benchmarks.md#views-and-the-posterior)). A temperature "
    "that calibrates the held-out patches is therefore too low for patches from other stripes.",
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
    """Return a sentence about the values that the default parameters were resolved to."""
    choices = [row["chosen"] for row in rows if "chosen" in row]
    text = {}
    for key in choices[0]:
        values = sorted({choice[key] for choice in choices})
        text[key] = " or ".join(f"{v:.3g}" if isinstance(v, float) else str(v) for v in values)
    return (
        f"Chosen by default: {text['tokens']} tokens of {text['codes']} codes, a prior of "
        f"{text['layers']} layers of width {text['width']}, {text['epochs']} epochs, temperature "
        f"{text['temperature']}."
    )


def chance(rows):
    """Return a sentence about the calibration error that is due to chance, if it was measured."""
    known = [row["chance_ece"] for row in rows if "chance_ece" in row and "chosen" in row]
    if not known:
        return ""
    return (
        f"An ECE of {100 * np.mean(known):.1f} % is due to chance: it results for "
        "`AnyOrderARClassifier()` if labels are drawn from its own probabilities."
    )


def page(results):
    machines = " and ".join(sorted({row["machine"] for row in results}))
    blocks = []
    for name in dict.fromkeys(row["task"] for row in results):
        rows = [row for row in results if row["task"] == name]
        first = ABOUT[name][0].upper() + ABOUT[name][1:]
        blocks += [
            f"## {name.capitalize()}",
            f"{first}; {rows[0]['n']} for training, {rows[0]['n_test']} for testing.",
            task_table(rows),
            defaults(rows),
            chance(rows),
            NOTES.get(name, ""),
        ]
    return common.page(
        "Default parameters on a table of tasks", INTRO.strip().format(machine=machines), *blocks
    )
