"""Design rules of the package: import direction, public names and sizes (docs/design.md)."""

import ast
import re
from pathlib import Path

import skaocls
from skaocls import AnyOrderARClassifier, displays

PACKAGE = Path(__file__).parents[1] / "skaocls"

# Layers from the bottom up. A module may import modules of its own package and of lower layers.
# `displays` and `selection` receive a classifier as an argument and do not import it.
LAYERS = [
    {
        "version",
        "attribute_alias",
        "devices",
        "distributed",
        "hashing",
        "parameter_objects",
        "progress",
        "warn",
    },
    {"files", "images"},
    {"tokenizers", "priors"},
    {"scoring"},
    {"training"},
    {"fitted"},
    {"classifier"},
    {"displays", "order_selection"},
    {"__init__"},
    {"__main__"},
]
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}


def modules():
    return sorted(PACKAGE.rglob("*.py"))


def name_of(path):
    return path.relative_to(PACKAGE).as_posix()


def part_of(path):
    return name_of(path).split("/")[0].removesuffix(".py")


def parsed(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def imports_of(path):
    """Yield the names of this package's modules that a file imports."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path} has a relative import"
            # `from skaocls import x` imports a subpackage or a public name
            names = [f"skaocls.{a.name}" for a in node.names] if node.module == "skaocls" else []
            yield from (n for n in names or [node.module] if n.split(".")[0] == "skaocls")
        elif isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.split(".")[0] == "skaocls")


def test_every_module_has_a_layer():
    assert {part_of(path) for path in modules()} == set(LEVEL)


def test_imports_point_down():
    violations = []
    for path in modules():
        for name in imports_of(path):
            names = name.split(".")
            part = names[1] if len(names) > 1 and names[1] in LEVEL else "__init__"
            if part != part_of(path) and LEVEL[part] >= LEVEL[part_of(path)]:
                violations.append(f"{name_of(path)} imports {name}")
    assert not violations


def test_parameters_of_the_classifier():
    parameters = AnyOrderARClassifier().get_params(deep=False)
    assert len(parameters) <= 30
    _, _, text = AnyOrderARClassifier.__doc__.partition("Parameters by topic:")
    topics, _, text = text.partition("Parameters\n")
    assert re.findall(r"`(\w+)`", topics.replace("`fit`", "")) == list(
        AnyOrderARClassifier._parameter_constraints
    )
    documented = re.findall(r"^    (\w+) : ", text.partition("Attributes\n")[0], re.MULTILINE)
    assert sorted(documented) == sorted(parameters)


def test_api_reference_lists_the_public_names():
    text = (PACKAGE.parent / "docs" / "api.rst").read_text(encoding="utf-8")
    public = {*skaocls.__all__} - {"__version__"} | {f"displays.{n}" for n in displays.__all__}
    public |= {"order_selection.smallest_n_orders", "scoring.evidence.Evidence"}
    public |= {"images.resize_crop", "images.find_unreadable"}
    public |= {"scoring.calibration.expected_calibration_error"}
    public |= {f"distributed.{n}" for n in ("is_main", "rank", "single_process", "world_size")}
    assert set(re.findall(r"^   ([\w.]+)$", text, re.MULTILINE)) == public


# Sizes ------------------------------------------------------------------------------------------

MAX_FUNCTION_LINES = 60  # of code, without docstring, comments and blank lines
LONG_FUNCTIONS = {
    "classifier.py: __init__": "scikit-learn requires one argument and assignment per parameter",
}
MAX_NESTING = 4  # of compound statements in a function
MAX_MODULE_LINES = 430
LONG_MODULES = {
    "classifier.py": "the reference manual of the estimator; most of it is docstrings",
    "scoring/early_stopping.py": "one algorithm for both architectures, with its derivation",
}
COMPOUND = (ast.If, ast.For, ast.While, ast.With, ast.Try, ast.Match, ast.FunctionDef)


def functions():
    for path in modules():
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.FunctionDef):
                yield path, node


def code_lines(path, function):
    """Count the lines of a function that contain code."""
    documented = ast.get_docstring(function, clean=False) is not None
    body = function.body[1:] if documented else function.body
    if not body:
        return 0
    header = range(function.lineno, function.body[0].lineno)
    lines = path.read_text(encoding="utf-8").splitlines()
    numbers = [*header, *range(body[0].lineno, function.end_lineno + 1)]
    code = [lines[i - 1].strip() for i in numbers]
    return sum(bool(line) and not line.startswith("#") for line in code)


def nesting(node, depth=0):
    """Return the depth of the deepest compound statement; elif does not count as nesting."""
    depths = [depth]
    for name, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                is_elif = name == "orelse" and isinstance(node, ast.If) and len(value) == 1
                deeper = isinstance(child, COMPOUND) and not (is_elif and isinstance(child, ast.If))
                depths.append(nesting(child, depth + deeper))
    return max(depths)


def test_functions_are_short():
    counts = {f"{name_of(p)}: {f.name}": code_lines(p, f) for p, f in functions()}
    long = {name: n for name, n in counts.items() if n > MAX_FUNCTION_LINES}
    assert set(long) <= set(LONG_FUNCTIONS), long


def test_functions_are_flat():
    depths = {f"{name_of(p)}: {f.name}": nesting(f) for p, f in functions()}
    assert not {name: depth for name, depth in depths.items() if depth > MAX_NESTING}


def test_modules_are_short():
    counts = {name_of(p): len(p.read_text(encoding="utf-8").splitlines()) for p in modules()}
    long = {name: n for name, n in counts.items() if n > MAX_MODULE_LINES}
    assert set(long) <= set(LONG_MODULES), long
