"""How many codes ``PatchTokenizer(n_codes="auto")`` takes, on the tasks of ``benchmarks/claims``.

    python benchmarks/codebooks.py

Writes ``results/codebooks.md``. Glyphs need the fonts that ``benchmarks/claims/data.py`` names.
"""

import sys
import time

from digits import HERE, machine

from skaocls import PatchTokenizer

sys.path.append(str(HERE / "claims"))
from contestants import load

SEEDS = (0, 1, 2)


def main():
    lines = [
        "# How many codes",
        "",
        f"`python benchmarks/codebooks.py`; {machine()}. The codebook that labels choose, for the "
        "training images of three seeds.",
        "",
        "| data | images | codes | seconds |",
        "|---" * 4 + "|",
    ]
    for task in ("digits", "glyphs", "textures"):
        codes, start = [], time.perf_counter()
        for seed in SEEDS:
            X, y, _, _ = load(task, seed)
            codes.append(PatchTokenizer(random_state=seed).fit(X, y).n_codes_)
        seconds = (time.perf_counter() - start) / len(SEEDS)
        lines.append(f"| {task} | {len(X)} | {', '.join(map(str, codes))} | {seconds:.1f} |")
    (HERE / "results" / "codebooks.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
