"""The rooms of the package, and the one way in which they know each other (docs/design.md)."""

import ast
import re
from pathlib import Path

import skaocls
from skaocls import AnyOrderARClassifier, displays

PACKAGE = Path(__file__).parents[1] / "skaocls"

# From the ground up; a module may import its own room and those below it. `displays` and
# `selection` take a classifier, and know none.
FLOORS = [
    {
        "version",
        "attributes",
        "devices",
        "distributed",
        "hashing",
        "parameters",
        "progress",
        "warn",
    },
    {"files", "images"},
    {"tokenizers", "priors"},
    {"scoring"},
    {"training"},
    {"fitted"},
    {"classifier"},
    {"displays", "selection"},
    {"__init__"},
    {"__main__"},
]
HEIGHT = {room: height for height, rooms in enumerate(FLOORS) for room in rooms}


def modules():
    return sorted(PACKAGE.rglob("*.py"))


def room_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path):
    """Names of this package's modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: imports are absolute here"
            # `from skaocls import x` names a room, or what the top level offers
            names = [f"skaocls.{a.name}" for a in node.names] if node.module == "skaocls" else []
            yield from (n for n in names or [node.module] if n.split(".")[0] == "skaocls")
        elif isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.split(".")[0] == "skaocls")


def test_every_room_has_a_floor():
    assert {room_of(path) for path in modules()} == set(HEIGHT)


def test_arrows_point_down():
    wrong = []
    for path in modules():
        for name in imported(path):
            parts = name.split(".")
            room = parts[1] if len(parts) > 1 and parts[1] in HEIGHT else "__init__"
            if room != room_of(path) and HEIGHT[room] >= HEIGHT[room_of(path)]:
                wrong.append(f"{path.relative_to(PACKAGE)} imports {name}")
    assert not wrong


def test_nothing_below_the_estimator_takes_it():
    for path in modules():
        if HEIGHT[room_of(path)] >= HEIGHT["classifier"]:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                names = {a.arg for a in node.args.args + node.args.kwonlyargs}
                assert not names & {"clf", "classifier", "estimator"}, f"{path}: {node.name}"


def test_the_classifiers_parameters_are_all_grouped():
    _, _, text = AnyOrderARClassifier.__doc__.partition("Parameters by what they are for:")
    groups, _, _ = text.partition("Parameters\n")
    named = re.findall(r"`(\w+)`", groups.replace("`fit`", ""))
    assert sorted(named) == sorted(AnyOrderARClassifier().get_params(deep=False))


def test_the_api_reference_lists_what_is_public():
    text = (PACKAGE.parent / "docs" / "api.rst").read_text(encoding="utf-8")
    public = {*skaocls.__all__} - {"__version__"} | {f"displays.{n}" for n in displays.__all__}
    public |= {"selection.smallest_n_orders", "scoring.evidence.Evidence"}
    public |= {"images.resize_crop", "images.find_unreadable"}
    public |= {"scoring.calibration.expected_calibration_error"}
    public |= {f"distributed.{n}" for n in ("alone", "is_main", "rank", "size")}
    assert set(re.findall(r"^   ([\w.]+)$", text, re.MULTILINE)) == public
