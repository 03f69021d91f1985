"""The verdict on each claim, with a confidence interval over the seeds."""

import numpy as np
from scipy import stats

from .contestants import BOUNDED, DISCRIMINATIVE
from .measures import TABLE_ORDERS, TABLE_TIMESTEPS, relative_drop

OURS, RASTER, DIFFUSION, MASKED = "any-order AR", "raster AR", "diffusion", "masked"
SHARED, DEFAULTS = "shared trunk", "our defaults"
ANY_ORDER = (OURS, SHARED, DEFAULTS)
CLAIM_SUFFIX = {OURS: "", DEFAULTS: ", defaults", BOUNDED: ", bounded"}
DESCRIPTION = {OURS: "our method", DEFAULTS: DEFAULTS}
CONFIDENCE = 0.95
SATURATED = 0.995  # at this accuracy or above, no gain is expected
TOLERANCE = 0.01  # difference of accuracy up to which a model counts as equally accurate
CHEAPER = 25  # ratio of operations that the paper claims
AGGREGATION = "mean_log_likelihood"


def interval(values):
    """Return the mean and the half-width of Student's 95 % interval (infinite for one value)."""
    values = np.asarray(values, dtype=float)
    if len(values) < 2:
        return float(values.mean()), float("inf")
    error = values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean()), float(error * stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1))


class Results:
    """Results of a run. Methods that return arrays return one value for each seed."""

    def __init__(self, record):
        self.rows = record["results"]
        jobs = [row["job"] for row in self.rows]
        self.tasks = list(dict.fromkeys(j["task"] for j in jobs if j["experiment"] == "standard"))
        self.kinds = list(dict.fromkeys(j["kind"] for j in jobs if "kind" in j))
        self.seeds = sorted({job["seed"] for job in jobs})

    def find(self, experiment, **where):
        """Return the results of an experiment, sorted by seed."""
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
        """Return a measure of a contestant at one setting."""
        return np.array([
            next(p[key] for p in row["points"] if setting.items() <= p.items())
            for row in self.standard(task, contestant)
        ])  # fmt: skip

    def table_setting(self, contestant):
        """Return the setting of a contestant in tables that have one row per contestant."""
        if contestant in ANY_ORDER:
            return {"orders": self.table_orders(), "aggregation": AGGREGATION}
        if contestant == DIFFUSION:
            steps = [p["steps"] for p in self.find("standard", contestant=DIFFUSION)[0]["points"]]
            return {"steps": min(TABLE_TIMESTEPS, max(steps))}
        if contestant == MASKED:
            points = self.find("standard", contestant=MASKED)[0]["points"]
            return {"masks": max(p["masks"] for p in points)}
        return {}

    def table_orders(self):
        points = self.find("standard", contestant=OURS)[0]["points"]
        return min(TABLE_ORDERS, max(p["orders"] for p in points))

    def accuracy(self, task, contestant):
        return self.points(task, contestant, **self.table_setting(contestant))

    def best(self, task, names):
        """Return the contestant with the highest mean accuracy."""
        return max(names, key=lambda name: self.accuracy(task, name).mean())

    def drops(self, task, contestant, shift=None):
        """Return the fraction of accuracy lost by a shift, or the mean over all shifts if None."""
        out = []
        for row in self.standard(task, contestant):
            shifts = row["shifts"].values() if shift is None else [row["shifts"][shift]]
            out.append(relative_drop(row["unshifted"], list(shifts)))
        return np.array(out)


def gains_of_orders(results, task):
    """Return the accuracy with all orders minus the mean accuracy with a single order."""
    single = [np.mean(row["fixed_orders"]["random"]) for row in results.standard(task, OURS)]
    return results.accuracy(task, OURS) - single


def one_order(results, task):
    """Return accuracies with one order, by the name of the order."""
    rows = results.standard(task, OURS)
    named = [key for key in rows[0]["fixed_orders"] if key not in ("random", "disagreement")]
    one = {f"{OURS}, {name}": np.array([r["fixed_orders"][name] for r in rows]) for name in named}
    return {"raster, trained for it": results.accuracy(task, RASTER)} | one


def default_aggregation(points):
    """Return the points that have the default aggregation or no aggregation."""
    return [p for p in points if p.get("aggregation", AGGREGATION) == AGGREGATION]


def cheapest(points, target):
    """Return the operations of the cheapest setting that reaches the target accuracy.

    All more expensive settings of the same search must reach the target, too. If no setting does,
    the result is None.
    """
    reached = []
    for search in {p.get("search") for p in points}:
        curve = [p for p in default_aggregation(points) if p.get("search") == search]
        curve.sort(key=lambda p: p["flops"])
        enough = [all(q["accuracy"] >= target for q in curve[i:]) for i in range(len(curve))]
        reached += [p["flops"] for p, ok in zip(curve, enough) if ok]
    return min(reached, default=None)


def cost_ratios(results, task, contestant=OURS, slack=0.005):
    """Return the operations of diffusion divided by those of a contestant, at equal accuracy.

    The target is the lower accuracy of the two models at their most expensive settings, minus
    `slack`. The operations are those of the cheapest setting of each model that reaches the target.
    """
    ratios = []
    for ours, theirs in zip(results.standard(task, contestant), results.standard(task, DIFFUSION)):
        last = (
            max(default_aggregation(r["points"]), key=lambda p: p["flops"]) for r in (ours, theirs)
        )
        target = min(point["accuracy"] for point in last) - slack
        ratios.append(cheapest(theirs["points"], target) / cheapest(ours["points"], target))
    return np.array(ratios)


def positive(value, half):
    """Judge a claim that a difference is positive."""
    if value - half > 0:
        return "confirmed"
    return "not confirmed" if value + half >= 0 else "refuted"


def level(value, half):
    """Judge a claim that a difference is at most one point below zero."""
    if value - half >= -TOLERANCE:
        return "confirmed"
    return "not confirmed" if value + half >= -TOLERANCE else "refuted"


def much_cheaper(value, half):
    """Judge the claim of a ratio of up to 25 by its logarithm. A ratio below 1 refutes it."""
    if value - half >= np.log10(CHEAPER):
        return "confirmed"
    return "not confirmed" if value + half >= 0 else "refuted"


def saturated(value, half):
    """Give no verdict, because the accuracy is near its maximum."""
    return "nothing left to gain"


def answers(results):
    """Return the verdict on each claim for each task.

    Returns
    -------
    rows : list of dict
        Each dict contains ``"claim"``, ``"task"`` and ``"verdict"``. ``"value"`` and ``"half"`` are
        the centre and the half-width of the interval, and ``"meaning"`` describes the value. The
        ``"unit"`` is points, or times if the value is a logarithm.
    """
    rows = []

    def add(claim, task, values, meaning, judge=positive, unit="points"):
        value, half = interval(values)
        row = {"claim": claim, "task": task, "value": value, "half": half}
        rows.append(row | {"verdict": judge(value, half), "meaning": meaning, "unit": unit})

    k = results.table_orders()
    for task in results.tasks:
        gain = f"accuracy with {k} orders minus accuracy"
        add("more orders", task, gains_of_orders(results, task), f"{gain} with one order")

        ours, single = results.accuracy(task, OURS), one_order(results, task)
        name = max(single, key=lambda name: single[name].mean())
        judge = saturated if ours.mean() >= SATURATED else positive
        add("one order", task, ours - single[name], f"{gain} with {name}", judge)

        gap = ours - results.accuracy(task, DIFFUSION)
        add("diffusion, accuracy", task, gap, "accuracy minus the accuracy of diffusion")
        meaning = "operations of diffusion divided by those of our method, at equal accuracy"
        ratios = np.log10(cost_ratios(results, task))
        add("diffusion, compute", task, ratios, meaning, much_cheaper, "times")

        if SHARED in results.contestants(task):
            gap = results.accuracy(task, SHARED) - ours
            add(
                "shared trunk, accuracy", task, gap, f"accuracy minus the accuracy of {OURS}", level
            )
            ratios = np.log10(cost_ratios(results, task, SHARED))
            add("shared trunk, compute", task, ratios, meaning, much_cheaper, "times")

        rival = results.best(task, [n for n in results.contestants(task) if n in DISCRIMINATIVE])
        for name in (n for n in (OURS, DEFAULTS) if n in results.contestants(task)):
            gap = results.accuracy(task, name) - results.accuracy(task, rival)
            add(
                "discriminative" + CLAIM_SUFFIX[name],
                task,
                gap,
                f"accuracy minus the accuracy of {rival}",
                level,
            )
            gap = results.drops(task, rival) - results.drops(task, name)
            meaning = f"accuracy lost by {rival} minus accuracy lost by {DESCRIPTION[name]}"
            add("shifts" + CLAIM_SUFFIX[name], task, gap, meaning)
    for kind in results.kinds:
        accuracies = {
            name: shortcut(results, kind, name, "conflicting")
            for name in (*CLAIM_SUFFIX, *DISCRIMINATIVE)
            if results.find("shortcut", kind=kind, contestant=name)
        }
        ours = {name: accuracies.pop(name) for name in CLAIM_SUFFIX if name in accuracies}
        rival = max(accuracies, key=lambda name: accuracies[name].mean())
        meaning = f"accuracy on images with the mark of another class minus accuracy of {rival}"
        for name, accuracy in ours.items():
            add("shortcuts" + CLAIM_SUFFIX[name], kind, accuracy - accuracies[rival], meaning)
    return rows


def shortcut(results, kind, contestant, key):
    return np.array(
        [row[key] for row in results.find("shortcut", kind=kind, contestant=contestant)]
    )
