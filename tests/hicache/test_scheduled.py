"""SmoothCache: the greedy schedule, and kinds of modules that follow schedules of their own."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import hicache
from hicache.adapters import adapter_for
from hicache.policy.learned import LayerMask
from hicache.policy.scheduled import KindSchedule, greedy, kind_of
from tests.hicache.models import build, denoise, inputs

CURVES = st.integers(2, 20).flatmap(
    lambda steps: st.lists(st.lists(st.floats(0, 1), min_size=3, max_size=3), min_size=steps, max_size=steps)
)


@given(errors=CURVES, alpha=st.floats(0, 1))
def test_a_schedule_keeps_its_ends_and_never_exceeds_alpha(errors, alpha):
    computed = greedy(errors, alpha)
    assert computed == sorted(set(computed))
    assert computed[0] == 0 and computed[-1] == len(errors) - 1
    for before, after in zip(computed, computed[1:], strict=False):
        k = after - before - 1
        assert k <= 3
        cut = after == len(errors) - 1 and errors[after][k] < alpha if k < 3 else False
        assert k == 0 or cut or errors[before + k][k - 1] < alpha


def test_a_skip_may_reach_the_last_step():
    """From step 1, only E[3][2] is small: steps 2 and 3 are to be skipped, but the last is computed all the same."""
    errors = [[9.0, 9.0], [9.0, 9.0], [9.0, 9.0], [9.0, 0.1]]
    assert greedy(errors, 0.2) == [0, 1, 3]


@given(errors=CURVES)
def test_alpha_0_never_skips(errors):
    assert greedy(errors, 0.0) == list(range(len(errors)))


@pytest.mark.parametrize(("alpha", "period"), [(0.05, 1), (0.15, 2), (0.25, 3), (0.35, 4), (9.0, 4)])
def test_constant_curves_give_a_periodic_schedule(alpha, period):
    computed = greedy([[0.1, 0.2, 0.3]] * 21, alpha)
    assert computed[:-1] == list(range(0, 20, period))
    assert computed[-1] == 20


def schedule_of(adapter, **steps):
    kinds = {kind_of(module.site) for module in adapter.modules()}
    fused = [module.site.layer for module in adapter.modules() if module.site.module == "fused"]
    table = {kind: steps.get(kind.partition(".")[0], list(range(8))) for kind in kinds}
    return {"table": table, "fused_from": min(fused, default=None)}


@pytest.mark.parametrize("name", ["dit", "flux", "hunyuan_video", "qwen_image"])
def test_a_table_of_all_steps_changes_nothing(name):
    model = build(name)
    call = inputs(model, name)
    plain, _ = denoise(model, call, 8)
    with hicache.cached(model, hicache.method("smoothcache", policy_options=schedule_of(adapter_for(model)))) as handle:
        handle.begin(8)
        cached, _ = denoise(model, call, 8)
    assert all(torch.equal(a, b) for a, b in zip(plain, cached, strict=True))
    assert handle.report.full_steps == list(range(8))


@pytest.mark.parametrize("name", ["dit", "flux", "hunyuan_video", "qwen_image"])
def test_every_kind_runs_at_the_steps_of_its_table(name):
    model = build(name)
    adapter = adapter_for(model)
    options = schedule_of(adapter, attn=[0, 3, 7], mlp=[0, 1, 3, 5, 7], fused=[0, 2, 3, 7])
    with hicache.cached(model, hicache.method("smoothcache", policy_options=options)) as handle:
        ran: dict = {}
        for module in adapter.modules():
            original = module.module.forward

            def forward(*args, original=original, site=module.site, **kwargs):
                step = handle.executor.generation.branches[""].clock.step
                ran.setdefault(site, []).append(step)
                return original(*args, **kwargs)

            module.module.forward = forward
        handle.begin(8)
        outputs, _ = denoise(model, inputs(model, name), 8)
    assert all(torch.isfinite(output).all() for output in outputs)
    assert handle.report.full_steps == [0, 3, 7]
    for module in adapter.modules():
        kind = "fused.joint" if module.feeds is not None else kind_of(module.site)
        assert ran[module.site] == list(options["table"][kind]), module.site


def test_a_reused_output_is_the_last_computed_one():
    model = build("dit")
    seen: list = []
    model.transformer_blocks[1].attn1.register_forward_hook(lambda m, a, output: seen.append(output.clone()))
    with hicache.cached(model, hicache.method("smoothcache", policy_options={"table": {"attn.img": [0, 2, 7]}})) as h:
        h.begin(8)
        denoise(model, inputs(model, "dit"), 8)
    for step, source in enumerate([0, 0, 2, 2, 2, 2, 2, 7]):
        assert torch.equal(seen[step], seen[source])
    assert not torch.equal(seen[0], seen[2]) and not torch.equal(seen[2], seen[7])


def test_a_table_of_single_modules():
    """SmoothCache's schedules per layer: a module that is named leaves its kind; each has a history of its own."""
    table = {"mlp.img": [0, 2, 4, 6], "1.mlp.img": [0, 3, 6], "2.attn.img": [0, 1, 5]}
    policy = KindSchedule(table=table)
    assert policy.grouping == "site" and KindSchedule(table={"mlp.img": [0]}).grouping == "kind"
    model, ran = build("dit"), {}
    with hicache.cached(model, hicache.method("smoothcache", policy_options={"table": table})) as handle:
        for module, name in (
            (getattr(block, part), f"{layer}.{kind}.img")
            for layer, block in enumerate(model.transformer_blocks)
            for part, kind in (("attn1", "attn"), ("ff", "mlp"))
        ):
            own = module.forward

            def forward(*args, own=own, name=name, **kwargs):
                ran.setdefault(name, []).append(len(ran.get("0.attn.img", [0])) - 1)
                return own(*args, **kwargs)

            module.forward = forward
        handle.begin(8)
        denoise(model, inputs(model, "dit"), 8)
    assert ran["0.mlp.img"] == ran["2.mlp.img"] == [0, 2, 4, 6] and ran["1.mlp.img"] == [0, 3, 6]
    assert ran["2.attn.img"] == [0, 1, 5] and len(ran["0.attn.img"]) == len(ran["1.attn.img"]) == 8


@pytest.mark.parametrize("steps", [[], [1, 2], [0, 2, 2]])
def test_errors_name_key_rule_and_value(steps):
    with pytest.raises(ValueError, match=r"table: attn.img must have growing steps that start with 0, got \["):
        KindSchedule(table={"attn.img": steps})


UNKNOWN = {
    "smoothcache": {"table": {"attn.img": [0, 2], "atn.img": [0, 2]}},
    "l2c": {"sites": ["0.attn.img", "9.attn.img"], "logits": [[-9.0, -9.0]]},
}


@pytest.mark.parametrize("adapted", [True, False])
@pytest.mark.parametrize("name", UNKNOWN)
def test_modules_that_a_model_lacks_are_refused(name, adapted):
    model, said = (
        (build("dit") if adapted else Own()),
        r"policy_options: \w+ has attn.img, mlp.img .*, got '(atn|9.attn)",
    )
    with pytest.raises(ValueError, match=said):
        hicache.enable(model, hicache.method(name, policy_options=UNKNOWN[name]))


def test_a_router_may_be_as_sure_as_it_likes():
    policy = LayerMask(sites=["a", "b"], logits=[[-2000.0, 2000.0]])
    assert (policy.keeps(0, "a"), policy.keeps(0, "b")) == (False, True)


class Own(nn.Module):
    """Nobody has declared anything of it."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([nn.TransformerEncoderLayer(8, 2, 8) for _ in range(2)])
        for block in self.blocks:
            block.attn, block.ff = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x, timestep):
        for block in self.blocks:
            x = block(x)
        return x


WRONG = [
    ("custom", {"policy": "stages", "scope": "stack"}, "scope: must be front_back for policy Stages"),
    ("delta_dit", {"scope": "span"}, "scope: must be front_back for policy Stages"),
    ("pab", {"scope": "stack"}, "scope: must be modules for policy Broadcast, got 'stack'"),
    ("speca", {"policy_options": {"compare": "hidden"}}, "compare: must be modules for Own, which has no adapter"),
]


@pytest.mark.parametrize(("name", "knobs", "said"), WRONG)
def test_what_a_policy_cannot_do_at_a_scope_is_refused(name, knobs, said):
    with pytest.raises(ValueError, match=said):
        hicache.enable(Own(), hicache.method(name, **knobs))
    if name != "speca":
        with pytest.raises(ValueError, match=said):
            hicache.enable(build("dit"), hicache.method(name, **knobs))
