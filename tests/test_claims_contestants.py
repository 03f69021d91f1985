"""The contestants of benchmarks/claims: diffusion classifier, networks, and operation counts."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from conftest import small_classifier
from skaocls import AnyOrderARClassifier, AnyOrderPrior
from skaocls.images.views import random_views
from skaocls.scoring import engine
from skaocls.training.loop import schedule

with pytest.MonkeyPatch.context() as patch:  # the scripts import each other
    patch.syspath_prepend(Path(__file__).parents[1] / "benchmarks" / "claims")
    import diffusion
    import elimination
    import flops
    import loops
    from diffusion import DiffusionClassifier, DiT
    from latents import PatchLatents
    from networks import NetworkClassifier

TINY = {"patch_size": 2, "dim": 32, "n_layer": 2, "n_head": 2, "n_timesteps": 16}


def two_sides(n, seed, gap=0.6, noise=0.1):
    """Noisy images whose left half (class "left") or right half (class "right") is brighter."""
    rng = np.random.RandomState(seed)
    y = np.arange(n) % 2
    X = rng.normal(0.5 - gap / 2, noise, (n, 4, 4, 1)).astype(np.float32)
    for image, side in zip(X, y):
        image[:, 2 * side : 2 * side + 2] += gap
    return X, np.array(["left", "right"])[y]


@pytest.fixture(scope="module")
def fitted():
    clf = DiffusionClassifier(
        **TINY, max_iter=60, batch_size=16, learning_rate=1e-2, random_state=1, augmentation=1
    )
    return clf.fit(*two_sides(128, 0))


@pytest.fixture(scope="module")
def three_digits(digits):
    X, y, X_test, y_test = digits
    return np.float32(X[..., None] / 16), y, np.float32(X_test[..., None] / 16), y_test


# --- training ---


def test_training_views():
    images = np.random.RandomState(0).rand(5, 8, 8, 3)
    views = loops.training_views(images, np.random.RandomState(1), 7)
    assert views.shape == (5, 7, 3, 8, 8)
    rng = np.random.RandomState(1)
    for k in range(7):
        expected = images if k in (0, 5) else random_views(images, rng)
        shown = views[:, k].float().permute(0, 2, 3, 1)
        np.testing.assert_allclose(shown, expected, atol=5e-4)


def test_training_by_hand():
    """Under a constant gradient Adam moves by its rate; what is kept is the running mean."""

    class One(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.zeros(1))

    module, seen = One(), []

    def loss(module, x, labels):
        seen.extend(x.flatten().tolist())
        return -3 * module.w.sum()  # its gradient is clipped

    state = torch.get_rng_state()
    views = torch.arange(6.0).view(6, 1, 1, 1, 1).half()
    curve = loops.train(
        module, loss, views, np.zeros(6), max_iter=10, batch_size=3, learning_rate=0.1
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert len(curve) == 10 and sorted(seen[:6]) == sorted(seen[-6:]) == [0, 1, 2, 3, 4, 5]
    w = mean = 0.0
    for step in range(20):
        w += 0.1 * schedule(step, 20)
        mean += (w - mean) * (1 - min(0.99, step / (step + 10)))
    assert mean < 0.99 * w
    np.testing.assert_allclose(module.w.item(), mean, rtol=1e-4)


# --- diffusion ---


def test_cosine_schedule():
    t = torch.tensor([0.0, 250.0, 500.0, 750.0, 1000.0])
    # cos(pi / 2 * (t + 0.008) / 1.008)^2 / cos(pi / 2 * 0.008 / 1.008)^2
    expected = [1.0, 0.847012, 0.493844, 0.144272, 0.0]
    np.testing.assert_allclose(diffusion.alpha_bar(t), expected, atol=2e-5)


@pytest.mark.parametrize("t", [30.0, 500.0, 970.0])
def test_noisy_image_has_the_right_moments(t):
    rng = torch.Generator().manual_seed(0)
    noise = torch.randn(4000, 1, 4, 4, generator=rng)
    x = diffusion.add_noise(torch.full_like(noise, 0.7), torch.full((4000,), t), noise)
    share = diffusion.alpha_bar(torch.tensor(t)).item()
    assert abs(x.mean().item() - 0.7 * share**0.5) < 0.01
    assert abs(x.var().item() - (1 - share)) < 0.01


def test_noise_loss():
    """An oracle loses nothing, one who says 0 the variance; steps, labels and pixels are right."""
    calls = []

    class Oracle(nn.Module):
        num_classes = 3

        def forward(self, x, t, labels):
            calls.append((t, labels))
            return x / (1 - diffusion.alpha_bar(t)).sqrt().view(-1, 1, 1, 1)

    torch.manual_seed(0)
    gray, labels = torch.full((2000, 1, 2, 2), 0.5), torch.arange(2000) % 3
    assert diffusion.noise_loss(Oracle(), gray, labels).item() < 1e-10
    t, seen = calls[0]
    assert t.min() >= 1 and t.max() <= 1000 and abs(t.mean() - 500.5) < 25
    null = seen == 3
    assert 0.07 < null.float().mean() < 0.13 and torch.equal(seen[~null], labels[~null])
    zero = Oracle()
    zero.forward = lambda x, t, labels: torch.zeros_like(x)
    assert abs(diffusion.noise_loss(zero, gray, labels).item() - 1) < 0.05


def test_timesteps_are_nested_and_even():
    longest = elimination.timesteps(64)
    for k in (1, 2, 4, 8, 16, 32, 64):
        t = elimination.timesteps(k)
        assert torch.equal(t, longest[:k])
        t, width = t.sort().values, 1000 / k
        np.testing.assert_allclose(t.diff(), width, rtol=1e-4)
        assert min(t[0], 1000 - t[-1]) > 0.33 * width


def test_untrained_dit_predicts_zero():
    torch.manual_seed(0)
    dit = DiT((8, 8, 3), 5, patch_size=2, dim=32, n_layer=2, n_head=2)
    x, t, labels = torch.randn(4, 3, 8, 8), torch.rand(4) * 1000, torch.tensor([0, 2, 4, 5])
    assert torch.equal(dit(x, t, labels), torch.zeros(4, 3, 8, 8))
    for p in dit.parameters():  # trained, all its inputs matter
        nn.init.normal_(p, std=0.2)
    out = dit(x, t, labels)
    assert out.std() > 0.01
    others = [(x.flip(3), t, labels), (x, t + 100, labels), (x, t, labels.flip(0))]
    assert all((dit(*other) - out).abs().max() > 1e-3 for other in others)


def test_separable_classes_are_separated(fitted):
    X, y = two_sides(60, 1)
    assert fitted.score(X, y) == 1.0
    proba = fitted.predict_proba(X)
    np.testing.assert_allclose(proba.sum(1), 1)
    np.testing.assert_array_equal(fitted.classes_[proba.argmax(1)], y)
    assert fitted.loss_curve_[-1] < 0.5 * fitted.loss_curve_[0]


def test_errors_by_hand(fitted):
    """Each image's noises are the same for all classes, and other than those of other images."""
    X, _ = two_sides(3, 7)
    seen = []
    hook = fitted.module_.register_forward_hook(lambda module, inputs, out: seen.append(inputs))
    asked = torch.tensor([[0, 1], [1, 0], [0, 1]])
    errors = fitted._errors(loops.pixels(X), asked, range(2, 5))
    hook.remove()
    ((noisy, t, labels),) = seen
    noisy, t = noisy.view(3, 2, 3, 16), t.view(3, 2, 3)
    assert torch.equal(labels.view(3, 2, 3), asked[:, :, None].expand(-1, -1, 3))
    assert torch.equal(noisy[:, 0], noisy[:, 1])
    assert torch.equal(t, elimination.timesteps(5)[2:].expand(3, 2, 3))
    share = diffusion.alpha_bar(t[:, 0])[:, :, None]
    image = 2 * torch.from_numpy(X).view(3, 1, 16) - 1
    noise = (noisy[:, 0] - share.sqrt() * image) / (1 - share).sqrt()
    assert len(noise.flatten(0, 1).round(decimals=3).unique(dim=0)) == 9
    with torch.no_grad():
        inputs = noisy[2, 1].view(3, 1, 4, 4), t[2, 1], torch.ones(3).long()
        error = (fitted.module_(*inputs).view(3, 16) - noise[2]).square().sum(1)
    np.testing.assert_allclose(errors[2, 1], error, rtol=1e-3)
    whole = fitted._errors(loops.pixels(X), torch.tensor([[0, 1], [1, 0], [0, 1]]), range(5))
    np.testing.assert_allclose(whole[:, :, 2:], errors, rtol=1e-3)


def test_answers_do_not_depend_on_the_batch(fitted, monkeypatch):
    X, _ = two_sides(12, 2)
    fitted = copy.deepcopy(fitted).set_params(temperature=20.0)  # else all are 0 or 1
    together = fitted.predict_proba(X)
    alone = np.concatenate([fitted.predict_proba(X[i : i + 1]) for i in range(12)])
    np.testing.assert_allclose(together, alone, rtol=1e-4)
    np.testing.assert_allclose(fitted.predict_proba(X[::-1])[::-1], together, rtol=1e-4)
    monkeypatch.setattr(diffusion, "NUMBERS_AT_ONCE", 7 * 4 * 32)  # seven rows at once
    np.testing.assert_allclose(fitted.predict_proba(X), together, rtol=1e-4)


def test_stages_are_classifiers_of_fewer_timesteps(fitted):
    X, _ = two_sides(20, 3)
    fitted = copy.deepcopy(fitted).set_params(n_timesteps=12, temperature=20.0)
    assert fitted.staged_timesteps() == [1, 2, 4, 8, 12]
    stages = zip(fitted.staged_predict(X), fitted.staged_predict_proba(X))
    alone = copy.deepcopy(fitted)
    for k, (predicted, proba) in zip(fitted.staged_timesteps(), stages, strict=True):
        alone.set_params(n_timesteps=k)
        np.testing.assert_array_equal(predicted, alone.predict(X))
        np.testing.assert_allclose(proba, alone.predict_proba(X), rtol=1e-4)


class Known(DiffusionClassifier):
    """Errors are known: of the step, and of the class. Counts how many were asked for."""

    def learn(self, gaps, costs):
        self.classes_, self.gaps, self.costs, self.asked = np.arange(gaps.shape[1]), gaps, costs, 0
        return self

    def _errors(self, x, labels, steps):
        self.asked += labels.numel() * len(steps)
        costs = self.costs[labels, steps.start : steps.stop]
        return self.gaps.gather(1, labels)[:, :, None] + costs


def known(classes=10, n=30, **params):
    rng = torch.Generator().manual_seed(0)
    gaps = torch.rand(n, classes, generator=rng, dtype=torch.float64)
    costs = torch.rand(64, generator=rng, dtype=torch.float64).expand(classes, 64)
    return Known(**params).learn(gaps, costs.clone())


def test_elimination_finds_the_same_class_with_less_work():
    X = np.zeros((30, 4, 4, 1), np.float32)
    exhaustive, adaptive = known(), known(adaptive=True)
    errors = exhaustive._search(X), adaptive._search(X)
    # where classes differ by as much at all steps, also the errors of those that left are exact
    np.testing.assert_allclose(*errors)
    assert exhaustive.asked == 30 * exhaustive.evaluations_ == 30 * 640
    # 10 classes for 8 steps, 5 for 8 more, 2 for the other 48
    assert adaptive.asked == 30 * adaptive.evaluations_ == 30 * (80 + 40 + 96)
    adaptive = known(adaptive=True, stages=[(4, 3), (16, 1)])
    np.testing.assert_array_equal(adaptive.predict(X), exhaustive.predict(X))
    assert adaptive.asked == 30 * adaptive.evaluations_ == 30 * (40 + 36)
    adaptive = known(adaptive=True, stages=[(4, 30), (8, 2), (16, 1)])  # more than there are
    np.testing.assert_array_equal(adaptive.predict(X), exhaustive.predict(X))
    assert adaptive.asked == 30 * adaptive.evaluations_ == 30 * (80 + 16)
    adaptive = known(adaptive=True, n_timesteps=3)  # less than an eighth of it is no step
    np.testing.assert_array_equal(adaptive.predict(X), exhaustive.predict(X))
    assert adaptive.asked == 30 * adaptive.evaluations_ == 30 * (10 + 4)


def test_a_class_that_left_does_not_come_back():
    X = np.zeros((30, 4, 4, 1), np.float32)
    exhaustive, adaptive = known(), known(adaptive=True)
    for clf in (exhaustive, adaptive):  # class 3 is the worst at first and by far the best later
        clf.costs[3, :8] += 10
        clf.costs[3, 8:] -= 10
    assert (exhaustive.predict(X) == 3).all()
    assert not (adaptive.predict(X) == 3).any()
    proba = adaptive.predict_proba(X)
    np.testing.assert_array_equal(proba.argmax(1), adaptive.predict(X))
    assert (proba[:, 3] < 1e-3).all()


def test_elimination_of_a_trained_model(fitted):
    X, _ = two_sides(40, 4)
    winners = fitted.predict(X)
    fitted = copy.deepcopy(fitted).set_params(adaptive=True)
    rows = []
    hook = fitted.module_.register_forward_hook(lambda module, inputs, out: rows.append(len(out)))
    np.testing.assert_array_equal(fitted.predict(X), winners)
    hook.remove()
    assert sum(rows) == 40 * fitted.evaluations_ == 40 * 4  # of 32: one of two is half of them


def test_temperature_from_held_out_data():
    params = {**TINY, "max_iter": 20, "batch_size": 16, "learning_rate": 1e-2, "augmentation": 1}
    clf = DiffusionClassifier(**params, temperature="auto", random_state=0)
    clf.fit(*two_sides(400, 5, gap=0.1, noise=0.2))  # the classes overlap
    X, y = two_sides(200, 6, gap=0.1, noise=0.2)
    columns = np.searchsorted(clf.classes_, y)

    def loss(temperature):
        proba = copy.deepcopy(clf).set_params(temperature=temperature).predict_proba(X)
        return -np.log(proba[np.arange(200), columns]).mean()

    assert loss("auto") == loss(clf.temperature_)
    assert loss("auto") < min(loss(clf.temperature_ / 10), loss(clf.temperature_ * 10))


# --- networks ---


@pytest.mark.parametrize(
    "params",
    [
        {"kind": "resnet", "width": 16, "max_iter": 8},
        {"kind": "vit", "patch_size": 2, "width": 32, "depth": 2, "max_iter": 20},
    ],
    ids=["resnet", "vit"],
)
def test_networks_learn_three_digits(three_digits, params):
    X, y, X_test, y_test = three_digits
    clf = NetworkClassifier(**params, learning_rate=4e-3, batch_size=16, random_state=0).fit(X, y)
    proba = clf.predict_proba(X_test)
    np.testing.assert_allclose(proba.sum(1), 1)
    assert clf.score(X_test, y_test) > 0.95
    np.testing.assert_allclose(clf.predict_proba(X_test[:3]), proba[:3], rtol=1e-3, atol=1e-6)


# --- scikit-learn's contract ---


@pytest.mark.parametrize(
    "clf",
    [
        DiffusionClassifier(**TINY, max_iter=4, random_state=3),
        NetworkClassifier("vit", width=16, depth=1, max_iter=1, random_state=3),
        NetworkClassifier("resnet", width=8, max_iter=1, random_state=3),
    ],
    ids=["diffusion", "vit", "resnet"],
)
def test_clones_learn_the_same(clf):
    X, y = two_sides(32, 0)
    before = clf.get_params()
    models = [clone(clf).fit(X, y) for _ in range(2)]
    assert models[0].get_params() == before and not hasattr(clf, "classes_")
    np.testing.assert_array_equal(*(model.predict_proba(X) for model in models))
    other = clone(clf).set_params(random_state=4).fit(X, y)
    assert (other.predict_proba(X) != models[0].predict_proba(X)).any()


# --- operations ---


def test_operations_by_hand():
    assert flops.counted(nn.Linear(7, 5), torch.zeros(3, 7)) == 2 * 3 * 7 * 5
    convolution = nn.Conv2d(3, 8, 3, padding=1)
    assert flops.counted(convolution, torch.zeros(1, 3, 6, 6)) == 2 * 36 * 8 * 3 * 9


def test_operations_of_the_dit():
    dit, d, n, frequencies = DiT((8, 8, 1), 10, 2, 32, 3, 2), 32, 16, diffusion.FREQUENCIES
    weights = 3 * 12 * d**2 + 2 * 4 * d  # for each token: blocks, first and last layer
    condition = 3 * 6 * d**2 + 2 * d**2 + frequencies * d + d**2
    scores = 3 * 2 * n * n * d
    expected = 2 * (n * weights + condition + scores)
    assert flops.dit_flops(dit) == expected
    clf = DiffusionClassifier(n_timesteps=4)
    clf.module_, clf.classes_ = dit, np.arange(10)
    assert flops.flops_per_image(clf, (8, 8, 1)) == 40 * expected


@pytest.mark.parametrize("n_layer", [1, 2, 4])
def test_operations_of_ours(n_layer, monkeypatch):
    """As torch counts them in the engine; the plain forward pass takes about as many."""
    monkeypatch.setattr(engine, "ONEDNN", False)  # the counter does not know its products
    prior = AnyOrderPrior(32, (4, 5), 7, dim=64, n_layer=n_layer, n_head=4, multiple_of=64)
    codes, order, label = torch.zeros(1, 20).long(), torch.randperm(20)[None], torch.zeros(1).long()
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        scorer = engine.Engine(prior, torch.arange(7))
        with FlopCounterMode(display=False) as in_pair:
            pairs = scorer.pairs(codes, order)
        with FlopCounterMode(display=False) as in_lane:
            scorer.read(pairs, label, label, 0, 20)
    parts = in_pair.get_total_flops(), in_lane.get_total_flops()
    assert flops.ar_parts(prior) == parts
    assert flops.ar_flops(prior, 3, 7) == 3 * (parts[0] + 7 * parts[1])
    if n_layer > 1:
        plain = flops.counted(prior, codes, order, label)
        assert abs(flops.ar_flops(prior, 1, 1) / plain - 1) < 0.1


def test_operations_of_baselines(three_digits):
    X, y = three_digits[0].reshape(300, -1), three_digits[1]
    shape = (8, 8, 1)
    svc = SVC().fit(X, y)
    assert flops.flops_per_image(svc, shape) == 2 * len(svc.support_) * (64 + 2)
    logistic = make_pipeline(StandardScaler(), LogisticRegression()).fit(X, y)
    assert flops.flops_per_image(logistic, shape) == 2 * 64 * 3
    net = MLPClassifier((20, 10), max_iter=2).fit(X, y)
    assert flops.flops_per_image(net, shape) == 2 * (64 * 20 + 20 * 10 + 10 * 3)
    vit = NetworkClassifier("vit", patch_size=2, width=16, depth=1, max_iter=1, augmentation=1)
    vit.fit(three_digits[0], y)
    expected = 2 * (16 * (12 * 16**2 + 4 * 16) + 2 * 16 * 16 * 16 + 16 * 3)
    assert flops.flops_per_image(vit, shape) == expected
    ours = small_classifier(AnyOrderARClassifier, max_iter=1).fit(three_digits[0], y)
    assert flops.flops_per_image(ours, shape) == flops.ar_flops(ours.prior_, 4, 3)
    with pytest.raises(TypeError, match="StandardScaler"):
        flops.flops_per_image(StandardScaler(), shape)


def test_latents_are_white_and_lose_only_what_is_left_out():
    images = np.random.RandomState(0).rand(50, 8, 12, 3) @ np.diag([1, 0.1, 0.01]).astype("f4")
    latents = PatchLatents(4, 5).fit(images).transform(images)
    assert latents.shape == (50, 2, 3, 5) and latents.dtype == np.float32
    flat = 2 * latents.reshape(-1, 5) - 1
    np.testing.assert_allclose(np.cov(flat.T), np.eye(5), atol=1e-4)
    whole = PatchLatents(2, 12).fit(images)
    z = 2 * whole.transform(images) - 1
    first = whole.pca.inverse_transform(z[:, 0, 0])
    np.testing.assert_allclose(first, images[:, :2, :2].reshape(50, 12), atol=1e-4)


def test_diffusion_in_latents_learns():
    params = {"max_iter": 60, "batch_size": 16, "learning_rate": 1e-2, "augmentation": 1}
    clf = DiffusionClassifier(**TINY, **params, n_components=3, random_state=1)
    clf.fit(*two_sides(128, 0))
    assert clf.module_.image_shape == (2, 2, 3)
    X, y = two_sides(60, 1)
    assert clf.score(X, y) > 0.9
