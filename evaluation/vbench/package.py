"""Drives the vbench package, in an environment of its own, one dimension at a time, and keeps what it wrote.

A dimension whose result file exists is not run again; one that fails leaves its log and is reported, and
the others go on. The package fetches weights by itself: unless `download=true`, its process is started
without a way to the network, so it works only on weights that are already in its cache.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluation.errors import EvaluationError
from evaluation.vbench.aggregate import DIMENSIONS
from evaluation.vbench.prompt_list import SAMPLES, list_required, read_info
from evaluation.vbench.total import ingest

__all__ = ["main", "find_missing_videos", "run_dimension"]

_KEYS = ("videos", "info", "python", "out", "dimensions", "device", "download", "samples")
_NO_NETWORK = {name: "http://127.0.0.1:9" for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")}


def find_missing_videos(videos: Path, info: Path, dimension: str, samples: int) -> list[str]:
    """Names that the dimension would look for and not find; the package only warns about them."""
    names = dict.fromkeys(name for _, name in list_required(read_info(info), dimension, samples))
    return [name for name in names if not (videos / name).is_file()]


def run_dimension(
    python: str,
    dimension: str,
    videos: Path,
    info: Path,
    out: Path,
    device: str,
    download: bool = False,
) -> bool:
    """Whether the dimension's result is there afterwards; the package's output goes to `DIMENSION.log`."""
    result = out / f"{dimension}_eval_results.json"
    if result.is_file():
        return True
    out.mkdir(parents=True, exist_ok=True)
    environment = dict(os.environ) if download else dict(os.environ) | _NO_NETWORK | {"HF_HUB_OFFLINE": "1"}
    worker = Path(__file__).with_name("package_process.py")
    paths = [str(path.resolve()) for path in (videos, info, out)]
    command = [python, str(worker), dimension, *paths, device]
    with (out / f"{dimension}.log").open("w", encoding="utf-8") as log:
        try:
            process = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                check=False,
            )
        except OSError as error:
            raise EvaluationError(
                f"python: must be the vbench environment's interpreter, got {python}: {error}"
            ) from error
    return process.returncode == 0 and result.is_file()


def _dimensions(value: Any) -> list[str]:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not names:
        raise EvaluationError(f"dimensions: must be a list of names, got {value!r}")
    for name in names:
        if name not in DIMENSIONS:
            raise EvaluationError(f"dimensions: must be among {', '.join(DIMENSIONS)}, got {name!r}")
    return names


def main(data: Mapping[str, Any]) -> int:
    """The command `vbench`: run dimensions, then say which scores exist."""
    for key in data:
        if key not in _KEYS:
            raise EvaluationError(f"{key}: unknown key; vbench knows {', '.join(_KEYS)}")
    for key in ("videos", "info", "python", "out"):
        if key not in data:
            raise EvaluationError(f"{key}: must be given")
    videos, info, out = (Path(str(data[key])) for key in ("videos", "info", "out"))
    if not videos.is_dir():
        raise EvaluationError(f"videos: must be a folder, got {videos}")
    dimensions = _dimensions(data.get("dimensions", list(DIMENSIONS)))
    samples = data.get("samples", SAMPLES)
    if not isinstance(samples, int) or isinstance(samples, bool) or samples < 1:
        raise EvaluationError(f"samples: must be a whole number of at least 1, got {samples!r}")
    if not isinstance(data.get("download", False), bool):
        raise EvaluationError(f"download: must be true or false, got {data['download']!r}")
    for name in dimensions:
        missing = find_missing_videos(videos, info, name, samples)
        if missing:
            raise EvaluationError(f"{videos / missing[0]}: is needed for {name}, {len(missing)} videos are missing")
    device, download = str(data.get("device", "cuda")), data.get("download", False) is True
    failed = _run_all(str(data["python"]), dimensions, videos, info, out, device, download)
    scores = ingest(out)
    for name in DIMENSIONS:
        print(f"{name:24} {100 * scores[name]:.2f}" if name in scores else f"{name:24} missing")
    return 1 if failed else 0


def _run_all(
    python: str, dimensions: Sequence[str], videos: Path, info: Path, out: Path, device: str, download: bool
) -> list[str]:
    failed: list[str] = []
    for name in dimensions:
        if not run_dimension(python, name, videos, info, out, device, download):
            failed.append(name)
            print(f"error: {name} failed, see {out / name}.log", file=sys.stderr)
    return failed
