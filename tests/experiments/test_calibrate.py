"""Calibration on the tiny model: gains, closed loop, plan files and the runs that use them."""

import dataclasses
import itertools
import json
import shlex

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)

import hicache.adapters
from experiments.artefacts.artefact import keys_of
from experiments.artefacts.learned_weights import path_of as weights_path
from experiments.artefacts.moments import moments_path
from experiments.artefacts.plans import load_plan, path_of, save_plan
from experiments.artefacts.stored_curves import curve_path
from experiments.backends import load_backend
from experiments.backends.base import sampling_of
from experiments.calibration.calibrate import calibrate, gaussian, main, make_plan, measure
from experiments.calibration.closed_loop import ClosedLoop, is_one_step, probe, psnr, refit
from experiments.calibration.options import Options
from experiments.calibration.search import draw_places, find_starts
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
from hicache.fitting.gaussian import ddim, dpmpp, flow

BETAS = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear", "timestep_spacing": "trailing"}
QUICK = Options(items=4, trials=0)


@pytest.fixture
def settings(small):
    return resolve(compose([*small, "method=calibrated"]))


def levels(scheduler, steps):
    """alpha^2 of the T + 1 noise levels of a run."""
    scheduler.set_timesteps(steps)
    return [*scheduler.alphas_cumprod.double()[scheduler.timesteps.long()].tolist(), 1.0]


@pytest.mark.parametrize("steps", [5, 20, 50])
def test_gains_are_those_of_the_schedulers(steps):
    solver = DDIMScheduler(**BETAS, clip_sample=False)
    found = ddim(levels(solver, steps))
    agree(probe(solver), found)
    solver = FlowMatchEulerDiscreteScheduler(shift=3.0)
    solver.set_timesteps(steps)
    agree(probe(solver), flow(solver.sigmas.double().tolist()))
    solver = DPMSolverMultistepScheduler(**BETAS, solver_order=2, algorithm_type="dpmsolver++")
    found = dpmpp(levels(solver, steps))
    agree(probe(solver), found)


def agree(measured, formula):
    assert torch.allclose(measured.sample, formula.sample, rtol=2e-3, atol=2e-5)
    assert torch.allclose(measured.prediction, formula.prediction, rtol=2e-3, atol=2e-5)
    assert torch.equal(formula.cost, formula.prediction.abs())


@pytest.mark.parametrize(
    ("scheduler", "expected"),
    [
        (DDIMScheduler(**BETAS, clip_sample=False), True),
        (FlowMatchEulerDiscreteScheduler(shift=3.0), True),
        (DPMSolverMultistepScheduler(**BETAS, solver_order=1), True),
        (DPMSolverMultistepScheduler(**BETAS, solver_order=2), False),
        (UniPCMultistepScheduler(**BETAS), False),
        (DDIMScheduler(**BETAS, clip_sample=True), False),
    ],
)
def test_one_step_samplers_are_told_from_others(scheduler, expected):
    scheduler.set_timesteps(20)
    before = dict(vars(scheduler))
    assert is_one_step(scheduler) == expected
    assert vars(scheduler) == before


@pytest.mark.parametrize("solver", ["unipc", "dpmpp"])
def test_the_closed_loop_is_refused_where_a_step_has_a_memory(small, tmp_path, capsys, solver):
    path, words = tmp_path / "plan.json", [*small, f"backend.solver={solver}", "budget=3", "items=2"]
    for refine in ("loop", "search"):
        with pytest.raises(ConfigError, match=f"refine: must be none .*{solver}.*, got '{refine}'") as error:
            main([*words, f"output={path}", f"refine={refine}"])
        assert "\n" not in str(error.value) and capsys.readouterr().out == "" and not path.exists()
    main([*words, f"output={path}"])
    assert capsys.readouterr().out.startswith("refine=none: ")
    made = json.loads(path.read_text())
    assert made["made"]["refine"] == "none" and "closed_loop_psnr" not in made["plan"]


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


def test_the_closed_loop_sees_what_a_run_does(settings):
    backend = load_backend(settings.backend)
    found = measure(settings, QUICK, backend)
    loop = found.loop
    full = [0, 2, 5]
    rows, errors = loop.refine(full, memory=2)
    plan = dataclasses.replace(build_plan(found.gram, found.gains.cost, "output", full_steps=full), rows=rows)
    backend.prepare(sampling_of(settings))
    with hicache.cached(backend.pipe, hicache.method("calibrated", **plan.knobs())):
        images = torch.stack(backend.generate(loop.items, loop.sampling))
    final = loop.run(
        full, lambda s, x, a, v: sum(w[0] * v[a.index(t)] for t, w in zip(rows[s].anchors, rows[s].weights))
    )
    assert torch.allclose(images, (final / 2 + 0.5).clamp(0, 1), atol=1e-4)
    assert torch.allclose((final - loop.path[:, -1]).square().flatten(1).mean(1), errors, rtol=1e-2, atol=1e-8)
    open_loop = build_plan(found.gram, found.gains.cost, "output", full_steps=full).rows
    followed = loop.run(
        full, lambda s, x, a, v: sum(w[0] * v[a.index(t)] for t, w in zip(open_loop[s].anchors, open_loop[s].weights))
    )
    assert errors.mean() <= (followed - loop.path[:, -1]).square().mean() * 1.05


def test_the_path_is_the_uncached_run(settings):
    backend = load_backend(settings.backend)
    loop = measure(settings, QUICK, backend).loop
    backend.prepare(sampling_of(settings))
    images = torch.stack(backend.generate(loop.items, loop.sampling))
    assert torch.allclose(images, (loop.path[:, -1] / 2 + 0.5).clamp(0, 1), atol=1e-5)
    everything = loop.run(list(range(8)), lambda *args: pytest.fail("nothing is to be estimated"))
    assert torch.allclose(everything, loop.path[:, -1], atol=1e-5)


@pytest.mark.parametrize("scope", ["stack", "modules"])
def test_values_along_the_plan_are_those_of_the_model(settings, scope):
    inner = dataclasses.replace(settings, scope=scope)
    backend = load_backend(inner.backend)
    found = measure(inner, QUICK, backend)
    assert found.gram.shape == ((1 if scope == "stack" else 4), 8, 8)
    whole = build_plan(found.gram, found.gains.cost, scope, full_steps=list(range(8)))
    assert torch.allclose(refit(backend, inner, found.items, whole), found.gram, rtol=1e-6)
    plan = build_plan(found.gram, found.gains.cost, scope, full_steps=[0])
    drifted = refit(backend, inner, found.items, plan)
    assert drifted.shape == found.gram.shape
    assert torch.allclose(drifted[:, :2, :2], found.gram[:, :2, :2], rtol=1e-6)  # step 1 is the first estimated one
    assert not torch.allclose(drifted, found.gram, rtol=1e-5)


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


def test_the_gaussian_model_needs_no_run(settings, monkeypatch):
    backend = load_backend(settings.backend)
    monkeypatch.setattr(backend, "generate", lambda *args: pytest.fail("no run is needed"))
    found = gaussian(settings, backend)
    plan = build_plan(found.gram, found.gains.cost, "output", budget=3)
    assert len(plan.full_steps) == 3 and plan.predicted_error < 1


def test_a_basis_in_another_time_makes_a_plan(small, tmp_path):
    path, plans = tmp_path / "plan.json", []
    for time in ("index", "log_snr"):
        formula = ["data=gaussian", "refine=none", "basis=newton", f"time={time}", "order=1"]
        main([*small, *formula, "budget=4", f"output={path}"])
        plans.append(load_plan(resolve(compose([*small, "method=calibrated", f"method.plan={path}"]))))
    assert plans[0].full_steps == plans[1].full_steps and plans[0].rows != plans[1].rows
    with pytest.raises(ConfigError, match="basis: must have weights from times alone"):
        main([*small, "data=gaussian", "refine=none", "basis=dmd", "budget=4", f"output={path}"])


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
    assert any("placed" in one.setting for one in contenders(settings, 8))
    assert intervals_for(50, 49, 2) == []


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("budget=99", "budget: must be from 1 to 8, got 99"),
        ("budget=x", "budget: must be integers"),
        ("refine=serch", "refine: must be one of .*did you mean search"),
        ("items=no", "items: must be of type int, got 'no'"),
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


def test_the_search_never_loses(settings):
    loop = measure(settings, dataclasses.replace(QUICK, items=6), load_backend(settings.backend)).loop
    lines = []
    found = loop.search([0, 1, 2], 2, 100, lines.append)
    assert (
        len(found) == 3
        and found[0] == 0
        and loop.refine(found, 2)[1].log10().mean() <= loop.refine([0, 1, 2], 2)[1].log10().mean()
    )
    assert (found == [0, 1, 2]) == (not lines)


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


def test_the_search_runs_what_differs_and_no_more(settings):
    """Scores are those of whole runs; calls of the model are counted, and so are candidates."""
    backend, calls, scored = load_backend(settings.backend), [], []
    loop = measure(settings, dataclasses.replace(QUICK, items=4), backend).loop
    whole, screened = ClosedLoop.refine, []

    def watch(self, full_steps, memory, train=None, known=None):
        before = len(calls)
        found = whole(self, full_steps, memory, train, known)
        (scored if self is loop else screened).append((tuple(full_steps), len(calls) - before, found[1]))
        return found

    first = backend.transformer.transformer_blocks[0]
    hook = first.register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ClosedLoop, "refine", watch)
        for trials in (0, 5, 100):
            scored.clear()
            screened.clear()
            found = loop.search([0, 3, 5, 6], 2, trials, lambda line: None)
            assert len(scored) == trials or trials == 100 > len(scored) > 5
            assert len(screened) <= trials + 4 and bool(screened) == bool(trials)
    hook.remove()
    assert len({full for full, _, _ in scored}) == len(scored), "no candidate is scored twice"
    assert sum(ran for _, ran, _ in scored) < 0.8 * 4 * len(scored)
    for full, ran, errors in scored:
        assert ran >= sum(a != b for a, b in zip(full, found, strict=True)) or ran == 4
        assert torch.equal(errors, whole(loop, full, 2)[1])


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


def test_a_search_begins_at_the_best_of_many():
    asked, plain = [], [(0, 7, 14), (0, 2, 19)]

    def score(places):
        asked.append(places)
        return -abs(places[1] - 4) - abs(places[2] - 12)

    found = find_starts(score, plain, 20, 40)
    assert found[0] == plain[0] and len(found) in (10, 11) and len(set(asked)) == len(asked) > 40
    assert set(plain) <= set(asked) and score(found[1]) == max(map(score, asked[:]))
    assert find_starts(score, plain, 20, 3) == plain[:1]


def test_starts_are_drawn_the_same_every_time():
    for budget, steps in ((2, 8), (8, 50), (20, 50), (50, 50), (1, 5)):
        drawn = draw_places(30, budget, steps)
        assert drawn == draw_places(30, budget, steps) and len(set(drawn)) == len(drawn) <= 30
        for places in drawn:
            assert places[0] == 0 and len(places) == budget and list(places) == sorted({*places})
            assert steps - 4 <= places[-1] < steps or budget == 1
    assert len(draw_places(30, 8, 50)) == 30 and draw_places(30, 50, 50) in ([], [tuple(range(50))])


def test_a_plan_of_a_search_cut_by_time_still_loads(settings, tmp_path):
    plan = build_plan(torch.eye(8, dtype=torch.float64), torch.ones(8), "output", full_steps=[0, 3])
    path = tmp_path / "old.json"
    save_plan(path, plan, keys_of(settings) | {"num_steps": 8}, {"refine": "search", "seconds": 60.0})
    named = dataclasses.replace(settings.method, plan=str(path), budget=2)
    assert load_plan(dataclasses.replace(settings, num_steps=8, method=named)) == plan


@pytest.mark.parametrize(
    ("items", "trials", "expected"), [(1, 100, 20), (3, 100, 60), (4, 100, 80), (64, 800, 640), (1, 5, 5)]
)
def test_few_items_judge_few_candidates(settings, monkeypatch, items, trials, expected):
    given = []
    monkeypatch.setattr(ClosedLoop, "search", lambda self, full, memory, trials, report: given.append(trials) or full)
    options = Options(items=items, trials=trials)
    assert options.candidates == expected
    if items <= 4:
        backend = load_backend(settings.backend)
        make_plan(settings, options, measure(settings, options, backend), 3, backend)
        assert given == [expected]
