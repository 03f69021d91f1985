"""Reading images: forms of X, decoding, shapes, scale and errors."""

import io
import os
import pickle
import re
import struct
import warnings
from collections import UserDict
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image, ImageFile, ImageOps, ImageSequence, features
from scipy import sparse
from sklearn.datasets import load_digits, load_sample_images
from sklearn.exceptions import ConvergenceWarning

from skaocls import AnyOrderARClassifier, PatchTokenizer
from skaocls.images import find_unreadable, load_image_folder, resize_crop, to_pixels
from skaocls.images.augmentation import random_crop
from skaocls.images.folders import ImageFolder
from skaocls.images.input_types import contains_images, convert_input
from skaocls.images.reader import Reader, learn_reader, learn_tokens


@pytest.fixture
def save(tmp_path):
    def save(image, name="image.png", **kwargs):
        image.save(tmp_path / name, **kwargs)
        return str(tmp_path / name)

    return save


def load(X, image_shape=None):
    return learn_reader(X, "Reader", image_shape).images()


def shape_of(X, image_shape=None, decoding="as_seen"):
    return learn_reader(X, "Reader", image_shape, decoding=decoding).reader.image_shape


def open_as(X, shape, *, resize=False, decoding="as_seen"):
    """Open X by a reader that was fitted on images of this shape."""
    shape = tuple(shape)
    declared = shape if resize else None
    return Reader("Reader", declared, shape, int(np.prod(shape)), decoding=decoding).open(X)


def test_integers_are_scaled_and_other_numbers_are_not():
    x = np.array([[[0, 51], [255, 102]]])
    np.testing.assert_allclose(load(x.astype(np.uint8))[0, ..., 0], [[0, 0.2], [1, 0.4]])
    np.testing.assert_allclose(load((x * 257).astype(np.uint16))[0, ..., 0], [[0, 0.2], [1, 0.4]])
    np.testing.assert_allclose(load((x * 257).astype(">u2"))[0, 0, :, 0], [0, 0.2])
    np.testing.assert_array_equal(load(x)[0, ..., 0], x[0])
    np.testing.assert_array_equal(load(x / 7.0)[0, ..., 0], (x[0] / 7.0).astype(np.float32))
    np.testing.assert_array_equal(load(x > 100)[0, ..., 0], [[0, 0], [1, 1]])
    np.testing.assert_array_equal(load(torch.tensor(x).bfloat16())[0, ..., 0], x[0])


def test_arrays_tensors_and_lists_are_equal():
    x = np.random.RandomState(0).rand(4, 6, 5, 3).astype(np.float32)
    first = torch.tensor(x).permute(0, 3, 1, 2)
    for form in (x, torch.tensor(x), first, list(first), list(x), x.tolist()):
        np.testing.assert_array_equal(load(form), x)
    np.testing.assert_array_equal(load(x.reshape(4, -1), (6, 5, 3)), x)
    np.testing.assert_array_equal(load(x[..., 0])[..., 0], x[..., 0])
    np.testing.assert_array_equal(load([torch.tensor(i) for i in x]), x)


def test_images_are_distinguished_from_tables():
    pd, pl = pytest.importorskip("pandas"), pytest.importorskip("polars")
    paths = ["a.png", "b.png"]
    for X in (
        paths,
        tuple(paths),
        np.array(paths),
        np.array(paths)[:, None],
        pd.Series(paths),
        pd.Series(paths, dtype="category"),
        pd.DataFrame({"path": paths}),
        pl.Series(paths),
        pl.DataFrame({"path": paths}),
    ):
        assert contains_images(convert_input(X))
        assert convert_input(X).tolist() == paths
    for X in (
        np.zeros((3, 4)),
        np.zeros((3, 4), dtype=object),
        np.zeros(3),
        np.array([1, 2], dtype=object),
        np.array([["a.png", "b.png"]]),
        [[1, 2], [3, 4]],
        [[1, 2], [3]],
        sparse.eye(3).tocsr(),
        np.zeros((3, 0)),
        pd.DataFrame({"a": [1.0, 2.0]}),
        pd.DataFrame({"a": ["x", "y"], "b": ["x", "y"]}),
        torch.zeros(3, 4),
        None,
    ):
        assert not contains_images(convert_input(X))


def test_transparency_is_blended_with_white(save):
    half = Image.new("RGBA", (2, 1), (255, 0, 0, 128))
    half.putpixel((1, 0), (0, 0, 0, 0))
    expected = [[[255, 127, 127], [255, 255, 255]]]
    np.testing.assert_allclose(to_pixels(half, 3), expected, atol=1)
    np.testing.assert_allclose(load([save(half)])[0] * 255, expected, atol=1)
    for mode in ("LA", "La"):
        assert to_pixels(Image.new(mode, (1, 1), (0, 51)), 1)[0, 0, 0] == 204
    keyed = save(Image.new("L", (1, 1), 9), "k.png", transparency=9)
    assert shape_of([keyed]) == (1, 1, 1)
    assert load([keyed]) == 1
    clear = Image.new("P", (1, 1))
    clear.putpalette([255, 0, 0, 0], "RGBA")
    assert to_pixels(clear, 3).tolist() == [[[255, 255, 255]]]
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    np.testing.assert_array_equal(load([save(palette)])[0] * 255, [[[10, 20, 30], [40, 50, 60]]])
    path = save(palette, "t.png", transparency=0)
    np.testing.assert_allclose(load([path])[0] * 255, [[[255] * 3, [40, 50, 60]]], atol=1e-4)


def test_color_modes_and_16_bit_files(save):
    cmyk = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    red = load([save(cmyk, "c.jpg", quality=100)])[0, 4, 4]
    np.testing.assert_allclose(red, [1, 0, 0], atol=0.03)
    deep = Image.fromarray(np.array([[0, 65535, 257 * 7]], dtype=np.uint16))
    path = save(deep, "deep.png")
    assert shape_of([path]) == (1, 3, 1)
    np.testing.assert_array_equal(load([path])[0, 0, :, 0] * 255, [0, 255, 7])
    bits = Image.fromarray(np.array([[True, False]]))
    np.testing.assert_array_equal(load([save(bits, "b.png")])[0, 0, :, 0], [1, 0])


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
@pytest.mark.parametrize("value", [1, 200, 256, 70000])
def test_32_bit_images_are_an_error(save, dtype, value):
    image = Image.fromarray(np.array([[0, value]], dtype=dtype))
    with pytest.raises(ValueError, match=r"32-bit numbers \(mode '[IF]'\).*pass arrays instead"):
        to_pixels(image, 1)
    path = save(image, "deep.tif")
    with pytest.raises(ValueError, match=r"X\[0\] cannot be read.*deep.tif'.*pass arrays instead"):
        load([path])
    assert to_pixels(image, 3, "plain").max() == min(value, 255)


def test_16_bit_formats(save, tmp_path):
    deep = np.array([[0, 257, 257 * 200, 65535]], dtype=np.uint16)
    for path in (save(Image.fromarray(deep)), save(Image.fromarray(deep), "deep.tif")):
        assert (load([path])[0, 0, :, 0] * 255).tolist() == [0, 1, 200, 255]
    path = tmp_path / "deep.pgm"
    path.write_bytes(b"P5 4 1 65535\n" + deep.astype(">u2").tobytes())
    np.testing.assert_allclose(load([path])[0, 0, :, 0] * 255, [0, 1, 200, 255], rtol=1e-6)


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp"])
def test_header_and_pixels_agree_on_rotation(save, suffix):
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = save(Image.new("RGB", (4, 2)), f"{orientation}.{suffix}", exif=exif)
        shape = (2, 4, 3) if orientation < 5 else (4, 2, 3)
        assert shape_of([path]) == shape
        assert open_as([path], shape).images().shape == (1, *shape)
        with Image.open(path) as image:
            image.load()
            assert shape_of([image]) == shape


def test_camera_rotation(save):
    upright = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees clockwise to see it upright
    path = save(Image.fromarray(np.rot90(upright)), exif=exif)
    assert shape_of([path]) == (2, 3, 1)
    np.testing.assert_array_equal(load([path])[0, ..., 0] * 255, upright)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_rotated_images_are_resized_as_seen(save, orientation, mode):
    """`ImageOps.exif_transpose` is the reference. Resizing must not rotate the image again."""
    pixels = np.random.RandomState(0).randint(256, size=(24, 32, 4), dtype=np.uint8)
    pixels[..., 3] = 255
    stored = Image.fromarray(pixels).convert(mode)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(stored, exif=exif)
    in_memory = stored.copy()
    in_memory.getexif()[0x0112] = orientation
    upright = ImageOps.exif_transpose(Image.open(path)).convert("L" if mode == "L" else "RGB")
    same, half = upright.size[::-1], (upright.height // 2, upright.width // 2)
    for item in (path, Image.open(path), in_memory):
        for shape in (None, same, half):
            expected = upright if shape is None else resize_crop(upright, *shape)
            batch = learn_reader([item], "Reader", shape)
            found = (batch.images()[0] * 255).round()
            np.testing.assert_array_equal(found.squeeze(), np.asarray(expected))
            [original] = batch.originals()
            np.testing.assert_array_equal(original.squeeze(), np.asarray(upright))


def test_plain_decoding_equals_convert_rgb(save):
    rng = np.random.RandomState(0)
    exif = Image.Exif()
    exif[0x0112] = 6
    noise = Image.fromarray(rng.randint(256, size=(4, 6, 4), dtype=np.uint8))
    deep = Image.fromarray(rng.randint(0, 400, size=(4, 6)).astype(np.uint16))
    palette = noise.convert("RGB").quantize(8)
    odd = {
        "turned.png": (noise.convert("RGB"), {"exif": exif}),
        "turned.jpg": (noise.convert("RGB"), {"exif": exif}),
        "clear.png": (noise, {}),
        "clear and turned.webp": (noise, {"exif": exif}),
        "keyed.png": (palette, {"transparency": 0}),
        "deep.png": (deep, {}),
        "cmyk.jpg": (noise.convert("CMYK"), {}),
    }
    for name, (image, how) in odd.items():
        path = save(image, name, **how)
        with Image.open(path) as opened:
            expected = np.asarray(opened.convert("RGB"))
        for X in ([path], [Image.open(path)]):
            assert shape_of(X, (4, 6, 3), "plain") == (4, 6, 3)
            assert shape_of(X, None, "plain")[:2] == (4, 6), name
            got = open_as(X, (4, 6, 3), decoding="plain").images() * 255
            np.testing.assert_array_equal(got.round()[0], expected, err_msg=name)
            [got] = open_as(X, (2, 3, 3), resize=True, decoding="plain").originals()
            np.testing.assert_array_equal(got, expected, err_msg=name)
            small = open_as(X, (2, 3, 3), resize=True, decoding="plain").images()[0] * 255
            same = resize_crop(Image.fromarray(expected), 2, 3)
            np.testing.assert_array_equal(small.round(), np.asarray(same), err_msg=name)
        if name != "cmyk.jpg":
            assert not np.array_equal(to_pixels(Image.open(path), 3), expected), name


def test_plain_decoding_of_a_rotated_tiff(save):
    """Pillow rotates TIFF files on loading; header and pixels must agree nevertheless."""
    exif = Image.Exif()
    exif[0x0112] = 6
    path = save(Image.new("RGB", (4, 2)), "t.tif", exif=exif)
    shape = shape_of([path], None, "plain")
    assert open_as([path], shape, decoding="plain").images().shape == (1, *shape)


def test_gray_and_color_files_together(save):
    gray, colour = Image.new("L", (2, 2), 51), Image.new("RGB", (2, 2), (255, 0, 0))
    paths = [save(gray, "g.png"), save(colour, "c.png")]
    images = load(paths)
    np.testing.assert_allclose(images[0], np.full((2, 2, 3), 0.2))
    # a model of gray images converts colors to luma, ITU-R 601-2
    np.testing.assert_allclose(open_as(paths[1:], (2, 2, 1)).images() * 255, 76)
    assert shape_of(paths[:1]) == (2, 2, 1)
    assert shape_of(paths[:1], (4, 4, 3)) == (4, 4, 3)


def test_published_preprocessing():
    noise = np.random.RandomState(0).randint(256, size=(1300, 1100, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    expected = image.resize((550, 650), Image.Resampling.BOX)
    expected = expected.resize((275, 325), Image.Resampling.BOX)
    expected = expected.resize((256, 303), Image.Resampling.BICUBIC)
    expected = np.asarray(expected)[23 : 23 + 256]
    np.testing.assert_array_equal(np.asarray(resize_crop(image, 256, 256)), expected)
    for size in [(300, 40), (40, 300), (7, 7)]:
        assert resize_crop(Image.new("L", size), 32, 24).size == (24, 32)


def test_files_are_resized_to_image_shape(save):
    wide = save(Image.new("RGB", (40, 10), (255, 0, 0)), "w.png")
    tall = save(Image.new("RGB", (10, 40), (0, 0, 255)), "t.png")
    images = load([wide, tall], (8, 8))
    assert images.shape == (2, 8, 8, 3)
    np.testing.assert_allclose(images[:, 4, 4], [[1, 0, 0], [0, 0, 1]], atol=1e-6)
    with pytest.raises(ValueError, match=r"\(10, 40\) at index 0, \(40, 10\) at index 1.*image_sh"):
        shape_of([wide, tall])
    with pytest.raises(
        ValueError, match=r"X\[7\].*t.png'.*resize_crop\(image, 8, 8\).*image_shape=\(8, 8\)"
    ):
        open_as([wide] * 7 + [tall], (8, 8, 3)).take(slice(7, 8)).images()


def test_unreadable_items_are_named(save, tmp_path):
    good = save(Image.new("L", (4, 4)))
    text = tmp_path / "notes.txt"
    text.write_text("no image")
    whole = save(
        Image.fromarray(np.random.RandomState(0).randint(256, size=(64, 64, 3), dtype=np.uint8)),
        "w.png",
    )
    cut = tmp_path / "cut.png"
    cut.write_bytes((tmp_path / "w.png").read_bytes()[:2000])
    for bad in ("missing.png", str(text), str(tmp_path)):
        with pytest.raises(ValueError, match=r"X\[1\] cannot be read as an image: '.*"):
            shape_of([good, bad])
    for bad in (None, 3.5):
        with pytest.raises(
            ValueError, match=r"X\[1\] cannot be read as an image: .*expected a path"
        ):
            shape_of([good, bad])
    shape = shape_of([str(cut)])
    assert shape == shape_of([whole])
    with pytest.raises(ValueError, match=r"X\[40\] cannot be read as an image: '.*cut.png'"):
        open_as([whole] * 40 + [str(cut)], shape).take(np.array([40])).images()


def exif_with(orientation, resolution=None):
    """Return a JPEG of 6 x 2 pixels with an orientation and a resolution in its metadata."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    if resolution is not None:
        exif[0x011A] = 72.0
    out = io.BytesIO()
    pixels = np.zeros((2, 6, 3), np.uint8)
    pixels[:, 3:] = 255
    Image.fromarray(pixels).save(out, "jpeg", exif=exif, quality=95)
    content = out.getvalue()
    if resolution is not None:
        was = struct.pack(">ii", 72, 1)
        assert content.count(was) == 1
        content = content.replace(was, struct.pack(">ii", *resolution))
        unsigned, signed = (struct.pack(">HH", 0x011A, kind) for kind in (5, 10))
        content = content.replace(unsigned, signed)
    return content


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_damaged_metadata_are_ignored_with_one_warning(tmp_path, orientation):
    whole = load([exif_with(orientation)])
    damaged = exif_with(orientation, (-1, 0))
    paths = [tmp_path / f"{i}.jpg" for i in range(7)]
    for path in paths:
        path.write_bytes(damaged)
    y = [0, 1, 0, 1, 0, 1, 0]
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        clf = AnyOrderARClassifier(max_iter=1, random_state=0, tol=10.0).fit(paths, y)
    seen = [w for w in seen if w.category is not ConvergenceWarning]
    assert len(seen) == 1
    assert re.search(
        r"7 images have damaged.*X\[0\] '.*0.jpg', .*\(7 in total\)", str(seen[0].message)
    )
    np.testing.assert_array_equal(open_as(paths[:1], clf.image_shape_).images(), whole)


def test_random_bytes_in_metadata_are_ignored():
    rng, whole = np.random.RandomState(0), exif_with(6, (72, 1))
    begin, end = whole.index(b"Exif"), whole.index(b"Exif") + 60
    decoded = 0
    for _ in range(200):
        content = bytearray(whole)
        for i in rng.randint(begin, end, size=rng.randint(1, 4)):
            content[i] = rng.randint(256)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                with Image.open(io.BytesIO(content)) as image:
                    size = np.asarray(image).size
            except Exception:  # Pillow cannot read it
                continue
            assert load([bytes(content)]).size == size
            decoded += 1
    assert decoded > 150


def test_bytes_and_open_files_equal_paths(save):
    path = save(Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)))
    content = Path(path).read_bytes()
    expected = load([path] * 2)
    opened = io.BytesIO(content)
    opened.read(10)
    both = [content] * 2
    for form in (both, [io.BytesIO(content), opened], [path, content], np.array(both, object)):
        np.testing.assert_array_equal(load(form), expected)
    with open(path, "rb") as file:
        np.testing.assert_array_equal(load([file, path]), expected)
    with pytest.raises(TypeError, match="opened as text"):
        load([io.StringIO("text")])
    clf = AnyOrderARClassifier(max_iter=1, random_state=0, tol=10.0)
    clf.fit([io.BytesIO(content)] * 3 + [path] * 3, [0, 1, 0, 1, 0, 1])
    np.testing.assert_array_equal(clf.predict_proba([content]), clf.predict_proba([path]))
    with pytest.raises(ValueError, match=r"X\[1\] cannot be read as an image: 'bytes'"):
        clf.predict([content, b"no image"])


@pytest.fixture
def some_bad(save, tmp_path):
    """Twelve files, seven of which are unreadable, each for another reason."""
    good = np.random.RandomState(0).randint(256, size=(12, 8, 8, 3), dtype=np.uint8)
    paths = [save(Image.fromarray(x), f"{i}.png") for i, x in enumerate(good)]
    content = Path(paths[0]).read_bytes()
    bad = {1: b"", 2: content[:60], 4: b"text", 5: content[:-40]}
    for i, content in bad.items():
        Path(paths[i]).write_bytes(content)
    paths[7] = str(tmp_path / "missing.png")
    os.mkfifo(tmp_path / "pipe.png")
    paths[8] = tmp_path / "pipe.png"
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    paths[9] = tmp_path / "loop.png"
    return paths, np.arange(12) % 2, [1, 2, 4, 5, 7, 8, 9]


def test_all_unreadable_images_are_named_at_once(some_bad):
    X, y, bad = some_bad
    clf = AnyOrderARClassifier(max_iter=1, image_shape=(8, 8), random_state=0, tol=10.0)
    assert list(find_unreadable(X)) == bad
    message = r"(?s)7 of 12 images cannot be read:\nX\[1\].*1.png.*X\[7\].*\n\.\.\.\n.*on_bad_image"
    with pytest.raises(ValueError, match=message):
        clf.fit(X, y)
    cut = [X[0], X[5], X[6], X[5]]  # detected when pixels are decoded
    with pytest.raises(ValueError, match=r"(?s)^2 of 4 .*X\[1\].*X\[3\]"):
        clf.fit(cut, y[:4])
    good = [x for i, x in enumerate(X) if i not in bad]
    clf.fit(good, [0, 1, 0, 1, 0])
    assert clf.skipped_images_ == []
    with pytest.raises(ValueError, match=r"(?s)^2 of 4 .*X\[1\].*X\[3\]"):
        clf.predict(cut)
    with pytest.raises(ValueError, match=r"^X\[1\] cannot be read"):
        clf.predict(cut[:2])


@pytest.mark.parametrize("memory", [None, "memory"])
def test_unreadable_pil_images_are_named(save, tmp_path, memory):
    whole = Image.fromarray(np.random.RandomState(0).randint(256, size=(64, 64, 3), dtype=np.uint8))
    path = save(whole, "w.png")
    cut = Image.open(io.BytesIO(Path(path).read_bytes()[:2000]))
    closed = Image.open(path)
    closed.close()
    clf = AnyOrderARClassifier(max_iter=1, memory=memory and tmp_path / memory)
    with pytest.raises(ValueError, match=r"(?s)^2 of 4 images .*X\[1\].*truncated.*X\[3\].*closed"):
        clf.fit([whole, cut, whole, closed], [0, 1, 1, 0])


def test_sparse_and_meta_tensors_are_an_error():
    for X in (torch.zeros(4, 8, 8).to_sparse(), torch.zeros(4, 8, 8, device="meta")):
        with pytest.raises(TypeError, match=r"torch.Tensor that cannot be converted"):
            AnyOrderARClassifier(max_iter=1).fit(X, [0, 1, 0, 1])


def test_uniform_images_give_one_code():
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        tokenizer = PatchTokenizer(patch_size=16, random_state=0).fit(np.full((3, 32, 32), 7.0))
    assert tokenizer.n_codes_ == 1
    np.testing.assert_allclose(tokenizer.inverse_transform(np.zeros((1, 2, 2), int)), 7.0)


@pytest.mark.parametrize("wrap", [list, pd.Series, lambda X: pd.DataFrame({"file": X})])
def test_unreadable_images_are_skipped(some_bad, wrap):
    X, y, bad = some_bad
    X = [str(x) for x in X]
    good, weights = np.delete(np.arange(12), bad), np.linspace(1, 2, 12)
    params = {"max_iter": 1, "image_shape": (8, 8), "random_state": 0, "tol": 10.0}
    clf = AnyOrderARClassifier(on_bad_image="skip", **params)
    with pytest.warns(UserWarning, match=r"^Skipping 7 unreadable images: X\[1\].*\(7 in total\)"):
        clf.fit(wrap(X), y, weights)
    assert clf.skipped_images_ == bad
    X_good = wrap([X[i] for i in good])
    whole = AnyOrderARClassifier(**params).fit(X_good, y[good], weights[good])
    np.testing.assert_array_equal(clf.predict_proba(X_good), whole.predict_proba(X_good))
    with pytest.warns(UserWarning, match="Skipping 1 unreadable images"):
        clf.partial_fit(wrap(X[:2]), y[:2], sample_weight=2.0)
    assert clf.skipped_images_ == [1]
    with pytest.raises(ValueError, match=r"None of the 2 images can be read: X\[0\]"):
        clf.fit(wrap(X[1:3]), y[1:3])
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        clf.fit(wrap(X), y[:5])


@pytest.mark.parametrize(
    "X, message",
    [
        (np.zeros((4, 0, 8)), r"shape \(4, 0, 8\), which have no pixels"),
        (np.zeros((4, 8, 8, 0)), r"have no pixels"),
        ([np.zeros((0, 8)), "a.png"], r"have no pixels"),
        (np.full((4, 8, 8), "a"), r"dtype <U1; real numbers are expected"),
        (np.zeros((4, 8, 8), "M8[s]"), r"real numbers are expected"),
        (np.full((4, 8, 8), 1e25), r"numbers up to 1e\+25, but images may have up to 1e\+15"),
        (np.full((4, 8, 8), np.nan), r"contains NaN"),
        (np.full((4, 8, 8), -np.inf), r"contains infinity"),
        (np.zeros((4, 8, 8), complex), r"dtype complex128; real numbers are expected"),
        (np.zeros((0, 8, 8)), r"0 sample"),
        (np.full((4, 8, 8), "a", object), r"could not convert"),
        (np.full((4, 8, 8), None, object), r"contains NaN"),
    ],
)
def test_arrays_that_are_not_images_are_an_error(X, message):
    with pytest.raises(ValueError, match=message):
        AnyOrderARClassifier(max_iter=1).fit(X, np.arange(len(X)) % 2)


def test_memory_layout_does_not_matter(tmp_path):
    x = np.random.RandomState(0).randint(256, size=(20, 6, 6), dtype=np.uint8)
    y = np.arange(20) % 2
    np.save(tmp_path / "x.npy", x)
    wide = np.repeat(x, 2, axis=2)[..., ::2]
    forms = [
        np.asfortranarray(x),
        np.load(tmp_path / "x.npy", mmap_mode="r"),
        np.ascontiguousarray(x[::-1, ::-1])[::-1, ::-1],
        wide,
        [*wide],
    ]
    params = {"max_iter": 1, "random_state": 0, "augmentation": 2, "tol": 10.0, "n_orders": 2}
    expected = AnyOrderARClassifier(**params).fit(x, y).predict_proba(x)
    for form in forms:
        clf = AnyOrderARClassifier(**params).fit(form, y)
        np.testing.assert_array_equal(clf.predict_proba(form), expected)


def test_decompression_bombs_are_an_error(save, monkeypatch):
    path = save(Image.new("L", (4, 4)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4)
    for use in (shape_of, lambda X: open_as(X, (4, 4, 1)).images()):
        with pytest.raises(ValueError, match=r"X\[0\] cannot be read.*image.png'.*bomb") as error:
            use([path])
        assert isinstance(error.value.__cause__, Image.DecompressionBombError)


def test_mixed_items(save):
    colour = Image.new("RGB", (6, 2), (255, 0, 51))
    array = np.asarray(colour)
    first = torch.tensor(array).permute(2, 0, 1)
    images = load([save(colour), colour, array, first, Image.new("L", (6, 2), 51)])
    np.testing.assert_allclose(images[:4], np.broadcast_to([1, 0, 0.2], (4, 2, 6, 3)))
    np.testing.assert_allclose(images[4], np.full((2, 6, 3), 0.2))
    with pytest.raises(ValueError, match=r"X\[1\] is an array of shape \(2, 6, 1\).*\(2, 6, 3\)"):
        shape_of([colour, array[..., 0]])
    with pytest.raises(ValueError, match=r"X\[1\] is an array of shape \(2, 6, 3\).*\(4, 4, 3\)"):
        shape_of([colour, array], (4, 4))
    with pytest.raises(ValueError, match=r"X\[1\] has shape \(2, 6, 1\).*'ndarray'"):
        open_as([colour, array[..., 0]], (2, 6, 3)).images()


@pytest.mark.parametrize(
    "X, image_shape, message",
    [
        (np.zeros((2, 63)), (8, 8), r"shape \(2, 63\), but n images of image_shape"),
        (np.zeros((2, 8, 7)), (8, 8), "Arrays are not resized"),
        (np.zeros((2, 64)), (8,), "positive integers"),
        (np.zeros((2, 64)), 8, "positive integers"),
        ([np.zeros((2, 2)), np.zeros((2, 2, 3))], None, r"X\[0\] is an array of shape \(2, 2, 1\)"),
        (np.zeros((2, 64)), (8, -8), "positive integers"),
        ([np.zeros((4, 4)), np.zeros((4, 5))], None, r"\(4, 4\) at index 0, \(4, 5\) at index 1"),
    ],
)
def test_wrong_shapes(X, image_shape, message):
    with pytest.raises(ValueError, match=message):
        shape_of(X, image_shape)


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_wrong_values():
    x = np.zeros((2, 4, 4))
    with pytest.raises(ValueError, match=r"\(4, 4, 1\).*\(4, 5, 1\).*as in fit"):
        open_as(x, (4, 5, 1)).images()
    with pytest.raises(ValueError, match="16 features, but Reader is expecting 20 features"):
        open_as(x.reshape(2, 16), (4, 5, 1), resize=True)
    for value, message in ((np.nan, "contains NaN"), (np.inf, "contains infinity")):
        x[1, 2, 3] = value
        with pytest.raises(ValueError, match=message):
            open_as(x, (4, 4, 1)).images()
    with pytest.raises(ValueError, match=r"0 sample\(s\)"):
        open_as(x[:0], (4, 4, 1)).images()
    with pytest.raises(ValueError, match="dtype complex128; real numbers"):
        open_as(np.ones((2, 4, 4)) * 1j, (4, 4, 1)).images()
    huge = np.full((4, 4), 1e300)
    for X in (huge[None], [np.ones((4, 4), int), huge]):
        with pytest.raises(ValueError, match=r"Input X.* value too large for dtype\('float32'\)"):
            open_as(X, (4, 4, 1)).images()
    huge[0, 0] = np.nan
    with pytest.raises(ValueError, match=r"Input X\[1\] contains NaN"):
        open_as([np.ones((4, 4), int), huge], (4, 4, 1)).images()


# Crops ------------------------------------------------------------------------------------------


def random_crops(X, shape, draws):
    """Return random crops of one image."""
    batch = learn_reader(X, "Estimator", shape)
    [image] = batch.originals()
    return [random_crop(image, batch.reader.image_shape, side, np.array(at)) for side, *at in draws]


@pytest.mark.parametrize(
    "draw, halvings, size, corner",
    [
        # shorter side 256: 1300 x 1100 is halved while both sides reach 512
        ((0.0, 0.0, 0.0), [(550, 650), (275, 325)], (256, 303), (0, 0)),
        ((0.0, 0.5, 0.5), [(550, 650), (275, 325)], (256, 303), (24, 0)),
        # side 320 of 65: 550 is less than 640
        ((0.999, 0.999, 0.999), [(550, 650)], (320, 378), (122, 64)),
        # int(0.3 * 65) = 19: side 275, which is less than half of 550 but not more
        ((0.3, 0.9, 0.1), [(550, 650), (275, 325)], (275, 325), (63, 2)),
        # side 276: 550 is less than 552, so it is not halved again
        ((0.31, 0.0, 0.999), [(550, 650)], (276, 326), (0, 20)),
    ],
)
def test_random_crop_equals_explicit_resizing(save, draw, halvings, size, corner):
    noise = np.random.RandomState(0).randint(256, size=(1300, 1100, 3), dtype=np.uint8)
    expected = Image.fromarray(noise)
    for half in halvings:
        expected = expected.resize(half, Image.Resampling.BOX)
    expected = np.asarray(expected.resize(size, Image.Resampling.BICUBIC))
    top, left = corner
    expected = expected[top : top + 256, left : left + 256]
    [crop] = random_crops([save(Image.fromarray(noise))], (256, 256), [draw])
    np.testing.assert_array_equal((crop * 255).round(), expected)


def test_random_crop_of_a_wide_window(save):
    file = save(Image.fromarray(np.random.RandomState(0).randint(256, size=(90, 200), dtype="u1")))
    [crop] = random_crops([file], (32, 64), [(0.999, 0.999, 0.5)])
    with Image.open(file) as image:  # side 40 of 32 ... 40: it covers 40 x 80
        large = image.resize((100, 45), Image.Resampling.BOX).resize((89, 40), Image.BICUBIC)
    np.testing.assert_array_equal((crop[..., 0] * 255).round(), np.asarray(large)[8:, 13:77])


def laplacian(a):
    gray = a.mean(2)
    inner = gray[1:-1, 1:-1]
    return (gray[:-2, 1:-1] + gray[2:, 1:-1] + gray[1:-1, :-2] + gray[1:-1, 2:] - 4 * inner).std()


@pytest.mark.parametrize("photo", [0, 1])
def test_random_crops_are_as_sharp_as_the_original(save, photo):
    """Compare with one direct resize; an enlarged center crop would be less sharp."""
    image = Image.fromarray(load_sample_images().images[photo])  # 427 x 640
    draws = np.random.RandomState(0).uniform(size=(8, 3))
    crops = random_crops([save(image)], (256, 256), draws)
    for crop, (side, *where) in zip(crops, draws, strict=True):
        height = 256 + int(side * 65)
        width = round(640 * height / 427)
        large = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC)) / 255
        top, left = int(where[0] * (height - 255)), int(where[1] * (width - 255))
        direct = large[top : top + 256, left : left + 256]
        assert laplacian(crop) == pytest.approx(laplacian(direct), rel=0.05)
    reach = [int(at * (round(640 * (256 + int(s * 65)) / 427) - 255)) for s, _, at in draws]
    assert max(reach) > 100  # beyond what a central square holds


def test_crops_of_arrays_and_files_agree(save):
    y, x = np.mgrid[:80, :70]
    a = np.stack([60 + x, 60 + y, 90 + x * y // 40], axis=2).astype(np.uint8)
    draws = [(0.2, 0.3, 0.9), (0.9, 0.0, 0.5)]
    of_file = random_crops([save(Image.fromarray(a))], None, draws)
    np.testing.assert_array_equal(random_crops(a[None], None, draws), of_file)
    np.testing.assert_array_equal(random_crops([Image.fromarray(a)], None, draws), of_file)
    np.testing.assert_array_equal(random_crops(a.reshape(1, -1), (80, 70, 3), draws), of_file)
    of_floats = np.array(random_crops(a[None] / 255, None, draws))
    np.testing.assert_allclose(of_floats, of_file, atol=2 / 255)  # 8 bits are rounded
    # any scale, any number of channels, and nothing beyond the numbers that there were
    odd = np.concatenate([a, a[..., :2]], axis=2) * 7.0 - 900
    of_odd = np.array(random_crops(odd[None], None, draws))
    np.testing.assert_allclose(of_odd[..., :3], of_floats * 255 * 7 - 900, atol=2e-3)
    assert odd.min() <= of_odd.min() and of_odd.max() <= odd.max()


def test_small_images_are_shifted_instead_of_resized(save):
    a = np.random.RandomState(0).randint(256, size=(30, 20), dtype=np.uint8)
    wide = np.pad(a, [(2, 2), (1, 1)], mode="edge") / np.float32(255)  # a tenth, half to each side
    draws = [(0.7, 0.0, 0.0), (0.1, 0.5, 0.5), (0.4, 0.999, 0.999)]
    expected = [wide[y : y + 30, x : x + 20, None] for y, x in [(0, 0), (2, 1), (4, 2)]]
    for X in (a[None], a[None] / np.float32(255), [save(Image.fromarray(a))]):
        np.testing.assert_array_equal(random_crops(X, None, draws), expected)
        np.testing.assert_array_equal(random_crops(X, (30, 20), draws), expected)
    # a large file is resized, to whatever size: nothing is repeated at its edges
    large = save(Image.fromarray(np.random.RandomState(0).randint(256, size=(60, 40), dtype="u1")))
    [crop] = random_crops([large], (30, 20), [(0.0, 0.0, 0.0)])
    np.testing.assert_array_equal(crop, load([large], (30, 20))[0])


def test_originals_name_the_unreadable_image(save):
    good = save(Image.new("L", (8, 8)), "good.png")
    for bad, resize in ((save(Image.new("L", (9, 9))), False), ("missing.png", True)):
        with pytest.raises(ValueError, match=r"X\[7\] .*(9, 9, 1|missing)"):
            open_as([good] * 7 + [bad], (8, 8, 1), resize=resize).originals(slice(6, 8))


def test_reading_a_batch_does_not_change_its_images(save):
    """Images that are read in one process and decoded in another one are exactly the same."""
    rng = np.random.RandomState(0)

    def noise(mode, size):
        return Image.fromarray(rng.randint(256, size=(*size, 4), dtype=np.uint8)).convert(mode)

    turned = noise("RGB", (100, 70))
    turned.getexif()[0x0112] = 6
    deep = Image.fromarray(rng.randint(2**16, size=(64, 64)).astype(np.uint16))
    items = [
        save(noise("RGB", (300, 170)), "large.png"),
        noise("RGBA", (33, 32)),
        noise("P", (64, 65)),
        noise("LA", (9, 200)),
        save(noise("CMYK", (48, 48)), "c.jpg"),
        turned,
        deep,
    ]
    arrays = [*rng.randint(256, size=(2, 16, 12, 3), dtype=np.uint8), *rng.rand(2, 3, 16, 12)]
    for decoding in ("as_seen", "plain"):
        for X, shape in (
            (items, (16, 12, 3)),
            (items[:5], (16, 12, 1)),
            (items + arrays, (16, 12, 3)),
            (arrays[:2], None),
            (arrays[2:], None),
            (items[1:2], None),
            (Items(items), (16, 12, 3)),
        ):
            batch = learn_reader(X, "Reader", shape, decoding=decoding)
            read = pickle.loads(pickle.dumps(batch.read()))
            assert len(read) == len(batch)
            np.testing.assert_array_equal(read.images(), batch.images())
            for found, expected in zip(read.originals(), batch.originals(), strict=True):
                np.testing.assert_array_equal(found, expected)
                assert found.dtype == expected.dtype


# Channels last or first ------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("size", [(8, 8), (28, 28), (32, 20)])
def test_channels_first_and_last_are_detected(channels, size):
    last = np.random.RandomState(0).rand(3, *size, channels).astype(np.float32)
    first = last.transpose(0, 3, 1, 2)
    for X in (last, first, torch.tensor(last), torch.tensor(first), list(first)):
        np.testing.assert_array_equal(load(X), last)
    reader = learn_reader(last, "Reader").reader
    np.testing.assert_array_equal(reader.open(torch.tensor(first)).images(), last)
    mixed = [last[0], torch.tensor(first[1])]
    np.testing.assert_array_equal(reader.open(mixed).images(), last[:2])


@pytest.mark.parametrize("shape", [(6, 8, 10), (2, 4, 4), (3, 20, 3), (10, 3, 3)])
def test_ambiguous_channels_need_image_shape(shape):
    X = np.random.RandomState(0).rand(2, *shape).astype(np.float32)
    a, b, c = shape
    for form in (X, torch.tensor(X), [X[0], torch.tensor(X[1])]):
        with pytest.raises(ValueError, match=rf"Pass image_shape=\({a}, {b}, {c}\) if.* come last"):
            shape_of(form)
        np.testing.assert_array_equal(load(form, shape), X)
        if a != c:
            np.testing.assert_array_equal(load(form, (b, c, a)), X.transpose(0, 2, 3, 1))
    if a != c:
        assert shape_of(X, (b, c)) == (b, c, a)
        first = PatchTokenizer(image_shape=(b, c, a), random_state=0).fit(X)
        last = PatchTokenizer(random_state=0, image_shape=(b, c, a)).fit(X.transpose(0, 2, 3, 1))
        np.testing.assert_array_equal(first.codebook_, last.codebook_)


@pytest.mark.parametrize("side", [2, 3, 5])
def test_cubes_need_image_shape(side):
    """If all three axes are equally long, only three numbers say that channels come last."""
    X = np.random.RandomState(0).rand(2, side, side, side).astype(np.float32)
    message = (
        rf"Pass image_shape=\({side}, {side}, {side}\), which .* last. If they come first, also"
    )
    for form in (X, torch.tensor(X), list(X)):
        for declared in (None, (side, side)):
            with pytest.raises(ValueError, match=message):
                shape_of(form, declared)
        np.testing.assert_array_equal(load(form, (side,) * 3), X)
    last = load(np.moveaxis(X, 1, -1), (side,) * 3)
    np.testing.assert_array_equal(last, X.transpose(0, 2, 3, 1))


def test_too_many_axes_are_an_error(tmp_path):
    film = np.zeros((2, 3, 8, 8, 3), np.uint8)
    np.save(tmp_path / "film.npy", film)
    readers = [learn_reader(X, "Reader").reader for X in (film[0], np.zeros((4, 5)))]
    for X, name in (
        (film, "X"),
        (torch.tensor(film), "X"),
        (film[..., None], "X"),
        (film.tolist(), "X"),
        (np.load(tmp_path / "film.npy", mmap_mode="r"), "X"),
        ([*film], r"X\[0\]"),
        ([film[0], film[1, :2]], r"X\[0\]"),
        ([*torch.tensor(film)], r"X\[0\]"),
        (Items(film), r"X\[0\]"),
    ):
        message = rf"^{name} has shape \([\d, ]*3, 8, 8.*\(n, channels, height, width\), or a table"
        for use in (lambda X: learn_reader(X, "Reader"), *(reader.open for reader in readers)):
            with pytest.raises(ValueError, match=message):
                use(X)


@pytest.mark.parametrize("channels", [2, 4, 6])
def test_files_do_not_match_arrays_with_other_channels(save, channels):
    X = np.random.RandomState(0).randint(256, size=(4, 8, 8, channels), dtype=np.uint8)
    clf = AnyOrderARClassifier(max_iter=1, random_state=0, tol=10.0).fit(X, [0, 1, 0, 1])
    image = Image.new("RGBA", (8, 8))
    path = save(image)
    message = rf"Files and PIL images .* 1 or 3 channels, but images with {channels} channels are"
    for bad in ([path], [image], [Path(path).read_bytes()], [X[0], path], Items([image])):
        for call in (clf.predict, lambda bad: clf.partial_fit(bad, [0] * len(bad))):
            with pytest.raises(ValueError, match=message):
                call(bad)
    with pytest.raises(ValueError, match=message if channels > 3 else "Arrays are neither"):
        learn_reader([X[0], path], "Reader")
    with pytest.raises(ValueError, match=message):
        learn_reader([path], "Reader", (8, 8, channels))
    with pytest.raises(ValueError, match=message):
        to_pixels(image, channels)


def test_images_one_pixel_high_or_wide():
    assert shape_of(np.zeros((2, 1, 9, 1))) == (1, 9, 1)
    assert shape_of(np.zeros((2, 9, 1, 1))) == (9, 1, 1)


# Other forms of X -----------------------------------------------------------------------------


class Items:
    """A data set with a length and items. An item may be a function that returns the image."""

    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        return self.items[i]() if callable(self.items[i]) else self.items[i]


def test_iterators_and_sequences_of_images(save, tmp_path):
    paths = [save(Image.new("L", (4, 4), i), f"{i}.png") for i in range(3)]
    expected = load(paths)
    for X in (
        iter(paths),
        (p for p in sorted(tmp_path.glob("*.png"))),
        dict.fromkeys(paths).keys(),
    ):
        batch = learn_reader(X, "Reader")
        np.testing.assert_array_equal(batch.images(), expected)
        np.testing.assert_array_equal(batch.reader.open(iter(paths)).images(), expected)
    images = [Image.open(path) for path in paths]
    batch = learn_reader(Items(images), "Reader")
    np.testing.assert_array_equal(batch.images(), expected)


def test_containers_without_a_fixed_order_are_an_error(save):
    paths = [save(Image.new("L", (4, 4), i), f"{i}.png") for i in range(3)]
    for X in (set(paths), frozenset(map(Path, paths)), {1, 2}):
        for use in (convert_input, find_unreadable, PatchTokenizer().fit):
            with pytest.raises(ValueError, match=r"set, which has no fixed order.*Pass a list"):
                use(X)
    by_path = {path: i for i, path in reversed(list(enumerate(paths)))}
    for view in (by_path.keys(), {i: path for path, i in by_path.items()}.values()):
        assert convert_input(view).tolist() == paths[::-1]


def test_mappings_are_an_error(save, tmp_path):
    path, x = save(Image.new("L", (4, 4))), np.zeros((2, 4, 4))
    np.savez(tmp_path / "x.npz", images=x, labels=[0, 1])
    table = {f"column {i}": [1.0, 2.0] for i in range(9)}
    reader = learn_reader(x, "Reader").reader
    for X, message in (
        (
            {"images": x, "labels": [0, 1]},
            r"X is a dict with the keys 'images', 'labels'\. Pass one",
        ),
        (UserDict({path: "cat"}), r"UserDict with .*image.png'\..*list\(X.values\(\)\) as y"),
        (np.load(tmp_path / "x.npz"), r"NpzFile with the keys 'images', 'labels'\."),
        (load_digits(), r"Bunch with the keys 'data', 'target', .*, \.\.\.\. Pass one"),
        (table, r"keys 'column 0', 'column 1', 'column 2', 'column 3', 'column 4', \.\.\.\. Pass"),
        ({}, r"X is a dict"),
    ):
        for use in (lambda X: learn_reader(X, "Reader"), reader.open):
            with pytest.raises(ValueError, match=message):
                use(X)


def test_paths_as_bytes_are_an_error(save, tmp_path):
    path = os.fsencode(save(Image.new("L", (4, 4))))
    (tmp_path / "no suffix").touch()
    for bad in (b"missing.jpeg", path, os.fsencode(tmp_path / "no suffix")):
        for X in ([bad], np.array([bad]), np.array([bad], object), pd.Series([bad])):
            message = re.escape(
                f"{bad!r}: bytes must be the content of a file. Decode paths: os.fs"
            )
            with pytest.raises(ValueError, match=message):
                learn_reader(X, "Reader")
    content = Path(os.fsdecode(path)).read_bytes()
    np.testing.assert_array_equal(load(np.array([content])), load([content]))
    with pytest.raises(ValueError, match=r"X\[0\] cannot be read as an image: 'bytes'"):
        learn_reader([b"no image"], "Reader")
    for X in (content, path):
        with pytest.raises(ValueError, match=r"one image.*\[X\]; .*a path: \[os.fsdecode\(X\)\]"):
            learn_reader(X, "Reader")
    with open(path, "rb") as file, pytest.raises(ValueError, match=r"one image.*: \[X\]\."):
        learn_reader(file, "Reader")


@pytest.mark.parametrize("suffix", ["gif", "tif", "webp", "png"])
def test_frames_of_one_image_must_be_copies(save, suffix):
    """A PIL image with several frames shows the frame of the last call of `seek`."""
    pixels = np.arange(3, dtype=np.uint8)[:, None, None].repeat(8, 1).repeat(8, 2) * 80
    first, *others = [Image.fromarray(x) for x in pixels]
    options = {"lossless": True} if suffix == "webp" else {}
    path = save(first, f"film.{suffix}", save_all=True, append_images=others, **options)

    def seek(film, frame):
        film.seek(frame)
        return film

    film = Image.open(path)
    for X in (
        [seek(film, i) for i in range(3)],
        [first, *[seek(film, i) for i in (2, 1, 0)]],
        (seek(film, i) for i in range(3)),
        list(ImageSequence.Iterator(film)),
        ImageSequence.Iterator(film),
        pd.Series([seek(film, i) for i in range(3)]),
        Items([partial(seek, film, i) for i in range(3)]),
    ):
        with pytest.raises(ValueError, match=r"X\[\d\] and X\[\d\] are the same .*frame.copy\(\)"):
            learn_reader(X, "Reader")
    copies = [frame.copy() for frame in ImageSequence.Iterator(film)]
    np.testing.assert_array_equal(load(copies)[:, 0, 0, 0], pixels[:, 0, 0] / np.float32(255))
    np.testing.assert_array_equal(load([first] * 2), load([first, first.copy()]))


class ByArray:
    """An array of another library, which NumPy reads by the method `__array__`."""

    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return self.array if dtype is None else self.array.astype(dtype)


class ByArrayWithItems(ByArray):
    """The same with a shape, a length and items that are arrays of the library, as in Dask."""

    def __init__(self, array):
        super().__init__(array)
        self.shape, self.dtype, self.ndim = array.shape, array.dtype, array.ndim

    def __len__(self):
        return len(self.array)

    def __getitem__(self, rows):
        return type(self)(self.array[rows])


class ByInterface:
    def __init__(self, array):
        self.__array_interface__, self.array = array.__array_interface__, array


class ByDlpack:
    def __init__(self, array):
        self.array = torch.from_numpy(array)

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


def by_dask(array):
    return pytest.importorskip("dask.array").from_array(array, chunks=3)


@pytest.mark.parametrize("wrap", [ByArray, ByArrayWithItems, ByInterface, ByDlpack, by_dask])
def test_arrays_of_other_libraries(wrap):
    rng = np.random.RandomState(0)
    for shape in ((7, 6, 5), (7, 3, 8, 8), (7, 9, 9, 1)):
        images = rng.rand(*shape).astype(np.float32)
        expected = learn_reader(images, "Reader").images()
        items = [wrap(image) for image in images]
        for X in (wrap(images), items, iter(items), Items(items)):
            np.testing.assert_array_equal(learn_reader(X, "Reader").images(), expected)
        reader = learn_reader(wrap(images), "Reader").reader
        np.testing.assert_array_equal(reader.open(wrap(images)).images(), expected)
    table = rng.rand(7, 6)
    np.testing.assert_array_equal(learn_reader(wrap(table), "Reader").values(), table)
    flat = learn_reader(wrap(table), "Reader", (2, 3))
    np.testing.assert_array_equal(flat.images(), learn_reader(table, "Reader", (2, 3)).images())
    tokens = rng.randint(9, size=(7, 2, 2))
    np.testing.assert_array_equal(learn_tokens(wrap(tokens), "Reader").values(), tokens)


def test_labels_and_weights_of_other_libraries():
    X, y = np.random.RandomState(0).rand(12, 4, 4), np.tile([3, 5], 6)
    weight = np.arange(1.0, 13)
    params = {"prior": {"dim": 16, "n_layer": 1}, "max_iter": 1, "n_orders": 1, "random_state": 0}
    expected = AnyOrderARClassifier(**params).fit(X, y, weight).predict_proba(X)
    for wrap in (ByArrayWithItems, ByDlpack):
        clf = AnyOrderARClassifier(**params).fit(wrap(X), wrap(y), wrap(weight))
        np.testing.assert_array_equal(clf.predict_proba(wrap(X)), expected)
        assert clf.score(wrap(X), wrap(y), wrap(weight)) == clf.score(X, y, weight)


def test_arrays_that_cannot_be_converted():
    class OnAnotherDevice(ByArrayWithItems):
        def __array__(self, dtype=None, copy=None):
            raise TypeError("implicit conversion is not allowed")

    X = np.ones((4, 8, 8))
    for bad in (OnAnotherDevice(X), [OnAnotherDevice(x) for x in X]):
        with pytest.raises(TypeError, match=r"X has .*OnAnotherDevice.*implicit conversion"):
            AnyOrderARClassifier().fit(bad, [0, 1, 0, 1])
    with pytest.raises(TypeError, match=r"y has .*OnAnotherDevice.*implicit conversion"):
        AnyOrderARClassifier().fit(X, OnAnotherDevice(np.array([0, 1, 0, 1])))


def test_common_mistakes_get_a_message_with_the_right_call(save, tmp_path):
    pd, pl = pytest.importorskip("pandas"), pytest.importorskip("polars")
    path, image = save(Image.new("L", (4, 4))), Image.new("L", (4, 4))
    table = {"width": [1, 2], "file": [path, path]}
    tensors = torch.zeros(2, 3, 8, 8), torch.zeros(2)
    for X, message in (
        (path, r"one path.*Pass a list of paths: \[X\]"),
        (tmp_path, r"skaocls.load_image_folder\('.*'\)"),
        (str(tmp_path), r"skaocls.load_image_folder\('.*'\)"),
        (ImageFolder([path], ["a"], ["a"]), r"Pass X.paths as X, X.labels as y"),
        (image, r"one image. Pass a list of images: \[X\]"),
        (pd.DataFrame(table), r"'file' contains images. Pass that column alone, X\[\['file'\]\]"),
        (pl.DataFrame(table), r"'file' contains images. Pass that column alone, X\[\['file'\]\]"),
        (Items([(image, 0), (image, 1)]), r"pairs .*\[x for x, _ in X\] as X"),
        ([(path, 0), (path, 1)], r"pairs .*\[x for x, _ in X\] as X"),
        (pd.DataFrame({"a": ["x", "y"], "b": [1.0, 2.0]}), r"contain strings: 'a'.*OrdinalEncoder"),
        (pl.DataFrame({"a": [1, 2], "b": ["x", "y"]}), r"contain strings: 'b'.*OrdinalEncoder"),
        (pd.DataFrame({"a": [1, 2], 3: pd.Categorical(["x", "y"])}), r"strings: 3.*OrdinalEncoder"),
        ([[0.5, "x"], ["y", "z"]], r"contain strings: 0, 1.*OrdinalEncoder"),
        (np.array([[2, "x"], [3, "y"]], dtype=object), r"contain strings: 1.*OrdinalEncoder"),
        (["red", "blue"], r"does not contain paths: .*OrdinalEncoder"),
        (zip([image], [1]), r"pairs .*\[x for x, _ in X\] as X"),
        (Items([{"id": 3, "image": image, "label": 1}]), r"\[x\['image'\] for x in X\] as X"),
        ([tensors], r"batches .*torch.cat\(\[x for x, _ in X\]\) as X"),
    ):
        with pytest.raises(ValueError, match=message):
            learn_reader(X, "Reader")


@pytest.mark.parametrize("shape", [(8, 6), (8, 6, 3), (8, 8, 1), (6, 6, 2)])
def test_single_image_is_an_error(shape):
    X = np.random.RandomState(0).rand(5, *shape)
    reader = learn_reader(X, "Reader").reader
    for image in (X[0], torch.tensor(X[0])):
        with pytest.raises(ValueError, match=r"is one image of shape .*: X\[None\]"):
            reader.open(image)
    assert len(reader.open(X[0][None]).images()) == 1
    if len(shape) == 3 and shape[2] > 1:  # (1, height, width) is a batch
        with pytest.raises(ValueError, match=r"is one image of shape .*: X\[None\]"):
            reader.open(torch.tensor(X[0]).permute(2, 0, 1))


def test_image_folder(tmp_path):
    image = Image.new("L", (4, 4))
    for name in ("b/2.PNG", "b/deeper/1.jpg", "a/1.png", "a/._1.png", ".git/1.png", "a/.x/1.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(tmp_path / name)
    (tmp_path / "a" / "notes.txt").touch()
    (tmp_path / "b" / "loop").symlink_to(tmp_path / "b")
    paths, labels, names = load_image_folder(tmp_path)
    found = [str(tmp_path / name) for name in ("a/1.png", "b/2.PNG", "b/deeper/1.jpg")]
    assert (paths, labels, names) == (found, ["a", "b", "b"], ["a", "b"])
    assert load(paths).shape == (3, 4, 4, 1)
    (tmp_path / "c" / ".ipynb_checkpoints").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"c has no images.*cat.1.png"):
        load_image_folder(str(tmp_path))
    with pytest.raises(ValueError, match=r"has no subfolders\. Expected one subfolder"):
        load_image_folder(tmp_path / "a")
    with pytest.raises(NotADirectoryError, match="is not a folder"):
        load_image_folder(paths[0])
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_image_folder(tmp_path / "nowhere")


def test_image_folder_contains_all_formats_of_pillow(tmp_path, monkeypatch):
    image = Image.new("RGB", (4, 4))
    (tmp_path / "a").mkdir()
    Image.init()
    monkeypatch.setitem(Image.EXTENSION, ".raw9", "RAW9")
    monkeypatch.setitem(Image.OPEN, "RAW9", (None, None))
    names = ["1.JFIF", "2.jpe", "3.tga", "4.pbm", "5.dib", "6.pcx", "7.mpo", "8.apng", "9.raw9"]
    if features.check("jpg_2000"):
        names.append("10.jp2")
    for name in names:
        if name == "9.raw9":
            (tmp_path / "a" / name).touch()
        else:
            image.convert("1" if name == "4.pbm" else "RGB").save(tmp_path / "a" / name)
    for name in ("1.txt", "2.pdf", "3.mpg", "4.h5", "5.npy", "png", "6.png.part"):
        (tmp_path / "a" / name).touch()
    monkeypatch.chdir(tmp_path)
    paths, _, _ = load_image_folder(".")
    assert paths == sorted(str(tmp_path / "a" / name) for name in names)
    monkeypatch.chdir("/")
    assert list(find_unreadable(paths)) == [paths.index(str(tmp_path / "a" / "9.raw9"))]


# Scale ------------------------------------------------------------------------------------------


def test_another_scale_than_in_fit_is_an_error():
    x = np.random.RandomState(0).randint(256, size=(9, 8, 8)).astype(np.uint8)
    x[0, 0, :2] = 0, 255
    bytes_ = learn_reader(x, "Reader").reader
    floats = learn_reader(x / 255, "Reader").reader
    wide = learn_reader(x.astype(np.float32), "Reader").reader
    for reader in (bytes_, floats):
        for form in (x.astype(int), x.astype(np.float32), x.tolist(), torch.tensor(x).float()):
            with pytest.raises(ValueError, match=r"numbers from 0 to 255, but .* from 0 to 1 "):
                reader.open(form)
        with pytest.warns(UserWarning, match=r"numbers from 0 to 2, but .* from 0 to 1 "):
            reader.open(x / 127.5)
        reader.open(x / 255)
    with pytest.raises(ValueError, match=r"numbers from 0 to 1, but .* from 0 to 255 "):
        wide.open(x)
    with pytest.warns(UserWarning, match=r"numbers from 0 to 1, but .* from 0 to 255 "):
        wide.open(x / 255)


def test_float_images_up_to_255_get_the_same_tokens():
    x = np.random.RandomState(0).randint(256, size=(40, 8, 8)).astype(np.uint8)
    small = PatchTokenizer(random_state=0).fit(x)
    large = PatchTokenizer(random_state=0).fit(x.astype(np.float32))
    np.testing.assert_allclose(large.codebook_ / 255, small.codebook_, atol=1e-5)
    assert (small.transform(x) == large.transform(x.astype(int))).mean() > 0.999


@pytest.mark.parametrize(
    "X, shape",
    [
        (np.random.RandomState(0).randint(17, size=(30, 64)), r"\(8, 8\)"),
        (np.random.RandomState(0).rand(30, 400), r"\(20, 20\)"),
        (np.random.RandomState(0).rand(30, 192), r"\(8, 8, 3\)"),
        (np.random.RandomState(0).randn(30, 64), None),
        (np.random.RandomState(0).rand(30, 65), None),
        (np.random.RandomState(0).rand(30, 49), None),
        (np.random.RandomState(0).rand(30, 64) * 10.0 ** (np.arange(64) / 9), None),
    ],
)
def test_tables_that_look_like_pixels_get_a_warning(X, shape):
    clf = AnyOrderARClassifier(max_iter=1, random_state=0)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        clf.fit(X, np.arange(30) % 2)
    said = [str(w.message) for w in seen if "image_shape" in str(w.message)]
    assert len(said) == (shape is not None)
    if said:
        assert re.search(f"pass image_shape={shape}", said[0])


@pytest.mark.parametrize("shape, declared", [((3, 5), None), ((3, 28, 28), (3, 28, 28))])
def test_ambiguous_shapes_need_no_parameter_of_the_tokenizer(shape, declared):
    """Gray images 3 pixels high, and images 3 pixels high with 28 channels."""
    X, y = np.random.RandomState(0).rand(12, *shape).astype(np.float32), np.arange(12) % 2
    prior = {"dim": 32, "n_layer": 1, "n_head": 2}
    params = {"max_iter": 1, "random_state": 0, "augmentation": None, "n_orders": 2}
    clf = AnyOrderARClassifier(prior, image_shape=declared, **params).fit(X, y)
    assert clf.image_shape_ == clf.tokenizer_.image_shape_ == (*shape, 1)[:3]
    assert clf.predict(X).shape == (12,) and clf.sample(2).shape == (2, *shape)
    np.testing.assert_array_equal(clf.predict_proba(X[3:4]), clf.predict_proba(X)[3:4])


# Hashes of a batch ------------------------------------------------------------------------------


def test_hashes_identify_decoded_content(save, tmp_path, monkeypatch):
    def hashes(X, decoding="as_seen"):
        batch = learn_reader(X, "Reader", decoding=decoding)
        assert len(batch.row_hashes()) == len(batch)
        return batch.content_hash(), *batch.row_hashes()

    pixels = np.arange(12, dtype=np.uint8).reshape(2, 6)
    red, blue = (Image.fromarray(pixels, "P") for _ in range(2))
    red.putpalette([255, 0, 0] * 256)
    blue.putpalette([0, 0, 255] * 256)
    assert not set(hashes([red])) & set(hashes([blue]))
    assert hashes([red]) == hashes([red.convert("RGB")])
    clear = red.copy()
    clear.info["transparency"] = 3
    assert hashes([clear])[1] != hashes([red])[1]
    assert hashes([clear], "plain")[1] == hashes([red])[1]
    with monkeypatch.context() as patch:
        patch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
        with_setting = hashes([red])
    assert with_setting[0] != hashes([red])[0] and with_setting[1:] == hashes([red])[1:]
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "a" / "b")
    paths = [tmp_path / "a.png", tmp_path / "a" / "a.png", f"{tmp_path}/link/../a.png"]
    for path in paths[:2]:
        Image.fromarray(pixels).save(path)
    assert [hashes(paths)[1 + i] == hashes(paths)[3] for i in (0, 1)] == [False, True]
    exif = Image.Exif()
    exif[0x0112] = 3
    turned = Image.open(save(Image.fromarray(pixels), "t.png", exif=exif))
    assert hashes([turned])[1] == hashes([Image.fromarray(pixels[::-1, ::-1])])[1]
    # arrays: type and shape count, and so do all pixels
    x = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    assert hashes(x)[0] == hashes(torch.tensor(x))[0] == hashes(list(x))[0]
    different = [x, x.astype(np.int32), x.reshape(2, 4, 3), x[::-1], x + np.uint8(1), x[:1]]
    assert len({hashes(a)[0] for a in different}) == len(different)
    # files: content for the batch, path for the rows
    a, b = save(red.convert("RGB"), "a.png"), save(red.convert("RGB"), "b.png")
    assert hashes([a])[0] == hashes([b])[0] == hashes([Path(b)])[0]
    assert hashes([a])[1] != hashes([b])[1] == hashes([os.path.relpath(b)])[1]
    content = Path(a).read_bytes()
    assert hashes([content])[0] == hashes([a])[0]
