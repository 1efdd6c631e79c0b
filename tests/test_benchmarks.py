"""`python -m benchmarks`: what it lists is what there is, and what it runs."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import __main__ as front
from benchmarks import common, operators, scale, speed
from experiments.errors import ConfigError
from experiments.plans.make import sweeps


def test_every_benchmark_is_listed_with_its_help(capsys):
    programs = {p.stem for p in Path(front.__file__).parent.glob("*.py") if "if __name__" in p.read_text()}
    assert set(front.NAMES) == programs - {"__main__"}
    assert front.main([]) == 0
    listed = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()[-len(front.NAMES) :]]
    assert [name for name, _ in listed] == list(front.NAMES) and all(len(line) > 30 for _, line in listed)


def test_those_named_run_in_turn_and_a_failure_is_said(monkeypatch, capsys):
    ran = []

    def run(words, check):
        ran.append(words[2:])
        return SimpleNamespace(returncode=int("benchmarks.host" in words))

    monkeypatch.setattr(front, "subprocess", SimpleNamespace(run=run))
    assert front.main(["host", "digits", "repeats=1"]) == 1
    assert ran == [["benchmarks.host", "repeats=1"], ["benchmarks.digits", "repeats=1"]]
    said = capsys.readouterr()
    assert said.err == "failed: host\n" and "load" in said.out.splitlines()[0]
    ran.clear()
    assert front.main(["all"]) == 1 and [words[0] for words in ran] == [f"benchmarks.{name}" for name in front.NAMES]


def test_a_name_that_is_none_runs_nothing():
    with pytest.raises(ConfigError, match="got 'hosts'"):
        front.main(["digits", "hosts"])


def test_what_threshold_policies_look_at_costs_less_than_a_percent_of_a_step():
    pytest.importorskip("diffusers")
    from benchmarks.host import observers

    rows = {row["method"]: row for row in observers()}
    assert 0 < rows["fbcache"]["% of a step"] < rows["teacache"]["% of a step"] < 1
    values = 4096 * 3072
    assert rows["fbcache"]["GB"] == pytest.approx(54 * values / 1e9, rel=1e-3)  # 27 reads and writes of two bytes


@pytest.mark.parametrize("rows", [1, 20, 399, 2000, 20_000])
def test_a_sweep_has_as_many_rows_as_were_asked_for(rows):
    lines = sweeps(scale.sweep_of(rows))
    assert rows <= len({tuple(line) for line in lines}) == len(lines) < rows + 400


def test_help_is_what_the_program_says_and_its_defaults(capsys):
    with pytest.raises(SystemExit) as stop:
        common.arguments(["--help"], {"steps": 50, "save": True})
    assert stop.value.code == 0 and capsys.readouterr().out.splitlines()[-1] == "defaults: steps=50 save=True"


def test_a_second_measurement_of_a_day_keeps_the_first(tmp_path):
    about = {"date": "2030-01-01"}
    paths = [common.publish("speed", "a title", [{"ms": float(n)}], about, tmp_path) for n in range(3)]
    assert [path.name for path in paths] == [f"speed-2030-01-01{end}.md" for end in ("", "-2", "-3")]
    assert [f"{n}.000" in path.read_text() for n, path in enumerate(paths)] == [True] * 3
    assert len(list(tmp_path.glob("*.json"))) == 3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["device=cuda:99"], "device: must be one of cpu"),
        (["device=cpu", "steps=0"], "steps: must be an integer >= 1, got 0"),
        (
            ["device=cpu", "providers=reference,fast"],
            "providers: must be one of chipmunk, reference, triton, got 'fast'",
        ),
    ],
)
def test_what_the_operators_cannot_be_measured_with_is_refused_before_a_model_is_built(words, said, monkeypatch):
    monkeypatch.setattr(operators, "build", None)
    with pytest.raises(ConfigError, match=said):
        operators.main(words)


def test_a_row_that_does_not_fit_into_the_memory_is_left_out(monkeypatch, capsys):
    pytest.importorskip("diffusers")

    def measure(row, *rest):
        if row["method"] == "taylorseer":
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")
        return {"seconds": 1.0, "full": 0.1, "cached": 0.01, "memory": 0}

    monkeypatch.setattr(speed, "measure", measure)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    words = ["backend=dit", "device=cpu", "size=small", "intervals=2", "scopes=stack", "steps=4", "save=false"]
    methods = [row["method"] for row in speed.main(words)]
    assert methods[:3] == ["none", "steps", "fora"] and "hicache" in methods and "taylorseer" not in methods
    assert "taylorseer N=2 stack: left out, CUDA out of memory.\n" in capsys.readouterr().err


@pytest.mark.slow
def test_scale_measures_every_command_and_both_loops():
    found = {row["what"]: row for row in scale.main(["rows=40", "runs=20", "images=16", "save=false"])}
    assert list(found) == [
        *("plan", "status", "finished run", "tables", "report", "FID and IS", "bare torch-fidelity loop")
    ]
    assert (found["plan"]["n"], found["tables"]["n"], found["FID and IS"]["n"]) == (41, 21, 16)
    assert all(row["CPU s"] > 0 and row["peak MB"] > 0 for row in found.values())


def test_a_command_that_fails_says_why():
    with pytest.raises(RuntimeError, match=r"ended with 2: .*plan: must be a folder"):
        scale.start("-m", "experiments", "status", "nowhere")
