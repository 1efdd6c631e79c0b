"""A plan on disk: resolved runs, frozen.

    results/plans/<name>-<hash>/  manifest.jsonl   one line per row: id, label, its reference, every setting
                                  plan.json        what was planned, with which revision of the code
                                  code.diff        changes that were not committed
                                  logs/  submissions/

Whoever executes a row reads its line and never `conf/`: editing configuration while rows wait changes nothing. The
hash is that of the manifest's lines, so planning the same twice gives the same folder, and other metrics or another
batch size a folder of its own. A plan belongs to the results folder it lies in, wherever that is moved; runs are shared
by all plans of the folder.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluation.records import is_identity
from experiments.config.shard import Shard
from experiments.errors import ConfigError, check
from experiments.files import read_json
from experiments.runs.folder import RunFolder

if TYPE_CHECKING:
    from experiments.config.run import Settings

__all__ = ["Plan", "PlanRow", "lines_of", "plan_name"]


@dataclass(frozen=True, kw_only=True)
class PlanRow:
    """One line of the manifest."""

    index: int
    run: str
    label: str
    reference: str | None
    """Run that this one is compared with; it goes first."""
    block: str
    paper: str | None
    frozen: dict[str, Any]

    def settings(self, results: Path) -> Settings:
        """The typed settings; what they mean must still be what was planned."""
        from experiments.plans.freeze import restore_settings  # the schemas need torch, states of rows do not
        from experiments.settings.identity import run_id

        made = restore_settings(self.frozen, results)
        found = run_id(made)
        rule = f"row {self.index} must still mean {self.run} (did its prompts, or the code, change?)"
        check(found == self.run, "manifest", rule, found)
        return made


@dataclass(frozen=True)
class Plan:
    """A plan folder."""

    folder: Path

    @staticmethod
    def open(path: str) -> Plan:
        """The plan of that folder, or of that name under results/plans; without its hash, the newest of that title."""
        known = sorted(p.name for p in Path("results/plans").glob("*") if (p / "manifest.jsonl").is_file())
        titled = [Path("results/plans") / name for name in known if name.rpartition("-")[0] == path]
        newest = sorted(titled, key=age)[-1:]
        for folder in (Path(path), Path("results/plans") / path, *newest):
            if is_file(folder / "manifest.jsonl") and folder.resolve().parent.name == "plans":
                return Plan(folder.resolve())
        raise ConfigError(f"plan: must be a folder that experiments plan wrote ({', '.join(known)}), got {path!r}")

    @property
    def results(self) -> Path:
        """The results folder that the plan lies in."""
        return self.folder.parent.parent

    @cached_property
    def rows(self) -> list[PlanRow]:
        """All rows in their order; groups of settings that they have in common are one object, to be read only."""
        path = self.folder / "manifest.jsonl"
        groups: Groups = {}
        try:
            with path.open() as lines:
                rows = [row_of(line, f"{path}:{index + 1}", index, groups) for index, line in enumerate(lines)]
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: must be a readable manifest, got {error}") from error
        check(bool(rows), str(path), "must have a row", rows)
        return rows

    @cached_property
    def facts(self) -> dict[str, Any]:
        """plan.json; what is not known where it was lost."""
        path = self.folder / "plan.json"
        found = read_json(path) if path.is_file() else {"code": {}}
        check(isinstance(found.get("code"), dict), str(path), "must say the code of the plan", found.get("code"))
        return found | {"code": {"git": None, "dirty": False, "constraints": None} | found["code"]}

    def run(self, row: PlanRow, shard: Shard | None = None) -> RunFolder:
        """The folder of a row's run."""
        return RunFolder(self.results, row.run, shard or Shard())


Groups = dict[str, dict[str, Any]]
"""Groups of settings by their text."""


def row_of(line: str, where: str, index: int, groups: Groups) -> PlanRow:
    """A line of a manifest, checked: names are ids, every group of settings is there; of `groups` where it is known.

    Raises:
        ConfigError: with file and line.
    """
    try:
        row = PlanRow(**json.loads(line))
    except (ValueError, TypeError, RecursionError) as error:
        raise ConfigError(f"{where}: must be a row of a plan, got {line.strip()[:60]!r} ({error})") from error
    check(row.index == index, f"{where}: index", f"must be {index}", row.index)
    check(is_identity(row.run), f"{where}: run", "must be the id of a run", row.run)
    known = row.reference is None or is_identity(row.reference)
    check(known, f"{where}: reference", "must be the id of a run, or null", row.reference)
    for key in ("label", "block"):
        check(isinstance(getattr(row, key), str), f"{where}: {key}", "must be text", getattr(row, key))
    check(isinstance(row.frozen, dict), f"{where}: frozen", "must be settings", row.frozen)
    for group in ("backend", "method", "sigma_schedule", "metrics", "logger"):
        check(isinstance(row.frozen.get(group), dict), f"{where}: {group}", "must be settings", row.frozen.get(group))
    for group, values in row.frozen.items():
        if isinstance(values, dict):
            if (text := f"{group} {values}") not in groups:
                fits = group == "chosen" or isinstance(values.get("schema"), str)
                check(fits, f"{where}: {group}", "must be settings with a schema", values)
            row.frozen[group] = groups.setdefault(text, values)
    return row


def age(folder: Path) -> float:
    """When a plan was last made."""
    path = folder / "plan.json"
    return (path if path.is_file() else folder).stat().st_mtime


def is_file(path: Path) -> bool:
    """Whether it is there; a name that is too long for one is not."""
    try:
        return path.is_file()
    except OSError:
        return False


def lines_of(rows: list[PlanRow]) -> str:
    """The manifest as it is written."""
    return "".join(f"{json.dumps(vars(row), allow_nan=False)}\n" for row in rows)


def plan_name(title: str, manifest: str) -> str:
    """Name of the folder: a title, and the hash of every setting of every row."""
    word = re.sub(r"[^A-Za-z0-9_-]+", "-", title).strip("-") or "plan"
    return f"{word}-{hashlib.sha256(manifest.encode()).hexdigest()[:8]}"
