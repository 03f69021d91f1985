"""Tokens of a feature map, compared with explicit clustering of the same map."""

import pickle
import warnings

import numpy as np
import pytest
import torch
from sklearn.base import clone
from torch import nn
from torch.nn import functional as F

from skaocls import AnyOrderARClassifier, FeatureTokenizer, check_tokenizer

IMAGES = np.random.RandomState(0).rand(37, 16, 12, 3).astype(np.float32)
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def network():
    generator = torch.Generator().manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(3, 6, 4, stride=4), nn.BatchNorm2d(6), nn.Dropout(0.5), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2),
    )  # fmt: skip
    for weights in layers.parameters():
        weights.data = torch.randn(weights.shape, generator=generator)
    layers[1].running_mean.copy_(torch.arange(6.0) / 6)
    return layers


def map_by_hand(net, images):
    """Vectors at each position, (n, 4, 3, 6)."""
    weight = net[0].weight.detach().numpy()
    bias = net[0].bias.detach().numpy()
    tiles = ((images - MEAN) / STD).reshape(-1, 4, 4, 3, 4, 3)
    maps = np.einsum("nrycxk,okyx->nrco", tiles, weight) + bias
    scale = net[1].weight.detach().numpy() / np.sqrt(1 + net[1].eps)
    maps = (maps - net[1].running_mean.numpy()) * scale + net[1].bias.detach().numpy()
    return np.maximum(maps, 0)


@pytest.mark.parametrize("n_components", [3, None])
def test_tokens_are_nearest_centers_of_the_map(n_components):
    net = network()
    tokenizer = FeatureTokenizer(
        net, layer="3", n_components=n_components, n_codes=7, random_state=0
    ).fit(IMAGES)
    vectors = map_by_hand(net, IMAGES).reshape(-1, 6)
    if n_components is not None:
        centred = vectors - vectors.mean(0)
        axes = np.linalg.svd(centred, full_matrices=False)[2][:3]
        vectors = (
            centred @ (axes * np.sign((axes * tokenizer.components_.components_).sum(1))[:, None]).T
        )
    distances = ((vectors[:, None] - tokenizer.codebook_) ** 2).sum(-1)
    codes = tokenizer.transform(IMAGES)
    assert codes.shape == (37, 4, 3) and codes.dtype == np.int64 and tokenizer.n_codes_ == 7
    chosen = distances[np.arange(len(distances)), codes.ravel()]
    np.testing.assert_allclose(chosen, distances.min(1), rtol=1e-3, atol=1e-4)
    # each center is near the mean of its vectors
    means = np.stack([vectors[codes.ravel() == c].mean(0) for c in range(7)])
    assert ((means - tokenizer.codebook_) ** 2).sum(1).mean() < 0.2 * vectors.var(0).sum()


def test_the_network_and_global_torch_state_do_not_change():
    net = network().train()
    net[0].eval()
    before = {name: x.clone() for name, x in net.state_dict().items()}
    state, numbers = torch.get_rng_state(), np.random.get_state()[1].copy()
    tokenizer = FeatureTokenizer(net, layer="3", n_codes=7, random_state=0).fit(IMAGES)
    codes = tokenizer.transform(IMAGES)
    assert [m.training for m in net] == [False, True, True, True, True, True, True]
    assert all(torch.equal(x, before[name]) for name, x in net.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in net.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    np.testing.assert_array_equal(np.random.get_state()[1], numbers)
    # nor do later changes of the network or of torch's settings change the tokens
    net[0].weight.data.zero_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        np.testing.assert_array_equal(tokenizer.transform(IMAGES), codes)
    one_by_one = np.concatenate([tokenizer.transform(image[None]) for image in IMAGES])
    np.testing.assert_array_equal(one_by_one, codes)
    again = pickle.loads(pickle.dumps(tokenizer))
    np.testing.assert_array_equal(again.transform(IMAGES), codes)
    check_tokenizer(tokenizer, IMAGES)
    other = clone(FeatureTokenizer(network(), layer="3", n_codes=7, random_state=0)).fit(IMAGES)
    np.testing.assert_array_equal(other.transform(IMAGES), codes)


def test_gray_images_files_and_vision_transformers():
    def gray(pixels):
        assert pixels.shape[1:] == (3, 16, 12) and pixels.dtype == torch.float32
        assert torch.equal(pixels[:, 0], pixels[:, 2])
        return F.avg_pool2d(pixels, 4)

    eight_bits = (255 * IMAGES[..., 0]).astype(np.uint8)
    params = {"mean": None, "std": None, "n_components": None, "n_codes": 5, "random_state": 0}
    tokenizer = FeatureTokenizer(gray, **params).fit(eight_bits)
    tiles = (eight_bits / 255).reshape(37, 4, 4, 3, 4).mean((2, 4))
    nearest = abs(tiles[..., None] - tokenizer.codebook_[:, 0]).argmin(-1)
    np.testing.assert_array_equal(tokenizer.transform(eight_bits), nearest)

    # a vision transformer's output with two prefix tokens
    def tokens(pixels):
        assert pixels.shape[1:] == (3, 8, 8)
        patches = F.avg_pool2d(pixels, 2).flatten(2).transpose(1, 2)
        return torch.cat([torch.full_like(patches[:, :2], 9.0), patches], dim=1)

    vit = FeatureTokenizer(tokens, n_prefix=2, input_size=8, **params).fit(IMAGES)
    assert vit.grid_ == (4, 4) and vit.codebook_.max() < 1
    small = F.interpolate(
        torch.from_numpy(IMAGES).permute(0, 3, 1, 2), (8, 8), mode="bilinear", antialias=True
    )
    halves = F.avg_pool2d(small, 2).permute(0, 2, 3, 1).numpy()
    nearest = ((halves[..., None, :] - vit.codebook_) ** 2).sum(-1).argmin(-1)
    np.testing.assert_array_equal(vit.transform(IMAGES), nearest)
    pooled = FeatureTokenizer(tokens, n_prefix=2, input_size=8, grid=(2, 1), **params).fit(IMAGES)
    assert pooled.transform(IMAGES).shape == (37, 2, 1)


def test_wrong_parameters_and_images():
    net = network()
    for params, X, message in [
        (
            {"layer": "nine"},
            IMAGES,
            r"layer='nine' is not a submodule of the backbone, .*\['0', '1'",
        ),
        ({}, IMAGES, r"must return a feature map .* it returned \(8, 2\)"),
        ({"layer": "3"}, 9 * IMAGES, r"values in \[0, 1\] .* from 0.* to 9\. Divide"),
        ({"layer": "3"}, IMAGES[..., :2], "one channel or three, not 2"),
        ({"layer": "3", "n_codes": 0}, IMAGES, "'n_codes'"),
        ({"layer": "3"}, IMAGES[:, 0, :, 0], "X is a table"),
    ]:
        tokenizer = FeatureTokenizer(net, **params)
        with pytest.raises(ValueError, match=message):
            tokenizer.fit(X)
        assert not hasattr(tokenizer, "n_codes_")
    with pytest.raises(ValueError, match=r"not a torch\.nn\.Module"):
        FeatureTokenizer(lambda x: x, layer="3").fit(IMAGES)
    with pytest.raises(ValueError, match="do not form a square"):
        FeatureTokenizer(lambda x: x.flatten(2)[..., :5].transpose(1, 2)).fit(IMAGES)
    with pytest.raises(ValueError, match="'backbone'"):
        FeatureTokenizer("resnet").fit(IMAGES)
    with pytest.warns(UserWarning, match="16 x 24 positions"):
        FeatureTokenizer(lambda x: x, n_codes=4).fit(IMAGES.repeat(2, axis=2))


class FirstChannel(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network(x[:, :1])


def test_networks_that_do_not_fit_the_images():
    gray = nn.Sequential(nn.Conv2d(1, 4, 4, stride=4), nn.ReLU())
    sized = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 16), nn.Unflatten(1, (4, 2, 2)))
    X, y = IMAGES[..., 0], np.arange(37) % 2
    for network, params, advice in [
        (gray, {}, r"passes three channels.* calls backbone\(x\[:, :1\]\)"),
        (gray, {"layer": "0"}, r"passes three channels"),
        (sized, {"n_codes": 4}, r"shape \(8, 3, 16, 12\): .* pass input_size"),
    ]:
        tokenizer = FeatureTokenizer(network, **params)
        for fit in (
            lambda t: t.fit(X),
            lambda t: AnyOrderARClassifier(tokenizer=t, max_iter=1).fit(X, y),
        ):
            with pytest.raises(ValueError, match=advice) as error:
                fit(tokenizer)
            assert isinstance(error.value.__cause__, RuntimeError)  # the network's own error
    assert FeatureTokenizer(FirstChannel(gray), n_codes=4).fit_transform(X).shape == (37, 4, 3)
    assert FeatureTokenizer(sized, n_codes=4, input_size=8).fit_transform(X).shape == (37, 2, 2)


@pytest.mark.parametrize("convert", [lambda X: 16 * X, lambda X: X - 0.5, lambda X: list(255 * X)])
def test_values_outside_of_0_to_1_are_found_before_the_network_runs(convert):
    def backbone(pixels):
        raise AssertionError

    X = np.zeros_like(IMAGES)
    X[-1] = IMAGES[-1]
    for fit in (
        FeatureTokenizer(backbone).fit,
        lambda X: AnyOrderARClassifier(tokenizer=FeatureTokenizer(backbone)).fit(X, np.ones(37)),
    ):
        with pytest.raises(ValueError, match=r"values in \[0, 1\] or of dtype uint8, got values"):
            fit(convert(X))


def test_classifier_with_a_feature_tokenizer(tmp_path):
    rng = np.random.RandomState(0)
    y = np.arange(120) % 3
    X = 0.3 * rng.rand(120, 16, 16, 3)
    X[np.arange(120), 4 * y + 1] += 0.6  # a line, lower in each class
    tokenizer = FeatureTokenizer(nn.Sequential(nn.Conv2d(3, 8, 4, stride=4)), n_codes=16)
    clf = AnyOrderARClassifier(
        tokenizer=tokenizer, max_iter=15, n_orders=4, augmentation=None, random_state=0
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        clf.fit(X[:90], y[:90])
    assert clf.score(X[90:], y[90:]) > 0.9
    assert clf.tokenizer_.grid_ == (4, 4) and clf.tokenizer_ is not tokenizer
    with pytest.raises(NotImplementedError, match="PatchTokenizer"):
        clf.sample(1)
    with pytest.raises(TypeError, match=r"FeatureTokenizer cannot be saved .*precomputed"):
        clf.save_pretrained(tmp_path)
