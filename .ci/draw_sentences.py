"""Draw sentences at random from docstrings, messages and pages, for readers to judge.

python .ci/draw_sentences.py --seed 1 --n 60
"""

import argparse
import ast
import random
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", "CONTRIBUTING.md", "docs/*.md", "benchmarks/results/*.md"]


def text_of_module(path):
    """Yield docstrings, and the messages of errors and warnings."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            # without examples, section headings, underlines and "name : type" lines
            lines = (ast.get_docstring(node) or "").splitlines()
            skipped = r"\s*(>>>|\.\.\.|-+$|[\w, *`]+ : |[A-Z][a-z ]+$|\*\*)"
            kept = (line if not re.match(skipped, line) else "" for line in lines)
            yield "\n".join(kept)
        elif isinstance(node, ast.Call) and re.search(r"Error|warn", ast.unparse(node.func)):
            for arg in node.args[:1]:
                yield ast.unparse(arg).strip("f'\"")


def text_of_page(path):
    """Yield the paragraphs of a page, without code and tables."""
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.S)
    for paragraph in re.split(r"\n\s*\n|\n\s*(?:[-*]|\d+\.) ", text):
        if not re.match(r"\s*([|#<!:(]|---|API: )", paragraph):
            yield paragraph


def sentences():
    """Yield (place, sentence)."""
    for path in sorted((ROOT / "skaocls").rglob("*.py")):
        for text in text_of_module(path):
            for paragraph in re.split(r"\n\s*\n|\n\s*(?:[-*]|\d+\.) ", text):
                yield from split(path, paragraph)
    for pattern in PAGES:
        for path in sorted(ROOT.glob(pattern)):
            for paragraph in text_of_page(path):
                yield from split(path, paragraph)


def split(path, paragraph):
    for sentence in re.split(r"(?<=[.!?:])\s+(?=[A-Z`*\"])", " ".join(paragraph.split())):
        if len(sentence.split()) >= 5:
            yield path.relative_to(ROOT), sentence


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--n", type=int, default=60)
    args = parser.parse_args()
    drawn = random.Random(args.seed).sample(list(sentences()), args.n)
    for i, (place, sentence) in enumerate(drawn, start=1):
        print(f"{i}. [{place}] {sentence}")
