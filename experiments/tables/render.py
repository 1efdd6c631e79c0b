"""A table as markdown, LaTeX and CSV. The three hold the same rows; the CSV has the numbers unrounded."""

from __future__ import annotations

import pandas

from experiments.metrics import TITLES
from experiments.tables.build import Cell, Row, Table

__all__ = ["to_csv", "to_latex", "to_markdown"]

DECIMALS = {"num_full_steps": 0, "ssim": 4, "class_accuracy": 3}
HEADS = {"num_full_steps": "full steps", "flops_speedup": "FLOPs ×", "wall_speedup": "wall ×", **TITLES}


def text(name: str, cell: Cell) -> str:
    """A cell for a reader: value and interval, or the reason in its place."""
    if cell.value is None:
        return f"({cell.why})"
    decimals = DECIMALS.get(name, 2)
    shown = f"{cell.value:.{decimals}f}"
    if cell.low is not None and cell.high is not None:
        shown += f" [{cell.low:.{decimals}f}, {cell.high:.{decimals}f}]"
    return shown + (f", {cell.equal} equal" if cell.equal else "")


def published_text(cell: Cell) -> str:
    return f"({cell.why})" if cell.value is None else f"{cell.value:g}"


def line(row: Row) -> dict[str, str]:
    """The readable cells of a row by column head."""
    cells = {"method": row.label}
    cells |= {HEADS.get(name, name): text(name, cell) for name, cell in row.ours.items()}
    cells |= {f"paper: {name}": published_text(cell) for name, cell in row.paper.items()}
    return cells | {"run": row.run}


def to_markdown(table: Table) -> str:
    """Title, table, and what a reader must know to trust it."""
    lines = [line(row) for row in table.rows]
    heads = list(lines[0])
    rule = ["---", *["---:" for _ in heads[1:-1]], "---"]
    body = [heads, rule, *([cells[head] for head in heads] for cells in lines)]
    shown = ["| " + " | ".join(cells) + " |" for cells in body]
    return "\n".join([f"# {table.preset.title}", "", *facts(table), "", *shown, ""])


def facts(table: Table) -> list[str]:
    """Conditions and reading aids."""
    first = table.rows[0].settings
    said = [
        f"Backend {first.backend.name}, {first.num_steps} steps, scope {first.scope}, {first.num_items} "
        f"items, seed {first.seed}. In brackets: {first.metrics.level:.0%} intervals over items.",
        "wall ×: measured at the end of each run, reference and method in turn in one process; the protocol "
        "behind quoted speed-ups is in benchmarks/.",
    ]
    if paper := table.preset.paper:
        said.append(f"paper: columns are published numbers, {paper.table}. {paper.note}".strip())
    return "\n\n".join(said).split("\n")


def to_csv(table: Table) -> str:
    """One line per row, numbers unrounded, reasons in columns of their own."""
    lines: list[dict[str, object]] = []
    for row in table.rows:
        cells: dict[str, object] = {"method": row.label, "run": row.run}
        for name, cell in row.ours.items():
            cells |= {
                name: cell.value,
                f"{name}_low": cell.low,
                f"{name}_high": cell.high,
                f"{name}_why": cell.why,
            }
        for name, cell in row.paper.items():
            cells |= {f"paper_{name}": cell.value, f"paper_{name}_why": cell.why}
        lines.append(cells)
    return pandas.DataFrame(lines).dropna(axis="columns", how="all").to_csv(index=False)


LATEX = {"↑": r"$\uparrow$", "↓": r"$\downarrow$", "×": r"$\times$", "σ": r"$\sigma$", "_": r"\_", "%": r"\%"}


def escaped(plain: str) -> str:
    for symbol, command in LATEX.items():
        plain = plain.replace(symbol, command)
    return plain


def to_latex(table: Table) -> str:
    """A booktabs table; the run ids stand in comments, so that each number can still be traced."""
    frame = pandas.DataFrame([line(row) for row in table.rows])
    runs = [f"% {row.label}: {row.run}" for row in table.rows]
    frame = frame.drop(columns="run").map(escaped)
    frame.columns = [escaped(str(name)) for name in frame.columns]
    layout = "l" + "r" * (frame.shape[1] - 1)
    body = frame.style.hide(axis="index").to_latex(
        hrules=True,
        column_format=layout,
        caption=escaped(table.preset.title),
        label=f"tab:{table.preset.name}",
    )
    return "\n".join([*runs, body])
