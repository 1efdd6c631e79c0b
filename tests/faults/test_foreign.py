"""Text, names and secrets that must stay where they are: out of pages, of shells, of files."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import EpsImagePlugin

from experiments.plans.execute import main as execute
from experiments.plans.make import make_plan
from experiments.plans.slurm import main as submit
from experiments.reports.report import main as report
from tests.evaluation.test_decoders import bomb

SECRETS = ("WANDB_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "AWS_SECRET_ACCESS_KEY")


CLOSING = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


def test_a_report_shows_foreign_text_and_runs_none_of_it(plan, call):
    """Titles of items from a run that came from elsewhere, and the label of a row."""
    for row in plan.rows:
        path = plan.run(row).items_file
        records = [json.loads(line) | {"title": CLOSING} for line in path.read_text().splitlines()]
        path.write_text("".join(f"{json.dumps(record)}\n" for record in records))
    manifest = plan.folder / "manifest.jsonl"
    rows = [json.loads(line) | {"label": CLOSING} for line in manifest.read_text().splitlines()]
    manifest.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    found = call(report, f"plan={plan.folder}", "out=page.html")
    page = Path("page.html").read_text(encoding="utf-8")
    assert found.code == 0 and "alert(1)" in page
    assert "<script>alert" not in page and "<img src=x" not in page and page.count("</script>") == page.count("<script")
    assert "default-src 'none'" in page and 'http-equiv="Content-Security-Policy"' in page


@pytest.mark.parametrize("said", ["PostScript", "pixels"])
def test_a_report_opens_no_program_and_no_bomb(said, plan, call, monkeypatch):
    """In place of a picture of a run from elsewhere, whose record vouches for it."""
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", "false")
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *given, **more: pytest.fail("Ghostscript was called"))
    run = plan.run(plan.rows[0])
    records = [json.loads(line) for line in run.items_file.read_text().splitlines()]
    (name,) = [name for name in records[0]["files"] if name.endswith(".png")]
    if said == "PostScript":
        (run.media / name).write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n")
    else:
        bomb(run.media / name, 60_000, 60_000)
    content = (run.media / name).read_bytes()
    facts = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    assert facts.keys() == records[0]["digests"][name].keys()
    records[0]["digests"][name] = facts
    run.items_file.write_text("".join(f"{json.dumps(record)}\n" for record in records))
    found = call(report, f"plan={plan.folder}", "out=page.html")
    assert found.code in (1, 2) and said in found.err and name in found.err and "Traceback" not in found.err, found
    assert not Path("page.html").exists()


@pytest.mark.parametrize(
    "text", ["$(touch pwned)", "`touch pwned`", "; touch pwned", "a\ntouch pwned", "--wrap=touch pwned"]
)
def test_no_word_of_a_cluster_reaches_a_shell(text, plan, call):
    for key in ("partition", "name"):
        found = call(submit, str(plan.folder), "cluster=a100", f"cluster.{key}={json.dumps(text)}", "--dry-run")
        assert found.code == 2 and f"cluster.{key}" in found.err, found
    assert not os.path.exists("pwned")


@pytest.mark.parametrize("text", ["$(>pwned)", "`>pwned`", "a';>pwned;'", 'a";>pwned;"'])
def test_no_word_of_a_path_reaches_a_shell(text, tmp_path, monkeypatch, call):
    """Results in a folder whose name is a command: the script that is submitted names it and does not run it."""
    monkeypatch.chdir(tmp_path)
    plan, _ = make_plan(["num_items=1", "metrics=none"], tmp_path / text / "results")
    found = call(submit, str(plan.folder), "cluster=a100", "--dry-run")
    assert found.code == 0
    start = found.out.index(sys.executable)
    command = found.out[start : found.out.index(" &\n", start)].replace(sys.executable, "printf '%s\\n'")
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=20)
    assert str(plan.folder) in done.stdout.splitlines() and not list(tmp_path.rglob("pwned"))


def test_secrets_of_the_environment_are_in_no_file(plan, monkeypatch, call):
    for name in SECRETS:
        monkeypatch.setenv(name, f"secret-{name}")
    (plan.run(plan.rows[1]).media / "00001.npy").unlink()
    (plan.run(plan.rows[1]).path / "env.json").unlink()
    assert call(execute, str(plan.folder), "--devices", "cpu").code == 0
    files = [path for path in plan.results.rglob("*") if path.is_file()]
    assert len(files) > 10 and not [path for path in files if b"secret-" in path.read_bytes()]
