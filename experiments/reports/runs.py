"""A table of any runs: those of folders, by name, or by the digits of their identity.

A word names a run folder, a folder of runs or results (all runs in it), a sweep's folder, or a run of the results
folder by its whole name, by a pattern (`digits-hicache-*`) or by the beginning of its twelve digits. Rows are labelled
by the method and by the settings in which the runs differ. The same run in two places is one row.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import hicache
from evaluation.records import is_identity
from experiments.config.preset import PresetConfig
from experiments.errors import check, choose
from experiments.files import read_config, read_json
from experiments.reports.build import COSTS, Row, Table, cells_of
from experiments.reports.columns import directions
from experiments.runs.folder import read_metrics

__all__ = ["build_runs", "found_runs"]

RECORD = "config.yaml"
METHOD_TITLES = {name: spec.title for name, spec in hicache.METHODS.items()}


def found_runs(words: list[str], results: Path) -> dict[str, Path]:
    """Name -> folder of the runs that the words mean, in their order."""
    found: dict[str, Path] = {}
    for word in words:
        for folder in folders_of(word, results):
            found.setdefault(folder.name, folder)
    return found


def folders_of(word: str, results: Path) -> list[Path]:
    """The run folders that one word means."""
    check(len(word) < 1024 and max(map(len, word.split("/"))) < 256, "run", "must be a run, or a folder of runs", word)
    for path in (Path(word), results / "runs" / word):
        if (path / RECORD).is_file():
            return [path.resolve()]
    for path in (Path(word) / "runs", Path(word)):
        if runs := sorted(record.parent for record in path.glob(f"*/{RECORD}")):
            return [run.resolve() for run in runs]
    if (Path(word) / "runs.json").is_file():
        return [
            folder for name in listed(Path(word) / "runs.json") for folder in folders_of(name, Path(word).parents[1])
        ]
    names = [record.parent.name for record in sorted((results / "runs").glob(f"*/{RECORD}"))]
    if "*" in word:
        matching = fnmatch.filter(names, word)
        check(bool(matching), "run", f"must match one of {', '.join(names)}", word)
        return [(results / "runs" / name).resolve() for name in matching]
    named = [name for name in names if len(word) >= 4 and name.rpartition("-")[2].startswith(word)]
    check(len(named) < 2, "run", f"must begin one name ({', '.join(named)})", word)
    name = named[0] if named else choose("run", word, names)
    return [(results / "runs" / name).resolve()]


def listed(path: Path) -> list[str]:
    """The runs of a sweep, which are named by their ids and nothing that leads elsewhere."""
    names = list(read_json(path))
    wrong = [name for name in names if not is_identity(name)]
    check(not wrong, str(path), "must name runs by their ids", wrong)
    return names


def build_runs(words: list[str], results: Path) -> tuple[Table, list[Path]]:
    """The table of the runs, and the folders that they lie in."""
    found = found_runs(words, results)
    check(bool(found), "run", "must be a run, or a folder of runs", " ".join(words))
    said = {name: identity_of(folder) for name, folder in found.items()}
    metrics = {name: read_metrics(folder / "metrics.json") for name, folder in found.items()}
    columns = [name for name in directions() if name not in COSTS and any(name in of for of in metrics.values())]
    labels, rows = labels_of(said), []
    for name, folder in found.items():
        own = said[name]["method"]["name"] == "none" and not {"guidance", "operators"} & said[name].keys()
        ours = cells_of(folder.parents[1], name, own, [*COSTS, *columns])
        block = "reference" if own else ""
        rows.append(Row(label=labels[name], run=name, settings=None, ours=ours, paper={}, block=block))
    title = f"{len(rows)} runs" if len(rows) > 1 else labels[rows[0].run]
    roots = list(dict.fromkeys(folder.parent for folder in found.values()))
    return Table(preset=PresetConfig(name="runs", title=title, columns=columns), rows=rows), roots


def identity_of(folder: Path) -> dict[str, Any]:
    """What a run is, as its config.yaml says."""
    path = folder / RECORD
    identity = read_config(path).get("identity")
    identity = identity if isinstance(identity, dict) else {}
    method = identity.get("method")
    named = isinstance(method, dict) and isinstance(method.get("name"), str)
    check(named, str(path), "must say the identity of a run, with its method", identity)
    return identity


def labels_of(said: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """A label per run: its method, and what else tells it from the others."""
    flat = {name: dict(leaves(identity)) for name, identity in said.items()}
    keys = dict.fromkeys(key for of in flat.values() for key in of if key != "method.name")
    telling = [key for key in keys if len({repr(of[key]) for of in flat.values() if key in of}) > 1]
    found = {}
    for name, of in flat.items():
        method = str(of["method.name"])
        details = ", ".join(f"{key.rpartition('.')[2]}={of[key]}" for key in telling if key in of)
        found[name] = (
            f"{METHOD_TITLES.get(method, method)} ({details})" if details else METHOD_TITLES.get(method, method)
        )
    return {name: label if list(found.values()).count(label) == 1 else name for name, label in found.items()}


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of nested settings."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
