"""The measures and verdicts of benchmarks/claims, and that its runs can be resumed."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from conftest import small_classifier
from skaocls import AnyOrderARClassifier
from skaocls.scoring.aggregation import AGGREGATIONS

with pytest.MonkeyPatch.context() as patch:  # the scripts import each other
    patch.syspath_prepend(Path(__file__).parents[1] / "benchmarks" / "claims")
    import answers
    import contestants
    import experiments
    import measures
    import plans
    from diffusion import DiffusionClassifier

    file = Path(plans.__file__).with_name("__main__.py")
    spec = importlib.util.spec_from_file_location("claims_main", file)
    runner = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(runner)


def test_named_orders():
    named = measures.named_orders(3, 3)
    assert named["raster"].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8]
    assert named["snake"].tolist() == [0, 1, 2, 5, 4, 3, 6, 7, 8]
    assert named["spiral"].tolist() == [0, 1, 2, 5, 8, 7, 6, 3, 4]
    assert named["centre-out"].tolist() == [4, 1, 3, 5, 7, 0, 2, 6, 8]
    for path in measures.named_orders(2, 5).values():
        assert sorted(path) == list(range(10))


def test_interval():
    """1, 2, 3: mean 2, standard error 1 / sqrt(3), Student's quantile with 2 degrees 4.303."""
    value, half = answers.interval([1, 2, 3])
    assert value == 2
    assert half == pytest.approx(4.303 / np.sqrt(3), rel=1e-3)
    assert answers.interval([5]) == (5, np.inf)


def test_verdicts():
    assert answers.positive(0.02, 0.01) == "confirmed"
    assert answers.positive(0.02, 0.03) == answers.positive(-0.02, 0.03) == "not confirmed"
    assert answers.positive(-0.02, 0.01) == "refuted"
    assert answers.level(-0.005, 0.004) == "confirmed"
    assert answers.level(-0.02, 0.015) == "not confirmed"
    assert answers.level(-0.03, 0.01) == "refuted"
    assert answers.much_cheaper(np.log10(30), np.log10(1.1)) == "confirmed"
    assert answers.much_cheaper(np.log10(30), np.log10(1.5)) == "not confirmed"
    assert answers.much_cheaper(np.log10(8), np.log10(1.1)) == "not confirmed"
    assert answers.much_cheaper(np.log10(0.5), np.log10(1.5)) == "refuted"


def test_cheapest():
    """The first setting from which on accuracy stays; each search is a curve of its own."""
    points = [
        {"flops": 1, "accuracy": 0.9, "orders": 1},
        {"flops": 2, "accuracy": 0.8, "orders": 2},
        {"flops": 4, "accuracy": 0.9, "orders": 4},
        {"flops": 3, "accuracy": 0.95, "orders": 4, "aggregation": "logsumexp"},
    ]
    assert answers.cheapest(points, 0.85) == 4
    assert answers.cheapest(points, 0.7) == 1
    assert answers.cheapest(points, 0.92) is None
    assert (
        answers.cheapest([*points, {"flops": 2.5, "accuracy": 0.9, "search": "racing"}], 0.9) == 2.5
    )


def test_relative_drop():
    assert measures.relative_drop(0.8, [0.8, 0.4]) == pytest.approx(0.25)
    assert measures.relative_drop(0.0, [0.1]) == 0.0


def test_point_is_calibrated_by_the_other_half():
    """Overconfident log-odds: the temperature lowers NLL and ECE, and moves no answer."""
    rng = np.random.RandomState(0)
    labels = rng.randint(2, size=2000)
    shown = np.where(rng.rand(2000) < 0.8, labels, 1 - labels)
    log_joint = 9.0 * np.eye(2)[shown]
    row = measures.point(log_joint, labels, 10, 0.1, orders=3)
    assert row["accuracy"] == pytest.approx(0.8, abs=0.03) and row["orders"] == 3
    entropy = -0.8 * np.log(0.8) - 0.2 * np.log(0.2)
    assert row["nll_tempered"] == pytest.approx(entropy, abs=0.03) and row["nll"] > 1.5
    assert row["ece_tempered"] < 0.03 < 0.15 < row["ece"]


@pytest.fixture(scope="module")
def digits():
    X, y, X_test, y_test = contestants.load("digits", 0)
    return X[:200], y[:200], X_test[:60], y_test[:60]


def test_points_of_ours(digits):
    """Every number of orders is what a classifier with so many orders scores."""
    X, y, X_test, y_test = digits
    clf = small_classifier(AnyOrderARClassifier, n_orders=4).fit(X, y)
    found = measures.clean(clf, X_test, y_test)
    points, row = found["points"], found["fixed_orders"]
    for k, score in enumerate(clf.staged_score(X_test, y_test), 1):
        same = [p["accuracy"] for p in points if p["orders"] == k and "search" not in p]
        assert k == 3 or same[0] == score
    assert {p["aggregation"] for p in points if "search" not in p} == set(AGGREGATIONS)
    (raced,) = (p for p in points if p.get("search") == "racing")
    whole = next(p for p in points if p["orders"] == 4)
    assert 0 < raced["flops"] <= whole["flops"] and raced["agrees"] > 0.9
    assert (clf.search, clf.n_orders) == ("exhaustive", 4)

    assert len(row["random"]) == 4 and row["random"][0] == next(clf.staged_score(X_test, y_test))
    raster = clf.set_params(order="raster").score(X_test, y_test)
    assert row["raster"] == raster and 0 <= row["disagreement"] < 1


def test_points_of_diffusion(digits):
    X, y, X_test, y_test = digits
    sizes = {"dim": 32, "n_layer": 1, "n_head": 2, "n_timesteps": 8}
    clf = DiffusionClassifier(**sizes, max_iter=2, random_state=0).fit(X, y)
    points = measures.clean(clf, X_test, y_test)["points"]
    whole = [p for p in points if "search" not in p]
    assert [p["steps"] for p in whole] == [1, 2, 4, 8]
    assert whole[-1]["accuracy"] == np.mean(clf.predict(X_test) == y_test)
    assert whole[-1]["flops"] == pytest.approx(8 * whole[0]["flops"])
    assert [p["steps"] for p in points if p.get("search") == "elimination"] == [4, 8]
    assert not clf.adaptive and clf.n_timesteps == 8


def test_shortcut_of_a_perfect_mark(digits, monkeypatch):
    """A learner of the mark alone is right where it agrees, and fooled where it does not."""

    class Marked:
        def fit(self, X, y):
            return self

        def predict(self, X):
            return np.arange(10)[X.reshape(len(X), -1).argmax(1)]

    def put(images, labels, n_classes, agreement, kind, seed):
        marks = (labels + 1) % 10 if agreement == "reversed" else labels
        return np.eye(10)[marks][:, None, :, None], marks

    monkeypatch.setattr(experiments, "load", lambda *args: digits)
    monkeypatch.setattr(experiments, "with_shortcut", put)
    monkeypatch.setattr(experiments, "make", lambda *args: Marked())
    row = experiments.shortcut("digits", 0, "SVC", {}, "corner")
    assert row["agreeing"] == row["random"] == row["fooled"] == 1 and row["conflicting"] == 0


def test_every_contestant_is_tuned_on_every_task():
    names = {*contestants.GENERATIVE, *contestants.DISCRIMINATIVE}
    for settings in plans.SETTINGS.values():
        assert set(settings) == names
    for job in plans.FULL:
        contestants.make(job["contestant"], job["seed"], job["params"])


def test_chosen_settings_are_the_best_that_were_tried():
    """The first of equals; in the order of the plan, whatever the order of the record."""
    file = Path(__file__).parents[1] / "benchmarks" / "results" / "claims-tuning.json"
    rows = json.loads(file.read_text())["results"]
    for task, settings in plans.SETTINGS.items():
        for name, tried in plans.GRID[task].items():
            found = [
                next(
                    row["accuracy"]
                    for row in rows
                    if (row["job"]["task"], row["job"]["contestant"]) == (task, name)
                    and row["job"]["params"] == json.loads(json.dumps(params))
                )
                for params in tried
            ]
            assert settings[name] == tried[int(np.argmax(found))]


def test_finished_jobs_are_not_run_again(tmp_path, monkeypatch):
    """A job is known by its settings; what a crash leaves half written does not count."""
    calls = []

    def experiment(task, seed, contestant, params):
        calls.append(params)
        return {"accuracy": 0.5}

    monkeypatch.setitem(runner.EXPERIMENTS, "trial", experiment)
    job = {"experiment": "trial", "task": "digits", "seed": 0, "contestant": "any-order AR"}
    job["params"] = {"hidden": (3, 4)}
    assert runner.finished(job, tmp_path) is None
    runner.run(job, tmp_path)
    result = runner.finished(job, tmp_path)
    assert result["accuracy"] == 0.5 and result["job_seconds"] >= 0
    assert [file.name for file in tmp_path.iterdir()] == ["trial-digits-0-any-order-AR.json"]
    assert runner.finished(job | {"params": {"hidden": (3, 5)}}, tmp_path) is None
    assert calls == [{"hidden": (3, 4)}]


def test_standardized_tokens_do_not_know_contrast(digits):
    X, _, X_test, _ = digits
    tokenizer = contestants.StandardizedTokenizer(n_codes=64, random_state=0).fit(X)
    tokens = tokenizer.transform(X_test)
    assert np.mean(tokenizer.transform(0.3 * X_test + 0.4) == tokens) > 0.99
    assert len(np.unique(tokens)) > 30


@pytest.mark.parametrize("marked", [None, "corner"])
def test_remedy_reads_one_training_in_several_ways(digits, monkeypatch, marked):
    X, y, X_test, y_test = digits
    clf = small_classifier(AnyOrderARClassifier, n_orders=4).fit(X, y)
    monkeypatch.setattr(experiments, "load", lambda *args: digits)
    monkeypatch.setattr(experiments, "fitted", lambda *args: (clf, 1.0))
    monkeypatch.setattr(experiments, "SHIFTS", {"none": lambda X, severity, seed: X})
    monkeypatch.setattr(experiments, "with_shortcut", lambda X, y, *args: (X, y))
    readings = [{}, {"n_orders": 1}, {"order": "antithetic", "n_orders": 2}]
    where = "digits", 0, "any-order AR", {}, "a change", readings, marked
    rows = experiments.remedy(*where)["readings"]
    for row, reading in zip(rows, readings):
        twin = small_classifier(AnyOrderARClassifier, **{"n_orders": 4} | reading).fit(X, y)
        assert row["accuracy"] == twin.score(X_test, y_test)
        assert ("drop" in row) == (marked is None)
        if marked is None:  # racing might, but hardly does, decide otherwise
            assert row["drop"] == pytest.approx(0, abs=0.05)
    assert rows[1]["single"] == rows[1]["accuracy"]
