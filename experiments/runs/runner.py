"""Executes a run: its reference first, then the items that are missing, then what is measured on them.

Items are generated in batches whose composition is fixed by the item index: batch b holds items
`[b * size, (b+1) * size)`. Floating-point results may depend on the size of a batch, so a restart or another
number of shards must meet the same batches; with them fixed the images are bit-identical on one machine, and
a resumed run recomputes a batch that was cut short as a whole but records only the items still missing. The
batch size is that of the reference, and is kept (`experiments.runs.settled`). Shards take whole batches:
`batches[rank::world]`.
"""

from __future__ import annotations

import hashlib
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor

import hicache
from experiments import stopping
from experiments.backends import backend_of, load_backend
from experiments.backends.base import Backend, Item
from experiments.config.run import Settings
from experiments.errors import ConfigError, RunError, choose
from experiments.errors import check as check_value
from experiments.files import ensure_writable, lacks_space, possible, write_json
from experiments.progress import Progress
from experiments.runs import sparse_counts
from experiments.runs.folder import REQUIRED, RunFolder
from experiments.runs.guided import count_guided, facts_of, summary_of
from experiments.runs.loggers import Logger, check_logger, make_logger, report_finished
from experiments.runs.machines import note_machine, say_machines
from experiments.runs.metrics.evidence import Evidence
from experiments.runs.metrics.measure import check_metrics, compute, has_metrics
from experiments.runs.picture import draw_comparison
from experiments.runs.plain_counts import count_plain, fewest_full_steps, summarise_steps
from experiments.runs.settled import say_difference, settle_batch_size
from experiments.runs.timing import TIMES, has_times, timing
from experiments.settings.compatibility import check_fit, check_method
from experiments.settings.cost import count_flops
from experiments.settings.identity import run_id
from experiments.settings.prepare import Run, caching, items_of, prepare

__all__ = ["Outcome", "check", "execute", "folder_of", "items_of"]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A run that was executed, or found finished. `metrics` is empty while other shards are at work."""

    run: Run
    folder: RunFolder
    metrics: dict[str, Any]
    reference: Outcome | None
    found: bool = False
    """Whether it was finished before."""

    @property
    def settings(self) -> Settings:
        """Those of the run."""
        return self.run.settings


def check(given: Settings | Run) -> None:
    """All that can be wrong with a run, found before anything is loaded or written."""
    run = prepare(given)
    settings, backend = run.settings, backend_of(run.settings.backend)
    check_metrics(settings, backend)
    check_method(settings, backend, run.method)
    check_device(settings.backend.device)
    path = settings.backend.path
    check_value(path is None or possible(path), "backend.path", "must be a name that a folder can have", path)
    check_batch(settings, backend)
    check_logger(settings)
    backend.check(settings.backend)
    if folder_of(run).status().get("state") != "done":
        check_fit(run)
    ensure_writable(settings.results)


def check_batch(settings: Settings, backend: type[Backend]) -> None:
    """Batches must fit the pipeline."""
    given = {"batch_size": settings.batch_size, "metrics.latency_batch": settings.metrics.latency_batch}
    for key, size in given.items():
        if backend.max_batch is not None and size > backend.max_batch:
            rule = f"must be at most {backend.max_batch} for backend {settings.backend.name}"
            raise ConfigError(f"{key}: {rule}, got {size}")


def check_device(name: str) -> None:
    """The device must be one of this machine."""
    known = ["auto", "cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    if torch.cuda.is_available():
        known.append("cuda")
    choose("backend.device", name, known)


def folder_of(given: Settings | Run) -> RunFolder:
    """Where the run is kept."""
    settings, name = (given.settings, given.id) if isinstance(given, Run) else (given, run_id(given))
    return RunFolder(settings.results, name, settings.shard)


def execute(given: Settings | Run) -> Outcome:
    """Run what is missing of a run and of its reference; a finished run is only read, and its media verified."""
    run = prepare(given)
    reference = execute(run.reference) if run.reference is not None else None
    folder = folder_of(run)
    found = is_finished(run.settings, folder) and not folder.damages()
    if not found:
        try:
            work(run, folder, reference)
        except KeyboardInterrupt:
            note_stop(folder)
            raise
        except Exception as error:
            if isinstance(error, ConfigError) and not folder.entered:
                raise
            record_failure(folder, error)
    else:
        folder.sweep()
        report_finished(run.settings, folder)
    if reference is not None:
        say_difference(folder, reference.folder)
        say_machines(folder, reference.folder)
    if old := folder.undigested():
        print(f"{folder.id}: {old} items are older than digests; their files are taken as they are", file=sys.stderr)
    return Outcome(run=run, folder=folder, metrics=folder.metrics(), reference=reference, found=found)


def record_failure(folder: RunFolder, error: Exception) -> NoReturn:
    """The run has failed and says why. A full disk fails no run: it is continued when there is space again."""
    if not lacks_space(error):
        try:
            path = folder.fail(error)
        except OSError as second:
            if not lacks_space(second):
                raise
            error = second
        else:
            raise RunError(f"{type(error).__name__}: {error} (see {path})") from error
    note_stop(folder)
    raise RunError(f"no space left under {folder.path}; free some and give the same command") from error


def note_stop(folder: RunFolder) -> None:
    """Say so in the run's status, if that is this process's to write and the disk has room for it."""
    if folder.entered:
        try:
            folder.write_status("stopped")
        except OSError as error:
            if not lacks_space(error):
                raise


def is_finished(settings: Settings, folder: RunFolder) -> bool:
    """Whether the run is done, with a record of every item, and measured."""
    return folder.status().get("state") == "done" and not folder.unrecorded() and is_measured(settings, folder)


def is_measured(settings: Settings, folder: RunFolder) -> bool:
    """Whether the run has every requested metric as it is requested, and times if they were asked for."""
    metrics = folder.metrics()
    return has_metrics(settings, metrics) and has_times(settings.metrics, metrics)


def work(run: Run, folder: RunFolder, reference: Outcome | None) -> None:
    """Generate and finish under the run's lock."""
    settings, items = run.settings, run.items
    if settings.cluster.threads is not None:
        torch.set_num_threads(settings.cluster.threads)
    with folder.lock():
        drop_damaged(folder)
        if is_finished(settings, folder):
            return
        logger = make_logger(settings, folder)
        mine = generate_missing(run, folder, reference, logger)
        if settings.shard.world == 1:
            finish(run, folder, reference, logger)
            return
        folder.write_status("shard done", items=mine, total=len(items))
    with folder.last() as alone:
        if alone and not drop_damaged(folder) and len(folder.records()) == len(items):
            finish(run, folder, reference, logger)


def drop_damaged(folder: RunFolder) -> set[str]:
    """Forget the items whose media are not what was recorded; returns their names.

    A run that lacks an item, by this or because its record is gone, is neither done nor measured any more.
    """
    damages, lost = folder.damages(), folder.unrecorded()
    if lost:
        print(f"{folder.id}: {lost} items have no record any more and are made again", file=sys.stderr, flush=True)
    if damages:
        said = "; ".join(list(damages.values())[:3]) + ("; ..." if len(damages) > 3 else "")
        print(f"{folder.id}: {len(damages)} items are damaged and made again: {said}", file=sys.stderr, flush=True)
    if damages or lost:
        folder.reopen()
        folder.drop(set(damages))
    return set(damages)


def verify(run: Run, folder: RunFolder, reference: Outcome | None) -> Outcome | None:
    """What is about to be measured is what was recorded; a reference that is not is mended.

    Raises:
        RuntimeError: for media of this run that were damaged since they were written.
    """
    if damages := folder.damages():
        raise RuntimeError(f"{len(damages)} items were damaged while the run went on, such as {min(damages.values())}")
    if reference is not None and reference.folder.damages():
        return execute(reference.run)
    return reference


def generate_missing(run: Run, folder: RunFolder, reference: Outcome | None, logger: Logger) -> int:
    """Generate the batches of this shard that have items without a record; returns how many items it has."""
    settings, items = run.settings, run.items
    size = settle_batch_size(run, folder, reference.folder if reference else None)
    batches = [items[start : start + size] for start in range(0, len(items), size)]
    mine = list(enumerate(batches))[settings.shard.rank :: settings.shard.world]
    done = set(folder.records())
    todo = [(index, batch) for index, batch in mine if any(item.name not in done for item in batch)]
    total = sum(len(batch) for _, batch in mine)
    if not todo:
        return total
    folder.reopen()
    count = sum(item.name in done for _, batch in mine for item in batch)
    folder.write_status("running", items=count, total=len(items))
    note_machine(folder)
    backend = load_backend(settings.backend)
    with Progress(folder.id, total, total - sum(len(batch) for _, batch in todo), settings.progress_every) as progress:
        for index, batch in todo:
            stopping.check()
            with stopping.finishing():
                media, facts = generate_batch(backend, run, batch)
                missing = [(item, m) for item, m in zip(batch, media, strict=True) if item.name not in done]
                records = [record(backend, folder, item, m, {"batch": index, **facts}) for item, m in missing]
                folder.append(seal(folder, records))
                count += len(records)
                folder.write_status("running", items=count)
            logger.items(records)
            progress.advance(len(batch))
    stopping.check()
    return total


def generate_batch(backend: Backend, given: Settings | Run, batch: list[Item]) -> tuple[list[Tensor], dict[str, Any]]:
    """Media of a batch, and what the library reports about their generation."""
    run = prepare(given)
    settings, sampling = run.settings, run.sampling
    with caching(backend, run) as cache:
        started = time.perf_counter()
        with backend.tracing(batch, sampling):
            media = backend.generate(batch, sampling)
        seconds = time.perf_counter() - started
        report = cache.report if cache is not None else None
        full = list(range(backend.num_steps(batch, sampling))) if cache is None else full_steps_of(cache)
    planned = backend.num_steps(batch, sampling)
    if cache is not None:
        called = sum(each.num_steps or 0 for each in cache.reports.values() if each.branches)
        if called != planned:
            raise hicache.PlanError(f"the model was called for {called} steps, planned were {planned}")
    if not all(bool(torch.isfinite(m).all()) for m in media):
        raise FloatingPointError("the generated media are not finite")
    facts = {"batch_size": len(batch), "batch_seconds": seconds, "full_steps": full}
    if settings.guidance.name != "plain":
        facts |= facts_of(report)
    if report is not None and report.fallbacks:
        facts["fallbacks"] = report.fallbacks
    size = 0 if cache is None else sum(each.cache_bytes for each in cache.reports.values())
    if report is not None and report.operators is not None:
        facts["operators"] = report.operators
        size += report.operators["bytes"]
    return media, facts | {"cache_bytes": size}


def full_steps_of(cache: hicache.Handle) -> list[int]:
    """The full steps of a generation; those of models that follow on one another are counted through."""
    full, first = [], 0
    for report in cache.reports.values():
        full += [first + step for step in report.full_steps]
        first += report.executed
    return full


def record(backend: Backend, folder: RunFolder, item: Item, media: Tensor, facts: dict[str, Any]) -> dict[str, Any]:
    """Save an item's media and describe it in one line; `seal` adds the digests of its files."""
    files = backend.save(media, folder.media, item)
    digest = hashlib.sha256(media.contiguous().numpy().tobytes()).hexdigest()
    return {
        "item": item.name,
        "title": item.title,
        **({"prompt": item.inputs["prompt"]} if "prompt" in item.inputs else {}),
        "seed": item.seed,
        "sha256": digest,
        "files": [f.name for f in files],
        **facts,
    }


def seal(folder: RunFolder, records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records of a batch once its media are on the disk, with the digests of the files."""
    digests = folder.seal([folder.media / name for record in records for name in record["files"]])
    return [{**record, "digests": {name: digests[name] for name in record["files"]}} for record in records]


def finish(run: Run, folder: RunFolder, reference: Outcome | None, logger: Logger) -> None:
    """Measure, draw, and mark the run as done."""
    settings, reference = run.settings, verify(run, folder, reference)
    backend = load_backend(settings.backend)
    records = list(folder.records().values())
    for key in REQUIRED:
        lacking = [r["item"] for r in records if key not in r]
        check_value(not lacking, str(folder.path / "items.jsonl"), f"must have the key {key} in every record", lacking)
    known = folder.metrics()
    evidence = Evidence(
        backend=type(backend),
        settings=settings,
        items=run.items,
        media=folder.media,
        reference=reference.folder.media if reference else None,
    )
    metrics: dict[str, Any] = compute(evidence, known)
    metrics |= summarise_steps(records) | {"num_steps": backend.num_steps(run.items[:1], run.sampling)}
    if settings.guidance.name != "plain":
        metrics |= summary_of(records)
    if settings.operators.name != "none":
        metrics |= sparse_counts.summary_of(records)
    metrics |= cost(backend, run, records, reference)
    kept = {key: known[key] for key in TIMES if key in known and has_times(settings.metrics, known)}
    metrics |= kept or timing(run, records, seconds_of(backend, run))
    metrics |= {"reference": reference.folder.id if reference else None, "run": folder.id}
    write_json(folder.metrics_file, metrics)
    draw_comparison(evidence, folder.picture)
    logger.finish(metrics, folder.picture)
    (folder.path / "error.txt").unlink(missing_ok=True)
    folder.write_status("done", items=len(records))


def seconds_of(backend: Backend, run: Run) -> Callable[[Run, int], float]:
    """Generates the first items of the run, by this run or by its reference."""
    return lambda candidate, count: generate_batch(backend, candidate, run.items[:count])[1]["batch_seconds"]


def cost(backend: Backend, run: Run, records: list[dict[str, Any]], reference: Outcome | None) -> dict[str, Any]:
    """FLOPs per item and the cache: counted from shapes; the bytes as measured for a whole batch.

    Where the full steps depend on the data, the total is the mean over the items.
    """
    settings = run.settings
    counted = count_flops(backend, run, fewest_full_steps(records))
    if settings.operators.name != "none":
        each = sparse_counts.count_sparse(backend, run, records)
    elif settings.guidance.name == "plain":
        each = count_plain(backend, run, records, counted)
    else:
        each = count_guided(backend, run, records)
    total = statistics.mean(each) if len(set(each)) > 1 else each[0]
    base = total if reference is None else reference.metrics["flops"]["total"]
    return {
        "flops": {
            "full_step": counted.full,
            "estimated_step": counted.estimated,
            "overhead": counted.overhead,
            "total": total,
            "reference": base,
        },
        "flops_speedup": base / total,
        "cache_bytes": max(r["cache_bytes"] for r in records),
    }
