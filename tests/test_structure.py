"""The shape of the house: imports point down and never in a circle, wherever in a file they stand."""

from __future__ import annotations

import ast
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("hicache", "experiments", "evaluation", "benchmarks")

LAYERS = (
    {"errors", "stopping", "progress", "environment"},
    {"files"},
    {"config"},
    {"backends", "cli"},
    {"artefacts"},
    {"settings"},
    {"runs"},
    {"plans", "calibration"},
    {"analyses", "learning"},
    {"studies", "reports"},
    {"__main__"},
)
"""Rooms of `experiments`, from the floor up. What stands on one floor does not import each other."""


@cache
def modules() -> dict[str, Path]:
    """Every module of the project's packages by its name."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def named(module: str, node: ast.AST) -> set[str]:
    """The names that an import statement asks for."""
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names}
    if not isinstance(node, ast.ImportFrom):
        return set()
    assert node.level == 0, f"{module} has a relative import"
    return {f"{node.module}.{alias.name}" for alias in node.names}


def imports_of(module: str) -> set[str]:
    """The project's modules that a module imports: at the top, inside functions, under TYPE_CHECKING."""
    tree = ast.parse(modules()[module].read_text())
    asked = {name for node in ast.walk(tree) for name in named(module, node)}
    found = {name if name in modules() else name.rpartition(".")[0] for name in asked}
    return (found & modules().keys()) - {module}


@cache
def graph() -> dict[str, set[str]]:
    """Module -> what it imports."""
    return {module: imports_of(module) for module in modules()}


def knot(edges: dict[str, set[str]]) -> set[str]:
    """What is left when modules that import nothing left are taken away, again and again."""
    left = dict(edges)
    while free := {module for module, targets in left.items() if not targets & left.keys()}:
        left = {module: targets for module, targets in left.items() if module not in free}
    return set(left)


def room(module: str) -> str:
    """The folder or file of `experiments` that a module belongs to."""
    return module.split(".")[1]


@pytest.mark.parametrize("package", PACKAGES)
def test_no_module_is_in_a_circle(package):
    own = {module: targets for module, targets in graph().items() if module.split(".")[0] == package}
    assert knot(own) == set()


def test_imports_of_experiments_point_down():
    rank = {name: height for height, names in enumerate(LAYERS) for name in names}
    for module, targets in graph().items():
        for target in targets:
            if module.startswith("experiments.") and target.startswith("experiments."):
                here, there = room(module), room(target)
                assert here == there or rank[here] > rank[there], f"{module} imports {target}"


@pytest.mark.parametrize(
    ("package", "foreign"),
    [
        ("hicache", {"experiments", "evaluation", "benchmarks"}),
        ("evaluation", {"experiments", "hicache", "benchmarks"}),
        ("experiments", {"benchmarks"}),
    ],
)
def test_packages_keep_to_themselves(package, foreign):
    for module, targets in graph().items():
        if module.split(".")[0] == package:
            assert not {target.split(".")[0] for target in targets} & foreign, module


def test_a_class_has_a_name_of_its_own():
    trees = [ast.parse(path.read_text()) for path in modules().values()]
    names = [node.name for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)]
    assert [name for name, count in Counter(names).items() if count > 1] == []


def test_few_files_lie_loose():
    assert len(list((ROOT / "experiments").glob("*.py"))) <= 8


def test_a_knot_is_found():
    assert knot({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == {"a", "b", "c"}
