"""Results for people: a table with intervals, a paired comparison of runs, a log to Weights & Biases."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluation import media_files
from evaluation.errors import EvaluationError
from evaluation.metric import heading_of
from evaluation.records import read_records
from evaluation.registry import METRICS
from evaluation.run_folder import read_values, reference_id
from evaluation.statistics import friedman_nemenyi, paired_difference, wilcoxon_holm

__all__ = ["compare_runs", "log_to_wandb", "draw_grid", "table"]


def _number(value: float | None) -> str:
    return "missing" if value is None else f"{value:.4f}"


def _render(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    from rich.console import Console
    from rich.table import Table

    grid = Table(title=title or None)
    for column in columns:
        grid.add_column(column, overflow="fold")
    for row in rows:
        grid.add_row(*row)
    buffer = io.StringIO()
    Console(file=buffer, width=110).print(grid)
    return buffer.getvalue().rstrip()


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """One line per metric: mean, interval, number of items, and what was left out of the mean."""
    rows = []
    for name, result in results.items():
        metric = METRICS[name]
        interval = "" if result.get("low") is None else f"[{result['low']:.4f}, {result['high']:.4f}]"
        notes = [f"{result['infinite']} infinite"] if result.get("infinite") else []
        notes += [f"missing: {', '.join(result['missing'])}"] if result.get("missing") else []
        heading = heading_of(result.get("label", metric.title), metric.unit, metric.better)
        rows.append([heading, _number(result["mean"]), interval, str(result["n"]), *notes])
    width = max(len(row) for row in rows)
    columns = ["metric", "mean", "interval", "n", "note"][:width]
    return _render("", columns, [row + [""] * (width - len(row)) for row in rows])


def _shared(values: Mapping[str, Mapping[str, float]], baseline: str) -> dict[str, list[float]]:
    items = list(values[baseline])
    for run, column in values.items():
        different = sorted(set(items) ^ set(column))
        if different:
            raise EvaluationError(f"{run}: must have the items of {baseline}, got a difference at {different[0]}")
    finite = [item for item in items if all(math.isfinite(column[item]) for column in values.values())]
    if not finite:
        raise EvaluationError(f"{baseline}: no item has a finite value in every run")
    return {run: [column[item] for item in finite] for run, column in values.items()}


def compare_runs(baseline: Path, runs: Sequence[Path], metrics: Sequence[str], test: str = "wilcoxon") -> str:
    """Every run against the baseline, item by item: difference, interval, Holm-adjusted Wilcoxon p and effect size.

    With `test="friedman"` also Friedman's test over all of them, their mean ranks and Nemenyi's critical distance.
    """
    rows, said = [], []
    for run in runs:
        check_same_items(baseline, run)
    for metric in metrics:
        for run in runs:
            check_same_reference(baseline, run, metric)
        values = {str(path): values_of_run(path, metric) for path in (baseline, *runs)}
        shared = _shared(values, str(baseline))
        tests = wilcoxon_holm(shared, str(baseline)) if len(shared) > 1 else {}
        for run, found in tests.items():
            difference = paired_difference(shared[run], shared[str(baseline)])
            interval = f"[{difference.low:.4f}, {difference.high:.4f}]"
            numbers = [f"{difference.mean:+.4f}", interval, f"{found.p_holm:.3g}", f"{found.effect:+.2f}", str(found.n)]
            rows.append([metric, Path(run).name, *numbers])
        if infinite := len(values[str(baseline)]) - len(shared[str(baseline)]):
            said.append(f"{metric}: {infinite} items are infinite in one of the runs and left out")
        if test == "friedman":
            ranking = friedman_nemenyi(shared)
            ranks = ", ".join(f"{Path(run).name} {rank:.2f}" for run, rank in ranking.ranks.items())
            said.append(
                f"{metric}: Friedman p = {ranking.p:.3g}; mean ranks (1 = lowest value): {ranks}; those "
                f"{ranking.distance:.2f} or more apart differ (Nemenyi, 5 %)"
            )
    columns = ["metric", "run", "difference", "interval", "p (Holm)", "effect r", "n"]
    return "\n".join([_render(f"difference to {baseline.name}", columns, rows), *said])


def check_same_items(baseline: Path, run: Path) -> None:
    """Items of one name must be one item: of the same noise and the same title, where the runs' records say them."""
    ours, theirs = read_records(baseline), read_records(run)
    for item in sorted(ours.keys() & theirs.keys()):
        for key in ("seed", "title"):
            wanted, got = ours[item].get(key), theirs[item].get(key)
            if wanted is not None and got is not None and wanted != got:
                rule = f"must have the items of {baseline.name}, whose {item} has the {key} {wanted!r}"
                raise EvaluationError(f"{run}: {rule}, got {got!r}")


def check_same_reference(baseline: Path, run: Path, metric: str) -> None:
    """Values that runs kept of their distance to an un-cached run must be to the same one."""
    known = METRICS.get(metric)
    if known is None or "reference" not in known.needs or known.against != "uncached":
        return
    if any(has_evaluated(each, metric) for each in (baseline, run)):
        return
    wanted, got = reference_id(baseline), reference_id(run)
    if None not in (wanted, got) and wanted != got:
        raise EvaluationError(f"{run}: must be measured against the reference of {baseline.name}, {wanted}, got {got}")


def has_evaluated(run: Path, metric: str) -> bool:
    """Whether an evaluation of the run has a metric's values."""
    path = run / "evaluation" / "values.csv"
    return path.is_file() and metric in path.read_text().partition("\n")[0].split(",")


def values_of_run(run: Path, metric: str) -> dict[str, float]:
    """Values by item: of an evaluation of the run, else those that the run kept itself; infinite where it has null."""
    own = run / "values" / f"{metric}.json"
    if own.is_file() and not has_evaluated(run, metric):
        try:
            kept = json.loads(own.read_text())
            return {item: math.inf if value is None else float(value) for item, value in kept.items()}
        except (ValueError, TypeError, AttributeError) as error:
            raise EvaluationError(f"{own}: must hold a number per item (delete it), got: {error}") from error
    return read_values(run / "evaluation", metric)


def draw_grid(images: Path, reference: Path | None, count: int = 8, edge: int = 256) -> Any:
    """First pictures (or first frames) over their references as one PIL image."""
    from PIL import Image

    from evaluation.scoring import read_frames

    kind, items = media_files.pair_items(images, reference, None, subset=True)
    if kind not in ("image", "video"):
        raise EvaluationError(f"{images}: a picture grid needs images or videos, got {kind} files")
    items = items[:count]
    rows = 1 if reference is None else 2
    grid = Image.new("RGB", (edge * len(items), edge * rows))
    for column, item in enumerate(items):
        for row, path in enumerate([item.path, item.reference][:rows]):
            if path is not None:
                picture = Image.fromarray(read_frames(path)[0])
                picture.thumbnail((edge, edge))
                grid.paste(picture, (edge * column, edge * row))
    return grid


def log_to_wandb(
    results: Mapping[str, Mapping[str, Any]],
    out: Path,
    images: Path,
    reference: Path | None,
    run: Any = None,  # an open wandb run; None opens one and closes it
) -> None:
    """Means, intervals, the per-item table and a picture grid."""
    import pandas as pd
    import wandb

    own = run is None
    run = run if run is not None else wandb.init(project="evaluation", name=images.parent.name)
    flat = {
        f"{name}/{key}": value
        for name, result in results.items()
        for key, value in result.items()
        if isinstance(value, (int, float))
    }
    payload: dict[str, Any] = dict(flat)
    if (out / "values.csv").is_file():
        payload["items"] = wandb.Table(dataframe=pd.read_csv(out / "values.csv"))
    if images.is_dir() and media_files.list_media(images)[0] in ("image", "video"):
        payload["pictures"] = wandb.Image(draw_grid(images, reference))
    run.log(payload)
    if own:
        run.finish()
