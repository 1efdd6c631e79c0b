"""Runs that were made on more than one machine say so, and say which."""

import json

from experiments.config.run import Shard
from experiments.runs import machines
from experiments.runs.folder import RunFolder
from experiments.runs.machines import note_machine, say_machines


def machine(gpu, torch="2.9.0", host="a"):
    return {"host": host, "gpu": gpu, "packages": {"torch": torch}}


def folder_of(path, name):
    (path / "runs" / name).mkdir(parents=True)
    return RunFolder(path, name, Shard())


def test_a_run_that_goes_on_elsewhere_keeps_what_was_there_before(tmp_path, monkeypatch, capsys):
    folder = folder_of(tmp_path, "some-run")
    visits = [machine("A100"), machine("A100", host="b"), machine("H800"), machine("H800", torch="2.10.0")]
    for visit in visits:
        monkeypatch.setattr(machines.environment, "describe", lambda visit=visit: dict(visit))
        note_machine(folder)
    kept = json.loads((folder.path / "env.json").read_text())
    assert kept == {**visits[3], "before": [visits[1], visits[2]]}
    said = capsys.readouterr().err.splitlines()
    assert [line.partition(",")[0] for line in said] == [
        "some-run: goes on on H800 with torch 2.9.0 after A100 with torch 2.9.0",
        "some-run: goes on on H800 with torch 2.10.0 after H800 with torch 2.9.0",
    ]


def test_a_reference_of_another_machine_is_said(tmp_path, capsys):
    run, reference = folder_of(tmp_path, "run"), folder_of(tmp_path, "reference")
    for folder, made in ((run, machine("H800")), (reference, machine("A100"))):
        (folder.path / "env.json").write_text(json.dumps(made))
    say_machines(run, reference)
    assert "run: made on H800 with torch 2.9.0, its reference on A100 with torch 2.9.0" in capsys.readouterr().err
    (reference.path / "env.json").write_text(json.dumps(machine("H800", host="b")))
    say_machines(run, reference)
    (reference.path / "env.json").write_text("{")
    say_machines(run, reference)
    assert capsys.readouterr().err == ""
