"""Three classification tasks that need no download: digits, glyphs and textures.

Each task is a function of a seed that returns training images and labels, test images and labels.
Images are float32 in [0, 1], (n, height, width, channels); labels start at 0.

Glyphs are drawn from the fonts of the Debian packages in ``fonts.txt``:

    apt-get update && apt-get install -y --no-install-recommends $(cat benchmarks/claims/fonts.txt)
"""

from pathlib import Path

import numpy as np
from PIL import Image, ImageFont
from sklearn.datasets import load_digits, load_sample_images
from sklearn.model_selection import train_test_split

CHARACTERS = "ABEFGHKLMNPRTWXY2347"  # no two look alike in any font, as O and 0 do
PACKAGES = Path(__file__).with_name("fonts.txt")
DPKG = Path("/var/lib/dpkg/info")
PLAIN = ("Regular", "Book", "Roman", "Medium")
MIN_FAMILIES = 6
SAME_DESIGN = 0.9  # cosine similarity from which two families count as one
ANY_LETTERS = 0.15  # least similarity to the median letters; symbol fonts have about none
GLYPH_SIZE = 32
OVERSAMPLING = 3
PAPER, INK = (0.8, 1.0), (0.0, 0.45)  # ranges of red, green and blue
AREAS = (2, 3)  # rows and columns of areas in a photograph, each a class
STRIPES = 8
TEST_STRIPES = 2
PATCH = 16


def digits(seed):
    """Return scikit-learn's handwritten digits, 8 x 8 in grey, a quarter of them for testing."""
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32).reshape(-1, 8, 8, 1)
    X_train, X_test, y_train, y_test = train_test_split(
        images, labels, test_size=0.25, stratify=labels, random_state=seed
    )
    return X_train, y_train, X_test, y_test


def glyphs(seed, *, characters=CHARACTERS, n_train=200, n_test=50, folder=None):
    """Return letters and digits in colour, 32 x 32; training and test images use the same families.

    `n_train` and `n_test` are numbers of images per class. The fonts are those of the packages, or
    those in `folder`.
    """
    known, _ = split_families(find_families(characters, folder), seed)
    return (
        *draw_glyphs(known, characters, n_train, [seed, 0]),
        *draw_glyphs(known, characters, n_test, [seed, 1]),
    )


def unseen_fonts(seed, *, characters=CHARACTERS, n_test=50, folder=None):
    """Return test images and labels in the families that :func:`glyphs` does not use."""
    _, unseen = split_families(find_families(characters, folder), seed)
    return draw_glyphs(unseen, characters, n_test, [seed, 2])


def textures(seed, *, n_train=150, n_test=40):
    """Return patches of two photographs, 16 x 16 in colour; the class is the area they come from.

    `n_train` and `n_test` are numbers of patches per class. Each area is cut into stripes, some for
    training and some for testing, so no test patch contains a pixel of a training patch.
    """
    photos = [photo.astype(np.float32) / 255 for photo in load_sample_images().images]
    train, test = patch_positions(seed, n_train, n_test)
    X_train, X_test = (
        np.stack([photos[photo][y : y + PATCH, x : x + PATCH] for _, photo, y, x in rows])
        for rows in (train, test)
    )
    return X_train, train[:, 0], X_test, test[:, 0]


def patch_positions(seed, n_train, n_test):
    """Return the positions of training and test patches: rows of label, photo, top, left."""
    rng = np.random.default_rng([13, seed])
    photos = load_sample_images().images
    train: list[np.ndarray] = []
    test: list[np.ndarray] = []
    for photo, image in enumerate(photos):
        height, width = image.shape[0] // AREAS[0], image.shape[1] // AREAS[1]
        stripe = width // STRIPES  # vertical, because photographs change more from top to bottom
        for area in range(AREAS[0] * AREAS[1]):
            row, col = divmod(area, AREAS[1])
            label = photo * AREAS[0] * AREAS[1] + area
            order = rng.permutation(STRIPES)
            for rows, stripes, n in (
                (train, order[TEST_STRIPES:], n_train),
                (test, order[:TEST_STRIPES], n_test),
            ):
                top = rng.integers(height - PATCH + 1, size=n)
                left = rng.choice(stripes, n) * stripe + rng.integers(stripe - PATCH + 1, size=n)
                source = np.full(n, label), np.full(n, photo)
                rows.append(np.stack([*source, row * height + top, col * width + left], 1))
    # alternate between the classes, so that the first n patches are a balanced sample
    return [np.stack(rows, 1).reshape(-1, 4) for rows in (train, test)]


def font_files(folder=None):
    """Return the font files in a folder, or those that the packages installed."""
    if folder is None:
        lists = [DPKG / f"{package}.list" for package in PACKAGES.read_text().split()]
        missing = [path.stem for path in lists if not path.exists()]
        if missing:
            raise SystemExit(f"Fonts are missing: {', '.join(missing)}. {how_to_install()}")
        files = [Path(line) for path in lists for line in path.read_text().splitlines()]
    else:
        files = [*Path(folder).rglob("*")]
    return sorted({file for file in files if file.suffix.lower() in (".otf", ".ttf")})


def how_to_install():
    install = "apt-get update && apt-get install -y --no-install-recommends"
    return f"Run: {install} $(cat {PACKAGES}), or give a folder of other fonts."


def find_families(characters=CHARACTERS, folder=None):
    """Return one regular font of each family that has all the characters, {family: file}.

    The first of families with nearly the same design is kept, such as a condensed variant.
    """
    fonts: dict[str, list] = {}
    for file in font_files(folder):
        family, style = (name or "" for name in ImageFont.truetype(str(file)).getname())
        rank = min((PLAIN.index(word) for word in style.split() if word in PLAIN), default=9)
        slanted = "Italic" in style or "Oblique" in style
        fonts.setdefault(family, []).append((slanted, rank, file.name, file))
    families = {family: min(fonts[family])[-1] for family in sorted(fonts)}
    looks = {family: look(file, characters) for family, file in families.items()}
    looks = {family: x for family, x in looks.items() if x is not None}
    typical = np.median(list(looks.values()), axis=0) if looks else 0
    kept: dict[str, np.ndarray] = {}
    for family, x in looks.items():
        letters = (x * typical).sum(1).mean() > ANY_LETTERS
        if letters and all((x * other).sum(1).mean() < SAME_DESIGN for other in kept.values()):
            kept[family] = x
    if len(kept) < MIN_FAMILIES:
        raise SystemExit(
            f"{len(kept)} font families have the characters {characters}, but {MIN_FAMILIES} are "
            f"needed. {how_to_install()}"
        )
    return {family: families[family] for family in kept}


def look(file, characters):
    """Return normalized shapes of the characters, (n_characters, pixels); None if one is missing.

    The shapes are stretched to one box, so a condensed font looks like the wide one.
    """
    font = ImageFont.truetype(str(file), 48, layout_engine=ImageFont.Layout.BASIC)
    shapes = [ink(font, character) for character in characters]
    absent = ink(font, "\uffff")  # not a character: the glyph that the font draws for missing ones
    if any(shape is None or shape == absent for shape in shapes):
        return None
    small = [shape.resize((16, 16), Image.Resampling.BOX) for shape in shapes]
    x = np.stack([np.asarray(image, dtype=float).ravel() for image in small])
    x -= x.mean(1, keepdims=True)
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-9)


def ink(font, character):
    """Draw the character in white on black, cropped to its box; None if it is blank."""
    mask = font.getmask(character, mode="L")
    if mask.getbbox() is None:
        return None
    return Image.frombytes("L", mask.size, bytes(mask)).crop(mask.getbbox())


def split_families(families, seed):
    """Return the files of two thirds of the families for training, and of the others."""
    files = [families[name] for name in sorted(families)]
    order = np.random.default_rng([17, seed]).permutation(len(files))
    n_unseen = len(files) // 3
    return [files[i] for i in order[n_unseen:]], [files[i] for i in order[:n_unseen]]


def stencils(file, characters):
    """Draw each character in the centre of a square canvas that fits the largest one."""
    side = GLYPH_SIZE * OVERSAMPLING
    font = ImageFont.truetype(str(file), side, layout_engine=ImageFont.Layout.BASIC)
    largest = max(max(ink(font, character).size) for character in characters)
    font = font.font_variant(size=round(side * 0.85 * side / largest))
    canvases = []
    for character in characters:
        shape, canvas = ink(font, character), Image.new("L", (side, side))
        canvas.paste(shape, ((side - shape.width) // 2, (side - shape.height) // 2))
        canvases.append(canvas)
    return canvases


def draw_glyphs(files, characters, per_class, seed):
    """Draw every character with random fonts, colours, sizes and positions."""
    rng = np.random.default_rng([19, *seed])
    drawn = [stencils(file, characters) for file in files]
    labels = np.tile(np.arange(len(characters)), per_class)
    images = np.stack([glyph(drawn[rng.integers(len(drawn))][label], rng) for label in labels])
    return images, labels


def glyph(stencil, rng):
    """Draw one image of a character, with darker ink on lighter paper."""
    side, angle, scale = stencil.width, rng.uniform(-0.15, 0.15), rng.uniform(0.65, 1)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / scale
    shift = side / 2 - rotation @ (side / 2 + rng.uniform(-2, 2, size=2) * OVERSAMPLING)
    affine = np.column_stack([rotation, shift]).ravel().tolist()
    moved = stencil.transform(
        stencil.size, Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR
    )
    small = moved.resize((GLYPH_SIZE, GLYPH_SIZE), Image.Resampling.BOX)
    share = np.asarray(small, dtype=np.float32)[..., None] / 255
    paper, colour = rng.uniform(*PAPER, size=3), rng.uniform(*INK, size=3)
    return ((1 - share) * paper + share * colour).astype(np.float32)
