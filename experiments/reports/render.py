"""A table as markdown, LaTeX and CSV. The three hold the same rows; the CSV has the numbers unrounded."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import NamedTuple

from rich.markup import escape as escape_markup
from rich.table import Table

import hicache
from experiments.config.run import Settings
from experiments.reports.columns import decimals_of, decimals_shown, head_of, number_text
from experiments.reports.ranks import grouped
from experiments.reports.result_table import Cell, ResultTable, Row
from experiments.runs.metrics.evidence import percent

__all__ = ["beside", "columns_of", "interval_text", "to_csv", "to_latex", "to_markdown"]

RELATIVE = ("flops_t", "flops_g", "flops_speedup", "wall_speedup")
LEVEL = 0.05


class Style(NamedTuple):
    """How a format shows the best two of a block, plain text, and intervals: with their levels where these differ."""

    emphasis: Callable[[str, int], str]
    plain: Callable[[str], str]
    levelled: bool = False


def text(name: str, cell: Cell, style: Style) -> str:
    """A cell for a reader: value, interval and verdict, or the reason in its place."""
    if cell.value is None:
        return style.emphasis(style.plain(f"({cell.why})"), cell.rank)
    decimals = decimals_shown(name, cell.value)
    shown = style.emphasis(style.plain(number_text(cell.value, decimals)), cell.rank)
    interval = interval_text(cell, decimals, style.levelled)
    beside = f" {interval}" if interval else ""
    if cell.p is not None and cell.p < LEVEL:
        beside += " ▲" if cell.better else " ▼"
    return shown + style.plain(beside + (f", {cell.equal} equal" if cell.equal else ""))


def interval_text(cell: Cell, decimals: int, levelled: bool) -> str:
    """`[31.02, 32.40]`, with its level if that is wanted and known `[31.02, 32.40; 50%]`; empty without an interval."""
    if cell.low is None or cell.high is None:
        return ""
    level = f"; {percent(cell.level)}" if levelled and cell.level is not None else ""
    return f"[{cell.low:.{decimals}f}, {cell.high:.{decimals}f}{level}]"


def published_text(cell: Cell) -> str:
    return f"({cell.why})" if cell.value is None else f"{cell.value:g}"


def difference(name: str, ours: Cell, theirs: Cell) -> str:
    """Ours minus the published value, in percent of it for costs."""
    if ours.value is None or theirs.value is None:
        return "–"
    gap = ours.value - theirs.value
    if name in RELATIVE:
        return f"{100 * gap / theirs.value:+.2f} %"
    return f"{gap:+.{decimals_of(name)}f}"


UNTIMED = "wall ×: not measured in any of these runs, so it is no column; metrics.timing=full measures it."


def is_untimed(table: ResultTable) -> bool:
    """Whether runs were made and none has a wall speed-up; the reference's own is 1 and says nothing."""
    walls = [row.ours["wall_speedup"] for row in table.rows if "wall_speedup" in row.ours]
    return any(wall.why == "not measured" for wall in walls) and all(wall.value in (None, 1.0) for wall in walls)


def columns_of(table: ResultTable) -> list[str]:
    """Our columns that are shown: all, without wall speed-ups where no run has one."""
    return [name for name in table.rows[0].ours if name != "wall_speedup" or not is_untimed(table)]


def lines_of(table: ResultTable, style: Style) -> list[dict[str, str]]:
    """The readable cells of the rows by column head."""
    columns, beside = columns_of(table), {theirs: ours for ours, theirs in table.preset.compare.items()}
    style = style._replace(levelled=len(table.levels) > 1)
    shown = {key for key in ("note", "run") if any(getattr(row, key) for row in table.rows)}
    return [line(row, style, columns, beside, shown) for row in table.rows]


def line(row: Row, style: Style, columns: Sequence[str], beside: Mapping[str, str], shown: set[str]) -> dict[str, str]:
    """The readable cells of a row; `beside` is the column of ours of a published one, `shown` what rows may have."""
    ours = {name: row.ours[name] for name in columns}
    cells = {"method": style.plain(row.label)}
    cells |= {head_of(name): text(name, cell, style) for name, cell in ours.items()}
    for name, cell in row.paper.items():
        cells[f"paper: {name}"] = style.plain(published_text(cell))
        if beside.get(name) in ours:
            cells[f"Δ {name}"] = style.plain(difference(beside[name], ours[beside[name]], cell))
    if "note" in shown:
        cells["note"] = style.plain(row.note)
    if "run" in shown:
        cells["run"] = row.run or "–"
    return cells


def in_markdown(shown: str, rank: int) -> str:
    return {1: f"**{shown}**", 2: f"<u>{shown}</u>"}.get(rank, shown)


def in_cell(plain: str) -> str:
    """Text that neither ends the cell of a markdown table nor its line."""
    return " ".join(plain.replace("|", r"\|").split("\n"))


MARKDOWN = Style(in_markdown, in_cell)


def to_markdown(table: ResultTable) -> str:
    """Title, table, and what a reader must know to trust it."""
    lines = lines_of(table, MARKDOWN)
    heads = list(lines[0])
    rule = ["---" if head in ("method", "note", "run") else "---:" for head in heads]
    body = [heads, rule, *([cells[head] for head in heads] for cells in lines)]
    shown = ["| " + " | ".join(cells) + " |" for cells in body]
    return "\n".join([f"# {table.preset.title}", "", *facts(table), "", *shown, ""])


SHOWN = Style(lambda shown, rank: f"[bold]{shown}[/bold]" if rank == 1 else shown, escape_markup)


def beside(table: ResultTable) -> Table:
    """For a terminal: a column per run and a line per number, the best in bold."""
    lines = lines_of(table, SHOWN)
    first = table.settings
    title = "" if first is None else f"{first.backend.name}, {sampled(table)}"
    levels = table.levels
    level = f" ({percent(levels[0])} intervals)" if len(levels) == 1 else ""
    made = Table(title=title + level, caption=UNTIMED if is_untimed(table) else None)
    made.add_column("")
    for cells in lines:
        made.add_column(cells["method"], justify="right")
    for head in lines[0]:
        if head not in ("method", "note", "run"):
            made.add_row(head, *(cells[head] for cells in lines))
    return made


def facts(table: ResultTable) -> list[str]:
    """Conditions and reading aids."""
    said: list[str] = []
    first = table.settings
    if first is not None:
        scopes = dict.fromkeys(row.settings.scope for row in table.rows if row.settings is not None)
        named = ", ".join([first.scope, *(f"{scope} in some rows" for scope in scopes if scope != first.scope)])
        backend, steps = (common(table, key) for key in (lambda s: s.backend.name, lambda s: s.num_steps))
        said.append(f"Backend {backend}, {steps} steps, scope {named}")
        if any({"flops_t", "flops_g"} & set(row.ours) for row in table.rows):
            said[-1] += "; FLOPs of one item, from shapes."
        else:
            said[-1] += f", {sampled(table)}.{brackets(table)}"
    elif table.levels:
        said.append(brackets(table).strip())
    walls = [row.ours["wall_speedup"] for row in table.rows if "wall_speedup" in row.ours]
    if any(wall.value not in (None, 1.0) for wall in walls):
        ranges = "; in brackets the least and the largest ratio of a round" if any(w.low for w in walls) else ""
        said.append(
            f"wall ×: method and reference in turn in one process (metrics.timing){ranges}. The protocol behind quoted "
            "speed-ups is in benchmarks/."
        )
    elif is_untimed(table):
        said.append(UNTIMED)
    cells = [cell for row in table.rows for cell in row.ours.values()]
    if any(cell.rank for cell in cells):
        said.append("Bold: best of its block and what cannot be told from it; underlined: the next, likewise.")
        if len(grouped(table.rows)) > len({row.block for row in table.rows}):
            said[-1] += " Rows of other items, steps or models are ranked apart."
    if any(cell.equal for cell in cells):
        said.append(
            "equal: items equal to the reference, whose infinite value is no part of the mean; rows beside such items "
            "are ranked by the median."
        )
    if any(cell.p is not None for cell in cells):
        baseline = hicache.METHODS[table.preset.baseline or ""].title
        said.append(
            f"▲ ▼: better or worse than {baseline} of the same block, p < {LEVEL} (Wilcoxon's signed-rank test on "
            "paired items, Holm's correction over the block)."
        )
    if paper := table.preset.paper:
        said.append(f"paper: columns are published numbers, {paper.table}. {paper.note}".strip())
    absent = [row.label for row in table.rows if row.settings is None and not row.run]
    if absent and len(absent) < len(table.rows):
        said.append(f"{len(absent)} rows cannot be run by this version: {', '.join(absent)}.")
    return "\n\n".join(said).split("\n")


def common(table: ResultTable, value: Callable[[Settings], object]) -> str:
    """What the first row has, and in parentheses what others have: `50`, or `50 (20 in some rows)`."""
    first, *others = dict.fromkeys(value(row.settings) for row in table.rows if row.settings is not None)
    return f"{first} ({', '.join(map(str, others))} in some rows)" if others else str(first)


def sampled(table: ResultTable) -> str:
    """How many items the rows have, and their seed."""
    return f"{common(table, lambda s: s.num_items)} items, seed {common(table, lambda s: s.seed)}"


def brackets(table: ResultTable) -> str:
    """What stands in brackets, to be said behind something; nothing where no row has an interval."""
    levels = table.levels
    if len(levels) < 2:
        return f" In brackets: {percent(levels[0])} intervals over items." if levels else ""
    return " In brackets: intervals over items, and their levels, which differ."


def to_csv(table: ResultTable) -> str:
    """One line per row, numbers unrounded, reasons in columns of their own."""
    columns, beside = columns_of(table), {theirs: ours for ours, theirs in table.preset.compare.items()}
    lines: list[dict[str, object]] = []
    levelled = len(table.levels) > 1
    for row in table.rows:
        cells: dict[str, object] = {"method": row.label, "run": row.run, "block": row.block or None}
        for name in columns:
            cell = row.ours[name]
            cells |= {
                name: cell.value,
                f"{name}_low": cell.low,
                f"{name}_high": cell.high,
                f"{name}_level": cell.level if levelled else None,
                f"{name}_equal": cell.equal or None,
                f"{name}_rank": cell.rank or None,
                f"{name}_p": cell.p,
                f"{name}_why": cell.why,
            }
        for name, cell in row.paper.items():
            cells |= {f"paper_{name}": cell.value, f"paper_{name}_why": cell.why}
            ours = row.ours.get(beside.get(name, ""))
            if ours is not None and ours.value is not None and cell.value is not None:
                cells[f"difference_{name}"] = ours.value - cell.value
        cells["note"] = row.note or None
        lines.append(cells)
    import pandas  # late: the table of a sweep in a terminal needs none

    return pandas.DataFrame(lines).dropna(axis="columns", how="all").to_csv(index=False)


LATEX = {
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "▲": r"$\blacktriangle$",
    "▼": r"$\blacktriangledown$",
    "×": r"$\times$",
    "∞": r"$\infty$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "±": r"$\pm$",
    "≈": r"$\approx$",
    "→": r"$\to$",
    "·": r"$\cdot$",
    "−": "$-$",
    "<": "$<$",
    ">": "$>$",
    "|": "$|$",
    "²": "$^2$",
    "–": "--",
    "—": "---",
    "…": r"\dots{}",
    "\n": " ",
    "\\": r"\textbackslash{}",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    **{symbol: f"\\{symbol}" for symbol in "$_%&#{}"},
}
LATIN = dict(zip("ΑΒΕΖΗΙΚΜΝΟΡΤΧο", "ABEZHIKMNOPTXo", strict=True))
"""Greek letters that LaTeX has no command for, because they look like these."""


@cache
def greek(symbol: str) -> str:
    """A Greek letter as a command; anything else as it is."""
    alphabet, _, letter = unicodedata.name(symbol, "").partition(" LETTER ")
    if symbol in LATIN or alphabet not in ("GREEK SMALL", "GREEK CAPITAL") or not letter.isalpha():
        return LATIN.get(symbol, symbol)
    name = letter.replace("LAMDA", "LAMBDA").lower()
    return f"$\\{name if alphabet.endswith('SMALL') else name.capitalize()}$"


def escape(plain: str) -> str:
    """Text as LaTeX shows it; a bracket at the beginning would be an option of the line before."""
    shown = "".join(LATEX.get(symbol) or greek(symbol) for symbol in plain)
    return f"{{}}{shown}" if shown.startswith("[") else shown


def in_latex(shown: str, rank: int) -> str:
    return {1: rf"\textbf{{{shown}}}", 2: rf"\underline{{{shown}}}"}.get(rank, shown)


IN_LATEX = Style(in_latex, escape)


def to_latex(table: ResultTable) -> str:
    """A booktabs table; the run ids stand in comments, so that each number can still be traced."""
    import pandas

    frame = pandas.DataFrame(lines_of(table, IN_LATEX))
    runs = [f"% {' '.join(row.label.split())}: {row.run}" for row in table.rows if row.run]
    runs += [f"% {UNTIMED}"] if is_untimed(table) else []
    frame = frame.drop(columns=[name for name in ("run", "note") if name in frame])
    frame.columns = [escape(str(name)) for name in frame.columns]
    layout = "l" + "r" * (frame.shape[1] - 1)
    body = frame.style.hide(axis="index").to_latex(
        hrules=True,
        column_format=layout,
        caption=escape(table.preset.title),
        label=f"tab:{table.preset.name}",
    )
    return "\n".join([*runs, body])
