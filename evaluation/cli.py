"""The command line: `key=value` words, one clear line and exit code 2 for bad input.

python -m evaluation run=RUN metrics=[psnr,ssim]
python -m evaluation images=DIR reference=DIR prompts=FILE metrics=[psnr,image_reward]
python -m evaluation doctor
python -m evaluation compare baseline=RUN runs=[RUN,RUN] metrics=[psnr]
python -m evaluation vbench videos=DIR info=FILE python=PATH out=DIR dimensions=[scene]
python -m evaluation npz images=DIR out=FILE
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from evaluation.durable_files import probe, sweep
from evaluation.errors import EvaluationError, printable
from evaluation.statistics import Bootstrap

__all__ = ["main", "parse"]


@dataclass(frozen=True, kw_only=True)
class Request:
    """Keys of the evaluating command; metric options and `weights.NAME` come beside them."""

    run: str | None = None
    images: str | None = None
    reference: str | None = None
    prompts: str | None = None
    metrics: list[str] = field(default_factory=list)
    device: str | None = None
    batch_size: int = 8
    out: str | None = None
    level: float = 0.95
    subset: bool = False
    unquote: bool = True
    logger: str | None = None


def parse(words: Sequence[str]) -> dict[str, Any]:
    """Plain data of `key=value` words; dots nest, lists are written `[a,b]`."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    for word in words:
        key, equals, _ = word.partition("=")
        if not equals or not key:
            raise EvaluationError(f"{word}: must be written key=value")
    try:
        data = OmegaConf.to_container(OmegaConf.from_dotlist(list(words)), resolve=False)
    except (OmegaConfBaseException, YAMLError) as error:
        raise EvaluationError(
            f"{' '.join(words)}: must be key=value words, got: {str(error).splitlines()[0]}"
        ) from error
    if not isinstance(data, dict):
        raise EvaluationError(f"{' '.join(words)}: must be key=value words")
    return {str(key): value for key, value in data.items()}


def _expect(key: str, value: Any, kind: type | tuple[type, ...], rule: str) -> Any:
    allowed = isinstance(value, kind) and not (isinstance(value, bool) and kind is not bool)
    if not allowed:
        raise EvaluationError(f"{key}: must be {rule}, got {value!r}")
    return value


def _text(key: str, value: Any) -> str:
    """A name or a path; a folder may be named 2024."""
    if isinstance(value, (dict, list, bool)) or value is None or not str(value).strip():
        raise EvaluationError(f"{key}: must be a name or a path, got {value!r}")
    return str(value)


def _check_device(name: str) -> None:
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    known = ["cpu", *(["cuda"] if count else []), *(f"cuda:{index}" for index in range(count))]
    if name not in known:
        raise EvaluationError(f"device: must be one of this machine ({', '.join(known)}), got {name!r}")


def _check_out(out: Path) -> None:
    """Where values are kept must be a folder that can be written to, before anything is scored."""
    try:
        probe(out)
    except OSError as error:
        said = f"must be a folder that can be written to, got {str(out)!r} ({error.strerror})"
        raise EvaluationError(f"out: {said}") from error
    sweep(out)


def _request(data: Mapping[str, Any]) -> tuple[Request, dict[str, dict[str, Any]], dict[str, Path]]:
    from evaluation.registry import METRICS

    known = {entry.name for entry in fields(Request)}
    options: dict[str, dict[str, Any]] = {}
    for key, value in data.items():
        if key in METRICS:
            options[key] = _expect(key, value, dict, f"options such as {key}.name=value")
        elif key not in known and key != "weights":
            raise EvaluationError(f"{key}: unknown key; known are {', '.join(sorted(known))}, weights and metric names")
    weights = _expect("weights", data.get("weights", {}), dict, "names such as weights.inception=PATH")
    own = {key: value for key, value in data.items() if key in known}
    metrics = own.get("metrics", [])
    own["metrics"] = [metrics] if isinstance(metrics, str) else _expect("metrics", metrics, list, "a list of names")
    for name in own["metrics"]:
        _expect("metrics", name, str, "a list of names")
    for key in ("run", "images", "reference", "prompts", "device", "out", "logger"):
        if key in own and own[key] is not None:
            own[key] = _text(key, own[key])
    rules: dict[str, tuple[type | tuple[type, ...], str]] = {
        "batch_size": (int, "a whole number"),
        "level": ((int, float), "a number between 0 and 1"),
        "subset": (bool, "true or false"),
        "unquote": (bool, "true or false"),
    }
    for key, (kind, rule) in rules.items():
        if key in own:
            _expect(key, own[key], kind, rule)
    if own.get("device") is not None:
        _check_device(own["device"])
    return Request(**own), options, {name: Path(str(path)) for name, path in weights.items()}


def _evaluate(words: Sequence[str]) -> int:
    from evaluation import item_values, media_files
    from evaluation.driver import evaluate
    from evaluation.present import log_to_wandb, table
    from evaluation.run_folder import read_run

    request, options, weights = _request(parse(words))
    if (request.run is None) == (request.images is None):
        raise EvaluationError("run, images: exactly one of them must be given")
    if request.logger not in (None, "wandb"):
        raise EvaluationError(f"logger: must be wandb, got {request.logger!r}")
    if request.logger == "wandb" and find_spec("wandb") is None:
        raise EvaluationError("logger: needs the library wandb; get it with: pip install '.[wandb]'")
    prompts = media_files.read_prompts(Path(request.prompts), request.unquote) if request.prompts else None
    if request.run is not None:
        run = read_run(Path(request.run))
        said = f"{run.unverified} items of {run.folder} are older than digests" if run.unverified else ""
        images, reference = run.images, Path(request.reference) if request.reference else run.reference
        prompts, out = prompts or run.prompts, Path(request.out) if request.out else run.folder / "evaluation"
    else:
        said = f"{request.images} has no records that its files could be compared with"
        images, reference = Path(str(request.images)), Path(request.reference) if request.reference else None
        out = Path(request.out) if request.out else Path(f"{images}-evaluation")
    _check_out(out)
    results = evaluate(
        images,
        reference,
        prompts,
        request.metrics,
        request.device or default_device(),
        request.batch_size,
        out=out,
        options=options,
        weights=weights,
        bootstrap=Bootstrap(level=request.level),
        subset=request.subset,
    )
    item_values.merge_json(out / "metrics.json", {name: said_of(name, results[name], reference) for name in results})
    if request.logger == "wandb":
        log_to_wandb(results, out, images, reference)
    print(table(results))
    if said:
        print(f"not verified: {said}")
    print(f"evaluation: {out}")
    return 0


def said_of(name: str, result: Mapping[str, Any], reference: Path | None) -> dict[str, Any]:
    """A result with what it was compared with: later calls may have other references, and add to the same file."""
    from evaluation.registry import METRICS

    if reference is None or "reference" not in METRICS[name].needs:
        return dict(result)
    return {**result, "reference": str(reference.resolve())}


def default_device() -> str:
    """The first GPU if there is one."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _doctor(words: Sequence[str]) -> int:
    from evaluation.doctor import check, report
    from evaluation.pretrained import specification

    data = parse(words)
    request, options, weights = _request(data)
    other = [key for key in data if key not in ("metrics", "weights", *options)]
    if other:
        raise EvaluationError(f"{other[0]}: unknown key; doctor knows metrics, their options and weights")
    for name in weights:
        specification(name)
    if not request.metrics:
        print(report(weights))
        return 0
    lines = check(request.metrics, options, weights)
    for line in lines:
        print(f"error: {line}", file=sys.stderr)
    if not lines:
        print(f"ready: {', '.join(request.metrics)}")
    return 2 if lines else 0


def _compare(words: Sequence[str]) -> int:
    from evaluation.present import compare_runs

    data = parse(words)
    known = ("baseline", "runs", "metrics")
    test = _text("test", data.pop("test", "wilcoxon"))
    if test not in ("wilcoxon", "friedman"):
        raise EvaluationError(f"test: must be wilcoxon or friedman, got {test!r}")
    for key in data:
        if key not in known:
            raise EvaluationError(f"{key}: unknown key; compare knows {', '.join(known)}, test")
    lists: dict[str, list[str]] = {}
    for key in known:
        if key not in data:
            raise EvaluationError(f"{key}: must be given; compare knows baseline, runs and metrics")
        value = data[key]
        lists[key] = [_text(key, one) for one in (value if isinstance(value, list) else [value])]
        if not lists[key]:
            raise EvaluationError(f"{key}: must name at least one, got none")
    baseline = _text("baseline", data["baseline"])
    if test == "friedman" and len(lists["runs"]) < 2:
        raise EvaluationError(f"runs: must be two or more for test=friedman, got {lists['runs']}")
    print(compare_runs(Path(baseline), [Path(run) for run in lists["runs"]], lists["metrics"], test))
    return 0


def _npz(words: Sequence[str]) -> int:
    from evaluation.npz import write_samples

    data = parse(words)
    if set(data) != {"images", "out"}:
        raise EvaluationError(f"npz: needs exactly images and out, got {', '.join(data) or 'nothing'}")
    count = write_samples(Path(str(data["images"])), Path(str(data["out"])))
    print(f"{data['out']}: {count} images")
    return 0


def _vbench(words: Sequence[str]) -> int:
    from evaluation.vbench.package import main as run_vbench

    return run_vbench(parse(words))


_COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "doctor": _doctor,
    "compare": _compare,
    "npz": _npz,
    "vbench": _vbench,
}


def main(words: Sequence[str]) -> int:
    """Run one command; returns the exit code."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no library below may download
    if words and words[0] in ("-h", "--help", "help"):
        print(__doc__)
        return 0
    command = _COMMANDS.get(words[0]) if words else None
    try:
        if not words:
            raise EvaluationError("argument: must be key=value words or a command, got none; see --help")
        return command(words[1:]) if command else _evaluate(words)
    except EvaluationError as error:
        for line in str(error).splitlines():
            print(f"error: {printable(line)}", file=sys.stderr)
        return 2
    except OSError as error:
        at = f" at {error.filename}" if error.filename else ""
        print(f"error: files must be readable and writable, got {error.strerror or error}{at}", file=sys.stderr)
        return 1
