"""All benchmarks behind one command.

    python -m benchmarks                         # what there is
    python -m benchmarks host digits repeats=3   # these, one after another; each word key=value goes to all of them
    python -m benchmarks all

The machine and its load come first. Each benchmark is a process of its own, as `python -m benchmarks.NAME` starts it;
one that fails does not keep the next from running.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

from experiments.cli import Exit
from experiments.errors import check, choose

__all__ = ["NAMES", "main"]

NAMES = ("digits", "host", "operators", "forecasters", "safety", "speed", "scale", "mutation")
"""In the order of `all`; the longest come last."""

ROOT = Path(__file__).parents[1]


def help_text() -> str:
    """Every benchmark with the first paragraph of its module, read without an import."""
    lines = []
    for name in NAMES:
        said = ast.get_docstring(ast.parse(ROOT.joinpath("benchmarks", f"{name}.py").read_text())) or ""
        lines.append(f"    {name:<{max(map(len, NAMES))}}  {' '.join(said.partition(chr(10) * 2)[0].split())}")
    return "\n".join([__doc__ or "", *lines])


def main(arguments: list[str]) -> int:
    """List the benchmarks, or run those that are named; returns 1 if one of them failed.

    Raises:
        ConfigError: for a name that is none, before any of them runs.
    """
    if not arguments or {"-h", "--help"} & set(arguments):
        print(help_text())
        return 0
    options = [word for word in arguments if "=" in word]
    names = [word for word in arguments if "=" not in word]
    check(bool(names), "benchmark", f"must be all or some of {', '.join(NAMES)}", " ".join(arguments))
    for name in names:
        choose("benchmark", name, ("all", *NAMES))
    from benchmarks.common import machine  # late: it loads torch, which a list does not need

    print(", ".join(f"{key} {value}" for key, value in machine().items()), flush=True)
    failed = []
    for name in NAMES if "all" in names else dict.fromkeys(names):
        print(f"\n## {name} (load {os.getloadavg()[0]:.1f})", flush=True)
        if subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *options], check=False).returncode:
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    Exit().end(lambda: main(sys.argv[1:]))
