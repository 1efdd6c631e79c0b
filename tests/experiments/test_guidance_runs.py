"""guidance=adaptive from the command line: identity, records, FLOPs branch by branch, and what is refused."""

import json

import pytest

import hicache
from experiments.backends import BACKENDS, backend_class, load_backend
from experiments.config.compose import compose, options
from experiments.config.run import Settings
from experiments.errors import ConfigError
from experiments.plans.freeze import freeze_settings, restore_settings
from experiments.runs import runner
from experiments.runs.runner import execute, folder_of
from experiments.settings.cost import count_flops
from experiments.settings.describe import describe_method
from experiments.settings.identity import canonical, run_id
from experiments.settings.library_method import guidance_of
from experiments.settings.resolve import resolve

SOON = ["guidance=adaptive", "guidance.threshold=-1"]


def settings(*overrides: str) -> Settings:
    made = resolve(compose(list(overrides)))
    runner.check(made)
    return made


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Without pictures and timing, which take most of a tiny run."""
    monkeypatch.setattr(runner, "draw_comparison", lambda *args: None)
    monkeypatch.setattr(runner, "timing", lambda *args: {"latency": {}, "reference_latency": {}, "wall_speedup": 1.0})


def test_options_reach_the_library_and_the_identity():
    plain, made = settings(), settings("guidance=adaptive", "guidance.order=null", "guidance.last=false")
    assert options("guidance") == ["adaptive", "plain"] and guidance_of(plain) is None
    assert guidance_of(made) == hicache.AdaptiveGuidance(order=None, last=False)
    assert guidance_of(settings("guidance=adaptive")) == hicache.AdaptiveGuidance()
    assert "guidance" not in canonical(plain)
    assert canonical(made)["guidance"] == {"name": "adaptive", "order": None, "last": False}
    assert len({run_id(settings(*s)) for s in ([], ["guidance=adaptive"], SOON)}) == 3
    assert run_id(made.reference()) == run_id(settings("method=none")) == run_id(plain.reference())
    assert not settings("method=none", "guidance=adaptive").plain and made.reference().plain
    assert describe_method(made) == f"{describe_method(plain)}, adaptive guidance (γ=0.94)"


def test_a_plan_on_disk_keeps_it(tmp_path):
    made = settings(*SOON)
    frozen = json.loads(json.dumps(freeze_settings(made)))
    assert restore_settings(frozen, tmp_path).guidance == made.guidance
    frozen.pop("guidance")  # written before there was a choice
    assert restore_settings(frozen, tmp_path).guidance.name == "plain"


WRONG = {
    "guidance=adaptve": "guidance: must be one of adaptive, plain, got 'adaptve' .did you mean adaptive",
    "guidance=adaptive guidance.threshold=nan": "guidance.threshold: must be a finite number, got nan",
    "guidance=adaptive guidance.warmup_steps=0": "guidance.warmup_steps: must be an integer >= 1, got 0",
    "guidance=adaptive guidance.order=7": "guidance.order: must be null or an integer from 0 to 6, got 7",
    "guidance=plain guidance.order=1": "guidance.order: must be a known key",
    "guidance=adaptive backend.guidance=1": "guidance: must be plain with backend.guidance=1, which is no guidance",
    "guidance=adaptive backend=qwen_image backend.size=tiny backend.true_cfg=1": "plain with backend.true_cfg=1, ",
}


@pytest.mark.parametrize("line", WRONG)
def test_wrong_settings_are_one_line(line):
    with pytest.raises(ConfigError, match=WRONG[line]) as error:
        settings(*line.split())
    assert "\n" not in str(error.value)


@pytest.mark.matrix
@pytest.mark.parametrize("backend", BACKENDS)
def test_only_backends_with_two_predictions_accept_it(backend, monkeypatch):
    """Said before a model is loaded; a missing file of weights is another matter."""
    monkeypatch.setattr(runner, "load_backend", lambda config: pytest.fail("a model was loaded"))
    monkeypatch.setattr(backend_class(backend), "check", lambda config: None)
    words = [f"backend={backend}", "method=hicache", "guidance=adaptive"]
    words += ["backend.size=tiny"] if backend not in ("digits", "emoji", "inf_dit_small") else []
    if backend in ("digits", "dit", "qwen_image", "qwen_image_edit"):
        assert settings(*words).guidance.name == "adaptive"
    else:
        expected = f"guidance: must be plain for backend {backend}, which has no separable guidance, got 'adaptive'"
        with pytest.raises(ConfigError) as error:
            settings(*words)
        assert str(error.value) == expected


def test_records_and_flops_without_a_cache(small):
    """Two halves of a batch cost what the batch does, and a skipped step saves one of them."""
    of = settings(*small, *SOON, "method=none", "metrics.names=[psnr]")
    outcome = execute(of)
    metrics = outcome.metrics
    skipped = [2, 3, 4, 5, 6]
    assert {tuple(r["skipped_steps"]) for r in folder_of(of).records().values()} == {tuple(skipped)}
    assert {tuple(r["uncond_full_steps"]) for r in folder_of(of).records().values()} == {(0, 1, 7)}
    assert metrics["skipped_steps"] == skipped and metrics["num_skipped_steps"] == 5
    assert metrics["full_steps"] == list(range(8))
    assert outcome.reference is not None and metrics["psnr"]["mean"] > 0
    assert metrics["flops"]["reference"] == outcome.reference.metrics["flops"]["total"]
    assert metrics["flops_speedup"] == pytest.approx(16 / 11)
    assert "skipped_steps" not in outcome.reference.metrics
    record = next(iter(folder_of(of.reference()).records().values()))
    assert "skipped_steps" not in record and "uncond_full_steps" not in record


@pytest.mark.matrix
@pytest.mark.parametrize("name", ["hicache", "dmd", "teacache", "toca"])
def test_flops_with_a_cache_are_those_of_the_executed_steps(small, name):
    of = settings(*small, *SOON, f"method={name}", "num_items=3")
    metrics = execute(of).metrics
    record = next(iter(folder_of(of).records().values()))
    backend = load_backend(of.backend)
    assert record["skipped_steps"] == [2, 3, 4, 5, 6] and record["uncond_full_steps"][-1] == 7
    cond = count_flops(backend, of, record["full_steps"], 1)
    own = count_flops(backend, of, [0, 1], 1)
    assert 2 * cond.full == pytest.approx(count_flops(backend, of, record["full_steps"]).full)
    unconditional = len(record["uncond_full_steps"]) * cond.full
    if len(record["uncond_full_steps"]) == 2:  # step 1 was estimated
        unconditional += own.estimated
    assert metrics["flops"]["total"] == pytest.approx(cond.total + unconditional)


def test_a_threshold_out_of_reach_costs_what_plain_guidance_costs(small):
    over = execute(settings(*small, "guidance=adaptive", "guidance.threshold=1.1", "num_items=3"))
    plain = execute(settings(*small, "num_items=3"))
    assert over.metrics["num_skipped_steps"] == 0
    assert over.metrics["flops"] | {"overhead": 0} == pytest.approx(plain.metrics["flops"] | {"overhead": 0})


@pytest.mark.parametrize("backend", ["dit", "qwen_image", "qwen_image_edit"])
def test_tiny_backends_run_it_twice_alike(backend, tmp_path):
    common = [f"backend={backend}", "backend.size=tiny", "num_steps=6", "interval=2", "warmup_steps=1", "num_items=1"]
    common += ["batch_size=1", "metrics.latency_batch=1"]
    of = settings(*common, *SOON, "metrics=none", f"results={tmp_path}", "method=hicache")
    loaded = load_backend(of.backend)
    batch = runner.items_of(of)
    (first, facts), (again, _) = (runner.generate_batch(loaded, of, batch) for _ in range(2))
    assert all(bool((a == b).all()) for a, b in zip(first, again, strict=True))
    assert facts["skipped_steps"] == [2, 3, 4] and facts["uncond_full_steps"] == [0, 5]
    assert facts["full_steps"] == [0, 2, 4]
