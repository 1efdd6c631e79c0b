"""What a metric needs and whether this machine has it: asked before hours of generation, not after."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from evaluation.errors import EvaluationError
from evaluation.metric import Metric
from evaluation.pretrained import WEIGHTS, find, locate, root, specification
from evaluation.registry import METRICS

__all__ = ["WeightStatus", "build", "check", "doctor", "problems"]


EXTRAS = {"pyiqa": "pip install '.[iqa]' (PolyForm Noncommercial 1.0.0: research, no commercial use)"}
"""What installs a library that is not part of the extra `eval`."""


class WeightStatus(NamedTuple):
    """One weight in the doctor's report."""

    metrics: str
    weight: str
    found: Path | None
    megabytes: int | None
    licence: str
    source: str
    command: str


def build(metrics: Sequence[str], options: Mapping[str, Mapping[str, Any]]) -> list[Metric]:
    """Metric objects in the order asked for; every unknown name or option is an error."""
    if not metrics:
        raise EvaluationError(f"metrics: must name at least one of {sorted(METRICS)}, got none")
    for name in (*metrics, *options):
        if name not in METRICS:
            close = difflib.get_close_matches(name, METRICS, n=1)
            hint = f" (did you mean {close[0]}?)" if close else ""
            raise EvaluationError(f"metrics: must be among {', '.join(sorted(METRICS))}, got {name!r}{hint}")
    return [METRICS[name].create(options.get(name, {})) for name in dict.fromkeys(metrics)]


def problems(metrics: Sequence[Metric], given: Mapping[str, Path]) -> list[str]:
    """One line per missing library or weight."""
    lines: dict[str, None] = {}
    for name in given:
        specification(name)
    for metric in metrics:
        for module in metric.modules:
            if find_spec(module) is None:
                command = EXTRAS.get(module, "pip install '.[eval]'")
                lines[f"{metric.name}: needs the library {module}; get it with: {command}"] = None
        if any(find_spec(module) is None for module in metric.modules):
            continue
        for name in metric.weights():
            try:
                locate(name, given.get(name))
            except EvaluationError as error:
                lines[f"{metric.name}: {error}"] = None
    return list(lines)


def check(
    metrics: Sequence[str],
    options: Mapping[str, Mapping[str, Any]] | None = None,
    weights: Mapping[str, Path] | None = None,
) -> list[str]:
    """Everything that would stop these metrics, one line each; empty means that they can run."""
    try:
        chosen = build(metrics, options or {})
        return problems(chosen, {name: Path(path) for name, path in (weights or {}).items()})
    except EvaluationError as error:
        return str(error).splitlines()


def doctor(given: Mapping[str, Path] | None = None) -> Iterator[WeightStatus]:
    """The state of every registered weight and the metrics that read it with their default options."""
    readers: dict[str, list[str]] = {}
    for name, metric in METRICS.items():
        for weight in metric.create({}).weights():
            readers.setdefault(weight, []).append(name)
    names = dict.fromkeys((*WEIGHTS, *readers))
    for name in names:
        weight = specification(name)
        used = ", ".join(readers.get(name, [])) or "by option"
        path = find(weight, (given or {}).get(name))
        yield WeightStatus(used, name, path, weight.megabytes, weight.licence, weight.source, weight.command)


def report(given: Mapping[str, Path] | None = None) -> str:
    """The doctor's findings as text: one block per weight, commands ready to paste."""
    lines = [f"weights are looked for in {root()}, torch hub's checkpoints and the Hugging Face cache", ""]
    for module, command in EXTRAS.items():
        readers = ", ".join(name for name, metric in METRICS.items() if module in metric.modules)
        state = "found" if find_spec(module) else f"MISSING  {command}"
        lines += [f"library {module:12} {state}", f"{'':20} for {readers}", ""]
    for line in doctor(given):
        size = f"{line.megabytes} MB" if line.megabytes else "size unknown"
        state = f"found    {line.found}" if line.found else "MISSING"
        lines.append(f"{line.weight:20} {state}")
        lines.append(f"{'':20} for {line.metrics}; {size}, {line.licence}; {line.source}")
        if not line.found:
            lines.append(f"{'':20} {line.command}")
    return "\n".join(lines)
