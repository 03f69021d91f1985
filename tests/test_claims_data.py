"""The data of benchmarks/claims: tasks, shifts and shortcuts.

The fonts that matplotlib ships stand in for the packages'.
"""

import colorsys
import importlib.util
import re
import shutil
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

CLAIMS = Path(__file__).parents[1] / "benchmarks" / "claims"
FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
SEVERITIES = range(1, 6)


def load(name):
    spec = importlib.util.spec_from_file_location(f"claims_{name}", CLAIMS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


data, shifts, shortcuts = load("data"), load("shifts"), load("shortcuts")


def glyphs(seed):
    return data.glyphs(seed, n_train=60, n_test=20, folder=FONTS)


TASKS = {"digits": data.digits, "glyphs": glyphs, "textures": data.textures}
SHAPES = {"digits": (8, 8, 1), "glyphs": (32, 32, 3), "textures": (16, 16, 3)}
N_CLASSES = {"digits": 10, "glyphs": 20, "textures": 12}


@pytest.fixture(scope="module")
def tasks():
    return {name: task(0) for name, task in TASKS.items()}


def check_images(images, shape):
    assert images.shape == shape and images.dtype == np.float32
    assert images.min() >= 0 and images.max() <= 1


@pytest.mark.parametrize("name", TASKS)
def test_task(tasks, name):
    """Shapes, ranges, all classes about equally often; a function of the seed."""
    X_train, y_train, X_test, y_test = tasks[name]
    for X, y in ((X_train, y_train), (X_test, y_test)):
        check_images(X, (len(y), *SHAPES[name]))
        counts = np.bincount(y)
        assert len(counts) == N_CLASSES[name]
        assert counts.min() > 0.9 * counts.max()
    for a, b in zip(tasks[name], TASKS[name](0)):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(X_test, TASKS[name](1)[2])
    trained = {image.tobytes() for image in X_train}
    assert not any(image.tobytes() in trained for image in X_test)


@pytest.mark.parametrize("name, low, high", [("glyphs", 0.3, 0.95), ("textures", 0.2, 0.9)])
def test_tasks_are_neither_trivial_nor_hopeless(tasks, name, low, high):
    X_train, y_train, X_test, y_test = tasks[name]
    clf = LogisticRegression(C=0.1, max_iter=30).fit(X_train.reshape(len(X_train), -1), y_train)
    assert low < clf.score(X_test.reshape(len(X_test), -1), y_test) < high


def test_classes_come_in_turn(tasks):
    """So the first images of any number are a fair sample."""
    for name in ("glyphs", "textures"):
        for y in tasks[name][1::2]:
            np.testing.assert_array_equal(y, np.arange(len(y)) % N_CLASSES[name])


@pytest.mark.parametrize("seed", range(3))
def test_textures_do_not_overlap(seed):
    """No pixel of a training patch is in a test patch; areas are apart, too."""
    train, test = data.places(seed, 150, 40)
    photos = data.load_sample_images().images
    seen = [np.full(photo.shape[:2], -1) for photo in photos]
    for label, photo, y, x in train:
        patch = seen[photo][y : y + 16, x : x + 16]
        assert patch.shape == (16, 16) and np.isin(patch, (-1, label)).all()
        patch[:] = label
    for _, photo, y, x in test:
        patch = seen[photo][y : y + 16, x : x + 16]
        assert patch.shape == (16, 16) and (patch == -1).all()


def test_texture_patches_are_of_the_photographs(tasks):
    for rows, X in zip(data.places(0, 150, 40), tasks["textures"][::2]):
        for (_, photo, y, x), patch in list(zip(rows, X))[:30]:
            whole = data.load_sample_images().images[photo]
            np.testing.assert_allclose(patch * 255, whole[y : y + 16, x : x + 16], rtol=1e-6)


def test_families():
    """Fonts of symbols, and those without the letters, are left out; slanted faces, too."""
    families = data.find_families(folder=FONTS)
    assert {"DejaVu Sans", "DejaVu Serif", "cmr10", "STIXGeneral"} <= set(families)
    assert families["DejaVu Sans"].name == "DejaVuSans.ttf"
    assert not {"cmex10", "DejaVu Sans Display", "STIXNonUnicode", "STIXSizeOneSym"} & set(families)
    assert not any("Resort" in family for family in families)
    assert "DejaVu Sans Mono" not in families  # the letters are those of DejaVu Sans
    assert list(families) == sorted(families)


@pytest.mark.parametrize("seed", range(5))
def test_families_of_training_and_of_unseen_fonts_are_disjoint(seed):
    families = data.find_families(folder=FONTS)
    known, unseen = data.split_families(families, seed)
    assert set(known) | set(unseen) == set(families.values()) and not set(known) & set(unseen)
    assert len(unseen) == len(families) // 3
    reversed_names = dict(reversed(families.items()))
    assert data.split_families(reversed_names, seed) == (known, unseen)


def test_glyphs_are_drawn_in_the_families_of_the_split(monkeypatch):
    """Training and testing draw from the same families, unseen_fonts from the others."""
    drawn = []
    monkeypatch.setattr(
        data, "draw_glyphs", lambda files, *args: drawn.append((set(files), *args)) or ((), ())
    )
    data.glyphs(3, folder=FONTS)
    data.unseen_fonts(3, folder=FONTS)
    known, unseen = data.split_families(data.find_families(folder=FONTS), 3)
    assert [files for files, *_ in drawn] == [set(known), set(known), set(unseen)]
    assert len({tuple(seed) for *_, seed in drawn}) == 3


def test_unseen_fonts_and_other_characters():
    images, labels = data.unseen_fonts(0, characters="agQ", n_test=4, folder=FONTS)
    check_images(images, (12, 32, 32, 3))
    np.testing.assert_array_equal(labels, [0, 1, 2] * 4)


def test_ink_is_darker_than_paper(tasks):
    images = tasks["glyphs"][0]
    paper, darkest = np.median(images, axis=(1, 2)), images.min((1, 2))
    assert np.all(paper - darkest > 0.1)
    assert np.all(np.ptp(images, axis=0).reshape(-1, 3).max(0) > 0.4)  # of many colours


def test_too_few_fonts(tmp_path, monkeypatch):
    """The error says how to get them, whether a folder lacks fonts or packages are missing."""
    command = re.escape(f"--no-install-recommends $(cat {data.PACKAGES})")
    for name in ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "STIXSizOneSymReg.ttf"):
        shutil.copy(FONTS / name, tmp_path)
    with pytest.raises(SystemExit, match=f"1 font families .* 6 are needed.*{command}"):
        data.glyphs(0, folder=tmp_path)
    monkeypatch.setattr(data, "DPKG", tmp_path)
    with pytest.raises(SystemExit, match=f"missing: fonts-3270, .*{command}"):
        data.glyphs(0)


def test_fonts_of_the_packages(tmp_path, monkeypatch):
    """Those alone that dpkg lists for the packages, so a machine's other fonts change nothing."""
    packages = data.PACKAGES.read_text().split()
    assert packages == sorted(set(packages)) and all(re.fullmatch("fonts-[a-z0-9-]+", p)
                                                     for p in packages)  # fmt: skip
    for package in packages:
        (tmp_path / f"{package}.list").write_text("/usr/share/doc\n")
    listed = [str(FONTS / "cmr10.ttf"), "/usr/share/fonts/Some Font.otf"]
    (tmp_path / f"{packages[-1]}.list").write_text("\n".join(listed))
    monkeypatch.setattr(data, "DPKG", tmp_path)
    assert sorted(map(str, data.font_files())) == sorted(listed)


def batch(tasks, name):
    return tasks[name][2][:60]


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("shift", shifts.SHIFTS)
def test_shift(tasks, shift, name):
    """Further from the original with each severity; an image's index and the seed decide."""
    images, change, distances = batch(tasks, name), shifts.SHIFTS[shift], []
    for severity in SEVERITIES:
        before = images.copy()
        shifted = change(images, severity, 0)
        np.testing.assert_array_equal(images, before)
        check_images(shifted, images.shape)
        distances.append(np.mean((shifted - images) ** 2))
        np.testing.assert_array_equal(change(images, severity, 0), shifted)
        others = np.concatenate([1 - images[:3], images[3:7]])
        np.testing.assert_array_equal(change(others, severity, 0)[3:], shifted[3:7])
    assert distances[0] > 1e-6 and np.all(np.diff(distances) > 0)


def test_random_shifts_depend_on_seed_and_index(tasks):
    images = np.repeat(tasks["glyphs"][2][:1], 2, axis=0)
    for name in ("gaussian_noise", "occlusion", "translation"):
        first, second = shifts.SHIFTS[name](images, 3, 0)
        assert not np.array_equal(first, second)
        assert not np.array_equal(first, shifts.SHIFTS[name](images, 3, 1)[0])


def test_what_shifts_do(tasks):
    images = batch(tasks, "glyphs")
    np.testing.assert_allclose(shifts.inversion(images, 5), 1 - images, atol=1e-6)
    for value, blank in ((0.25, 0), (0.75, 1)):
        flat = np.full((1, 8, 8, 1), value, dtype=np.float32)
        np.testing.assert_array_equal(shifts.outline(flat, 5), np.full_like(flat, blank))
        for name in ("gaussian_blur", "contrast", "occlusion", "translation"):
            np.testing.assert_allclose(shifts.SHIFTS[name](flat, 5), flat, atol=1e-6)
    sketch = shifts.outline(images, 5)
    np.testing.assert_array_equal(sketch, np.repeat(sketch[..., :1], 3, axis=-1))  # no colours
    faded = shifts.contrast(images, 5)
    np.testing.assert_allclose(faded.mean((1, 2, 3)), images.mean((1, 2, 3)), atol=1e-5)
    np.testing.assert_allclose(faded.std((1, 2, 3)), 0.15 * images.std((1, 2, 3)), rtol=1e-3)
    noise = shifts.gaussian_noise(np.full((20, 32, 32, 3), 0.5, np.float32), 1) - 0.5
    np.testing.assert_allclose(noise.std(), 0.05, rtol=0.05)
    changed = (shifts.occlusion(images, 5) != images).any(-1)
    side = round(0.57 * 32)
    assert np.all(np.ptp(np.argwhere(changed[0]), axis=0) < side)
    assert changed.sum((1, 2)).max() == side**2


def test_severity_is_checked(tasks):
    for severity in (0, 6, 2.5):
        with pytest.raises(ValueError, match="severity must be 1, 2, 3, 4 or 5"):
            shifts.contrast(batch(tasks, "digits"), severity)


@pytest.mark.parametrize("kind", shortcuts.MARKS)
@pytest.mark.parametrize("name", TASKS)
def test_shortcut(tasks, name, kind):
    """How often marks agree with the labels, and with which they do not."""
    _, _, X, y = tasks[name]
    n_classes, n = N_CLASSES[name], len(y)
    channels = 3 if kind == "background" else X.shape[-1]
    marks_of = {}
    for agreement in (0, 0.5, 0.9, 1, "reversed"):
        before = X.copy()
        marked, marks = shortcuts.with_shortcut(X, y, n_classes, agreement, kind, 0)
        np.testing.assert_array_equal(X, before)
        check_images(marked, (*X.shape[:3], channels))
        assert np.isin(marks, np.arange(n_classes)).all()
        rate = 0 if agreement == "reversed" else agreement
        assert abs(np.mean(marks == y) - rate) <= 4 * np.sqrt(rate * (1 - rate) / n)
        again, marks_again = shortcuts.with_shortcut(X, y, n_classes, agreement, kind, 0)
        np.testing.assert_array_equal(marked, again)
        np.testing.assert_array_equal(marks, marks_again)
        marks_of[agreement] = marks
    np.testing.assert_array_equal(marks_of["reversed"], (y + 1) % n_classes)
    others = (marks_of[0] - y) % n_classes
    assert len(np.unique(others)) == n_classes - 1  # any other class, never one's own
    _, changed = shortcuts.with_shortcut(X, y, n_classes, 0.5, kind, 1)
    assert not np.array_equal(changed, marks_of[0.5])


@pytest.mark.parametrize("name", ["digits", "glyphs"])
def test_corner_mark(tasks, name):
    """Marks of all classes differ, and nothing but a corner changes."""
    image = tasks[name][2][0]
    n_classes = N_CLASSES[name]
    marked = [shortcuts.corner(image, mark, n_classes) for mark in range(n_classes)]
    assert len({m.tobytes() for m in marked}) == n_classes
    side = max(2, len(image) // 8)
    for m in marked:
        changed = (m != image).any(-1)
        assert 0 < changed.sum() <= side**2
        rows, cols = np.nonzero(changed)
        assert {min(r, len(image) - 1 - r) < side for r in rows} == {True}
        assert {min(c, len(image) - 1 - c) < side for c in cols} == {True}


@pytest.mark.parametrize("name", ["digits", "glyphs"])
def test_background_tint(tasks, name):
    """The paper's hue names the class, the ink keeps its colour, grey images become RGB."""
    n_classes = N_CLASSES[name]
    for image in tasks[name][2][:20]:
        tinted = [shortcuts.background(image, mark, n_classes) for mark in range(n_classes)]
        papers = np.stack([np.median(x[:, [0, -1]], axis=(0, 1)) for x in tinted])
        hues = [colorsys.rgb_to_hsv(*paper)[0] * n_classes for paper in papers]
        assert np.abs((hues - np.arange(n_classes) + 0.5) % n_classes - 0.5).max() < 0.2
        assert np.ptp(papers, axis=1).min() > 0.3
        paper = np.median(image[:, [0, -1]], axis=(0, 1))
        ink = np.unravel_index(np.abs(image - paper).max(-1).argmax(), image.shape[:2])
        for x in tinted:
            np.testing.assert_allclose(x[ink], np.broadcast_to(image[ink], 3), atol=0.02)
