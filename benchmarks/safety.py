"""What it costs that media are verified: digests, fsync and the check of every file, as shares of generation.

    python -m benchmarks.safety                 # 64 digits in one batch, and 8 pictures of 1024 x 1024

The functions that keep media safe are timed inside an ordinary run (`RunFolder.seal`, `RunFolder.append`,
`RunFolder.damages`), whose wall time is the other number. A picture of 1024 x 1024 pixels is noise, the largest file
that a PNG of that size can be; its generation is taken to last `seconds`.
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from functools import wraps
from io import StringIO
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import arguments, at_least, machine, publish
from experiments.backends.media import write_image
from experiments.cli import Exit
from experiments.config.compose import compose
from experiments.config.run import Shard
from experiments.errors import check
from experiments.runs import runner
from experiments.runs.folder import RunFolder
from experiments.settings.resolve import resolve

__all__ = ["main"]

DEFAULTS = {"items": 64, "pictures": 8, "side": 1024, "seconds": 1.0, "save": True}
SAFE = ("seal", "append", "damages")


@contextmanager
def timing() -> Iterator[dict[str, float]]:
    """Seconds inside the functions of `SAFE`, while it lasts."""
    spent = {str(name): 0.0 for name in SAFE}
    plain = {name: getattr(RunFolder, name) for name in spent}

    def clock(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def call(*given: Any, **named: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*given, **named)
            finally:
                spent[name] += time.perf_counter() - started

        return call

    try:
        for name, function in plain.items():
            setattr(RunFolder, name, clock(name, function))
        yield spent
    finally:
        for name, function in plain.items():
            setattr(RunFolder, name, function)


def digits(items: int, folder: Path) -> dict[str, Any]:
    """An ordinary run of the embedded model, un-cached, without metrics."""
    words = ["method=none", f"num_items={items}", f"batch_size={items}", "metrics=none", "progress_every=1000"]
    settings = dataclasses.replace(resolve(compose(words)), results=folder)
    with timing() as spent, redirect_stdout(StringIO()):
        started = time.perf_counter()
        outcome = runner.execute(settings)
        whole = time.perf_counter() - started
        outcome.folder.damages()
    records = outcome.folder.records().values()
    generated = sum({record["batch"]: record["batch_seconds"] for record in records}.values())
    shares = {f"{name} ms": 1000 * seconds / items for name, seconds in spent.items()}
    return {"what": f"{items} digits", **shares, "generation ms": 1000 * generated / items} | {
        "share of generation": sum(spent.values()) / generated,
        "share of the run": sum(spent.values()) / whole,
    }


def pictures(count: int, side: int, seconds: float, folder: Path) -> dict[str, Any]:
    """Pictures of noise, as a large model would leave them."""
    run = RunFolder(folder, "pictures", Shard())
    run.media.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    names = [f"{index:05d}.png" for index in range(count)]
    for name in names:
        write_image(torch.rand(3, side, side, generator=generator), run.media, name[:-4], "png")
    with timing() as spent:
        found = run.seal([run.media / name for name in names])
        run.append([{"item": name[:-4], "files": [name], "digests": {name: found[name]}} for name in names])
        run.damages()
    shares = {f"{name} ms": 1000 * value / count for name, value in spent.items()}
    share = sum(spent.values()) / (count * seconds)
    what = f"{count} pictures of {side}²"
    return {"what": what, **shares, "generation ms": 1000 * seconds} | {
        "share of generation": share,
        "share of the run": share,
    }


def main(argv: list[str]) -> list[dict[str, Any]]:
    """Measure; returns the rows."""
    config = arguments(argv, DEFAULTS)
    at_least(config, 1, "items", "pictures", "side")
    check(config["seconds"] > 0, "seconds", "must be a number > 0", config["seconds"])
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            digits(config["items"], Path(folder) / "digits"),
            pictures(config["pictures"], config["side"], config["seconds"], Path(folder) / "pictures"),
        ]
    if config["save"]:
        publish("safety", "Verified media: milliseconds per item, and shares", rows, machine())
    return rows


if __name__ == "__main__":
    outcome = Exit()
    outcome.guard(lambda: main(sys.argv[1:]))
    sys.exit(outcome.code)
