"""Calibration on the tiny model: plan files, what is refused, and the runs that use them."""

import dataclasses
import itertools
import json
import shlex

import pytest
import torch

import hicache.adapters
from experiments.artefacts.artefact import keys_of
from experiments.artefacts.learned_weights import path_of as weights_path
from experiments.artefacts.moments import moments_path
from experiments.artefacts.plans import load_plan, path_of, save_plan
from experiments.artefacts.stored_curves import curve_path
from experiments.backends import load_backend
from experiments.calibration.calibrate import calibrate, main, make_plan, measure
from experiments.calibration.options import Options
from experiments.config.compose import compose
from experiments.errors import ConfigError
from experiments.runs import runner
from experiments.runs.runner import execute
from experiments.settings.describe import announcement
from experiments.settings.library_method import method_of
from experiments.settings.prepare import prepare
from experiments.settings.resolve import resolve
from experiments.settings.rows import missing
from experiments.studies.contest import contenders, intervals_for
from hicache.fitting.calibrated_plan import build_plan, place
from hicache.fitting.newton import psnr

QUICK = Options(items=4, trials=0)


@pytest.fixture
def settings(small):
    return resolve(compose([*small, "method=calibrated"]))


def test_what_a_plan_predicts_is_of_items_that_the_weights_were_not_found_on(small, settings, tmp_path):
    backend, path = load_backend(settings.backend), tmp_path / "plan.json"
    options = dataclasses.replace(QUICK, refine="loop", output=str(path))
    found = measure(settings, options, backend)
    plan = make_plan(settings, options, found, 3, backend)
    train = torch.tensor([True, False, True, False])
    rows, _ = found.loop.refine(list(plan.full_steps), 4, train)
    apart = found.loop.follow(list(plan.full_steps), rows)[~train]
    assert plan.closed_loop_psnr == pytest.approx(psnr(apart), abs=1e-3)
    assert psnr(torch.tensor([4e-3, 4e-5])) == pytest.approx(40.0)
    calibrate(settings, options, [3])
    run = resolve(compose([*small, "method=calibrated", f"method.plan={path}"]))
    assert load_plan(run).closed_loop_psnr == pytest.approx(plan.closed_loop_psnr)
    line = announcement(prepare(run)) or ""
    assert f"PSNR {plan.closed_loop_psnr:.1f} dB on held-out calibration items" in line and "stored" not in line
    calibrate(settings, dataclasses.replace(options, items=1), [3])
    assert load_plan(run).closed_loop_psnr is None
    assert "no closed-loop PSNR stored" in (announcement(prepare(run)) or "")


def test_the_cost_and_the_memory_of_the_places_can_be_chosen(settings):
    backend = load_backend(settings.backend)
    found = measure(settings, dataclasses.replace(QUICK, refine="none"), backend)
    costs = {"sampler": found.gains.cost, "uniform": torch.ones_like(found.gains.cost)}
    for name, cost in costs.items():
        for memory in (None, 1, 2, 3):
            options = Options(items=4, refine="none", cost=name, place_memory=memory)
            plan = make_plan(settings, options, found, 3, backend)
            expected = place(found.gram, cost, 3, memory or 2, options.penalty, found.size)
            assert list(plan.full_steps) == expected
            assert max(len(row.anchors) for row in plan.rows.values()) == min(4, len(expected))


@pytest.mark.parametrize("scope", ["output", "stack", "modules"])
def test_a_plan_file_is_made_and_run(small, tmp_path, monkeypatch, scope):
    monkeypatch.setattr(runner, "draw_comparison", lambda *args: None)
    monkeypatch.setattr(runner, "timing", lambda *args: {"latency": {}, "reference_latency": {}, "wall_speedup": 1.0})
    path = tmp_path / "plan.json"
    common = [*small, f"scope={scope}"]
    main([*common, "budget=3", "items=4", "trials=0", f"output={path}"])
    made = resolve(compose([*common, "method=calibrated", "method.budget=3", f"method.plan={path}", "num_items=3"]))
    runner.check(made)
    outcome = execute(made)
    assert outcome.metrics["full_steps"] == json.loads(path.read_text())["plan"]["full_steps"]
    assert outcome.metrics["num_full_steps"] == 3
    if scope == "output":
        assert outcome.metrics["flops_speedup"] == pytest.approx(8 / 3)


def test_a_plan_is_refused_elsewhere(settings, tmp_path, small):
    path = tmp_path / "plan.json"
    calibrate(settings, dataclasses.replace(QUICK, refine="none", output=str(path)), [3])

    def used(*overrides):
        return load_plan(resolve(compose([*small, "method=calibrated", f"method.plan={path}", *overrides])))

    assert used().full_steps[0] == 0
    for override, key in (
        ("num_steps=9", "num_steps=8, got 9"),
        ("backend.guidance=4", "guidance=1.5, got 4"),
        ("backend.solver=unipc", "solver='ddim', got 'unipc'"),
        ("scope=stack", "scope='output', got 'stack'"),
    ):
        with pytest.raises(ConfigError, match=f"method.plan: plan.json is valid for {key}") as error:
            used(override)
        assert "\n" not in str(error.value)
    for given, message in (
        ("method.budget=4", "method.budget: plan.json has 3 full steps, got 4"),
        ("method.speedup=2", "method.speedup: plan.json has 3 full steps, got 4"),
    ):
        with pytest.raises(ConfigError, match=message):
            used(given)
    assert used("method.budget=3").full_steps == used("method.speedup=2.7").full_steps
    path.write_text("{}")
    with pytest.raises(ConfigError, match="method.plan: must be a plan file"):
        used()


@pytest.mark.matrix
@pytest.mark.parametrize(
    ("method", "overrides"),
    [
        ("calibrated", []),
        ("calibrated", ["method.speedup=4", "scope=stack"]),
        ("calibrated", ["backend=flux", "backend.size=tiny", "backend.guidance=2.5", "backend.height=64"]),
        ("calibrated", ["backend=qwen_image", "backend.true_cfg=3.5", "scope=modules"]),
        ("calibrated", ["method.plan='a folder/plan.json'"]),
        ("smoothcache", []),
        ("hicache", ["scope=output"]),
        ("lesa", ["scope=stack"]),
        ("l2c", ["method.artefact=router.safetensors"]),
    ],
)
def test_the_command_of_a_refusal_makes_the_file_that_the_run_looks_for(tmp_path, method, overrides):
    named = any(o.startswith("backend=") for o in overrides)
    others = [] if named else ["backend.solver=unipc", "backend.guidance=4", f"backend.path={tmp_path / 'my weights'}"]
    common = [*others, *overrides, f"method={method}", "num_steps=40"]
    run = resolve(compose(common))
    with pytest.raises(ConfigError) as refused:
        compose_auto(common) if method == "hicache" else method_of(run)
    said = str(refused.value)
    if method != "hicache":
        assert command_in(said) == command_in(f"({missing(compose(common)).partition(': ')[2]})")
    words = shlex.split(command_in(said))
    verb = ["train", "predictor"] if method in ("lesa", "l2c") else ["calibrate"]
    assert words[: 3 + len(verb)] == ["python", "-m", "experiments", *verb]
    given = dict(word.split("=", 1) for word in words[3 + len(verb) :])
    own = {key: given.pop(key) for key in ("budget", "output") if key in given}
    named_method = [] if "method" in given else ["method=calibrated"]
    made = resolve(compose([*(f"{key}={value}" for key, value in given.items()), *named_method]))
    if method == "calibrated":
        config = dataclasses.replace(made.method, budget=int(own["budget"]), plan=own.get("output"))
        assert path_of(dataclasses.replace(made, method=config)) == path_of(run)
    elif method in ("lesa", "l2c"):
        config = dataclasses.replace(made.method, artefact=own.get("output"))
        assert weights_path(dataclasses.replace(made, method=config)) == weights_path(run)
    else:
        assert curve_path(made, method) == curve_path(run, method) and moments_path(made) == moments_path(run)
    assert keys_of(made) == keys_of(run) and made.backend == run.backend


def compose_auto(overrides):
    return resolve(compose([*overrides, "sigma=auto"]))


def command_in(said):
    return said[said.index("(python") + 1 : said.rindex(")")]


def test_no_command_is_named_where_there_is_none():
    for overrides in (["method=calibrated", "scope=blocks"], ["method=lesa", "scope=blocks"]):
        with pytest.raises(ConfigError, match="only scopes .*output.* can be") as refused:
            method_of(resolve(compose(overrides)))
        assert "python -m" not in str(refused.value) + missing(compose(overrides))
    with pytest.raises(ConfigError, match="only scopes output, stack, modules can be calibrated"):
        compose_auto(["scope=blocks"])


def test_the_plan_is_part_of_the_identity(settings, tmp_path):
    from experiments.settings.identity import run_id

    path = tmp_path / "plan.json"
    named = dataclasses.replace(settings, method=dataclasses.replace(settings.method, plan=str(path)))
    ids = []
    for budget in (3, 4):
        calibrate(settings, dataclasses.replace(QUICK, refine="none", output=str(path)), [budget])
        ids.append(run_id(named))
    assert ids[0] != ids[1]


def test_a_shipped_plan_serves_the_embedded_model():
    for scope in ("output", "stack", "modules"):
        settings = resolve(compose(["backend=digits", "method=calibrated", f"scope={scope}"]))
        method = method_of(settings)
        assert len(method.policy.plan(50)) == 8 and method.scope == scope
    assert path_of(resolve(compose(["method=calibrated", "method.speedup=6.2"]))).name.endswith("-b8.json")
    with pytest.raises(ConfigError, match=r"method.plan: must be a plan file \(python -m experiments calibrate"):
        method_of(resolve(compose(["method=calibrated", "method.budget=7"])))


def test_contenders_have_equal_full_steps():
    """Of every interval with the budget only those that end last; even and late steps for each forecaster; what is stored."""
    settings = resolve(compose(["method=calibrated"]))
    for budget, intervals in {6: {11, 12}, 8: {7, 8}, 10: {6}}.items():
        known = list(contenders(settings, budget))
        assert all(len(one.method.policy.plan(50)) == budget for one in known)
        assert {one.method.knobs.interval for one in known if "warm-up 2" in one.setting} == intervals
        assert intervals <= set(intervals_for(50, budget, 2))
        for title in {one.title for one in known}:
            words = [one.setting for one in known if one.title == title]
            assert sum("even" in word for word in words) == sum("late" in word for word in words) > 0
    placed = {
        (one.title, one.setting): one.method.policy.plan(50)
        for one in contenders(settings, 8)
        if "placed" in one.setting
    }
    assert placed["HiCache", "m=2, σ=0.7, placed for FoCa at output, modules"] == placed["FoCa", "placed, output"]
    assert ("FoCa", "placed for FoCa at output, output") not in placed
    assert intervals_for(50, 49, 2) == []


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("budget=99", "budget: must be from 1 to 8, got 99"),
        ("budget=x", "budget: must be integers"),
        ("refine=serch", "refine: must be one of .*did you mean search"),
        ("items=no", "items: must be of type int, got 'no'"),
        ("time=sigma", "time: must be left out without a basis, got 'sigma'"),
        ("method=dmd", "method: must be one of"),
        ("data=gaussian refine=loop", "refine: must be none for data=gaussian"),
        ("scope=stack refine=search", "refine: must be none, loop or newton at scope stack, got 'search'"),
        ("num_steps=2000", "num_steps: must be an integer from 1 to 1000"),
        ("refine=loop ridge=0", "ridge: must be a finite number > 0, got 0.0"),
        ("cost=sample", "cost: must be one of .*did you mean sampler"),
        ("place_memory=4", "place_memory: must be 1, 2 or 3 and no more than memory, got 4"),
        ("place_memory=3 memory=2", "place_memory: must be 1, 2 or 3 and no more than memory, got 3"),
        ("budget=3,4 output=plan.json", "output: must be left out for more than one budget"),
        (
            "method=smoothcache budget=4",
            "budget: must be left out for method=smoothcache, which does not read it, got '4'",
        ),
        ("method=teacache refine=none", "refine: must be left out for method=teacache"),
        ("method=hicache output=moments.safetensors", "output: must be left out for method=hicache"),
        ("basis=newton", "basis: must be null unless data=gaussian"),
        ("time=logsnr", "time: must be one of .*did you mean log_snr"),
        ("scope=blocks", "scope: must be one of output, stack, modules"),
    ],
)
def test_errors_name_the_key(small, argument, message):
    with pytest.raises(ConfigError, match=message):
        main([*small, *argument.split()])


@pytest.mark.parametrize("backend", ["flux", "hunyuan_video"])
def test_other_backends_are_measured(backend, tmp_path):
    tiny = [f"backend={backend}", "backend.size=tiny", "backend.weights=random", "num_steps=4", "batch_size=1"]
    settings = resolve(compose([*tiny, f"results={tmp_path}", "method=calibrated", "scope=modules"]))
    found = measure(settings, Options(items=1, refine="none"), load_backend(settings.backend))
    adapter = hicache.adapters.adapter_for(load_backend(settings.backend).transformer)
    assert found.gram.shape == (len(adapter.sites("modules")), 4, 4)
    assert bool((found.gram.diagonal(dim1=-2, dim2=-1) > 0).all()) and found.gains.cost.shape == (4,)


def test_the_same_calibration_gives_the_same_file(small, tmp_path, monkeypatch):
    """Byte for byte, whatever a clock says: what bounds the search is counted."""
    files = []
    for name, clocks in (("one", ()), ("two", ("monotonic", "perf_counter", "process_time", "time"))):
        for clock in clocks:
            jumps = itertools.count(0, 1e6)
            monkeypatch.setattr(f"time.{clock}", lambda jumps=jumps: float(next(jumps)))
        path = tmp_path / name
        main([*small, "num_steps=8", "budget=3", "items=4", "trials=6", f"output={path}"])
        files.append(path.read_bytes())
    assert files[0] == files[1] and json.loads(files[0])["made"]["trials"] == 6


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("full_steps=0+3+3", r"full_steps: must be integers that grow from 0, as in 0\+8\+19, got '0\+3\+3'"),
        ("full_steps=1+3", "full_steps: must be integers that grow from 0"),
        ("full_steps=0,3", "full_steps: must be integers that grow from 0"),
        ("full_steps=0+8", r"full_steps: must be below the 8 steps, got '0\+8'"),
        ("full_steps=0+3 refine=search", "refine: must not be search beside full_steps"),
        ("full_steps=0+3 trials=5", "trials: must be left out beside full_steps, which are not searched, got '5'"),
    ],
)
def test_full_steps_that_are_none_are_refused(small, tmp_path, words, message):
    with pytest.raises(ConfigError, match=message):
        main([*small, "items=2", f"output={tmp_path / 'plan.json'}", *words.split()])
    assert not (tmp_path / "plan.json").exists()


@pytest.mark.parametrize(("scope", "refine"), [("output", "loop"), ("output", "newton"), ("stack", "newton")])
def test_given_full_steps_stay(small, tmp_path, scope, refine):
    path, items = tmp_path / "plan.json", 8 if refine == "newton" else 1
    words = ["full_steps=0+2+5", f"items={items}", f"refine={refine}", f"scope={scope}", f"output={path}"]
    main([*small, "num_steps=8", *words])
    named = [*small, "num_steps=8", "method=calibrated", f"scope={scope}", f"method.plan={path}", "method.budget=3"]
    plan = load_plan(resolve(compose(named)))
    assert plan.full_steps == (0, 2, 5) and set(plan.rows) == {1, 3, 4, 6, 7}
    assert json.loads(path.read_text())["made"]["full_steps"] == "0+2+5"


def test_a_plan_of_a_search_cut_by_time_still_loads(settings, tmp_path):
    plan = build_plan(torch.eye(8, dtype=torch.float64), torch.ones(8), "output", full_steps=[0, 3])
    path = tmp_path / "old.json"
    save_plan(path, plan, keys_of(settings) | {"num_steps": 8}, {"refine": "search", "seconds": 60.0})
    named = dataclasses.replace(settings.method, plan=str(path), budget=2)
    assert load_plan(dataclasses.replace(settings, num_steps=8, method=named)) == plan
