"""Mutation testing of `skaocls.scoring`.

    pip install mutmut
    python -m benchmarks.reliability.mutants [--modules early_stopping heads] [--sample 300]

Makes mutants of the modules with the operators of mutmut 3, and runs the tests of the module
against each. A mutant that passes them has survived. mutmut itself skips functions with decorators,
which are important here, so this script applies its operators. Each mutant is tested in a forked
process, so that torch is imported only once. Texts of errors and warnings are not changed.

Writes ``mutants.json`` and ``mutants.md``. Existing results are kept, with the explanations of
survivors that were added by hand. ``--again`` repeats the survivors, ``--anew`` all mutants.
"""

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

import libcst as cst
import pytest
import torch
import torch._dynamo  # otherwise each process imports it
from hypothesis import Phase, settings
from mutmut.mutation.file_mutation import MutationVisitor
from mutmut.mutation.mutators import mutation_operators
from mutmut.mutation.pragma_handling import IgnoredCode

from ..common import RESULTS, ROOT, page, parser, read_json, table, write_page

TESTS = {  # test files, and words in the names of tests to run (all if empty)
    "aggregation": ("test_scoring.py", "posterior sums impossible aggregation joint"),
    "calibration": ("test_calibration.py", "mean_posterior without ignored weight hand"),
    "early_stopping": ("test_early_stopping.py", ""),
    "engine": ("test_scoring.py test_early_stopping.py", ""),
    "evidence": ("test_evidence.py", ""),
    "exhaustive": ("test_scoring.py test_shared_trunk.py", ""),
    "heads": ("test_shared_trunk.py", ""),
    "orders": ("test_orders.py", ""),
    "sampling": ("test_generation.py", ""),
}
SLOW_FIXTURES = {"fitted", "clf", "ten_digits", "digits"}  # they train a classifier
CPU_SECONDS, CPU_FACTOR = 6, 3  # limit: seconds plus a multiple of the unchanged tests' time
MEMORY = 2**33


class Visitor(MutationVisitor):
    """Visits functions with decorators, too, and skips the texts of errors and warnings."""

    def _skip_node_and_children(self, node):
        if isinstance(node, cst.FunctionDef):
            return False
        called = node.func if isinstance(node, cst.Call) else None
        called = called.attr if isinstance(called, cst.Attribute) else called
        if isinstance(node, cst.Raise) or getattr(called, "value", None) == "warn":
            return True
        return super()._skip_node_and_children(node)


def mutants_of(name, sample=None):
    """Return the number of mutants of a module, and a sample: function, line, change and code."""
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
    random.Random(0).shuffle(mutations)  # a larger sample contains the smaller one
    mutants, seen = [], {code}
    for mutation in mutations[:sample]:
        changed = module.deep_replace(mutation.original_node, mutation.mutated_node).code
        if changed in seen:
            continue
        seen.add(changed)
        try:
            compile(changed, str(path), "exec")
        except SyntaxError:
            continue
        line, change = difference(code, changed)
        function = mutation.contained_by_top_level_function.name.value
        mutants.append({"function": function, "line": line, "change": change, "code": changed})
    return len(mutations), mutants


def difference(code, changed):
    """Return the number of the first line that differs, and the change as one line."""
    before, after = code.splitlines(), changed.splitlines()
    first = next(n for n, (a, b) in enumerate(zip(before, after)) if a != b)
    same = next(n for n, (a, b) in enumerate(zip(before[::-1], after[::-1])) if a != b)
    texts = (
        " ".join(part)
        for part in (before[first : len(before) - same], after[first : len(after) - same])
    )
    return first + 1, " => ".join(" ".join(text.split()) for text in texts)


class TestSelection:
    """Pytest plugin that selects the tests of a module, without those that train for long."""

    def __init__(self, name):
        self.words = TESTS[name][1].split()
        self.excluded = set() if name == "evidence" else SLOW_FIXTURES

    def pytest_collection_modifyitems(self, items):
        items[:] = [
            item
            for item in items
            if not self.excluded & {*item.fixturenames}
            and (not self.words or any(word in item.name for word in self.words))
        ]


def functions_of(names):
    """Yield all functions of a module and of its classes, without their decorators."""
    for value in list(names.values()):
        value = inspect.unwrap(value) if callable(value) else value
        if isinstance(value, type) and value.__module__ == names["__name__"]:
            yield from functions_of(vars(value) | {"__name__": value.__module__})
        value = value.fget if isinstance(value, property) else value
        if inspect.isfunction(value) and value.__module__ == names["__name__"]:
            yield value.__qualname__, value


def replace_code(module, code):
    """Replace the code of a module's functions in place, so that all references to them change."""
    names = {"__name__": module.__name__, "__file__": module.__file__}
    exec(compile(code, module.__file__, "exec"), names)
    original = dict(functions_of(vars(module)))
    for name, function in functions_of(names):
        for attribute in ("__code__", "__defaults__", "__kwdefaults__"):
            setattr(original[name], attribute, getattr(function, attribute))


def run_tests(name, code, limit):
    """Return True if the tests pass, False if they fail, or "time" if they exceed the limit."""
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
                replace_code(importlib.import_module(f"skaocls.scoring.{name}"), code)
            chosen = [str(ROOT / "tests" / file) for file in TESTS[name][0].split()]
            options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:doctest", "-o", "addopts="]
            failed = int(pytest.main([*options, *chosen], [TestSelection(name)]))
        finally:
            os._exit(failed)
    status = os.waitpid(pid, 0)[1]
    if os.WIFSIGNALED(status):
        return "time" if os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL) else False
    return os.WEXITSTATUS(status) == 0


def run(name, known, options):
    """Test the mutants of a module that have no result yet."""
    total, mutants = mutants_of(name, options.sample)
    old = {(m["function"], m["change"]): m for m in known.get("mutants", [])}
    before = time.process_time() + children_time()
    assert run_tests(name, None, 3600) is True, f"The tests of {name} fail without a change."
    seconds = time.process_time() + children_time() - before
    limit = round(CPU_SECONDS + CPU_FACTOR * seconds)
    print(f"{name}: {len(mutants)} of {total} mutants, tests take {seconds:.1f} s", flush=True)
    results = []
    for i, mutant in enumerate(mutants):
        known_result = old.get((mutant["function"], mutant["change"]), {})
        outcome = known_result.get("outcome")
        if outcome is None or options.anew or (options.again and outcome == "survived"):
            passed = run_tests(name, mutant["code"], limit)
            outcome = {True: "survived", False: "killed", "time": "time"}[passed]
        result = {k: mutant[k] for k in ("function", "line", "change")} | {"outcome": outcome}
        if outcome == "survived":
            result["why"] = known_result.get("why", "")
            if "outcome" not in known_result or options.again:
                print(f"  {name}:{mutant['line']} {mutant['change']}", flush=True)
        results.append(result)
        if i % 5 == 0:
            save(name, {"total": total, "mutants": results + known_results(mutants[i + 1 :], old)})
    save(name, {"total": total, "mutants": results})


def known_results(mutants, old):
    return [old[key] for m in mutants if (key := (m["function"], m["change"])) in old]


def children_time():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def load():
    return read_json(RESULTS / "mutants.json", {})


def save(name, result):
    results = load() | {name: result}
    text = json.dumps(dict(sorted(results.items())), indent=1)
    with tempfile.NamedTemporaryFile("w", dir=RESULTS, delete=False) as file:
        file.write(text + "\n")
    os.replace(file.name, RESULTS / "mutants.json")


def wilson_interval(successes, n, z=1.96):
    """Return the share of successes and its 95 % interval by Wilson."""
    share = successes / n
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * (share * (1 - share) / n + z**2 / (4 * n**2)) ** 0.5
    return share, centre - half, centre + half


def results_page(results):
    """Return the page: a table of counts, and the survivors with their explanations."""
    columns = ("mutants", "tested", "killed", "survived", "explained")
    rows, total, survivors = [], Counter(), []
    for name, result in results.items():
        counts = Counter({"mutants": result["total"], "tested": len(result["mutants"])})
        for mutant in result["mutants"]:
            if mutant["outcome"] != "survived":
                counts["killed"] += 1
                continue
            counts["survived"] += 1
            counts["explained"] += bool(mutant["why"])
            change = mutant["change"].replace("|", "\\|")
            survivors.append([f"{name}:{mutant['line']}", f"`{change}`", mutant["why"]])
        rows.append([name, *(counts[k] for k in columns)])
        total += counts
    rows.append(["**all**", *(total[k] for k in columns)])
    share, low, high = wilson_interval(total["killed"], total["tested"])
    about = (
        "Measured with `python -m benchmarks.reliability.mutants`. The mutants are made with the "
        f"operators of mutmut {version('mutmut')}. For large modules, only a random sample of the "
        f"mutants is tested. The tests detect {share:.1%} of the {total['tested']} tested mutants "
        f"(95 % Wilson interval: {low:.1%} to {high:.1%}). The second table lists the surviving "
        "mutants, which no test detects."
    )
    return page(
        "Mutation testing",
        about,
        table(["module", *columns], rows),
        table(["line", "change", "why no test detects it"], survivors),
    )


def main(argv=None):
    options = parser(__doc__)
    options.add_argument("--modules", nargs="+", default=list(TESTS), choices=list(TESTS))
    options.add_argument("--sample", type=int, help="maximum number of mutants of a module")
    options.add_argument("--again", action="store_true", help="test survivors again")
    options.add_argument("--anew", action="store_true", help="test all mutants again")
    options = options.parse_args(argv)
    os.chdir(ROOT)
    torch.set_num_threads(1)
    # stop at the first failing example
    phases = [Phase.explicit, Phase.generate]
    settings.register_profile("mutants", phases=phases, derandomize=True, database=None)
    settings.load_profile("mutants")
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    for name in options.modules:  # import once for all mutants
        importlib.import_module(f"skaocls.scoring.{name}")
        for test in TESTS[name][0].split():
            importlib.import_module(test.split(".")[0])
    for name in options.modules:
        run(name, load().get(name, {}), options)
    write_page(RESULTS / "mutants.md", results_page(load()))


if __name__ == "__main__":
    main()
