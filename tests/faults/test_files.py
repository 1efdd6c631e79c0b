"""Torn and altered files of every kind, under every command that reads them: a line, or mended; never a traceback."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from evaluation.cli import main as evaluation
from experiments.plans.collect import main as collect
from experiments.plans.execute import main as execute
from experiments.plans.make import main as replan
from experiments.plans.manifest import Plan
from experiments.plans.retry import main as retry
from experiments.plans.status import main as status
from experiments.plans.verify import main as verify
from experiments.reports.report import main as report
from experiments.reports.tables import main as tables
from tests.faults.conftest import measured, media, orphans

TEARS = {
    "empty": lambda data: b"",
    "half": lambda data: data[: len(data) // 2],
    "bytes": lambda data: bytes(range(256)),
    "list": lambda data: b"[1, 2]\n",
    "null": lambda data: b"null\n",
    "deep": lambda data: b"[" * 100_000,
    "nan": lambda data: b'{"reference": NaN, "item": NaN, "psnr": NaN}\n',
    "wrong": lambda data: b'{"item": 3, "state": 5, "reference": "../../../evil", "files": ["/etc/passwd"]}\n',
    "outside": lambda data: data.replace(b'"00001.png"', b'"../../../x.png"').replace(b"digits-none", b"../digits"),
}

FILES = {
    "config.yaml": "runs/{run}/config.yaml",
    "env.json": "runs/{run}/env.json",
    "status.json": "runs/{run}/status.json",
    "items.jsonl": "runs/{run}/items.jsonl",
    "metrics.json": "runs/{run}/metrics.json",
    "digests.json": "runs/{run}/digests.json",
    "values": "runs/{run}/values/psnr.json",
    "picture": "runs/{run}/picture.png",
    "manifest": "plans/{plan}/manifest.jsonl",
    "plan.json": "plans/{plan}/plan.json",
}


SLOW = {"execute": ("wrong",), "collect": ("empty", "wrong"), "tables": ("half", "wrong"), "report": ("nan", "outside")}
"""Commands that take longer, and the tears that they are given."""


def commands(plan: Plan, run: str) -> dict[str, tuple]:
    """Every command that reads a results folder."""
    folder = str(plan.folder)
    return {
        "status": (status, folder),
        "verify": (verify, "results"),
        "tables": (tables, f"plan={folder}"),
        "report": (report, f"plan={folder}"),
        "evaluation": (evaluation, f"run=results/runs/{run}", "metrics=[psnr]"),
        "collect": (collect, folder, "--devices", "cpu"),
        "retry": (retry, folder),
        "execute": (execute, folder, "--devices", "cpu"),
    }


@pytest.mark.slow
@pytest.mark.parametrize("which", ["run", "reference"])
@pytest.mark.parametrize("file", FILES)
def test_every_tear_under_every_reader(file, which, plan, made, call):
    row = plan.rows[1 if which == "run" else 0]
    path = plan.results / FILES[file].format(run=row.run, plan=plan.folder.name)
    if file == "values" and which == "reference":
        pytest.skip("an un-cached run has no values beside itself")
    data = path.read_bytes()
    for tear in TEARS:
        for name in commands(plan, row.run):
            if name in SLOW and tear not in SLOW[name]:
                continue
            path.write_bytes(TEARS[tear](data))
            main, *words = commands(plan, row.run)[name]
            found = call(main, *words)
            assert found.code in (0, 1, 2, 3), (tear, name, found)
            if found.code == 2:
                said = "must" in found.err or "psnr compares with references" in found.err
                assert found.err.startswith("error: ") and said, (tear, name, found)
            if name.startswith("verify") and file not in ("digests.json", "env.json") and tear not in ("outside",):
                assert found.code != 0 or path.read_bytes() == data, (tear, name, found)
        path.write_bytes(data)
    call(retry, str(plan.folder))
    assert call(execute, str(plan.folder), "--devices", "cpu").code == 0
    assert media(plan.results) == media(made) and measured(plan.results) == measured(made)
    assert orphans(plan.results) == []


def test_a_record_that_is_none_is_named_by_line(plan, call):
    path = plan.run(plan.rows[1]).items_file
    whole = path.read_text()
    path.write_text("{\n" + whole)
    for main, words in (
        (execute, [str(plan.folder), "--devices", "cpu"]),
        (collect, [str(plan.folder), "--devices", "cpu"]),
        (verify, ["results"]),
        (report, [f"plan={plan.folder}"]),
        (evaluation, [f"run={path.parent}", "metrics=[psnr]"]),
    ):
        found = call(main, *words)
        assert found.code in (1, 2) and "items.jsonl:1: must be a record with an item" in found.err, found


SECRET = b"\x89PNG"


@pytest.mark.parametrize("name", ["../../../secret.png", "/etc/passwd", "a/b.png", "..", "x\0y"])
def test_records_name_files_of_their_own_media(name, plan, tmp_path, call):
    from PIL import Image

    Image.new("L", (4, 4), 7).save(tmp_path / "secret.png")
    path = plan.run(plan.rows[1]).items_file
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for record in records:
        record["files"] = [name]
        record.pop("digests")
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records))
    found = call(report, f"plan={plan.folder}")
    assert found.code == 2 and "files must be plain names" in found.err
    assert not list((plan.results / "report").glob("*")) if (plan.results / "report").exists() else True


@pytest.mark.parametrize("name", ["../../../evil", "/etc", "a/b", ".."])
def test_the_reference_of_a_run_is_a_run_beside_it(name, plan, call):
    path = plan.run(plan.rows[1]).metrics_file
    path.write_text(json.dumps(json.loads(path.read_text()) | {"reference": name}))
    for main, words in ((report, ["results"]), (evaluation, [f"run={path.parent}", "metrics=[psnr]"])):
        found = call(main, *words)
        assert found.code == 2 and "reference" in found.err, found


@pytest.mark.parametrize("name", ["../../../x", "/etc", "a/b", ".."])
def test_a_manifest_names_runs_beside_it(name, plan, call):
    path = plan.folder / "manifest.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(f"{json.dumps(row | {'run': name})}\n" for row in rows))
    for command, (main, *words) in commands(plan, "x").items():
        if command not in ("evaluation", "verify"):
            found = call(main, *words)
            assert found.code == 2 and "manifest.jsonl" in found.err and "run" in found.err, (command, found)


def test_a_plan_without_its_facts_works(plan, call):
    (plan.folder / "plan.json").unlink()
    assert call(execute, plan.folder.name.rpartition("-")[0], "--devices", "cpu").code == 0
    words = json.loads((next(Path("results/plans").glob("*")) / "manifest.jsonl").read_text().splitlines()[0])
    assert words["run"] == plan.rows[0].run


def test_an_empty_manifest_is_no_plan(plan, call):
    (plan.folder / "manifest.jsonl").write_text("")
    for main in (execute, status, collect):
        found = call(main, str(plan.folder))
        assert found.code == 2 and "manifest.jsonl: must have a row" in found.err


def test_tears_differ():
    data = b'{"item": "a", "files": ["00001.png"]}\n'
    torn = [tear(data) for tear in TEARS.values()]
    assert all(a != b for a, b in itertools.combinations(torn, 2)) and replan
