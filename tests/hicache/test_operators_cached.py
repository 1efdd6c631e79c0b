"""A cache above sparse operators: neither disturbs the other, and operators count what is executed."""

from dataclasses import replace

import pytest
import torch

import hicache
from experiments.backends.tiny import flux
from hicache import Chipmunk
from hicache.adapters import adapter_for
from hicache.cost.meter import Meter
from hicache.operators.install import sparse_modules
from tests.hicache.models import build, denoise
from tests.hicache.test_operators import SMALL, distance, grid_call

STEPS = 20
SCOPES = ("modules", "blocks", "stack", "final_hidden", "output")


def hermite(**knobs):
    return hicache.method("hicache", **{"interval": 5, "order": 2, "sigma": 0.5, "warmup_steps": 3, **knobs})


@pytest.fixture(scope="module")
def model():
    return build("flux")


@pytest.fixture(scope="module")
def call(model):
    return grid_call(model)


def run(model, call, method, operators=None, steps=STEPS):
    with hicache.cached(model, method, operators=operators) as handle:
        handle.begin(steps)
        outputs = denoise(model, call, steps)[0]
        handle.finish()
    return outputs, handle.report


@pytest.fixture(scope="module")
def alone(model, call):
    """Chipmunk without a cache."""
    return run(model, call, hicache.method("none"), SMALL)


def test_without_a_cache_the_operators_are_enabled_too(model, call, alone):
    plain = run(model, call, hicache.method("none"))
    assert distance(alone[0], plain[0]) > 1e-4
    assert plain[1].operators is None and alone[1].full_steps == list(range(STEPS))
    facts = alone[1].operators
    assert (facts["name"], facts["provider"], facts["executed"]) == ("chipmunk", "reference", STEPS)
    assert facts["attention"] == SMALL.keys(72) / 72 and 0.3 < facts["mlp"] < 0.5
    assert "chipmunk (reference): 16.7% of the keys, " in str(alone[1])


def test_operators_are_there_again_after_another_method(model, call, alone):
    with hicache.cached(model, hicache.method("none"), operators=SMALL) as handle:
        with hicache.cached(model, hicache.method("none")):
            pass
        handle.begin(STEPS)
        outputs = denoise(model, call, STEPS)[0]
        handle.finish()
    assert torch.equal(outputs[-1], alone[0][-1]) and handle.report.operators["executed"] == STEPS


@pytest.mark.matrix
@pytest.mark.parametrize("scope", SCOPES)
def test_interval_one_is_chipmunk_alone(model, call, alone, scope):
    found, report = run(model, call, hermite(interval=1, scope=scope), SMALL)
    assert all(torch.equal(a, b) for a, b in zip(found, alone[0]))
    assert report.full_steps == list(range(STEPS))


@pytest.mark.matrix
@pytest.mark.parametrize("scope", SCOPES)
def test_density_one_is_the_cache_alone(model, call, scope):
    without, plan = run(model, call, hermite(scope=scope))
    found, report = run(model, call, hermite(scope=scope), replace(SMALL, attention=1.0, mlp=1.0))
    assert distance(found, without) <= 1e-6
    assert report.full_steps == plan.full_steps == [0, 1, 2, 7, 12, 17]
    assert report.operators["executed"] == 6


@pytest.mark.matrix
@pytest.mark.parametrize("name", ["pab", "delta_dit", "fbcache", "speca", "dbcache"])
def test_density_one_under_methods_that_run_parts_of_a_step(model, call, name):
    """Modules count their own executions, so that a mask exists wherever it is wanted."""
    knobs = {"policy_options": {"threshold": 1.0}} if name in ("fbcache", "dbcache") else {}
    knobs |= {"front": 1, "back": 1} if name == "dbcache" else {}
    without, plan = run(model, call, hicache.method(name, **knobs))
    found, report = run(model, call, hicache.method(name, **knobs), replace(SMALL, attention=1.0, mlp=1.0))
    assert distance(found, without) <= 1e-5
    assert report.full_steps == plan.full_steps and len(plan.full_steps) < STEPS


def dense_steps(model, call, method):
    """Solver steps at which the last attention and the last MLP were dense."""
    with hicache.cached(model, method, operators=replace(SMALL, full_every=4)) as handle:
        handle.begin(STEPS)
        found, seen = {"attention": [], "mlp": []}, {}
        operators = handle.operators

        def look(module, args, result):
            for kind, states in (("attention", operators._attentions), ("mlp", operators._mlps)):
                state = states.get((3, "")) if states else None
                if state is None or state.executed == seen.get(kind):
                    continue
                seen[kind] = state.executed
                dense = getattr(operators.config, f"{kind}_dense")(state.executed)
                if dense:
                    found[kind].append(handle.executor.report.full_steps[-1])

        hook = model.register_forward_hook(look)
        denoise(model, call, STEPS)
        hook.remove()
    return found, handle.report.full_steps


@pytest.mark.parametrize(
    ("method", "attention", "mlp"),
    [
        (hermite(), [0, 1, 12], [0, 12]),  # executed 0, 1, 2, 7, 12, 17
        (hermite(policy="mask", mask=list(range(0, 20, 5))), [0, 5], [0]),  # Algorithm 1: 0, 5, 10, 15
        (hicache.method("none"), [0, 1, 4, 8, 12, 16], [0, 4, 8, 12, 16]),
    ],
)
def test_dense_steps_follow_the_executed_steps(model, call, method, attention, mlp):
    found, executed = dense_steps(model, call, method)
    assert found == {"attention": attention, "mlp": mlp}
    assert replace(SMALL, full_every=4).schedule(executed) == found


def test_disable_restores_and_a_second_enable_replaces(model, call):
    plain = denoise(model, call, 4)[0]
    handle = hicache.enable(model, hermite(), operators=SMALL)
    again = hicache.enable(model, hermite(), operators=SMALL)
    denoise(model, call, 4)
    assert handle.operators is None and again.report.operators["executed"] > 0
    hicache.disable(model)
    assert all(torch.equal(a, b) for a, b in zip(denoise(model, call, 4)[0], plain))
    assert "forward" not in vars(model.transformer_blocks[1].attn)


@pytest.mark.parametrize("name", ["toca", "duca", "clusca", "hi_clusca"])
def test_patch_methods_are_refused_and_leave_nothing(model, name):
    with pytest.raises(
        ValueError, match=f"operators: must be none for method {name}, which recomputes rows of its own"
    ):
        hicache.enable(model, hicache.method(name), operators=SMALL)
    assert "forward" not in vars(model) and not any(module._forward_hooks for module in model.modules())
    with pytest.raises(ValueError, match="provider: chipmunk needs its package"):
        hicache.enable(model, hermite(), operators=Chipmunk(provider="chipmunk"))
    assert not any(module._forward_hooks for module in model.modules())


# -- the pipeline --------------------------------------------------------------------------------------------------

TINY = replace(SMALL, token_group=16, query_group=16, order=(8, 4))
ARGUMENTS = {
    "prompt": "a red cat", "height": 32, "width": 32, "max_sequence_length": 64, "output_type": "latent",
    "num_inference_steps": 12, "guidance_scale": 3.5, "return_dict": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def pipe():
    pipe = flux.build("tiny", True)
    pipe.set_progress_bar_config(disable=True)
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval().requires_grad_(False)
    return pipe


def latents(pipe, **more):
    return pipe(**ARGUMENTS, **more, generator=torch.Generator().manual_seed(0))[0]


def test_generations_of_a_pipeline_are_equal(pipe):
    plain = latents(pipe)
    with hicache.cached(pipe, hermite(), operators=TINY) as handle:
        first = latents(pipe)
        assert handle.report.full_steps == [0, 1, 2, 7] and handle.report.operators["executed"] == 4
        assert torch.equal(latents(pipe), first)
    assert not torch.equal(first, plain) and torch.equal(latents(pipe), plain)


def test_true_guidance_has_a_state_per_branch(pipe):
    """Two calls a step: at density 1 the result is the dense one, at any other each branch has masks of its own."""
    guided = {"true_cfg_scale": 3.0, "negative_prompt": "blue"}
    plain = latents(pipe, **guided)
    with hicache.cached(pipe, hicache.method("none"), operators=replace(TINY, attention=1.0, mlp=1.0)):
        assert distance([latents(pipe, **guided)], [plain]) < 1e-5
    with hicache.cached(pipe, hicache.method("none"), operators=TINY) as handle:
        found = latents(pipe, **guided)
        states = handle.operators._attentions
        assert {branch for _, branch in states} == {"cond", "uncond"} and handle.report.operators["executed"] == 12
        one, two = (next(s for (_, b), s in states.items() if b == name) for name in ("cond", "uncond"))
        assert not torch.equal(one.columns, two.columns)
    assert 0 < distance([found], [plain]) < 0.5


# -- what it costs -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def true_size():
    """FLUX.1 [dev] without weights."""
    from diffusers import FluxTransformer2DModel

    with torch.device("meta"):
        return FluxTransformer2DModel(guidance_embeds=True)


@pytest.mark.slow
def test_flops_of_the_release(true_size):
    """A sparse step is half of a full one, whatever of the MLP's range of densities is taken."""
    none, config = hicache.method("none"), Chipmunk()
    for share, part, pure, ratio in (
        (0.3, 0.494, 2034.8, 1.83),
        (0.335, 0.511, 2093.0, 1.78),
        (0.355, 0.521, 2126.3, 1.75),
    ):
        more, less = (
            hicache.cost.measure(true_size, none, steps, operators=config, mlp_share=share) for steps in (6, 5)
        )
        assert (more.total - less.total) / more.full == pytest.approx(part, abs=6e-4)
        run = hicache.cost.measure(true_size, none, 50, operators=config, mlp_share=share)
        assert run.total / 1e12 == pytest.approx(pure, abs=0.1) and round(run.speedup, 2) == ratio
    above = hicache.cost.measure(true_size, hermite(), 50, convention="published", operators=config, mlp_share=0.335)
    assert above.full_steps == 12
    assert above.total / 1e12 == pytest.approx(541.9, abs=0.1) and round(above.speedup, 2) == 6.86


def test_saved_flops_are_those_of_the_reference(model, call):
    """The formula against PyTorch's counter over what ran, module for module; gathering costs none."""
    from torch.utils.flop_counter import FlopCounterMode

    config = replace(SMALL, order=None, mlp=0.3, random=0.0)
    counts = {}
    for operators in (None, config):
        with hicache.cached(model, hicache.method("none"), operators=operators) as handle:
            denoise(model, call, 2)
            with torch.no_grad(), FlopCounterMode(display=False) as counter:
                model(**{**call, "timestep": torch.full((1,), 0.1)})
            counts[operators] = counter.get_total_flops()
            facts = handle.report.operators
    kind = {"height": 128, "width": 128, "text": 8}
    shares = {"operators": config, "mlp_share": facts["mlp"]}  # that of steps 1 and 2 together
    three, two = (hicache.cost.measure(model, hicache.method("none"), n, **shares, **kind) for n in (3, 2))
    assert counts[None] == three.full
    assert counts[config] == pytest.approx(three.total - two.total, rel=0.01)


@pytest.mark.parametrize("name", ["pab", "delta_dit", "hicache", "speca"])
def test_executions_are_those_that_happened(model, call, name):
    method = hicache.method(name, **({"interval": 4} if name == "hicache" else {}))
    with hicache.cached(model, method, operators=SMALL) as handle:
        handle.begin(STEPS)
        denoise(model, call, STEPS)
        states = {**{(n, "attn"): s for (n, _), s in handle.operators._attentions.items()},
                  **{(n, "mlp"): s for (n, _), s in handle.operators._mlps.items()}}  # fmt: skip
        full = handle.report.full_steps
    meter = Meter(model, method, 1, False, {"height": 128, "width": 128, "text": 8})
    meter.executor.begin(2)
    count = meter.executions(STEPS, full)
    for module in sparse_modules(adapter_for(model), SMALL):
        kind = "attn" if module.site.module == "attn" else "mlp"
        assert states[module.site.layer, kind].executed + 1 == count(module), module.site


@pytest.mark.slow
def test_what_stays_dense_is_a_third_of_a_step(true_size):
    """So the published 34 % would leave next to nothing of attention and MLPs (docs/operators.md)."""
    nothing = Chipmunk(attention=1e-9, key_multiple=1, mlp=1e-9, random=0.0, hidden_multiple=1, mask_every=100)
    six, five = (
        hicache.cost.measure(true_size, hicache.method("none"), steps, operators=nothing, mlp_share=0.0)
        for steps in (13, 12)
    )
    assert (six.total - five.total) / six.full == pytest.approx(0.31, abs=0.01)
