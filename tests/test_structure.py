"""The shape of the house: imports point down and never in a circle, wherever in a file they stand; files are short."""

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

SHARED_NAMES = {
    "__init__": "every package",
    "__main__": "every package that is a program",
    "base": "the interface of what its folder holds: adapters, patches, policies, backends",
    "cli": "experiments and evaluation keep to themselves",
    "errors": "experiments and evaluation keep to themselves",
    "backend": "an embedded model's `Backend`, and the schemas of conf/backend/",
    "pipeline": "an embedded model's diffusers pipeline",
    "dit": "one model: its adapter, its backend, its tiny counterpart",
    "flux": "one model: its backend, its tiny counterpart",
    "hunyuan_video": "one model: its backend, its tiny counterpart",
    "qwen_image": "one model: its backend, its tiny counterpart",
    "guidance": "adaptive guidance, and the schemas of conf/guidance/",
    "operators": "the schemas of conf/operators/, and the benchmark of that name",
    "scale": "the sigma schedules, and the benchmark at size",
}
"""File names that may be there more than once, with the reason."""


@cache
def modules() -> dict[str, Path]:
    """Every module of the project's packages by its name."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def tree(module: str) -> ast.Module:
    """What a module says."""
    return ast.parse(modules()[module].read_text())


def offered(module: str) -> set[str]:
    """The names that can be imported from a module: what it defines or imports at its top, and what lies in its folder."""
    names = {name.rpartition(".")[2] for name in modules() if name.rpartition(".")[0] == module}
    for node in tree(module).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.ImportFrom | ast.Import):
            names |= {alias.asname or alias.name for alias in node.names}
        else:
            names |= {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
    return names


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
    asked = {name for node in ast.walk(tree(module)) for name in named(module, node)}
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
    names = [node.name for module in modules() for node in tree(module).body if isinstance(node, ast.ClassDef)]
    assert [name for name, count in Counter(names).items() if count > 1] == []


def test_a_file_has_a_name_of_its_own():
    counts = Counter(path.stem for path in modules().values())
    assert {name for name, count in counts.items() if count > 1} == SHARED_NAMES.keys()


def test_examples_import_what_exists():
    for path in sorted((ROOT / "examples").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module in modules():
                missing = {alias.name for alias in node.names} - offered(node.module)
                assert not missing, f"{path.name} imports {missing} of {node.module}"


@pytest.mark.parametrize("package", [*PACKAGES, "tests"])
def test_files_and_functions_are_short(package):
    """Whole texts, docstrings included."""
    for path in sorted((ROOT / package).rglob("*.py")):
        text = path.read_text()
        assert len(text.splitlines()) <= 400, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
                assert node.end_lineno - node.lineno + 1 < 60, f"{path}: {node.name}"


def test_few_files_lie_loose():
    assert len(list((ROOT / "experiments").glob("*.py"))) <= 8


def test_a_knot_is_found():
    assert knot({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == {"a", "b", "c"}
