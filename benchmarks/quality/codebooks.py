"""Codebook size that `PatchTokenizer(n_codes="auto")` chooses on three tasks.

    python -m benchmarks.quality.codebooks

The tasks are those of ``benchmarks/claims``. Writes ``codebooks.md``. The glyphs need the fonts
named in ``benchmarks/claims/data.py``.
"""

from skaocls import PatchTokenizer

from .. import common
from ..claims.contestants import load


def main(argv=None):
    parser = common.parser(__doc__)
    parser.add_argument("--tasks", nargs="+", default=["digits", "glyphs", "textures"])
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args(argv)
    rows = []
    for task in args.tasks:
        codes, seconds = [], 0.0
        for seed in range(args.seeds):
            X, y, _, _ = load(task, seed)
            taken, tokenizer = common.timed(PatchTokenizer(random_state=seed).fit, X, y)
            codes.append(tokenizer.n_codes_)
            seconds += taken / args.seeds
        rows.append([task, len(X), ", ".join(map(str, codes)), f"{seconds:.1f}"])
    text = common.page(
        "Codebook size",
        f"Measured with `python -m benchmarks.quality.codebooks` on {common.machine()}. The column "
        "*codes* contains three codebook sizes, which `PatchTokenizer` chose for the training "
        "images of three seeds. `PatchTokenizer` used the labels for this choice.",
        common.table(["data", "images", "codes", "seconds"], rows),
    )
    common.write_page(args.output / "codebooks.md", text)


if __name__ == "__main__":
    main()
