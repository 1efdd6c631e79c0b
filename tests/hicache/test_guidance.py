"""Adaptive guidance on tiny real models: what is skipped, what replaces it, and what it leaves alone."""

from typing import Any

import pytest
import torch

import hicache
from hicache.forecast import Forecaster
from hicache.guidance import alignment
from tests.hicache.models import build, inputs, method

STEPS = 12
NEVER = hicache.AdaptiveGuidance(threshold=1.1)
ALWAYS = hicache.AdaptiveGuidance(threshold=-1.0)
METHODS = {
    "none": {},
    "hicache": {},
    "dmd": {"scope": "stack"},
    "teacache": {"policy_options": {"threshold": 0.2}},
    "dbcache": {"policy_options": {"threshold": 0.5}},
    "toca": {},
}


def composed(name):
    return method(name, **METHODS[name])


def pair(model):
    """Arguments of the two calls of a step on Qwen-Image: texts of different length."""
    return inputs(model, "qwen_image"), inputs(model, "qwen_image", text=4)


@torch.no_grad()
def two_calls(model, cache=None, steps=STEPS, scale=4.0):
    """The loop of `QwenImagePipeline`, with its rescaling to the conditional norm; every pair of predictions."""
    cond, uncond = pair(model)
    latents, made = cond["hidden_states"].clone(), []
    if cache is not None:
        cache.begin(steps)
    for step in range(steps):
        now = {"hidden_states": latents, "timestep": torch.tensor([1 - step / steps]), "return_dict": False}
        with model.cache_context("cond"):
            c = model(**{**cond, **now})[0]
        with model.cache_context("uncond"):
            u = model(**{**uncond, **now})[0]
        made.append((c, u))
        v = u + scale * (c - u)
        latents = 0.97 * latents - v * (c.norm(dim=-1, keepdim=True) / v.norm(dim=-1, keepdim=True)) / steps
    if cache is not None:
        cache.finish()
    return made


@torch.no_grad()
def doubled(model, cache=None, steps=STEPS, batch=2, scale=1.5):
    """The loop of `DiTPipeline`: one call with [cond; uncond]; the sample of every step."""
    call, made = inputs(model, "dit", batch=batch), []
    sample, labels = call["hidden_states"], torch.cat([call["class_labels"], torch.full((batch,), 10)])
    if cache is not None:
        cache.begin(steps)
    for step in range(steps):
        t = torch.full((2 * batch,), 999 - 80 * step)
        out = model(torch.cat([sample, sample]), timestep=t, class_labels=labels, return_dict=False)[0]
        c, u = out[:, :4].chunk(2)
        sample = 0.97 * sample - (u + scale * (c - u)) / steps
        made.append(sample)
    if cache is not None:
        cache.finish()
    return made


@pytest.fixture(scope="module")
def qwen():
    return build("qwen_image")


@pytest.fixture(scope="module")
def dit():
    return build("dit")


@pytest.mark.matrix
@pytest.mark.parametrize("name", METHODS)
def test_a_threshold_out_of_reach_changes_nothing(qwen, dit, name):
    """Bit-identical with two calls; a doubled batch is split, which moves the last digits."""
    chosen = composed(name)
    with hicache.cached(qwen, chosen) as plain:
        expected, planned = two_calls(qwen, plain), plain.report.branches
    with hicache.cached(qwen, chosen, NEVER) as cache:
        for c, u in zip(expected, two_calls(qwen, cache), strict=True):
            assert torch.equal(c[0], u[0]) and torch.equal(c[1], u[1])
        assert cache.report.branches == planned and cache.report.skipped_steps == []
    if (
        chosen.policy.indicator or chosen.policy.probe
    ):  # these decide for a batch as a whole, so for both halves at once
        return
    with hicache.cached(dit, chosen) as plain:
        expected = doubled(dit, plain)
    with hicache.cached(dit, chosen, NEVER) as cache:
        for sample, own in zip(expected, doubled(dit, cache), strict=True):
            torch.testing.assert_close(own, sample, rtol=0, atol=2e-5)
        assert list(cache.report.branches) == ["cond", "uncond"]


@pytest.mark.matrix
@pytest.mark.parametrize("name", METHODS)
def test_all_between_warm_up_and_last_step_is_skipped(qwen, dit, name):
    """The conditional branch goes its own way, the last unconditional step is computed, and a repetition agrees."""
    for model, loop in ((qwen, two_calls), (dit, doubled)):
        with hicache.cached(model, composed(name), ALWAYS) as cache:
            first = loop(model, cache)
            report = cache.report
            assert report.skipped_steps == list(range(2, STEPS - 1))
            full = report.branches["uncond"]
            assert full[0] == 0 and full[-1] == STEPS - 1 and not set(full) & set(report.skipped_steps)
            assert report.full_steps == report.branches["cond"]
            planned = cache.executor.method.policy.plan(STEPS)
            if planned is not None:
                assert report.full_steps == planned
                assert report.exempt_steps == sorted(set(planned) & set(report.skipped_steps))
            again = loop(model, cache)
            assert all(same(a, b) for a, b in zip(first, again, strict=True))
            assert report is not cache.report and cache.report.skipped_steps == report.skipped_steps
        assert not same(first[-1], loop(model)[-1])


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True)) if isinstance(a, tuple) else torch.equal(a, b)


def test_options(qwen):
    """More warm-up, no last step, and the paper's `u^ = c`."""
    rule = hicache.AdaptiveGuidance(threshold=-1, warmup_steps=5, order=None, last=False)
    with hicache.cached(qwen, hicache.method("none"), rule) as cache:
        made = two_calls(qwen, cache)
        assert cache.report.skipped_steps == list(range(5, STEPS)) == cache.report.exempt_steps
        assert cache.report.cache_bytes == 0
        assert "no unconditional prediction at [5, 6" in str(cache.report)
    assert [step for step, (c, u) in enumerate(made) if torch.equal(c, u)] == list(range(5, STEPS))


def test_the_report_counts_the_forecast_of_the_difference_once(qwen):
    rule = hicache.AdaptiveGuidance(threshold=2.0)
    with hicache.cached(qwen, hicache.method("hicache", interval=4, warmup_steps=2, scope="stack"), rule) as cache:
        two_calls(qwen, cache)
        assert cache.report.estimated_steps[-1] > cache.report.full_steps[-1]
        executor = cache.executor
        assert cache.report.cache_bytes == executor.generation.bytes + executor.gap.bytes


def test_the_least_similar_sample_decides(dit):
    """Skipping begins after the first step whose batch minimum reaches the threshold."""
    generator = torch.Generator().manual_seed(0)
    c, u = torch.randn(2, 3, 4, 4, generator=generator), torch.randn(2, 3, 4, 4, generator=generator)
    own = [float((a * b).sum() / (a.norm() * b.norm())) for a, b in zip(c, u, strict=True)]
    assert alignment(c, u) == pytest.approx(min(own), abs=1e-6)
    assert alignment(c.bfloat16(), c.bfloat16()) == pytest.approx(1.0, abs=1e-6)


def synthetic(qwen, difference):
    """A model whose two predictions differ by `difference(step)`."""
    base = torch.randn(1, 16, 16, generator=torch.Generator().manual_seed(3))
    short = pair(qwen)[1]["encoder_hidden_states"].shape[1]

    def forward(**call):
        step = round(STEPS * (1 - float(call["timestep"][0])))
        unconditional = call["encoder_hidden_states"].shape[1] == short
        return (base * (1 + step) - (difference(step) if unconditional else 0),)

    return base, forward


def test_newton_of_order_one_is_exact_where_the_difference_is_linear(qwen, monkeypatch):
    slope = torch.randn(1, 16, 16, generator=torch.Generator().manual_seed(4))
    base, forward = synthetic(qwen, lambda step: 2 + step * slope)
    monkeypatch.setitem(vars(qwen), "forward", forward)
    for order, exact in ((1, True), (0, False)):
        rule = hicache.AdaptiveGuidance(threshold=-1, order=order)
        with hicache.cached(qwen, hicache.method("none"), rule) as cache:
            made = two_calls(qwen, cache)
            assert cache.report.skipped_steps == list(range(2, STEPS - 1))
        errors = [float((c - u - 2 - step * slope).abs().max()) for step, (c, u) in enumerate(made)]
        assert (max(errors) < 1e-4) is exact
        assert errors[0] < 1e-5 and errors[-1] < 1e-4  # computed


def test_it_begins_where_the_predictions_agree(qwen, monkeypatch):
    """Orthogonal until step 5, parallel from step 6 on: one more pair is made, then only the conditional ones."""
    base, forward = synthetic(qwen, lambda step: 0.0 if step > 5 else 3.0 * base_of(step))

    def base_of(step):
        return base * (1 + step)  # u = -2 c: cosine -1

    monkeypatch.setitem(vars(qwen), "forward", forward)
    with hicache.cached(qwen, hicache.method("none"), hicache.AdaptiveGuidance()) as cache:
        two_calls(qwen, cache)
        assert cache.report.skipped_steps == list(range(7, STEPS - 1))
        assert cache.report.branches["uncond"] == [*range(7), STEPS - 1]


def test_only_computed_pairs_are_anchors(qwen, monkeypatch):
    """With a full step every fourth, the difference is taken at full steps, also where guidance warms up longer."""
    rule = hicache.AdaptiveGuidance(threshold=-1, warmup_steps=8)
    with hicache.cached(qwen, method(scope="modules"), rule) as cache:
        gap, seen = cache.executor.gap, []  # type: ignore[attr-defined]
        assert isinstance(gap, Forecaster)
        observe = gap.observe
        monkeypatch.setattr(gap, "observe", lambda step, value: seen.append(step) or observe(step, value))
        two_calls(qwen, cache)
        assert cache.report.skipped_steps == [8, 9, 10] and cache.report.exempt_steps == [9]
        assert seen == [0, 1, 5]  # the conditional prediction of the last step is an estimate
        assert cache.report.branches == {"cond": [0, 1, 5, 9], "uncond": [0, 1, 5, 11]}


def test_what_cannot_be_guided_is_refused(qwen, dit):
    for name in ("flux", "schnell", "hunyuan_video"):
        with pytest.raises(ValueError, match="guidance: must be plain for .*no separable guidance, got 'adaptive'"):
            hicache.enable(build(name), method(), ALWAYS)
    wrong: dict[str, Any] = {"threshold": float("nan"), "warmup_steps": 0, "order": 9}
    for key, value in wrong.items():
        with pytest.raises(ValueError, match=f"guidance.{key}: must be .*, got"):
            hicache.AdaptiveGuidance(**{key: value})
    cond, uncond = pair(qwen)
    with torch.no_grad(), hicache.cached(qwen, method(), ALWAYS) as cache:
        cache.begin(4)
        with pytest.raises(hicache.PlanError, match="must be 'cond' or 'uncond', got ''"):
            qwen(**cond)
        with cache.branch("uncond"), pytest.raises(hicache.PlanError, match="'cond' call of a step must come first"):
            qwen(**uncond)
        cache.begin(1)
        with cache.branch("cond"):
            qwen(**cond)
        with pytest.raises(hicache.PlanError, match="generation without an unconditional prediction"):
            cache.finish()
    with torch.no_grad(), hicache.cached(dit, method(), ALWAYS) as cache:
        for batch, rule in ((3, "3 rows"), (4, "two different halves")):
            with pytest.raises((ValueError, hicache.PlanError), match=f"must be plain for a batch.*got {rule}"):
                dit(**inputs(dit, "dit", batch=batch))


def test_the_last_step_must_be_known(dit):
    with torch.no_grad(), hicache.cached(dit, method(), ALWAYS):
        call = inputs(dit, "dit", batch=1)
        both = {key: torch.cat([value, value]) for key, value in call.items()}
        for t in (900, 800):
            dit(**{**both, "timestep": torch.full((2,), t)})
        with pytest.raises(hicache.PlanError, match="needs the number of steps; call begin"):
            dit(**{**both, "timestep": torch.full((2,), 700)})


def test_it_leaves_the_model_as_it_was(dit):
    before, plain = dict(vars(dit)), doubled(dit)
    with hicache.cached(dit, method(), ALWAYS) as cache:
        doubled(dit, cache)
    assert vars(dit) == before and torch.equal(doubled(dit)[-1], plain[-1])


def test_a_pipeline_is_guided_without_a_word(dit_pipeline):
    """diffusers' DiTPipeline announces its steps; a second generation starts afresh."""

    def generate():
        call = {"num_inference_steps": 8, "guidance_scale": 2.0, "output_type": "np"}
        return dit_pipeline(class_labels=[1, 7], generator=torch.Generator().manual_seed(0), **call).images

    with hicache.cached(dit_pipeline, hicache.method("none"), ALWAYS) as cache:
        first = generate()
        assert cache.report.num_steps == 8 and cache.report.skipped_steps == [2, 3, 4, 5, 6]
        assert (generate() == first).all() and cache.report.skipped_steps == [2, 3, 4, 5, 6]
    assert not (generate() == first).all()
