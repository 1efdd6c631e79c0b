"""What the benchmarks share: arguments, the machine's description, and the dated result file."""

from __future__ import annotations

import json
import math
import os
import platform
import sys
from datetime import date
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from experiments.errors import ConfigError, check

__all__ = ["arguments", "at_least", "machine", "markdown", "publish"]

RESULTS = Path(__file__).parent / "results"


def arguments(argv: list[str], defaults: dict[str, Any]) -> dict[str, Any]:
    """`key=value` or `--key value` arguments over typed defaults; `--help` prints both and ends the program.

    Raises:
        ConfigError: for an unknown key or a value of the wrong type.
    """
    if {"-h", "--help"} & set(argv):
        print(sys.modules["__main__"].__doc__ or "")
        print("defaults:", *(f"{key}={value}" for key, value in defaults.items()))
        raise SystemExit(0)
    words = list(argv)
    pairs = []
    while words:
        word = words.pop(0)
        pairs.append(f"{word[2:]}={words.pop(0)}" if word.startswith("--") and "=" not in word and words else word)
    for pair in pairs:
        key = pair.lstrip("-").partition("=")
        check(key[0] in defaults and bool(key[1]), key[0] or "argument", f"must be one of {', '.join(defaults)}", pair)
    try:
        given = OmegaConf.to_container(OmegaConf.from_dotlist([pair.lstrip("-") for pair in pairs]))
    except (OmegaConfBaseException, YAMLError) as error:
        raise ConfigError(f"argument: must read key=value, got {' '.join(pairs)!r}") from error
    assert isinstance(given, dict)
    for key, value in list(given.items()):
        if isinstance(defaults.get(str(key)), str) and isinstance(value, int | float):
            value = given[key] = str(value)
        wanted = type(defaults[str(key)])
        if wanted is float and isinstance(value, int) and not isinstance(value, bool):
            value = given[key] = float(value)
        fits = isinstance(value, wanted) and not (wanted is int and isinstance(value, bool))
        check(fits, str(key), f"must be of type {wanted.__name__}", value)
        finite = not isinstance(value, float) or math.isfinite(value)
        check(finite, str(key), "must be a finite number", value)
        check(not isinstance(value, int) or abs(value) < 1 << 63, str(key), "must be less than 2^63", value)
    return {**defaults, **{str(key): value for key, value in given.items()}}


def at_least(config: dict[str, Any], low: int, *keys: str) -> None:
    """Integers that must not be smaller.

    Raises:
        ConfigError: naming the key.
    """
    for key in keys:
        check(config[key] >= low, key, f"must be an integer >= {low}", config[key])


def machine(device: str = "cpu") -> dict[str, Any]:
    """What the numbers were measured on."""
    model = next(
        (line.split(":")[1].strip() for line in _read("/proc/cpuinfo").splitlines() if line.startswith("model name")),
        platform.processor(),
    )
    return {
        "date": date.today().isoformat(),
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else model,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def publish(name: str, title: str, rows: list[dict[str, Any]], about: dict[str, Any], folder: Path = RESULTS) -> Path:
    """Print the table and write it as markdown and JSON under `name-date`, beside what was measured before that day."""
    table = markdown(rows)
    facts = ", ".join(f"{key} {value}" for key, value in about.items())
    text = f"# {title}\n\n{facts}\n\n{table}\n"
    folder.mkdir(parents=True, exist_ok=True)
    path, number = folder / f"{name}-{about['date']}.md", 1
    while path.exists():
        number += 1
        path = folder / f"{name}-{about['date']}-{number}.md"
    path.write_text(text)
    path.with_suffix(".json").write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")
    print(text)
    return path


def markdown(rows: list[dict[str, Any]]) -> str:
    """A markdown table of rows that share their keys."""
    heads = list(rows[0])
    cells = [[f"{v:.3f}" if isinstance(v, float) else str(v) for v in row.values()] for row in rows]
    lines = [heads, ["---"] * len(heads), *cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _read(path: str) -> str:
    return Path(path).read_text() if Path(path).exists() else ""
