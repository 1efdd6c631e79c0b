"""Small mistakes in Python source: every place where one fits, and the module with that one made.

| kind | the mistake |
|---|---|
| comparison | `<` for `<=`, `>` for `>=`, `==` for `!=`, `is` for `is not`, `in` for `not in`, and back |
| arithmetic | `+` for `-`, `*` for `/`, and back; `/` for `//`, `*` for `%` and for `**` |
| boolean | `or` for `and` and back; `True` for `False` and back; `not` and unary minus dropped |
| constant | a number 1 larger or 1 smaller |
| condition | of an `if`, a `while`, a conditional expression or a comprehension: negated |
| return | `None` instead of the value |
| statement | a call, a raise, an augmented assignment or one to an attribute or an item: removed |

Left alone, as no run or only a run of other data would notice: docstrings, annotations, decorators, the messages of
errors, `strict=` of zip, `repr=` of fields, `__all__`, code under `TYPE_CHECKING`, and the tables `DATA` of published
numbers, whose values the tests do not repeat.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Mutant", "mutants", "mutate", "instrument"]

DATA = {"__all__", "POLYNOMIALS", "MAGNITUDES"}
SILENT = {"strict", "repr"}
COMPARED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
COMPUTED: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult,
    ast.FloorDiv: ast.Div, ast.Mod: ast.Mult, ast.Pow: ast.Mult,
}  # fmt: skip
Change = tuple[str, ast.AST]


@dataclass(frozen=True, order=True)
class Mutant:
    """One mistake: the file, the line, what kind, how often a mistake was possible before it, and how it reads."""

    file: str
    line: int
    index: int
    kind: str
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line} {self.kind}: {self.text}"


def mutants(root: Path, file: str) -> list[Mutant]:
    """Every mutant of a file, in the order of its source."""
    found = []
    for index, (node, kind, other) in enumerate(_changes(ast.parse((root / file).read_text()))):
        before, after = (ast.unparse(one).splitlines()[0] for one in (node, other))
        line = node.target.lineno if isinstance(node, ast.comprehension) else getattr(node, "lineno", 0)
        found.append(Mutant(file, line, index, kind, f"`{before}` -> `{after}`"))
    return found


def mutate(root: Path, mutant: Mutant) -> str:
    """The source of the file with the mistake made."""
    tree = ast.parse((root / mutant.file).read_text())
    node, _, other = list(_changes(tree))[mutant.index]
    return ast.unparse(ast.fix_missing_locations(_Swap(node, other).visit(tree)))


def instrument(source: str, file: str) -> str:
    """The source, every statement of which first calls `__reached__(file, first line, last line)`.

    A compound statement says the lines of its head. Functions that a compiler reads (decorated with `jit`) do not say.
    """
    tree = ast.parse(source)
    for node in list(_statements(tree)):
        for name in ("body", "orelse", "finalbody"):
            body = getattr(node, name, None)
            if isinstance(body, list) and body and isinstance(body[0], ast.stmt):
                setattr(node, name, [each for s in body for each in (*_call(s, file), s)])
    return ast.unparse(ast.fix_missing_locations(tree))


def _statements(node: ast.AST) -> Iterator[ast.AST]:
    if not any("jit" in ast.unparse(name) for name in getattr(node, "decorator_list", [])):
        yield node
        for child in ast.iter_child_nodes(node):
            yield from _statements(child)


def _call(statement: ast.stmt, file: str) -> list[ast.stmt]:
    future = isinstance(statement, ast.ImportFrom) and statement.module == "__future__"
    if future or (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)):
        return []
    body = getattr(statement, "body", None)
    last = body[0].lineno - 1 if body else statement.end_lineno
    return ast.parse(f"__reached__({file!r}, {statement.lineno}, {max(statement.lineno, last or 0)})").body


class _Swap(ast.NodeTransformer):
    """Puts one node in the place of another, which has its children."""

    def __init__(self, old: ast.AST, new: ast.AST) -> None:
        self.old, self.new = old, new

    def visit(self, node: ast.AST) -> ast.AST:
        return self.new if node is self.old else self.generic_visit(node)


def _changes(tree: ast.Module) -> Iterator[tuple[ast.AST, str, ast.AST]]:
    for node in _nodes(tree):
        for kind, other in _of(node):
            yield node, kind, other


def _nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Every node that a run executes, parents first."""
    yield node
    for name, value in ast.iter_fields(node):
        skipped = name in ("annotation", "returns", "decorator_list")
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and not skipped and not _silent(node, child):
                yield from _nodes(child)


def _silent(parent: ast.AST, node: ast.AST) -> bool:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return True
    if isinstance(node, ast.keyword) and node.arg in SILENT:
        return True
    if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
        return True
    if isinstance(node, ast.Assign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        return any(isinstance(target, ast.Name) and target.id in DATA for target in targets)
    return isinstance(parent, ast.Raise)


def _of(node: ast.AST) -> Iterator[Change]:
    if isinstance(node, ast.Compare):
        for at, operator in enumerate(node.ops):
            yield "comparison", _with(node, ops=[*node.ops[:at], COMPARED[type(operator)](), *node.ops[at + 1 :]])
    elif isinstance(node, ast.BinOp | ast.AugAssign) and type(node.op) in COMPUTED:
        yield "arithmetic", _with(node, op=COMPUTED[type(node.op)]())
    elif isinstance(node, ast.BoolOp):
        yield "boolean", _with(node, op=ast.Or() if isinstance(node.op, ast.And) else ast.And())
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
        yield "boolean", node.operand
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield "boolean", ast.Constant(not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        yield "constant", ast.Constant(node.value + 1)
        yield "constant", ast.Constant(node.value - 1)
    elif isinstance(node, ast.If | ast.While | ast.IfExp) and not _is_not(node.test):
        yield "condition", _with(node, test=_negate(node.test))
    elif isinstance(node, ast.comprehension):
        for at, test in enumerate(node.ifs):
            if not _is_not(test):
                yield "condition", _with(node, ifs=[*node.ifs[:at], _negate(test), *node.ifs[at + 1 :]])
    elif isinstance(node, ast.Return) and node.value is not None and not _is_none(node.value):
        yield "return", _with(node, value=ast.Constant(None))
    if _removable(node):
        yield "statement", ast.Pass()


def _removable(node: ast.AST) -> bool:
    if isinstance(node, ast.Assign):
        return all(isinstance(target, ast.Attribute | ast.Subscript) for target in node.targets)
    return isinstance(node, ast.AugAssign | ast.Raise) or (
        isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
    )


def _with(node: ast.AST, **fields: Any) -> ast.AST:
    """The node with other fields."""
    other = copy.copy(node)
    for name, value in fields.items():
        setattr(other, name, value)
    return other


def _negate(test: ast.expr) -> ast.expr:
    return ast.UnaryOp(ast.Not(), test)


def _is_not(test: ast.expr) -> bool:
    """Whether dropping its `not` negates it already."""
    return isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not)


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None
