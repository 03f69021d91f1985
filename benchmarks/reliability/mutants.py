"""Do the tests notice when the code of scoring is changed?

    pip install mutmut
    python benchmarks/mutants.py [--modules racing heads] [--sample 300]

Makes mutants of the modules of `skaocls.scoring` by the operators of mutmut 3, and runs tests of
the module against each: a mutant that they pass has survived. mutmut itself leaves functions with
decorators alone, which here are those that matter most, so that its operators are applied by this
script; each mutant is tested in a forked process, and torch is imported once for all. The wording
of errors and warnings is left as it is.

Writes ``results/mutants.json`` and the table ``results/mutants.md``. Results that are there are
kept (``--again`` runs survivors again, ``--anew`` all), and with them the reasons that survivors
were given by hand.
"""

import argparse
import importlib
import inspect
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import libcst as cst
import pytest
import torch
import torch._dynamo  # which the first network made in a process imports
from hypothesis import Phase, settings
from mutmut.mutation.file_mutation import MutationVisitor
from mutmut.mutation.mutators import mutation_operators
from mutmut.mutation.pragma_handling import IgnoredCode

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
TESTS = {  # files, and words in the names of the tests in them; none is all
    "aggregation": ("test_scoring.py", "posterior sums impossible aggregation"),
    "calibration": ("test_calibration.py", "mean_posterior no_ not_count weight bins"),
    "engine": ("test_scoring.py test_racing.py", ""),
    "engines": ("test_scoring.py test_shared_trunk.py", "brute_force formula bfloat16"),
    "evidence": ("test_evidence.py", ""),
    "exhaustive": ("test_scoring.py test_shared_trunk.py", ""),
    "heads": ("test_shared_trunk.py", ""),
    "orders": ("test_orders.py", ""),
    "racing": (
        "test_racing.py test_screening.py test_shared_trunk.py test_scoring.py",
        "race exits follows company bound fill memory search rounds no_numbers",
    ),
    "sampling": ("test_generation.py", ""),
    "screening": ("test_screening.py", ""),
    "stopping": ("test_stopping.py", ""),
}
TRAINED = {"fitted", "clf", "ten_digits", "digits"}
SECONDS = 6, 3  # of processor time, and so many times what the tests take without a change
MEMORY = 2**33


class Visitor(MutationVisitor):
    """mutmut's, which also goes into functions with decorators, and leaves wording alone."""

    def _skip_node_and_children(self, node):
        if isinstance(node, cst.FunctionDef):
            return False
        if isinstance(node, cst.Raise) or (
            isinstance(node, cst.Call)
            and isinstance(node.func, cst.Attribute)
            and node.func.attr.value == "warn"
        ):
            return True
        return super()._skip_node_and_children(node)


def mutants_of(name, sample=None):
    """How many mutants a module has; of some: function, line, what was changed, and the code."""
    path = ROOT / "skaocls" / "scoring" / f"{name}.py"
    code = path.read_text()
    wrapper = cst.MetadataWrapper(cst.parse_module(code))
    visitor = Visitor(mutation_operators, IgnoredCode(set(), set(), set()))
    module = wrapper.visit(visitor)
    mutations = [
        m
        for m in visitor.mutations
        if isinstance(m.contained_by_top_level_function, cst.FunctionDef)
    ]
    random.Random(0).shuffle(mutations)  # a larger sample holds the smaller one
    found, seen = [], {code}
    for mutation in mutations[:sample]:
        changed = module.deep_replace(mutation.original_node, mutation.mutated_node).code
        if changed in seen:
            continue
        seen.add(changed)
        try:
            compile(changed, str(path), "exec")
        except SyntaxError:
            continue
        line, told = difference(code, changed)
        function = mutation.contained_by_top_level_function.name.value
        about = {"function": function, "line": line, "change": told}
        found.append(about | {"code": changed})
    return len(mutations), found


def difference(code, changed):
    """The first line that differs, and how, in one line."""
    before, after = code.splitlines(), changed.splitlines()
    first = next(n for n, (a, b) in enumerate(zip(before, after)) if a != b)
    same = next(n for n, (a, b) in enumerate(zip(before[::-1], after[::-1])) if a != b)
    texts = (
        " ".join(part)
        for part in (before[first : len(before) - same], after[first : len(after) - same])
    )
    return first + 1, " => ".join(" ".join(text.split()) for text in texts)


class Choice:
    """Of pytest: the tests of a module, without those that train a classifier for long."""

    def __init__(self, name):
        self.words = TESTS[name][1].split()
        self.trained = set() if name in ("evidence", "stopping") else TRAINED

    def pytest_collection_modifyitems(self, items):
        items[:] = [
            item
            for item in items
            if not self.trained & {*item.fixturenames}
            and (not self.words or any(word in item.name for word in self.words))
        ]


def functions_of(names):
    """All functions of a module, and those of its classes, without their decorators."""
    for value in list(names.values()):
        value = inspect.unwrap(value) if callable(value) else value
        if isinstance(value, type) and value.__module__ == names["__name__"]:
            yield from functions_of(vars(value) | {"__name__": value.__module__})
        value = value.fget if isinstance(value, property) else value
        if inspect.isfunction(value) and value.__module__ == names["__name__"]:
            yield value.__qualname__, value


def change(module, code):
    """Give the functions of a module, wherever they are known by now, the code of a mutant."""
    names = {"__name__": module.__name__, "__file__": module.__file__}
    exec(compile(code, module.__file__, "exec"), names)
    ours = dict(functions_of(vars(module)))
    for name, function in functions_of(names):
        for what in ("__code__", "__defaults__", "__kwdefaults__"):
            setattr(ours[name], what, getattr(function, what))


def tested(name, code, limit):
    """Whether the tests pass: True, False, or "time" if they come to no end."""
    pid = os.fork()
    if not pid:
        failed = 1
        try:
            resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
            resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
            silent = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silent, 1)
            os.dup2(silent, 2)
            if code is not None:
                change(importlib.import_module(f"skaocls.scoring.{name}"), code)
            chosen = [str(ROOT / "tests" / file) for file in TESTS[name][0].split()]
            options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:doctest", "-o", "addopts="]
            failed = int(pytest.main([*options, *chosen], [Choice(name)]))
        finally:
            os._exit(failed)
    status = os.waitpid(pid, 0)[1]
    if os.WIFSIGNALED(status):
        return "time" if os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL) else False
    return os.WEXITSTATUS(status) == 0


def run(name, known, options):
    """Run the mutants of a module that have no result yet."""
    total, mutants = mutants_of(name, options.sample)
    old = {(m["function"], m["change"]): m for m in known.get("mutants", [])}
    before = time.process_time() + children_time()
    assert tested(name, None, 3600) is True, f"the tests of {name} fail as it is"
    seconds = time.process_time() + children_time() - before
    limit = round(SECONDS[0] + SECONDS[1] * seconds)
    print(f"{name}: {len(mutants)} of {total} mutants, tests take {seconds:.1f} s", flush=True)
    results = []
    for i, mutant in enumerate(mutants):
        was = old.get((mutant["function"], mutant["change"]), {})
        outcome = was.get("outcome")
        if outcome is None or options.anew or (options.again and outcome == "survived"):
            passed = tested(name, mutant["code"], limit)
            outcome = {True: "survived", False: "killed", "time": "time"}[passed]
        kept = {k: mutant[k] for k in ("function", "line", "change")} | {"outcome": outcome}
        if outcome == "survived":
            kept["why"] = was.get("why", "")
            if "outcome" not in was or options.again:
                print(f"  {name}:{mutant['line']} {mutant['change']}", flush=True)
        results.append(kept)
        if i % 5 == 0:
            save(name, {"total": total, "mutants": results + mutants_left(mutants[i + 1 :], old)})
    save(name, {"total": total, "mutants": results})


def mutants_left(mutants, old):
    return [old[key] for m in mutants if (key := (m["function"], m["change"])) in old]


def children_time():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def load():
    path = RESULTS / "mutants.json"
    return json.loads(path.read_text()) if path.exists() else {}


def save(name, result):
    results = load() | {name: result}
    text = json.dumps(dict(sorted(results.items())), indent=1)
    with tempfile.NamedTemporaryFile("w", dir=RESULTS, delete=False) as file:
        file.write(text + "\n")
    os.replace(file.name, RESULTS / "mutants.json")


def page(results):
    """The table, and the survivors with the reasons they were given."""
    lines = [
        "| module | mutants | tried | killed | survived | of them explained |",
        "|---|---|---|---|---|---|",
    ]
    all_of_it, survivors = Counter(), []
    for name, result in results.items():
        counts = Counter({"mutants": result["total"], "tried": len(result["mutants"])})
        for mutant in result["mutants"]:
            if mutant["outcome"] != "survived":
                counts["killed"] += 1
                continue
            counts["survived"] += 1
            counts["explained"] += bool(mutant["why"])
            what = mutant["change"].replace("|", "\\|")
            survivors.append(f"| {name}:{mutant['line']} | `{what}` | {mutant['why']} |")
        lines.append(row(name, counts))
        all_of_it += counts
    lines.append(row("**all**", all_of_it))
    n, share = all_of_it["tried"], all_of_it["killed"] / all_of_it["tried"]
    z = 1.96  # of Wilson's interval
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    reach = z / (1 + z**2 / n) * (share * (1 - share) / n + z**2 / (4 * n**2)) ** 0.5
    about = (
        f"`python benchmarks/mutants.py`. Changes by the operators of mutmut {version('mutmut')}, "
        f"drawn at random where not all were tried. Of {n} that were tried the tests notice "
        f"{share:.1%} (95 % interval by Wilson: {middle - reach:.1%} to {middle + reach:.1%})."
    )
    table = ["", "| place | change | why no test notices it |", "|---|---|---|", *survivors]
    return "\n".join(["# Mutants", "", about, "", *lines, *table]) + "\n"


def row(name, counts):
    told = (counts[k] for k in ("mutants", "tried", "killed", "survived", "explained"))
    return f"| {name} | " + " | ".join(map(str, told)) + " |"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--modules", nargs="+", default=list(TESTS), choices=list(TESTS))
    parser.add_argument("--sample", type=int, help="at most so many mutants of a module")
    parser.add_argument("--again", action="store_true", help="run survivors again")
    parser.add_argument("--anew", action="store_true", help="run all again")
    options = parser.parse_args()
    os.chdir(ROOT)
    torch.set_num_threads(1)
    # the first example that fails will do
    phases = [Phase.explicit, Phase.generate]
    settings.register_profile("mutants", phases=phases, derandomize=True, database=None)
    settings.load_profile("mutants")
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    for name in options.modules:  # once for all mutants
        importlib.import_module(f"skaocls.scoring.{name}")
        for test in TESTS[name][0].split():
            importlib.import_module(test.split(".")[0])
    for name in options.modules:
        run(name, load().get(name, {}), options)
    (RESULTS / "mutants.md").write_text(page(load()), encoding="utf-8")


if __name__ == "__main__":
    main()
