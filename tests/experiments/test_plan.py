"""Plans are frozen, deterministic and quick; what cannot be planned is said."""

import json
import os
import re
from pathlib import Path

import pytest
from plans import planned

from experiments.backends import ALIASES, PRESETS
from experiments.config.compose import compose, compose_untyped, key, options, to_dataclass
from experiments.errors import ConfigError
from experiments.files import write_json
from experiments.plans.estimate import speed_of, speeds_of
from experiments.plans.freeze import freeze_settings, restore_settings
from experiments.plans.make import main, make_plan, sweeps
from experiments.plans.manifest import Plan
from experiments.plans.status import main as status
from experiments.plans.status import states_of
from experiments.settings.identity import run_id
from experiments.settings.resolve import resolve
from experiments.settings.rows import expand, lacks
from tests.programs import Program

BACKENDS = [name for name in options("backend") if name not in (*ALIASES, *PRESETS)]


def test_sweeps_multiply_in_order():
    assert sweeps(["method=a,b", "seed=0", "sigma=range(1,3)"]) == [
        ["method=a", "seed=0", "sigma=1"],
        ["method=a", "seed=0", "sigma=2"],
        ["method=b", "seed=0", "sigma=1"],
        ["method=b", "seed=0", "sigma=2"],
    ]


def test_references_come_first_and_rows_mean_what_was_composed(small):
    plan = planned(small, "method=hicache,fora", "seed=0,1", "sigma=0.5")
    assert [row.reference is None for row in plan.rows] == [True, True, False, False, False, False]
    assert [row.frozen["seed"] for row in plan.rows if row.reference] == [0, 1, 0, 1]
    for row in plan.rows:
        assert run_id(row.settings(plan.results)) == row.run
    assert plan.rows[2].label == "HiCache (N=3, m=4, σ=0.5), seed=0"
    assert plan.facts["code"]["constraints"] and plan.facts["rows"] == 6


def test_runs_that_are_the_same_are_one_row(small):
    plan = planned(small, "method=taylorseer,none", "sigma=0.3,0.5")
    assert [row.frozen["method"]["name"] for row in plan.rows] == ["none", "taylorseer"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_freezing_keeps_every_setting(backend, tmp_path):
    made = resolve(compose([f"backend={backend}", "method=hicache_adaptive", "sigma_schedule=linear"]))
    back = restore_settings(json.loads(json.dumps(freeze_settings(made))), tmp_path)
    for name in (
        "backend",
        "method",
        "sigma_schedule",
        "metrics",
        "num_steps",
        "sigma",
        "batch_size",
        "progress_every",
    ):
        assert getattr(back, name) == getattr(made, name)
    assert run_id(back) == run_id(made) and back.results == tmp_path


@pytest.mark.matrix
@pytest.mark.parametrize("preset", options("experiment"))
def test_rows_composed_together_are_those_composed_alone(preset):
    line = [f"experiment={preset}", "seed=3", "num_items=2"]
    """By Hydra each time: of rows that set the same keys, the last."""
    rows = [row for row in expand(compose(line).preset) if not lacks(row)]
    for row in list({tuple(key(word) for word in row.set): row for row in rows}.values())[-2:]:
        alone = to_dataclass(compose_untyped([*line, *row.set]))
        alone.preset = None
        assert compose([*line, *row.set], row=True) == alone, row.label
        words, shared = [word for word in [*line, *row.set] if not word.startswith(("seed", "sigma"))], {}
        compose([*words, "seed=5", "sigma=9"], row=True, shared=shared)
        assert compose([*line, *row.set], row=True, shared=shared) == alone, row.label


def test_the_plan_is_the_same_twice_and_conf_cannot_change_it(small, monkeypatch, tmp_path):
    plan = planned(small, "method=hicache")
    manifest = (plan.folder / "manifest.jsonl").read_bytes()
    assert planned(small, "method=hicache").folder == plan.folder
    assert (plan.folder / "manifest.jsonl").read_bytes() == manifest
    monkeypatch.setattr("experiments.config.compose.CONF", tmp_path / "nothing")
    assert [run_id(row.settings(plan.results)) for row in plan.rows] == [row.run for row in plan.rows]


def test_what_is_no_part_of_a_run_is_part_of_its_plan(small):
    """Metrics and batch size do not change a run, but a manifest that froze others must not be taken for this one."""
    first = planned(small, "method=hicache")
    kept = [word for word in small if not word.startswith(("batch_size", "metrics="))]
    other = planned(kept, "method=hicache", "metrics.names=[psnr]", "batch_size=2")
    assert other.folder != first.folder and [row.run for row in other.rows] == [row.run for row in first.rows]
    assert {row.frozen["batch_size"] for row in other.rows} == {2}
    assert {tuple(row.frozen["metrics"]["names"]) for row in other.rows} == {("psnr",)}
    assert planned(kept, "method=hicache", "metrics.names=[psnr]", "batch_size=2").folder == other.folder


def test_hours_come_from_a_timed_run_of_another_plan(small, capsys):
    plan = planned(small, "method=none", "seed=5")
    run = plan.run(plan.rows[0])
    run.path.mkdir(parents=True)
    write_json(run.path / "metrics.json", {"latency": {"batch": 2, "median": 0.5}, "flops": {"total": 3e9}})
    write_json(run.path / "config.yaml", {"settings": {"backend": plan.rows[0].frozen["backend"]}})
    later = planned(small, "method=hicache")
    assert speeds_of(later) == {"digits": 1.2e10}
    main([*small, "method=hicache"])
    assert re.search(r"^hours: \S+ on one device", capsys.readouterr().out, re.MULTILINE)


def test_a_run_of_another_size_says_nothing_about_hours(tmp_path):
    """A tiny model on a CPU makes a ten-thousandth of the FLOPs a second of a true one on a GPU."""
    backend = {"name": "flux", "size": "full", "dtype": "bf16", "attention": "sdpa", "compile": False}
    made = tmp_path / "flux-none-1" / "metrics.json"
    made.parent.mkdir()
    made.write_text(json.dumps({"latency": {"median": 2.0, "batch": 1}, "flops": {"total": 6e12}}))
    for theirs, speed in ((backend | {"guidance": 2.0}, 3e12), (backend | {"size": "tiny", "dtype": "fp32"}, None)):
        (made.parent / "config.yaml").write_text(json.dumps({"settings": {"backend": theirs}}))
        assert speed_of(tmp_path, backend, []) == speed


def test_help_is_the_docstring(capsys):
    main(["--help"])
    assert "python -m experiments plan experiment=digits_table" in capsys.readouterr().out


def test_a_row_that_no_longer_means_the_same_is_refused(small):
    plan = planned(small, "method=hicache")
    path = plan.folder / "manifest.jsonl"
    path.write_text(path.read_text().replace('"num_steps": 8, "scope"', '"num_steps": 9, "scope"'))
    with pytest.raises(ValueError, match="manifest: row 0 must still mean digits-none-"):
        Plan(plan.folder).rows[0].settings(plan.results)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["method=glob(*)"], "method: must list its values, got 'method=glob"),
        (["method"], "override: must read key=value, got 'method'"),
        (["experiment=digits_tabel"], "experiment: must be one of .*did you mean digits_table"),
        (["sigma=0"], "sigma: must be auto or a number > 0, at most 1000, got 0"),
        (
            ["backend=flux", "method=toca", "scope=stack", "policy=mask", "method.mask=[0,99]"],
            "method.mask: must stay below num_steps=50",
        ),
        (
            ["experiment=table6"],
            r"must have a row that can be run, got experiment=table6: all time steps \(no run: .*; late, low noise",
        ),
        (["title=../x"], "title: must be at most 100 letters"),
    ],
)
def test_wrong_words_are_said_in_one_line_and_leave_nothing(words, line, tmp_path):
    with pytest.raises(ValueError, match=line):
        main([*words, f"results={tmp_path / 'results'}"])
    assert not (tmp_path / "results").exists()


def test_the_command_says_what_is_to_do_and_what_it_costs(small, capsys):
    main([*small, "method=hicache,fora", "title=cheap"])
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("3 rows, 0 done, 3 to do") and "constraints" in out[1]
    assert "27 items, 144 of 216 steps in full" in out[2], "8 + 4 + 4 full steps of 9 items"
    assert out[3] == "hours: no timed run of digits in this results folder"
    assert Path(out[-1].removeprefix("plan: ")).resolve().name.startswith("cheap-")


def test_a_title_means_its_newest_plan(small, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    first, second = planned(small, "method=hicache"), planned(small, "method=fora")
    assert first.folder.name.startswith("sweep-") and Plan.open(first.folder.name).folder == first.folder
    os.utime(first.folder / "plan.json", (0, 0))
    assert Plan.open("sweep").folder == second.folder
    os.utime(second.folder / "plan.json", (1, 1))
    planned(small, "method=hicache")
    assert Plan.open("sweep").folder == first.folder
    with pytest.raises(ValueError, match=f"plan: must be a folder .*{first.folder.name}.*, got 'swee'"):
        Plan.open("swee")


@pytest.mark.slow
def test_two_plans_at_once_write_one_good_manifest(small, tmp_path):
    both = [Program("-m", "experiments", "plan", *small, "method=hicache,fora", "title=twice") for _ in range(2)]
    assert [program.wait() for program in both] == [0, 0]
    assert len({program.out.splitlines()[-1] for program in both}) == 1
    folders = list((tmp_path / "results" / "plans").iterdir())
    assert len(folders) == 1 and len(Plan(folders[0]).rows) == 3
    assert {path.name for path in folders[0].iterdir()} == {"manifest.jsonl", "plan.json", "code.diff"}


def test_a_thousand_rows_are_composed_once_each(small, tmp_path, capsys, monkeypatch):
    from experiments.config import compose as module

    made, plain = [], module.hydra_compose
    monkeypatch.setattr(module, "hydra_compose", lambda *given, **named: made.append(1) or plain(*given, **named))
    words = [word for word in small if not word.startswith("results=")]
    sigmas = ",".join(f"{0.3 + index / 1000:.3f}" for index in range(100))
    plan, _ = make_plan([*words, "method=hicache", f"sigma={sigmas}", "seed=range(0,10)"], tmp_path / "results")
    assert len(plan.rows) == 1010 and len(made) <= 4
    for row in (plan.rows[9], plan.rows[10], plan.rows[-1]):
        sigma, seed = row.frozen["sigma"], row.frozen["seed"]
        method = "none" if row.reference is None else "hicache"
        alone = resolve(compose([*words, f"method={method}", f"sigma={sigma}", f"seed={seed}"]))
        assert run_id(alone) == row.run
        if row.reference is not None:
            assert freeze_settings(alone) == row.frozen
    for row in plan.rows:
        folder = plan.run(row)
        folder.path.mkdir(parents=True)
        write_json(folder.path / "status.json", {"state": "done", "pid": 1, "host": "x", "heartbeat": 0.0})
    states_of(plan)
    assert status([str(plan.folder), "--failed"]) == 0


def test_numbers_of_rows_that_share_a_composition_are_checked(tiny):
    """Each refusal is the one of a run that is composed alone."""
    shared = {}
    compose([f"backend.path={tiny}", "seed=1"], shared=shared)
    for word in ("seed=-1", "order=99", "sigma=0", f"num_items={1 << 63}", "seed=true", "interval=2.5", "seed=[1]"):
        refused = []
        for given in (None, shared):
            with pytest.raises(ConfigError) as error:
                compose([f"backend.path={tiny}", word], shared=given)
            refused.append(str(error.value))
        assert refused[0] == refused[1] and word.partition("=")[0] in refused[0]


def test_composing_leaves_what_is_kept_alone(tiny):
    first = compose([f"backend.path={tiny}", "sigma=0.3"])
    assert compose([f"backend.path={tiny}"]).sigma is None and first.sigma == 0.3
