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
This page compares `AnyOrderARClassifier` with other classifiers. All classifiers have default
parameters unless the table states others. On images, another competitor is the small ResNet of
[the test of the claims](claims.md), which is trained on 16 views per image. Only tasks that name a
package need a download. No parameter was tuned on the test data of this page.

Measured with `python -m benchmarks.quality.tasks`, one thread per job: {machines}.

Numbers are means over the seeds. The seed determines the split, the images and the initial weights.
*Accuracy* is in percent, with the standard deviation over the seeds. *Nats* is the mean negative
log-probability of the true class. *ECE* is the expected calibration error with 15 bins. Even for
perfectly calibrated probabilities, the ECE on a finite test set is above zero. A dash means that a
classifier does not predict probabilities. *Fit* is the CPU time of one `fit`. *Predict* is the CPU
time per image or table row if one call of `predict` processes many images or rows.
"""
ABOUT = {
    "digits": "scikit-learn's handwritten digits, 8 x 8 pixels",
    "glyphs": "ten letters in many fonts and colours, 32 x 32 pixels",
    "textures": "patches of 16 x 16 pixels from two photographs. The class of a patch is the area "
    "of the photographs that contains the patch. Test patches come from stripes without training "
    "patches",
    "characters": "100 synthetic characters with 20 training images each, 32 x 32 pixels",
    "animals": "silhouettes of ten animals, 28 x 28 pixels (package `animal-mnist`)",
    "iris": "a table of scikit-learn",
    "wine": "a table of scikit-learn",
    "breast cancer": "a table of scikit-learn",
    "digits as a table": "the digits as 64 columns, not as images",
}
# Why probabilities are less well calibrated on a task
NOTES = {
    "textures": "`fit` holds out a part of the patches. The held-out patches overlap with training "
    "patches, so the classifier predicts the correct class for 88.6 % of the held-out patches "
    "([views and the posterior](benchmarks.md#views-and-the-posterior)). The accuracy on test "
    "patches, which come from other stripes, is much lower. Therefore a temperature that is fitted "
    "on the held-out patches is too low for the test patches.",
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
        f"With default parameters, `AnyOrderARClassifier()` chose {text['tokens']} tokens, "
        f"{text['codes']} codes, {text['layers']} layers of width {text['width']} and "
        f"{text['epochs']} epochs. The temperature is {text['temperature']}."
    )


def chance(rows):
    """Return a sentence with the ECE of a perfectly calibrated classifier, if it is known."""
    known = [row["chance_ece"] for row in rows if "chance_ece" in row and "chosen" in row]
    if not known:
        return ""
    return (
        "If the probabilities of `AnyOrderARClassifier()` were perfectly calibrated, the expected "
        f"ECE on this test set would be {100 * np.mean(known):.1f} %."
    )


def machines_of(results):
    """Return a sentence part with the processors that measured our rows and the other rows."""
    ours = [row for row in results if "AnyOrderAR" in row["contestant"]]
    others = [row for row in results if row not in ours]
    if common.machines(ours) == common.machines(others):
        return f"on {common.machines(ours)}"
    return (
        f"`AnyOrderARClassifier` on {common.machines(ours)}, the others on "
        f"{common.machines(others)}. Their times are therefore not comparable. Other processes "
        "slowed down the former"
    )


def page(results):
    blocks = []
    for name in dict.fromkeys(row["task"] for row in results):
        rows = [row for row in results if row["task"] == name]
        first = ABOUT[name][0].upper() + ABOUT[name][1:]
        blocks += [
            f"## {name.capitalize()}",
            f"{first}. The task has {rows[0]['n']} training samples and {rows[0]['n_test']} test "
            "samples.",
            task_table(rows),
            defaults(rows),
            chance(rows),
            NOTES.get(name, ""),
        ]
    return common.page(
        "Default parameters on a table of tasks",
        INTRO.strip().format(machines=machines_of(results)),
        *blocks,
    )
