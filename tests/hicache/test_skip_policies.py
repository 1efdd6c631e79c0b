"""TeaCache, MagCache, DBCache, First-Block Cache and Delta-DiT: published schedules, decisions, and what is run."""

import math

import pytest
import torch

import hicache
from hicache.policy import Clock, MagCache, Probe, Stages, TeaCache, Uniform
from hicache.policy.accumulate import POLYNOMIALS
from hicache.tree import Action
from tests.hicache.models import MODELS, build, denoise, inputs, method


def executed(policy, steps, change):
    """Full steps of a policy that sees the same change at every step but the first."""
    clock, full = Clock(num_steps=steps), []
    for clock.step in range(steps):
        clock.change = None if clock.step == 0 else change
        if policy.decide(clock) is Action.COMPUTE:
            full.append(clock.step)
    return full


@pytest.mark.parametrize(("threshold", "change"), [(0.25, 0.1), (0.6, 0.1), (1.0, 0.3), (0.05, 0.2)])
def test_teacache_with_a_constant_indicator_is_periodic(threshold, change):
    period = math.ceil(threshold / change)
    full = executed(TeaCache(threshold=threshold, polynomial="identity"), 50, change)
    assert full == sorted({*range(0, 50, period), 49})
    assert executed(TeaCache(threshold=0.0), 50, change) == list(range(50))


def test_teacache_polynomials_by_model():
    policy = TeaCache()
    for family in ("flux", "hunyuan_video"):
        policy.prepare(family)
        assert policy.coefficients == POLYNOMIALS[family]
    policy.prepare("dit")
    assert policy.coefficients == (1.0, 0.0)
    flux = TeaCache(threshold=1.0, polynomial="flux")
    value = 498.651651 * 0.1**4 - 283.781631 * 0.1**3 + 55.8554382 * 0.1**2 - 3.82021401 * 0.1 + 0.264230861
    assert executed(flux, 30, 0.1)[1] == math.ceil(1.0 / value)


def test_magcache_flat_curve_skips_k_then_computes():
    assert executed(MagCache(max_skips=3, retention=0.1), 20, None) == [0, 1, 5, 9, 13, 17]
    assert executed(MagCache(max_skips=0), 20, None) == list(range(20))
    by_error = executed(MagCache(threshold=0.24, max_skips=5, retention=0.1, curve="flux"), 28, None)
    assert by_error[:3] == [0, 1, 2]
    assert len(by_error) < 15


@pytest.mark.parametrize(("interval", "count"), [(3, 18), (6, 10), (8, 8)])
def test_uniform_counts_from_the_end(interval, count):
    full = Uniform(interval=interval).plan(50)
    assert len(full) == count
    assert full[-1] == 49


def test_dbcache_paper_rows_are_deterministic():
    """F4 and F1, B0, W4, MC10 with a threshold that never decides: 8 full steps."""
    policy = Probe(threshold=math.inf, warmup_steps=4, max_continuous=10)
    assert policy.plan(50) == [0, 1, 2, 3, 14, 25, 36, 47]
    assert executed(policy, 50, 0.5) == [0, 1, 2, 3, 14, 25, 36, 47]
    assert executed(Probe(threshold=math.inf, max_cached=5), 12, 0.1) == [0, *range(6, 12)]
    assert Probe(threshold=0.1).plan(50) is None


@pytest.mark.parametrize("name", MODELS)
def test_dbcache_runs_the_probe_and_reuses_the_span(name):
    """Estimated steps add the residual of the last computed one; checked against hooks on the blocks."""
    model = build(name)
    call, counts = inputs(model, name), []
    blocks = hicache.adapters.adapter_for(model).blocks()
    attention = [getattr(b, "attn", None) or b.attn1 for b in blocks]
    hooks = [a.register_forward_hook(lambda m, x, o, i=i: counts.append(i)) for i, a in enumerate(attention)]
    options = {"threshold": math.inf, "max_continuous": 3}
    with hicache.cached(model, method("dbcache", warmup_steps=2, policy_options=options, front=1, back=1)) as cache:
        cache.begin(10)
        denoise(model, call)
        cache.finish()
        full = cache.report.full_steps
    for hook in hooks:
        hook.remove()
    assert full == [0, 1, 5, 9]
    assert [counts.count(i) for i in range(len(blocks))] == [10, *[4] * (len(blocks) - 2), 10]


def test_the_probe_compares_with_the_last_computed_step():
    """The span is computed again exactly when the first block has moved by the threshold since then."""
    model = build("dit")
    call, moved = inputs(model, "dit"), []
    block = model.transformer_blocks[0]
    pre = block.register_forward_pre_hook(
        lambda m, a, k: moved.append(-(a[0] if a else k["hidden_states"])), with_kwargs=True
    )
    post = block.register_forward_hook(lambda m, a, o: moved.append(moved.pop() + o))
    with hicache.cached(model, method("fbcache", policy_options={"threshold": 0.1})) as cache:
        cache.begin(12)
        denoise(model, call, 12)
        full = cache.report.full_steps
    pre.remove()
    post.remove()
    expected, last = [], None
    for step, value in enumerate(moved):
        if last is None or (value - last).abs().mean() / last.abs().mean() >= 0.1:
            expected.append(step)
            last = value
    assert full == expected
    assert 1 < len(full) < 12


def test_teacache_reads_the_modulated_input():
    model = build("flux")
    call, seen = inputs(model, "flux"), []
    with hicache.cached(
        model, method("teacache", policy_options={"threshold": 0.2, "polynomial": "identity"})
    ) as cache:
        cache.begin(10)
        _, calls = denoise(model, call)
        full = cache.report.full_steps
    with torch.no_grad():
        for now in calls:
            temb = model.time_text_embed(now["timestep"] * 1000, now["guidance"] * 1000, now["pooled_projections"])
            seen.append(model.transformer_blocks[0].norm1(model.x_embedder(now["hidden_states"]), emb=temb)[0])
    total, expected = 0.0, [0]
    for step in range(1, 10):
        total += ((seen[step] - seen[step - 1]).abs().mean() / seen[step - 1].abs().mean()).item()
        if total >= 0.2 or step == 9:
            expected.append(step)
            total = 0.0
    assert full == expected


def test_delta_dit_replaces_the_back_then_the_front():
    assert len(Stages(interval=3).plan(50)) == 18
    model = build("qwen_image")
    call, counts = inputs(model, "qwen_image"), {}
    hooks = [
        b.attn.register_forward_hook(lambda m, a, o, i=i: counts.setdefault(i, []).append(len(counts.get(0, []))))
        for i, b in enumerate(model.transformer_blocks)
    ]
    with hicache.cached(model, method("delta_dit", interval=3)) as cache:
        cache.begin(9)
        denoise(model, call, 9)
        full = cache.report.full_steps
    for hook in hooks:
        hook.remove()
    assert full == [0, 2, 5, 8]
    back, front = 3, 2  # estimated steps 1, 3, 4 replace the back (step <= 4.5), 6 and 7 the front
    assert [len(counts[i]) for i in range(3)] == [9 - front, 9, 9 - back]
    assert len(full) + back + front == 9


def test_delta_dit_flops_of_dit_xl():
    """Table 4: 18 full and 32 half steps, 16.14 T."""
    from diffusers import DiTTransformer2DModel

    with torch.device("meta"):
        model = DiTTransformer2DModel(out_channels=8, num_embeds_ada_norm=1000)
    cost = hicache.cost.measure(model, hicache.method("delta_dit", interval=3), 50, batch=2)
    assert cost.full_steps == 18
    assert cost.total / 1e12 == pytest.approx(16.14, rel=2e-3)


@pytest.mark.parametrize(
    ("name", "basis", "scope"),
    [("hicache", "hermite", "span"), ("dmd", "dmd", "stack"), ("taylorseer", "taylor", "output")],
)
def test_any_forecaster_under_any_policy(name, basis, scope):
    """DBCache with Hermite, TeaCache with DMD, and the like."""
    model = build("flux")
    call = inputs(model, "flux")
    policy = {"span": "probe", "stack": "teacache", "output": "teacache"}[scope]
    options = {"threshold": 0.5} if policy == "probe" else {"threshold": 0.3, "polynomial": "identity"}
    with hicache.cached(model, method(name, scope, policy=policy, policy_options=options, gate=False)) as cache:
        cache.begin(12)
        outputs, _ = denoise(model, call, 12)
        assert 0 < len(cache.report.estimated_steps) < 12
    assert cache.executor.method.knobs.basis == basis
    assert all(torch.isfinite(o).all() for o in outputs)


@pytest.mark.parametrize(
    ("name", "knobs", "message"),
    [
        ("teacache", {"policy_options": {"threshold": -1}}, "threshold: must be a number >= 0, got -1"),
        ("teacache", {"policy_options": {"polynomial": "sd3"}}, "polynomial: must be one of auto, identity"),
        ("magcache", {"policy_options": {"curve": "x"}}, "curve: must be one of auto, flat, flux"),
        ("dbcache", {"policy_options": {"max_cached": -2}}, "max_cached: must be an integer >= -1, got -2"),
        ("delta_dit", {"policy_options": {"switch": 2}}, "switch: must be between 0 and 1, got 2"),
    ],
)
def test_bad_options(name, knobs, message):
    with pytest.raises(ValueError, match=message):
        method(name, **knobs)


def test_a_probe_needs_a_span_with_blocks_before_it():
    model = build("dit")
    with pytest.raises(ValueError, match="scope: must be span"):
        hicache.enable(model, method("hicache", "stack", policy="probe"))
    with pytest.raises(ValueError, match="front: must be >= 1"):
        hicache.enable(model, method("dbcache", front=0))
