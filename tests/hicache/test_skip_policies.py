"""TeaCache, MagCache, DBCache, First-Block Cache, SpeCa and Delta-DiT: published schedules, decisions, what is run."""

import math

import pytest
import torch

import hicache
from hicache.policy import Clock, MagCache, Probe, Stages, TeaCache, Uniform, Verify
from hicache.policy.accumulate import POLYNOMIALS
from hicache.tree import Action
from tests.hicache.models import MODELS, build, denoise, inputs, method


def executed(policy, steps, change):
    """Full steps of a policy that sees the same change at every step but the first, or one change after the other."""
    clock, full = Clock(num_steps=steps), []
    for clock.step in range(steps):
        clock.change = None if clock.step == 0 else change[clock.step - 1] if isinstance(change, list) else change
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


RESCALED = {  # P(0.05) and P(0.2), summed term by term in decimal arithmetic
    "identity": (0.05, 0.2),
    "flux": (0.18050262494375, 0.2619951806),
    "hunyuan_video": (0.0620383523875, 0.1337310712),
    "cogvideox_5b": (0.1061245882875, 0.4509555501),
    "cogvideox_2b": (0.072449328970625, 0.26505072998),
    "cogvideox1.5_5b": (0.06716072869375, 0.3906089863),
    "cogvideox1.5_5b_i2v": (0.0753229153375, 0.391683697),
    "cosmos": (0.24176266814375, 0.3462922256),
    "ltx": (0.05363308035625, 0.1926408565),
    "lumina2": (0.1631884090038125, 0.428361432416),
    "mochi": (0.0514246150025, -1.07614210081),
    "hidream_i1": (0.35909614875, -52.149667443),
    "wan2.1_1.3b": (0.07738134975, -0.122560584),
    "wan2.1_1.3b_retention": (0.141898375475, -28.0959507664),
    "wan2.1_14b": (-4.091814416078375, 0.125989456096),
    "wan2.1_14b_retention": (0.21894898125, -187.660840425),
}


def test_teacache_polynomials_are_the_published_ones():
    assert RESCALED.keys() == POLYNOMIALS.keys()
    for name, values in RESCALED.items():
        policy = TeaCache(polynomial=name)
        assert [policy.rescaled(0.05), policy.rescaled(0.2)] == pytest.approx(values, rel=1e-12, abs=0), name


@pytest.mark.parametrize("polynomial", ["identity", "mochi", "wan2.1_14b", (-1.0, 0.5), (-1.0,)])
@pytest.mark.parametrize("change", [0.0, 0.05, 0.2, 3.0])
def test_teacache_with_threshold_0_computes_every_step(polynomial, change):
    assert executed(TeaCache(threshold=0.0, polynomial=polynomial), 12, change) == list(range(12))


def test_teacache_takes_published_fits_as_they_are_and_others_not_below_0():
    """P(0.2) = -1.076 and P(0.05) = 0.0514: two of these reach the threshold, unless the first is subtracted."""
    changes = [0.2, *[0.05] * 10]
    assert executed(TeaCache(threshold=0.1, polynomial="mochi"), 12, changes) == [0, 11]
    own = TeaCache(threshold=0.1, polynomial=POLYNOMIALS["mochi"])
    assert executed(own, 12, changes) == [0, 3, 5, 7, 9, 11]
    own.prepare("flux")
    assert own.rescaled(0.2) == 0 and own.rescaled(0.05) == pytest.approx(0.0514246150025)


@pytest.mark.parametrize("polynomial", ["identity", "flux", "mochi", (2.0, 0.0), (-1.0, 0.0)])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_teacache_computes_where_the_change_is_no_number(polynomial, bad):
    policy = TeaCache(threshold=0.9, polynomial=polynomial)
    assert executed(policy, 8, [0.01, 0.01, bad, bad, 0.01, 0.01, 0.01]) == [0, 3, 4, 7]
    assert policy.total == 0


def test_default_thresholds():
    found = {name: hicache.method(name).policy.threshold for name in ("teacache", "dbcache", "fbcache")}
    assert found == {"teacache": 0.25, "dbcache": 0.08, "fbcache": 0.05}
    first_block = hicache.method("fbcache").policy
    assert executed(first_block, 5, [0.049, 0.05, 0.049, 0.051]) == [0, 2, 4]


"""Length, sum, and sum of the values times their places 1, 2, ..."""


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


@pytest.mark.parametrize(
    ("family", "step", "bound"),
    [
        ("flux", 2, 0.8 * 0.25**0.2),
        ("flux", 4, 0.4594793),  # 0.8 * 0.25^0.4
        ("flux", 5, 0.45),  # 0.4 is below the floor
        ("dit", 2, 0.8 * 0.25**0.3),
        ("dit", 3, 0.4594793),
        ("dit", 4, 0.45),
    ],
)
def test_speca_compares_an_error_with_the_threshold_of_the_next_step(family, step, bound):
    """base decay^(s/T), on DiT decay^((s+1)/T), with s the step that is to be decided."""
    policy = Verify(base=0.8, decay=0.25, floor=0.45, min_drafts=0, warmup_steps=1)
    policy.prepare(family, 4)
    for error, action in ((bound - 1e-5, Action.MIXED), (bound + 1e-5, Action.COMPUTE)):
        clock = Clock(num_steps=10, step=step, anchors=[0], error=error)
        assert policy.decide(clock) is action
    assert policy.decide(Clock(num_steps=10, step=step, anchors=[0])) is Action.MIXED


@pytest.mark.parametrize("family", ["flux", "dit", "qwen_image"])
def test_speca_as_published(family):
    policy = hicache.method("speca").policy
    policy.prepare(family, 4)
    published = (0.3, 0.05, 0.01, 3, "hidden") if family == "dit" else (7.0, 0.3, 0.1, 2, "modules")
    assert (policy.base, policy.decay, policy.floor, policy.min_drafts, policy.compare) == published
    assert policy.max_drafts == 8
    with pytest.raises(ValueError, match="compare: must be one of modules, hidden, got 'x'"):
        Verify(compare="x")


def test_speca_drafts_after_every_full_step():
    """Of the warm-up every second step is full; the first draft after a full step is never verified."""
    for warmup, plan in ((1, "FsVVVFsVVVFs"), (3, "FsFsVVVFsVVV"), (4, "FsFsVVVFsVVV"), (5, "FsFsFsVVVFsV")):
        policy = Verify(base=1.0, min_drafts=0, max_drafts=4, warmup_steps=warmup)
        policy.prepare("flux", 4)
        clock, found = Clock(num_steps=12), ""
        for clock.step in range(12):
            action = policy.decide(clock)
            found += {Action.COMPUTE: "F", Action.ESTIMATE: "s", Action.MIXED: "V"}[action]
            if action is Action.COMPUTE:
                clock.anchors.append(clock.step)
        assert found == plan, warmup


def test_speca_s_error_is_relative_to_the_true_value(monkeypatch):
    """With reuse as the draft, against the values that the verified modules returned, step by step."""
    model = build("dit")
    call, seen, errors, decide = inputs(model, "dit"), {"attn1": [], "ff": []}, [], Verify.decide
    for name, values in seen.items():
        module = getattr(model.transformer_blocks[-1], name)
        own = module.forward
        monkeypatch.setattr(module, "forward", lambda *a, own=own, v=values, **k: v.append(own(*a, **k)) or v[-1])
    monkeypatch.setattr(Verify, "decide", lambda self, clock: errors.append(clock.error) or decide(self, clock))
    options = {"base": 1e9, "floor": 1e9, "min_drafts": 1, "max_drafts": 4, "compare": "modules"}
    with hicache.cached(
        model, method("speca", basis="reuse", order=0, warmup_steps=1, policy_options=options)
    ) as cache:
        cache.begin(8)
        denoise(model, call, 8)
        assert cache.report.full_steps == [0, 5] and cache.report.mixed_steps == [2, 3, 4, 7]
    found = [(y, [e for e in errors if e is not None]) for y in seen.values()]
    for values, _ in found:
        assert len(values) == 6  # steps 0, 2, 3, 4, 5, 7
    for place, error in enumerate(found[0][1], 1):
        parts = [((y[place] - y[0]).abs() / (y[place].abs() + 1e-10)).mean() for y, _ in found]
        assert error == pytest.approx(float(sum(parts) / 2), rel=1e-4)
    assert len(found[0][1]) == 3


@pytest.mark.parametrize("name", ["dit", "flux", "qwen_image"])
@torch.no_grad()
def test_speca_compares_the_hidden_state_after_the_last_block(name, monkeypatch):
    """The block's output with reused modules, which goes on, against its own output on the same input."""
    model = build(name)
    adapter = hicache.adapters.adapter_for(model)
    block, given, after, errors, decide = adapter.blocks()[-1], [], [], [], Verify.decide
    monkeypatch.setattr(Verify, "decide", lambda self, clock: errors.append(clock.error) or decide(self, clock))
    hooks = [
        block.register_forward_pre_hook(lambda m, args, kwargs: given.append((args, kwargs)), with_kwargs=True),
        block.register_forward_hook(lambda m, args, result: after.append(adapter.unpack(result)[0].clone())),
    ]
    options = {"base": 1e9, "floor": 1e9, "min_drafts": 1, "max_drafts": 4, "compare": "hidden"}
    chosen = method("speca", basis="reuse", order=0, warmup_steps=1, policy_options=options)
    with hicache.cached(model, chosen) as cache:
        cache.begin(6)
        denoise(model, inputs(model, name), 6)
        assert cache.report.full_steps == [0, 5] and cache.report.mixed_steps[-3:] == [2, 3, 4]
    for hook in hooks:
        hook.remove()
    found = [error for error in errors if error is not None]
    assert len(found) == 3
    for error, (args, kwargs), drafted in zip(found, given[-4:-1], after[-4:-1], strict=True):
        true = adapter.unpack(block(*args, **kwargs))[0]
        assert error == pytest.approx(float(((true - drafted).abs() / (true.abs() + 1e-10)).mean()), rel=1e-4)


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


def test_limits_of_the_probe_plan_themselves():
    """Without a threshold the limits decide, from step 0 even where no warm-up is asked for."""
    probe = Probe(threshold=math.inf, warmup_steps=0, max_continuous=2, max_cached=5)
    assert probe.plan(11) == [0, 3, 6, 8, 9, 10]
    assert [probe.decide(Clock(step=s, change=0.0)) for s in range(1, 9)].count(Action.ESTIMATE) == 5


def test_magcache_begins_again_at_step_0():
    policy = MagCache(curve=(1.0,) * 20, threshold=9.0, max_skips=4, retention=0.0)
    twice = [executed(policy, 13, 0.0) for _ in range(2)]
    assert twice == [[0, 5, 10]] * 2


@pytest.mark.parametrize("name", ["teacache", "fbcache", "taylorseer"])
@torch.no_grad()
def test_a_call_of_another_form_starts_anew(name):
    """A smaller batch from the fifth step on: its first step is computed, and nothing of the larger one is used."""
    model, found = build("dit"), []
    large, small = inputs(model, "dit", batch=2), inputs(model, "dit", batch=1)
    with hicache.cached(model, method(name)) as handle:
        handle.begin(8)
        for step in range(8):
            found.append(len(model(**(large if step < 4 else small), return_dict=False)[0]))
            handle.step()
        branch = handle.executor.generation.branches[""]
    assert found == 4 * [2] + 4 * [1] and 4 in branch.clock.anchors
    assert branch.watched is None or len(branch.watched) == 1
