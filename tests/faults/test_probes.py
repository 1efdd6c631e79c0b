"""Probes: what a file, a name, a signal or another process may try, and what must not come of it."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from evaluation import durable_files
from experiments import stopping
from experiments.artefacts import learned_weights
from experiments.calibration import trajectories
from experiments.config import compose as composing
from experiments.config.compose import compose
from experiments.errors import ConfigError
from experiments.files import append_text, write_json, write_new, write_tensors, write_text
from experiments.runs import runner
from experiments.settings.resolve import resolve
from tests.evaluation.conftest import noise, save_all
from tests.faults.conftest import WORDS, orphans
from tests.programs import Program

ROOT = Path(__file__).parents[2]
OPENERS = (
    "Image.open(",
    "imread(",
    "imiter(",
    "np.load(",
    "torch.load(",
    "pickle.load",
    "yaml.load(",
    "eval(",
    "os.system(",
)
HOMES = {
    "evaluation/decoders.py",
    "evaluation/perceptual.py",  # weights_only
    "evaluation/inception_pass.py",  # its own state, bounded by what it is copied into
    "evaluation/pretrained.py",  # weights_only
    "experiments/files.py",
    "experiments/backends/inf_dit/checkpoint.py",  # weights_only
    "experiments/learning/train_emoji.py",  # weights_only, its own state
    "experiments/learning/train_super_resolution.py",  # weights_only, its own state
}


def test_files_are_opened_where_they_are_checked():
    """A new place that decodes files by itself is seen here."""
    found = set()
    for package in ("experiments", "evaluation", "hicache"):
        for path in (ROOT / package).rglob("*.py"):
            code = [line.partition("#")[0] for line in path.read_text().splitlines() if '"""' not in line]
            words = [word for word in OPENERS for line in code if f" {word}" in line or f"={word}" in line]
            name = str(path.relative_to(ROOT))
            if words and "parity" not in name:
                found.add(name)
                assert "torch.load(" not in words or "weights_only=True" in path.read_text(), name
    assert found <= HOMES


# Files


def test_a_partial_file_follows_no_link_that_waits_for_it(tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("precious")
    durable_files.partial_of(tmp_path / "x.json").symlink_to(precious)
    write_json(tmp_path / "x.json", {})
    assert precious.read_text() == "precious" and json.loads((tmp_path / "x.json").read_text()) == {}


@pytest.mark.parametrize("mask", [0o077, 0o022, 0o002])
def test_permissions_are_those_of_the_umask(mask, tmp_path):
    before = os.umask(mask)
    try:
        write_text(tmp_path / "text", "x")
        write_new(tmp_path / "new", "x")
        append_text(tmp_path / "lines", "x\n")
        write_tensors(tmp_path / "tensors", {"a": torch.zeros(2)})
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o666 & ~mask}


def test_partial_files_of_the_dead_are_taken_away(tmp_path):
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    host = durable_files.partial_of(tmp_path / "x").name.split(".")[-2].rpartition("-")[0]
    (tmp_path / f".x.{host}-{dead.stdout.strip()}.tmp").mkdir()
    (tmp_path / f".x.{host}-{dead.stdout.strip()}.tmp" / "inner").touch()
    (tmp_path / f".y.{host}-1.tmp").touch()
    (tmp_path / ".z.elsewhere-7.tmp").touch()
    (tmp_path / "data.tmp").touch()
    assert [path.name for path in durable_files.sweep(tmp_path)] == [f".x.{host}-{dead.stdout.strip()}.tmp"]
    os.utime(tmp_path / ".z.elsewhere-7.tmp", (0, 0))
    durable_files.sweep(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [f".y.{host}-1.tmp", "data.tmp"]
    assert host and socket.gethostname()


def test_a_sweep_takes_the_scratch_folders_of_the_dead(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "hicache-sweep-999999999-x").mkdir()
    (tmp_path / f"hicache-sweep-{os.getpid()}-y").mkdir()
    composing.scratch.__wrapped__()
    assert not (tmp_path / "hicache-sweep-999999999-x").exists() and len(list(tmp_path.iterdir())) == 2


# Artefacts


def artefact(path: Path, settings, **described: object) -> None:
    """A file of a training that describes what it likes."""
    keys = learned_weights.valid_for(settings)
    usual = {"method": "lesa", "channels": 8, "num_steps": settings.num_steps, "memories": [2], "cuts": []}
    learned_weights.save_artefact(path, {"a": torch.zeros(2)}, keys, usual | described, {})


@pytest.mark.parametrize(
    "described",
    [
        {"channels": 1_000_000_000},
        {"channels": 1e9},
        {"width": 1_000_000_000_000},
        {"memories": [2] * 100_000, "cuts": list(range(99_999))},
        {"memories": "many"},
        {"memories": [10**18]},
        {"channels": [1]},
        {"nonsense": 1},
        {},
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_small_artefact_asks_for_no_memory(described, tmp_path):
    words = ["method=lesa", f"method.artefact={tmp_path / 'x.safetensors'}"]
    artefact(tmp_path / "x.safetensors", resolve(compose(words)), **described)
    with pytest.raises(ConfigError, match=r"method\.artefact: must .*x\.safetensors"):
        learned_weights.load_predictor(resolve(compose(words)))


@pytest.mark.parametrize("data", [b"", b"\xff" * 64, b'\x08\0\0\0\0\0\0\0{"a":1}'], ids=["empty", "length", "header"])
def test_a_damaged_artefact_is_named(data, tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=r"method\.artefact: must be a trained file"):
        learned_weights.load_predictor(resolve(compose(["method=lesa", f"method.artefact={path}"])))


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"plan": {}, "keys": []}', '{"plan": 3, "keys": {}}', '{"plan": {"rows": {"a": 1}}}']
)
def test_a_damaged_plan_file_is_named(text, tmp_path):
    from experiments.artefacts.plans import load_plan

    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(ConfigError, match=r"method\.plan: must be a plan file"):
        load_plan(resolve(compose(["method=calibrated", f"method.plan={tmp_path / 'plan.json'}"])))


def test_two_places_of_a_calibration_are_one_file(tmp_path, monkeypatch):
    from experiments.calibration import calibrate

    words = ["method=calibrated", "backend=digits", "num_steps=6"]
    made = []
    for name in ("a.json", "b.json"):
        options = calibrate.Options(data="gaussian", output=str(tmp_path / name))
        calibrate.calibrate(resolve(compose([*words, "scope=output"])), options, [2])
        made.append((tmp_path / name).read_bytes())
    assert made[0] == made[1]


# Recordings


@pytest.fixture
def recording(tiny, tmp_path, monkeypatch):
    """Two shards, and what records them."""
    settings = resolve(compose([f"backend.path={tiny}", "method=none", *WORDS]))
    what = trajectories.Recording(sites=("output",), keep="tensors", reserve=0.0)
    trajectories.record(settings, what, tmp_path / "recording")
    return settings, what, tmp_path / "recording"


@pytest.mark.parametrize("damage", ["deleted", "emptied", "truncated", "zeroed", "swapped"])
def test_damaged_shards_are_refused_and_recorded_again(damage, recording, capsys):
    settings, what, folder = recording
    path, other = folder / "shard-00000.safetensors", folder / "shard-00001.safetensors"
    whole = path.read_bytes()
    damages = {"emptied": b"", "truncated": whole[: len(whole) // 2], "swapped": other.read_bytes()}
    damages["zeroed"] = whole[: len(whole) // 2].ljust(len(whole), b"\0")
    path.write_bytes(damages.get(damage, b""))
    if damage == "deleted":
        path.unlink()
    with pytest.raises(ConfigError, match=r"folder: must hold whole shards \(shard-00000"):
        trajectories.load(folder)
    trajectories.record(settings, what, folder)
    assert path.read_bytes() == whole and "it is recorded again" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["../../x.safetensors", "/etc/passwd", "shard-1.safetensors"])
def test_a_manifest_lists_shards_of_its_folder(name, recording):
    _, _, folder = recording
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["shards"][name] = manifest["shards"]["shard-00000.safetensors"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ConfigError, match="must be the name of a shard"):
        trajectories.load(folder)


def test_shards_of_before_digests_are_read(recording):
    _, _, folder = recording
    manifest = json.loads((folder / "manifest.json").read_text())
    for entry in manifest["shards"].values():
        del entry["file"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert trajectories.load(folder)["output"].shape[0] == 3
    os.truncate(folder / "shard-00001.safetensors", 200)
    with pytest.raises(ConfigError, match=r"must hold whole shards \(shard-00001.safetensors cannot be read"):
        trajectories.load(folder)


# Signals


@pytest.mark.parametrize("number", stopping.REQUESTS, ids=lambda number: number.name)
def test_a_request_to_stop_ends_in_order(number, plan, call, monkeypatch):
    import dataclasses
    import shutil

    run = plan.run(plan.rows[1])
    shutil.rmtree(run.path)
    generate, before = runner.generate_batch, {each: signal.getsignal(each) for each in stopping.SIGNALS}
    for each in stopping.REQUESTS:
        signal.signal(each, signal.SIG_DFL)  # whatever an earlier test of this process listened to

    def told(*arguments):
        os.kill(os.getpid(), number)
        time.sleep(0.01)
        return generate(*arguments)

    monkeypatch.setattr(runner, "generate_batch", told)
    settings = dataclasses.replace(plan.rows[1].settings(plan.results), batch_size=2)
    found = call(lambda words: runner.execute(settings))
    assert found.code == stopping.STOPPED and "told to stop; the same command continues" in found.err
    assert run.status()["state"] == "stopped" and len(run.records()) == 2 and run.damages() == {}
    assert signal.getsignal(number) is signal.SIG_DFL and not stopping.asked()
    for each, handler in before.items():
        signal.signal(each, handler)
    monkeypatch.setattr(runner, "generate_batch", generate)
    runner.execute(settings)
    assert run.status()["state"] == "done"


def test_between_batches_it_stops_at_once(call):
    def job(words: list[str]) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
        raise AssertionError("went on")

    assert call(job).code == stopping.STOPPED


# At once


@pytest.mark.slow
@pytest.mark.parametrize("what", ["folders", "run"])
def test_twenty_evaluations_of_one_folder_agree(what, plan, tmp_path):
    """Each in a process of its own, all with one place for their values; what is left is what one of them leaves."""
    words, out = ["run=" + str(plan.run(plan.rows[1]).path)], plan.run(plan.rows[1]).path
    if what == "folders":
        for name in ("a", "b"):
            save_all(tmp_path / name, noise(3, seed=len(name) + ord(name)), "{}.png")
        words, out = ["images=a", "reference=b", "out=values"], tmp_path / "values"
    command = ["-m", "evaluation", *words, "metrics=[psnr,ssim]"]
    assert Program(*command, cwd=tmp_path).wait() == 0
    alone = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    programs = [Program(*command, cwd=tmp_path) for _ in range(20)]
    assert [program.wait() for program in programs] == [0] * 20
    assert len({program.out for program in programs}) == 1 and "PSNR" in programs[0].out.upper()
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()} == alone
    assert orphans(tmp_path) == [] and not [program for program in programs if program.process.is_alive()]


# Words


def test_text_from_elsewhere_does_not_reach_the_terminal_as_commands(plan, call):
    from experiments.plans.collect import main as collect

    plan.run(plan.rows[1]).items_file.write_text("\x1b[31m\n")
    found = call(collect, str(plan.folder), "--devices", "cpu")
    assert "\x1b[3" not in found.err + found.out


def test_save_file_is_not_used_where_it_would_leave_files_behind():
    """safetensors writes beside the file with the permissions of a secret; `write_tensors` gives it a place."""
    assert save_file
    for path in (ROOT / "experiments").rglob("*.py"):
        if path.name not in ("files.py", "checkpoint.py") and "learning/train_" not in str(path):
            assert "save_file(" not in path.read_text(), path


def test_the_page_names_tests_that_are():
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / "security.md").read_text()))
    written = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    assert len(named) >= 30 and not [name for name in named if f"def {name}(" not in written]
