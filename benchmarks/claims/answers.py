"""From results to the answers: what each claim comes to, with an interval over the seeds."""

import numpy as np
from contestants import DISCRIMINATIVE
from measures import SHOWN_ORDERS, SHOWN_TIMESTEPS, relative_drop
from scipy import stats

OURS, RASTER, DIFFUSION, MASKED = "any-order AR", "raster AR", "diffusion", "masked"
SHARED, DEFAULTS = "shared trunk", "our defaults"
ANY_ORDER = (OURS, SHARED, DEFAULTS)
OF = {OURS: "", DEFAULTS: ", defaults"}  # ends of a claim's name, by whose it is
SAID = {OURS: "ours", DEFAULTS: DEFAULTS}
CONFIDENCE = 0.95
GOOD_ENOUGH = 0.995  # accuracy at which a gain of a point is no longer asked
LEVEL = 0.01  # a gap in accuracy that is none
CHEAPER = 25
AGGREGATION = "mean_log_likelihood"


def interval(values):
    """Mean, and half of the width of Student's 95 % interval; infinite for a single value."""
    values = np.asarray(values, dtype=float)
    if len(values) < 2:
        return float(values.mean()), float("inf")
    error = values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean()), float(error * stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1))


class Results:
    """Look-up of results: every number comes as an array with one value for each seed."""

    def __init__(self, record):
        self.rows = record["results"]
        jobs = [row["job"] for row in self.rows]
        self.tasks = list(dict.fromkeys(j["task"] for j in jobs if j["experiment"] == "standard"))
        self.kinds = list(dict.fromkeys(j["kind"] for j in jobs if "kind" in j))
        self.seeds = sorted({job["seed"] for job in jobs})

    def find(self, experiment, **where):
        """Results of an experiment, by seed."""
        found = [
            row
            for row in self.rows
            if row["job"]["experiment"] == experiment
            and all(row["job"].get(key) == value for key, value in where.items())
        ]
        return sorted(found, key=lambda row: row["job"]["seed"])

    def standard(self, task, contestant):
        return self.find("standard", task=task, contestant=contestant)

    def contestants(self, task):
        return list(dict.fromkeys(
            row["job"]["contestant"] for row in self.find("standard", task=task)
        ))  # fmt: skip

    def points(self, task, contestant, key="accuracy", **setting):
        """A number at one setting of a contestant."""
        return np.array([
            next(p[key] for p in row["points"] if setting.items() <= p.items())
            for row in self.standard(task, contestant)
        ])  # fmt: skip

    def shown(self, contestant):
        """The setting at which a contestant is shown where there is one number."""
        if contestant in ANY_ORDER:
            return {"orders": self.orders_shown(), "aggregation": AGGREGATION}
        if contestant == DIFFUSION:
            steps = [p["steps"] for p in self.find("standard", contestant=DIFFUSION)[0]["points"]]
            return {"steps": min(SHOWN_TIMESTEPS, max(steps))}
        if contestant == MASKED:
            points = self.find("standard", contestant=MASKED)[0]["points"]
            return {"masks": max(p["masks"] for p in points)}
        return {}

    def orders_shown(self):
        points = self.find("standard", contestant=OURS)[0]["points"]
        return min(SHOWN_ORDERS, max(p["orders"] for p in points))

    def accuracy(self, task, contestant):
        return self.points(task, contestant, **self.shown(contestant))

    def best(self, task, names):
        """The one of the highest mean accuracy."""
        return max(names, key=lambda name: self.accuracy(task, name).mean())

    def drops(self, task, contestant, shift=None):
        """Share of the accuracy that a shift takes, over its severities, or the mean of all."""
        out = []
        for row in self.standard(task, contestant):
            shifts = row["shifts"].values() if shift is None else [row["shifts"][shift]]
            out.append(relative_drop(row["unshifted"], list(shifts)))
        return np.array(out)


def gains_of_orders(results, task):
    """Accuracy of all orders together less the mean accuracy of one."""
    single = [np.mean(row["fixed_orders"]["random"]) for row in results.standard(task, OURS)]
    return results.accuracy(task, OURS) - single


def one_order(results, task):
    """Accuracies with one order, by what it is."""
    rows = results.standard(task, OURS)
    named = [key for key in rows[0]["fixed_orders"] if key not in ("random", "disagreement")]
    one = {f"{OURS}, {name}": np.array([r["fixed_orders"][name] for r in rows]) for name in named}
    return {"raster, trained for it": results.accuracy(task, RASTER)} | one


def usual(points):
    """Those of the usual aggregation, and those that know none."""
    return [p for p in points if p.get("aggregation", AGGREGATION) == AGGREGATION]


def cheapest(points, target):
    """Operations of the cheapest setting that reaches an accuracy, as do all dearer ones like it.

    None if there is none.
    """
    reached = []
    for search in {p.get("search") for p in points}:
        alike = [p for p in usual(points) if p.get("search") == search]
        alike.sort(key=lambda p: p["flops"])
        enough = [all(q["accuracy"] >= target for q in alike[i:]) for i in range(len(alike))]
        reached += [p["flops"] for p, ok in zip(alike, enough) if ok]
    return min(reached, default=None)


def cost_ratios(results, task, contestant=OURS, slack=0.005):
    """Operations of the diffusion classifier over a contestant's, at equal accuracy, by seed.

    Equal: the lower of the two best accuracies, less `slack`; each at its cheapest setting.
    """
    ratios = []
    for ours, theirs in zip(results.standard(task, contestant), results.standard(task, DIFFUSION)):
        last = (max(usual(r["points"]), key=lambda p: p["flops"]) for r in (ours, theirs))
        target = min(point["accuracy"] for point in last) - slack
        ratios.append(cheapest(theirs["points"], target) / cheapest(ours["points"], target))
    return np.array(ratios)


def positive(value, half):
    """Verdict on a gap that the claim says is above zero."""
    if value - half > 0:
        return "confirmed"
    return "not confirmed" if value + half >= 0 else "refuted"


def level(value, half):
    """Verdict on a gap that the claim says is none: at most a point below."""
    if value - half >= -LEVEL:
        return "confirmed"
    return "not confirmed" if value + half >= -LEVEL else "refuted"


def much_cheaper(value, half):
    """Verdict on the logarithm of a ratio that is to be 25; up to that is claimed, so 1 refutes."""
    if value - half >= np.log10(CHEAPER):
        return "confirmed"
    return "not confirmed" if value + half >= 0 else "refuted"


def saturated(value, half):
    """No verdict: nothing is left to gain."""
    return "nothing left to gain"


def answers(results):
    """What each claim comes to on each task.

    Returns
    -------
    rows : list of dict
        ``"claim"``, ``"task"``, ``"value"`` and ``"half"`` of the interval, ``"verdict"``,
        ``"meaning"`` of the value and its ``"unit"``: points, or times for a logarithm.
    """
    rows = []

    def add(claim, task, values, meaning, judge=positive, unit="points"):
        value, half = interval(values)
        row = {"claim": claim, "task": task, "value": value, "half": half}
        rows.append(row | {"verdict": judge(value, half), "meaning": meaning, "unit": unit})

    k = results.orders_shown()
    for task in results.tasks:
        gain = f"accuracy with {k} orders minus accuracy"
        add("more orders", task, gains_of_orders(results, task), f"{gain} with one order")

        ours, single = results.accuracy(task, OURS), one_order(results, task)
        name = max(single, key=lambda name: single[name].mean())
        judge = saturated if ours.mean() >= GOOD_ENOUGH else positive
        add("one order", task, ours - single[name], f"{gain} with {name}", judge)

        gap = ours - results.accuracy(task, DIFFUSION)
        add("diffusion, accuracy", task, gap, "accuracy minus that of the diffusion classifier")
        what = "operations of the diffusion classifier divided by ours, at equal accuracy"
        ratios = np.log10(cost_ratios(results, task))
        add("diffusion, compute", task, ratios, what, much_cheaper, "times")

        if SHARED in results.contestants(task):
            gap = results.accuracy(task, SHARED) - ours
            add("shared trunk, accuracy", task, gap, f"accuracy minus that of {OURS}", level)
            ratios = np.log10(cost_ratios(results, task, SHARED))
            what = "operations of the diffusion classifier divided by ours, at equal accuracy"
            add("shared trunk, compute", task, ratios, what, much_cheaper, "times")

        rival = results.best(task, [n for n in results.contestants(task) if n in DISCRIMINATIVE])
        for name in (n for n in (OURS, DEFAULTS) if n in results.contestants(task)):
            gap = results.accuracy(task, name) - results.accuracy(task, rival)
            add("discriminative" + OF[name], task, gap, f"accuracy minus that of {rival}", level)
            gap = results.drops(task, rival) - results.drops(task, name)
            what = f"share of the accuracy lost by {rival} minus that lost by {SAID[name]}"
            add("shifts" + OF[name], task, gap, what)
    for kind in results.kinds:
        each = {
            name: shortcut(results, kind, name, "conflicting")
            for name in (OURS, DEFAULTS, *DISCRIMINATIVE)
            if results.find("shortcut", kind=kind, contestant=name)
        }
        of_ours = {name: each.pop(name) for name in (OURS, DEFAULTS) if name in each}
        rival = max(each, key=lambda name: each[name].mean())
        what = f"accuracy on images with the mark of another class minus that of {rival}"
        for name, accuracy in of_ours.items():
            add("shortcuts" + OF[name], kind, accuracy - each[rival], what)
    return rows


def shortcut(results, kind, contestant, key):
    return np.array(
        [row[key] for row in results.find("shortcut", kind=kind, contestant=contestant)]
    )
