"""Whole runs on the tiny model: identical media under shards, restarts and kills; nothing done twice."""

import dataclasses
import json
import os
from pathlib import Path

import pytest
import torch

import hicache
from experiments.backends import load_backend
from experiments.config.compose import compose, options
from experiments.config.run import Settings
from experiments.runs import runner
from experiments.runs.runner import RunError, execute, folder_of, items_of
from experiments.settings.describe import without_effect
from experiments.settings.library_method import method_of
from experiments.settings.resolve import resolve
from tests.programs import Program

ROOT = Path(__file__).parents[2]

MADE = {"calibrated", "smoothcache", "lesa", "l2c"}  # for given settings
NAMES = sorted({*options("method")} - MADE - {"deepcache"})  # which is for U-Nets


def settings(*overrides: str) -> Settings:
    made = resolve(compose(list(overrides)))
    runner.check(made)
    return made


def digests(of: Settings) -> dict[str, str]:
    return {name: record["sha256"] for name, record in folder_of(of).records().items()}


def lines(of: Settings) -> list[str]:
    return [line for path in folder_of(of).path.glob("items*.jsonl") for line in path.read_text().splitlines()]


@pytest.fixture
def count(monkeypatch):
    """Numbers of items of the generations; timing and pictures, which take most of a tiny run, are left out."""
    sizes: list[int] = []
    original = runner.generate_batch

    def counted(backend, of, batch):
        sizes.append(len(batch))
        return original(backend, of, batch)

    monkeypatch.setattr(runner, "generate_batch", counted)
    monkeypatch.setattr(runner, "draw_comparison", lambda *args: None)
    monkeypatch.setattr(runner, "timing", lambda *args: {"latency": {}, "reference_latency": {}, "wall_speedup": 1.0})
    return sizes


def test_a_run_leaves_what_it_promises(small, run_py, capsys):
    assert run_py(*small, "metrics=digits", "metrics.timing=full", "num_items=20", "batch_size=10") == 0
    out = capsys.readouterr().out.strip().splitlines()
    assert out[-1].startswith("run: ")
    folder = Path(out[-1].removeprefix("run: "))
    assert folder.name.startswith("digits-hicache-n3o4s0.70-")
    names = {path.name for path in folder.iterdir()}
    assert {
        "config.yaml",
        "env.json",
        "status.json",
        "items.jsonl",
        "metrics.json",
        "media",
        "picture.png",
    } <= names
    metrics = json.loads((folder / "metrics.json").read_text())
    for name in ("psnr", "ssim", "digits_fid", "digits_sfid", "digits_is", "class_accuracy"):
        assert {"mean", "low", "high", "n"} <= set(metrics[name]), name
        assert metrics[name]["low"] <= metrics[name]["mean"] <= metrics[name]["high"]
    assert metrics["full_steps"] == hicache.full_steps(8, 3, 2)
    assert metrics["flops_speedup"] == pytest.approx(metrics["flops"]["reference"] / metrics["flops"]["total"])
    assert metrics["cache_bytes"] > 0 and metrics["wall_speedup"] > 0
    reference = json.loads((folder.parent / metrics["reference"] / "metrics.json").read_text())
    assert "psnr" not in reference and reference["flops_speedup"] == 1 and reference["full_steps"] == list(range(8))
    assert json.loads((folder / "status.json").read_text())["state"] == "done"


@pytest.mark.matrix
@pytest.mark.parametrize("name", NAMES)
def test_every_method_runs_and_executes_its_plan(name, small, count):
    of = settings(*small, f"method={name}", "num_items=3")
    outcome = execute(of)
    executed = outcome.metrics["full_steps"]
    if method_of(of).policy.plan(8) is None or name == "magcache":  # these decide as they go
        assert executed[0] == 0 and set(executed) <= set(range(8))
    else:
        assert executed == method_of(of).policy.plan(8)
    assert count == ([3] if name == "none" else [3, 3])
    short = {basis for line in lines(of) for basis in json.loads(line).get("fallbacks", {})}
    assert short == ({"hermite"} if method_of(of).knobs.basis in ("dmd", "auto") else set())


@pytest.mark.parametrize("solver", ["ddim", "dpmpp", "unipc"])
def test_fewer_steps_with_every_solver(solver, small, count):
    outcome = execute(settings(*small, "num_items=3", "method=steps", "method.steps=4", f"method.solver={solver}"))
    assert outcome.metrics["flops_speedup"] == pytest.approx(2)
    assert outcome.metrics["num_steps"] == 4


@pytest.mark.parametrize("scope", ["output", "stack", "modules"])
def test_even_steps_are_what_ran(small, count, scope):
    of = settings(*small, "policy=even", "budget=4", f"scope={scope}", "warmup_steps=5", "num_items=2")
    assert execute(of).metrics["full_steps"] == [0, 2, 5, 7]  # 7/3, 14/3
    assert folder_of(of).id.startswith("digits-hicache-k4o4s0.70-")


@pytest.mark.slow
def test_a_sweep_says_that_even_steps_have_no_interval(small, run_py, capsys):
    given = [o for o in small if not o.startswith("interval")]
    assert run_py("-m", *given, "policy=even", "budget=3,4", "interval=3,4", "num_items=1", "batch_size=1") == 0
    assert "interval has no effect on hicache: 1 run instead of 2" in capsys.readouterr().out


def test_without_a_cache_it_is_the_plain_pipeline(small, count):
    of = settings(*small, "method=none")
    execute(of)
    backend, items = load_backend(of.backend), items_of(of)[:3]
    plain = backend.pipe(
        class_labels=[item.inputs["class_labels"] for item in items],
        guidance_scale=1.5,
        num_inference_steps=8,
        generator=[torch.Generator().manual_seed(item.seed) for item in items],
        output_type="pt",
    ).images
    for item, image in zip(items, plain, strict=True):
        assert torch.equal(backend.load_media(folder_of(of).media, item), image)


def test_interval_one_equals_no_cache(small, count):
    of = settings(*small, "interval=1")
    execute(of)
    assert digests(of) == digests(of.reference())


@pytest.mark.matrix
@pytest.mark.parametrize("name", ["none", "hicache", "hicache_adaptive", "dmd", "toca", "clusca", "duca"])
def test_shards_and_batches_cannot_be_seen_in_the_images(name, small, count, tmp_path):
    """One method of each way in which the samples of a batch meet; tests/hicache compares batches of all methods."""
    common = [*small, "num_items=7", f"method={name}"]
    whole = settings(*common)
    execute(whole)
    parts = [settings(*common, f"results={tmp_path / 'split'}", f"shard={rank}/3") for rank in (2, 0, 1)]
    outcomes = [execute(part) for part in parts]
    assert [bool(outcome.metrics) for outcome in outcomes] == [False, False, True]
    assert digests(parts[0]) == digests(whole) and len(digests(whole)) == len(lines(parts[0])) == 7
    backend = load_backend(whole.backend)
    alone = settings(*common, f"results={tmp_path / 'alone'}", "batch_size=1")
    execute(alone)
    for item in items_of(whole):
        mine, theirs = (backend.load_media(folder_of(of).media, item) for of in (whole, alone))
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=0)


@pytest.mark.matrix
@pytest.mark.parametrize(
    "name", ["hicache", "toca", "duca", "clusca", "hi_clusca", "speca", "pab", "teacache", "dbcache"]
)
def test_items_of_a_batch_cut_short_are_not_recorded_twice(name, small, count):
    """The batch is generated again as it was, also where its members share decisions or random rows."""
    of = settings(*small, f"method={name}")
    execute(of)
    before, folder = digests(of), folder_of(of)
    kept = folder.items_file.read_text().splitlines()[:4]
    folder.items_file.write_text("\n".join(kept) + '\n{"item": "00004", "tit')
    folder.status_file.unlink()
    count.clear()
    execute(of)
    assert count == [3, 3]
    assert digests(of) == before and len(lines(of)) == 9


@pytest.mark.slow
@pytest.mark.parametrize("name", ["calibrated", "smoothcache", "lesa", "l2c"])
def test_shards_of_methods_with_artefacts(name, count, tmp_path):
    """On the embedded model, for which the artefacts are made: the executed plan, and the same bytes in shards."""
    few = ["num_items=4", "batch_size=2", "metrics=none", f"method={name}"]
    whole = settings(*few, f"results={tmp_path / 'whole'}")
    executed = execute(whole).metrics["full_steps"]
    assert executed == method_of(whole).policy.plan(50) and len(executed) < 50
    parts = [settings(*few, f"results={tmp_path / 'split'}", f"shard={rank}/2") for rank in (1, 0)]
    for part in parts:
        execute(part)
    assert digests(parts[0]) == digests(whole) and len(digests(whole)) == 4
    single = settings(*few, f"results={tmp_path / 'single'}", "batch_size=1")
    execute(single)
    backend = load_backend(whole.backend)
    for item in items_of(whole):
        mine, theirs = (backend.load_media(folder_of(of).media, item) for of in (whole, single))
        torch.testing.assert_close(mine, theirs, atol=1e-3, rtol=0)


def test_a_restart_keeps_the_batch_size_of_the_start(small, count):
    of = settings(*small)
    execute(of)
    before, folder = digests(of), folder_of(of)
    folder.items_file.write_text("")
    folder.status_file.unlink()
    count.clear()
    execute(settings(*small, "batch_size=4"))
    assert count == [3, 3, 3] and digests(of) == before


def test_a_new_run_has_the_batches_of_its_reference(small, count, capsys):
    execute(settings(*small, "num_items=3", "method=none", "batch_size=2"))
    of = settings(*small, "num_items=3", "interval=1")
    execute(of)
    assert count == [2, 1, 2, 1] and digests(of) == digests(of.reference())
    said = [line for line in capsys.readouterr().err.splitlines() if "batches" in line]
    assert said == [f"{folder_of(of).id}: batches of 2, as its reference was started with, not of 3"]


def test_a_new_run_may_have_smaller_batches_than_its_reference(small, count, capsys):
    execute(settings(*small, "num_items=3", "method=none", "batch_size=2"))
    of = settings(*small, "num_items=3", "batch_size=1")
    execute(of)
    assert count == [2, 1, 1, 1, 1]
    assert f"{folder_of(of).id}: batches of 1, of its reference 2: " in capsys.readouterr().err


def test_a_method_that_decides_for_a_batch_keeps_its_own(small, count, capsys):
    execute(settings(*small, "num_items=3", "method=none", "batch_size=2"))
    of = settings(*small, "num_items=3", "method=teacache")
    for _ in range(2):
        execute(of)
        assert f"{folder_of(of).id}: batches of 3, of its reference 2: " in capsys.readouterr().err
    assert count == [2, 1, 3]


def test_what_is_finished_is_not_done_again(small, count):
    of = settings(*small)
    first = execute(of).metrics
    count.clear()
    assert execute(of).metrics == first
    assert count == []


def test_a_metric_asked_for_later_is_computed_from_what_is_there(small, count):
    execute(settings(*small))
    count.clear()
    metrics = execute(settings(*small, "metrics.names=[psnr]")).metrics
    assert "psnr" in metrics and count == []
    both = execute(settings(*small, "metrics.names=[ssim]", "metrics.level=0.5"))
    assert both.metrics["psnr"] == metrics["psnr"] and both.metrics["ssim"]["level"] == 0.5 and count == []
    assert execute(both.run).found
    again = execute(settings(*small, "metrics.names=[psnr]", "metrics.level=0.5"))
    assert not again.found and again.metrics["psnr"]["low"] > metrics["psnr"]["low"] and count == []


@pytest.mark.slow
def test_times_asked_for_later_are_taken_once(small, monkeypatch):
    monkeypatch.setattr(runner, "draw_comparison", lambda *args: None)
    first = execute(settings(*small, "num_items=3"))
    assert "wall_speedup" not in first.metrics and first.metrics["latency"]["n"] == 1
    before = lines(first.settings)
    asked = settings(*small, "num_items=3", "metrics.timing=full")
    second, third = execute(asked), execute(asked)
    assert not second.found and second.metrics["timing"] == "full" and lines(first.settings) == before
    low, high = second.metrics["wall_speedup_range"]
    assert low == second.metrics["wall_speedup"] == high, "one repeat"
    assert third.found and third.metrics == second.metrics


def test_a_sweep_over_what_a_method_does_not_read_is_one_run(small, run_py, tmp_path, capsys):
    assert run_py("-m", *small, "num_items=3", "method=taylorseer,fora", "sigma=0.3,0.5") == 0
    runs = sorted(path.name.rsplit("-", 1)[0] for path in (tmp_path / "results" / "runs").iterdir())
    assert runs == ["digits-fora-n3", "digits-none", "digits-taylorseer-n3o4"]
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("run: ")]
    assert len(said) == len(set(said)) == 2, "a run that this command did already is not shown again"
    assert [path.name for path in tmp_path.iterdir()] == ["results"]


def test_a_key_without_effect_is_said():
    of = settings("method=taylorseer", "sigma=0.5", "interval=5")
    assert without_effect(of, {"method", "sigma", "interval", "seed"}) == "sigma has no effect on taylorseer"
    assert without_effect(of, {"interval", "policy", "order"}) is None
    plan = settings("method=calibrated", "policy=even", "budget=8")
    assert without_effect(plan, {"policy", "budget", "interval"}) == "interval and policy have no effect on calibrated"
    assert without_effect(settings("method=none", "interval=4"), {"interval"}) == "interval has no effect on none"


def test_noise_depends_on_seed_and_item_only(small):
    many, few = settings(*small), settings(*small, "num_items=4", "method=fora")
    assert [item.seed for item in items_of(many)][:4] == [item.seed for item in items_of(few)]
    assert len({item.seed for item in items_of(many)}) == 9
    other = items_of(settings(*small, "seed=1"))
    assert not {item.seed for item in items_of(many)} & {item.seed for item in other}


def test_a_failure_keeps_what_was_done_and_exits_with_one(small, run_py, monkeypatch, capsys):
    of = settings(*small, "method=none")
    backend = load_backend(of.backend)
    calls = []

    def breaks(items, sampling):
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("out of luck")
        return type(backend).generate(backend, items, sampling)

    monkeypatch.setattr(backend, "generate", breaks)
    assert run_py(*small, "method=none") == 1
    folder = folder_of(of)
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error == f"error: run failed: RuntimeError: out of luck (see {folder.path / 'error.txt'})"
    assert "Traceback" in (folder.path / "error.txt").read_text()
    assert folder.status()["state"] == "failed" and len(folder.records()) == 3
    monkeypatch.undo()
    assert run_py(*small, "method=none") == 0
    assert len(folder.records()) == 9 and not (folder.path / "error.txt").exists()


def test_a_plan_that_is_not_kept_fails_the_run(small, monkeypatch):
    of = settings(*small)
    backend = load_backend(of.backend)
    pipe_class = type(backend.pipe)
    original = pipe_class.__call__

    def hurries(self, **given):
        return original(self, **{**given, "num_inference_steps": 6})

    execute(of.reference())
    monkeypatch.setattr(pipe_class, "__call__", hurries)
    with pytest.raises(RunError, match="PlanError"):
        execute(of)
    assert folder_of(of).records() == {}


def test_media_that_are_not_finite_fail_the_run(small, monkeypatch):
    of = settings(*small, "method=none")
    backend = load_backend(of.backend)
    monkeypatch.setattr(backend, "generate", lambda items, sampling: [torch.full((1, 16, 16), torch.nan)] * len(items))
    with pytest.raises(RunError, match="not finite"):
        execute(of)


@pytest.mark.slow
def test_killed_in_the_middle_and_started_again_it_is_the_same_run(small, tmp_path):
    """kill -9 after the first batch; the same command then loses and doubles nothing."""
    overrides = [*small, "num_items=12", "num_steps=20", "method=none"]
    whole = settings(*overrides, f"results={tmp_path / 'whole'}")
    execute(whole)
    of = settings(*overrides)
    killed = Program("run.py", *overrides, "progress_every=1")
    killed.until("items")
    killed.kill()
    done = folder_of(of).records()
    assert 0 < len(done) < 12, "the kill came too early or too late"
    assert folder_of(of).status()["state"] == "running"
    again = Program("run.py", *overrides, "progress_every=1")
    assert again.wait() == 0, again.err
    assert again.out.strip().splitlines()[-1] == f"run: {folder_of(of).path}"
    assert digests(of) == digests(whole)
    assert len(lines(of)) == 12
    images = {path.name: path.read_bytes() for path in folder_of(of).media.iterdir()}
    assert images == {path.name: path.read_bytes() for path in folder_of(whole).media.iterdir()}
    assert os.path.exists(folder_of(of).picture)


def test_two_processes_at_once_generate_every_item_once(small):
    started = [Program("run.py", *small, "method=none") for _ in range(2)]
    assert [program.wait() for program in started] == [0, 0]
    ends = [program.out.strip().splitlines()[-1] for program in started]
    of = settings(*small, "method=none")
    assert ends == [f"run: {folder_of(of).path}"] * 2
    assert len(lines(of)) == 9


@pytest.mark.slow
def test_wandb_offline_writes_into_the_run_folder(small, run_py, monkeypatch, capfd):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    secret = "5ec7e7" * 6 + "key0"
    for name in ("WANDB_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, secret)
    assert run_py(*small, "num_items=3", "method=none", "logger=wandb") == 0
    capfd.readouterr()
    of = settings(*small, "num_items=3", "method=none")
    assert list(folder_of(of).path.glob("wandb/offline-run-*/*.wandb"))
    assert not [p for p in folder_of(of).path.rglob("*") if p.is_file() and secret.encode() in p.read_bytes()]
    assert not (ROOT / "wandb").exists()


def test_progress_is_a_line_per_so_many_items_without_a_terminal(small, count, capsys):
    execute(settings(*small, "method=none", "progress_every=6"))
    said = [line for line in capsys.readouterr().err.splitlines() if "items" in line]
    assert len(said) == 2 and "6/9" in said[0] and "9/9" in said[1]


def test_settings_cannot_change_under_a_run(small):
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings(*small).seed = 3  # type: ignore[misc]
