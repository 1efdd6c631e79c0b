"""Learned methods on the tiny model: training, resuming, artefacts and the runs that use them."""

import dataclasses
import json

import pytest
import torch

import hicache
from experiments import stopping
from experiments.artefacts.learned_weights import load_predictor, path_of, read
from experiments.backends import load_backend
from experiments.backends.base import sampling_of
from experiments.config.compose import compose
from experiments.errors import ConfigError
from experiments.learning.l2c_training import RouterTask, mixing
from experiments.learning.lesa_training import PredictorTask, intervals_of, rows_of
from experiments.learning.predictor_options import LesaOptions
from experiments.learning.train_predictor import main, record_trajectories
from experiments.learning.training_loop import Phase, train
from experiments.runs import runner
from experiments.runs.runner import execute, items_of
from experiments.settings.identity import run_id
from experiments.settings.library_method import method_of
from experiments.settings.resolve import resolve
from hicache.adapters import adapter_for
from hicache.forecast.lesa import Predictor

QUICK = ["items=4", "held_out=2", "every=2", "tokens=4", "rows=8", "intervals=2,3", "updates=2,4"]


@pytest.fixture
def fast(small, monkeypatch):
    """Overrides of small runs without pictures and timing."""
    monkeypatch.setattr(runner, "draw_comparison", lambda *args: None)
    monkeypatch.setattr(runner, "timing", lambda *args: {"latency": {}, "reference_latency": {}, "wall_speedup": 1.0})
    return small


def waves(rows, seed):
    """Trajectories `[T, rows, d]` of damped oscillations."""
    generator = torch.Generator().manual_seed(seed)
    phase = torch.rand(rows, 4, generator=generator) * 6
    steps = torch.arange(20)[:, None, None]
    return torch.exp(-steps / 30) * torch.sin(steps * torch.tensor([0.2, 0.3, 0.4, 0.5]) + phase)


@pytest.mark.matrix
@pytest.mark.parametrize("temporal", ["kan", "mlp"])
def test_training_learns_to_forecast(tmp_path, temporal):
    torch.manual_seed(0)
    predictor = Predictor(4, 20, memories=(3, 4), temporal=temporal)
    phases = [Phase(name="guided", updates=60, rate=0.02), Phase(name="closed", updates=150, rate=0.02)]
    task = PredictorTask(predictor, waves(64, 1), waves(32, 2), (3, 4), 3, 32, phases)
    curve = train(task, tmp_path, 0, 50)
    closed = [point.held_out for point in curve if point.phase == "closed"]
    guided = [point.held_out for point in curve if point.phase == "guided"]
    assert guided[-1] < 0.5 * guided[0] and closed[-1] < 0.85 * closed[0]
    held, taylor = waves(32, 3), []
    forecaster = hicache.forecaster("taylorseer", order=1, warmup_steps=3)
    for step in range(20):
        if step in hicache.full_steps(20, 4, 3):
            forecaster.observe(step, held[step])
        else:
            taylor.append((forecaster.predict(step) - held[step]).abs().mean())
    ours = float(task._error("closed", held, 4).detach())
    assert ours < float(torch.stack(taylor).mean()), (ours, taylor)
    header, *rows = (tmp_path / "losses.csv").read_text().splitlines()
    assert header == "phase,update,train,held_out" and len(rows) == len(curve)


def test_an_interrupted_training_continues_to_the_same_result(tmp_path, monkeypatch):
    def task():
        torch.manual_seed(0)
        phases = [Phase(name="guided", updates=5, rate=0.01), Phase(name="closed", updates=7, rate=0.01)]
        return PredictorTask(Predictor(4, 20, memories=(3,)), waves(16, 1), waves(8, 2), (3, 5), 3, 8, phases)

    whole = task()
    curve = train(whole, tmp_path / "whole", 0, 2)
    for stop_after in (0, 3, 6, 4):
        monkeypatch.setattr(stopping, "check", interrupt_after(stop_after))
        with pytest.raises(KeyboardInterrupt):
            train(task(), tmp_path / "parts", 0, 2)
    monkeypatch.undo()
    parts = task()
    assert train(parts, tmp_path / "parts", 0, 2) == curve
    for name, value in whole.module.state_dict().items():
        assert torch.equal(parts.module.state_dict()[name], value), name
    again = task()
    monkeypatch.setattr(again, "loss", lambda *args: pytest.fail("nothing is left to do"))
    assert train(again, tmp_path / "parts", 0, 2) == curve


def interrupt_after(updates):
    left = [updates]

    def check():
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1

    return check


def test_the_steps_trained_on_are_those_of_the_schedule():
    assert list(intervals_of(12, 4, 3)) == [([0, 1, 2], 5), ([0, 1, 2, 6], 9), ([0, 1, 2, 6, 10], 11)]
    values = torch.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    assert torch.equal(rows_of(values, -1)[1, 4:], values[1, 1])
    assert torch.equal(rows_of(values, -2)[2, :5], values[0, 2].T)


@pytest.mark.parametrize("scope", ["final_hidden", "stack", "output"])
def test_a_trained_predictor_runs(fast, tmp_path, scope, capsys):
    path, common = tmp_path / "lesa.safetensors", [*fast, "method=lesa", f"scope={scope}", "warmup_steps=2"]
    main([*common, *QUICK, f"output={path}"])
    assert "closed 4/4: loss" in capsys.readouterr().out
    settings = resolve(compose([*common, f"method.artefact={path}", "num_items=3"]))
    runner.check(settings)
    outcome = execute(settings)
    assert outcome.metrics["full_steps"] == hicache.full_steps(8, 3, 2)
    assert outcome.metrics["flops_speedup"] > 1.5
    predictor = load_predictor(settings)
    assert predictor.described["memories"] == [4, 6, 8] and predictor.scope == scope
    assert path.stat().st_size < 300_000


def test_the_recording_is_the_uncached_run_and_made_once(small, monkeypatch):
    settings = resolve(compose([*small, "method=lesa", "scope=output"]))
    options = LesaOptions(items=4, held_out=2, tokens=4)
    train_part, held_out = record_trajectories(settings, options)
    assert train_part.shape == (4, 8, 1, 1, 16, 16) and held_out.shape == (2, 8, 1, 1, 16, 16)
    monkeypatch.setattr(
        "experiments.calibration.trajectories.generate", lambda *args: pytest.fail("it is recorded already")
    )
    again, _ = record_trajectories(settings, options)
    assert torch.equal(again, train_part)


def test_an_artefact_is_refused_elsewhere(small, tmp_path):
    path = tmp_path / "lesa.safetensors"
    main([*small, "method=lesa", *QUICK, f"output={path}"])

    def used(*overrides):
        return method_of(resolve(compose([*small, "method=lesa", f"method.artefact={path}", *overrides])))

    assert used("interval=4").policy.plan(8) == [0, 1, 2, 3, 7]
    for override, key in (
        ("num_steps=9", "num_steps=8, got 9"),
        ("backend.guidance=4", "guidance=1.5, got 4"),
        ("backend.solver=unipc", "solver='ddim', got 'unipc'"),
        ("backend.revision=other", "revision='[0-9a-f]*', got 'other'"),
        ("scope=stack", "scope='final_hidden', got 'stack'"),
    ):
        with pytest.raises(ConfigError, match=f"method.artefact: lesa.safetensors is valid for {key}") as error:
            used(override)
        assert "\n" not in str(error.value)
    with pytest.raises(ConfigError, match="method.artefact: lesa.safetensors is for method 'lesa', got 'l2c'|scope="):
        method_of(resolve(compose([*small, "method=l2c", f"method.artefact={path}"])))
    path.write_text("{}")
    with pytest.raises(ConfigError, match="method.artefact: must be a trained file"):
        used()
    path.unlink()
    with pytest.raises(
        ConfigError, match=r"must be a trained file \(python -m experiments train predictor method=lesa"
    ):
        used()


def test_the_artefact_is_part_of_the_identity(small, tmp_path):
    path = tmp_path / "lesa.safetensors"
    settings = resolve(compose([*small, "method=lesa", f"method.artefact={path}"]))
    ids = []
    for seed in (1, 2):
        main([*small, "method=lesa", *QUICK, f"training_seed={seed}", f"output={path}"])
        ids.append(run_id(settings))
    assert ids[0] != ids[1]


@pytest.mark.parametrize("interval", [5, 7, 10])
def test_shipped_artefacts_serve_the_embedded_model(interval):
    settings = resolve(compose(["backend=digits", "method=lesa", f"interval={interval}"]))
    method = method_of(settings)
    assert method.scope == "final_hidden" and method.policy.plan(50) == hicache.full_steps(50, interval, 4)
    router = method_of(resolve(compose(["backend=digits", "method=l2c"])))
    assert router.policy.plan(50)[:2] == [0, 2] and len(router.policy.logits) == 25
    for name in ("lesa", "l2c"):
        path = path_of(resolve(compose([f"method={name}"])))
        assert path.stat().st_size < 300_000 and read(path)[1]["made"]["training_seed"] == 1000


# -- Learning-to-Cache ---------------------------------------------------------------------------------------------


def router_task(settings, penalty=1e-6):
    torch.manual_seed(0)
    phases = [Phase(name="router", updates=6, rate=0.3)]
    return RouterTask(load_backend(settings.backend), sampling_of(settings), penalty, 1, 20, 2, phases)


def test_mixing_is_the_routed_forward(small):
    """With beta 0 or 1 the mixed forward is what the executor does at a routed step."""
    settings = resolve(compose([*small, "method=none", "num_steps=2"]))
    backend, item = load_backend(settings.backend), items_of(settings)[:2]
    model, adapter = backend.transformer, adapter_for(backend.transformer)
    calls, cached, found = [], [], {}
    backend.prepare(sampling_of(settings))
    hook = model.register_forward_pre_hook(lambda m, a, k: calls.append((a, k)), with_kwargs=True)
    backend.generate(item, sampling_of(settings))
    hook.remove()
    rows, modules = len(calls[0][0][0]), len(adapter.gated())
    with torch.no_grad():
        with mixing(adapter, cached, None):
            model(*calls[0][0], **calls[0][1])
        betas = torch.tensor([0.0, 1.0, 1.0, 0.0])[:modules].expand(rows, -1)
        for name, beta in (("skip", betas * 0), ("all", betas * 0 + 1), ("some", betas)):
            with mixing(adapter, cached, beta):
                found[name] = model(*calls[1][0], **calls[1][1])[0]
        sites = [str(module.image_site) for module in adapter.gated()]
        routed = {"logits": [[-9.0, 9.0, 9.0, -9.0]], "sites": sites}
        for name, options in (("skip", {}), ("all", {"threshold": 0.0}), ("some", routed)):
            with hicache.cached(model, hicache.method("l2c", policy_options=options)) as handle:
                handle.begin(2)
                for args, kwargs in calls:
                    result = model(*args, **kwargs)[0]
            torch.testing.assert_close(result, found[name])
    assert not torch.allclose(found["skip"], found["some"]) and not torch.allclose(found["all"], found["some"])


def test_a_router_learns_what_may_be_skipped(small, tmp_path):
    settings = resolve(compose([*small, "method=l2c"]))
    task = router_task(settings)
    curve = train(task, tmp_path / "cheap", 0, 3)
    assert curve[-1].held_out < curve[0].held_out
    dear = router_task(settings, penalty=1.0)
    train(dear, tmp_path / "dear", 0, 3)
    assert (dear.module.logits < task.module.logits.detach() + 1e-6).float().mean() > 0.5
    assert task.module.logits.abs().max() <= 5
    task.module.logits.data.fill_(60.0)
    assert task.held_out("router") == pytest.approx(1e-6 * 4)  # nothing is skipped: the penalty is left


def test_a_trained_router_runs(fast, tmp_path):
    path = tmp_path / "l2c.safetensors"
    main([*fast, "method=l2c", "updates=3", "items=10", "held_out=1", f"output={path}"])
    runs = {}
    for threshold in (0.0, 0.5, 1.0):
        common = ["method=l2c", f"method.artefact={path}", f"method.threshold={threshold}", "num_items=3"]
        settings = resolve(compose([*fast, *common]))
        runner.check(settings)
        runs[threshold] = execute(settings).metrics
    assert runs[0.0]["full_steps"] == list(range(8)) and runs[0.0]["flops_speedup"] == 1
    assert runs[1.0]["full_steps"] == [0, 2, 4, 6]
    assert 1 < runs[0.5]["flops_speedup"] < runs[1.0]["flops_speedup"] <= 2


def test_a_router_needs_known_images(tmp_path):
    tiny = ["backend=flux", "backend.size=tiny", "backend.weights=random", "num_steps=4", "batch_size=1"]
    with pytest.raises(ConfigError, match="backend: must be digits, whose training images are known, got 'flux'"):
        main([*tiny, f"results={tmp_path}", "method=l2c"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["method=dmd"], "method: must be one of l2c, lesa, got 'dmd'"),
        ([], "method: must be one of l2c, lesa, got None"),
        (["method=lesa", "temporal=kna"], "temporal: must be one of kan, mlp.*did you mean kan"),
        (["method=lesa", "memories=4,x"], "memories: must be integers, as in 4,6,8, got '4,x'"),
        (["method=lesa", "items=no"], "items: must be of type int, got 'no'"),
        (["method=lesa", "updates=5"], "updates: must be 2 integers >= 0"),
        (
            ["method=lesa", "intervals=2", "cuts=9,3", "items=2", "held_out=1"],
            "cuts: must be 2 growing steps between 0 and 8",
        ),
        (
            ["method=lesa", "intervals=2", "scope=modules"],
            "scope: must be one of final_hidden, output, stack, got 'modules'",
        ),
        (["method=l2c", "penalty=-1"], "penalty: must be a number >= 0, got -1.0"),
    ],
)
def test_errors_name_the_key(small, arguments, message):
    with pytest.raises(ConfigError, match=message) as error:
        main([*small, *arguments])
    assert "\n" not in str(error.value)


def test_the_header_is_json_and_has_no_pickle(small, tmp_path):
    path = tmp_path / "lesa.safetensors"
    main([*small, "method=lesa", *QUICK, f"output={path}"])
    _, header = read(path)
    assert set(header) == {"keys", "described", "made"} and json.dumps(header)
    assert header["keys"]["backend"] == "digits" and header["made"]["updates"] == [2, 4]
    state = dataclasses.asdict(LesaOptions()).keys()
    assert state <= set(header["made"])
