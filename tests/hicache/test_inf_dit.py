"""Caching on Inf-DiT's network: identity, scopes against forwards written out, rows of blocks, published counts."""

import pytest
import torch
import torch.nn.functional as F

import hicache
from experiments.backends.inf_dit.model import InfDiTTransformer2DModel
from hicache.adapters import adapter_for
from hicache.cost import measure
from hicache.tree import SCOPES
from tests.hicache.models import denoise, method

PUBLISHED = {1: (12400, 1.0), 2: (6639, 1.87), 3: (4516, 2.75), 4: (3606, 3.44),
             5: (3000, 4.13), 6: (2696, 4.6), 7: (2393, 5.18), 8: (2090, 5.93)}  # fmt: skip


def build(dtype=torch.float32, **options):
    sizes = {"num_layers": 3, "hidden_size": 32, "num_heads": 2, "block_size": 16, "vector_size": 6}
    torch.manual_seed(0)
    model = InfDiTTransformer2DModel(**sizes, **options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.15)
    return model.to(dtype)


def inputs(model, batch=1, height=48, width=32):
    generator = torch.Generator().manual_seed(1)
    call = adapter_for(model).example(batch, torch.device("cpu"), height=height, width=width)
    return {key: torch.randn(value.shape, generator=generator).to(value.dtype) for key, value in call.items()}


@pytest.mark.matrix
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_interval_one_is_the_model_itself(scope, dtype):
    model = build(dtype)
    call = inputs(model, batch=2)
    plain, _ = denoise(model, call, 4)
    for name, knobs in (("hicache", {"interval": 1}), ("none", {})):
        with hicache.cached(model, method(name, scope, **knobs)):
            assert all(torch.equal(a, b) for a, b in zip(denoise(model, call, 4)[0], plain))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(torch.equal(a, b) for a, b in zip(denoise(model, call, 4)[0], plain))


@torch.no_grad()
@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("basis", ["taylorseer", "hicache", "fora"])
def test_module_scope_against_an_independent_forward(basis, cached):
    """Values seen by plain hooks are forecast one by one and put together by hand."""
    model, chosen = build(cache_cross=cached), method(basis)
    call, seen, hooks = inputs(model, batch=2), {}, []
    for i, layer in enumerate(model.transformer_blocks):
        for name in ("attn", "cross", "mlp"):
            if getattr(layer, name) is not None:
                store = seen.setdefault((i, name), [])
                hook = lambda m, a, o, store=store: store.append(o.clone())
                hooks.append(getattr(layer, name).register_forward_hook(hook))
    with hicache.cached(model, chosen) as cache:
        outputs, calls = denoise(model, call, 8)
        full = cache.report.full_steps
    for hook in hooks:
        hook.remove()
    forecasts = {}
    for key, store in seen.items():
        forecaster = chosen.build_forecaster()
        anchors = [v for v in store[: len(full)]] if cached or key[1] != "cross" else []
        for step, value in zip(full, anchors):
            forecaster.observe(step, value)
        forecasts[key] = forecaster.predict(7) if anchors else None
    last = calls[7]
    hidden = model.embed(last["hidden_states"])
    for i, layer in enumerate(model.transformer_blocks):
        hidden = hidden + forecasts[i, "attn"]
        if i == 0:
            live = layer.cross(F.layer_norm(hidden, (32,), eps=1e-6), model.windows(last["low_resolution"]))
            hidden = hidden + (forecasts[0, "cross"] if cached else live)
        hidden = hidden + forecasts[i, "mlp"]
    condition = model.condition(last["timestep"], last["image_vector"])
    expected = model.pixels(model.head(hidden, condition), model.grid(48, 32))
    torch.testing.assert_close(outputs[7], expected, rtol=1e-4, atol=1e-4)


def test_without_gates_the_modules_are_the_stack():
    model = build(cache_cross=True)
    found = []
    for scope in ("modules", "stack", "blocks"):
        with hicache.cached(model, method("hicache", scope)):
            found.append(denoise(model, inputs(model))[0])
    for other in found[1:]:
        for a, b in zip(found[0], other):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scope", ["stack", "final_hidden", "output"])
def test_rows_of_blocks_give_what_all_blocks_give(scope):
    model = build()
    call, found = inputs(model), {}
    for rows in (None, 1, 2):
        model.block_rows = rows
        with hicache.cached(model, method("hicache", scope)) as cache:
            found[rows], _ = denoise(model, call)
            assert cache.report.full_steps == [0, 1, 5, 9]
    for rows in (1, 2):
        assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(found[rows], found[None]))


def test_scopes_inside_the_stack_need_all_rows_at_once():
    model = build()
    model.block_rows = 1
    with pytest.raises(ValueError, match="scope: must be stack, final_hidden or output with rows"):
        hicache.enable(model, method("hicache", "modules"))


def test_methods_that_patch_tokens_are_refused():
    with pytest.raises(ValueError, match="method: must not patch tokens of InfDiTTransformer2DModel, got 'toca'"):
        hicache.enable(build(), method("toca"))


def test_estimates_call_no_layer_but_the_live_cross_attention():
    model, counts = build(), {}
    for name, module in model.named_modules():
        module.register_forward_hook(lambda m, a, o, name=name: counts.update({name: counts.get(name, 0) + 1}))
    with hicache.cached(model, method("hicache")) as cache:
        denoise(model, inputs(model))
        full = len(cache.report.full_steps)
    assert counts["transformer_blocks.1.attn"] == counts["transformer_blocks.0.mlp"] == full == 4
    assert counts["transformer_blocks.0.cross"] == 10 + 1  # once in the proof of the first step


@pytest.mark.matrix
@pytest.mark.parametrize("interval", PUBLISHED)
def test_published_flops(interval):
    """Table 5: 40 calls, the first two full, FLOPs of one block of 64 pixels in a patch of 2 x 2."""
    with torch.device("meta"):
        model = InfDiTTransformer2DModel()
    knobs = {"interval": interval, "order": 2, "sigma": 0.5, "warmup_steps": 2, "scope": "modules"}
    cost = measure(model, hicache.method("hicache", **knobs), 40, convention="published")
    flops, speedup = PUBLISHED[interval]
    assert cost.total / 1e9 == pytest.approx(flops, rel=3e-3)
    assert cost.speedup == pytest.approx(speedup, rel=3e-3)
    plain = measure(model, hicache.method("none"), 40, convention="published")
    assert plain.total / 1e9 == pytest.approx(12400, rel=3e-3)


def test_executed_flops_of_the_released_sizes():
    """A block of 128 pixels that attends to four: 1763.4 G, as traced; an estimate computes no modulation of a layer."""
    with torch.device("meta"):
        model = InfDiTTransformer2DModel()
    cost = measure(model, method("hicache"), 39, height=256, width=256)
    assert cost.full / 4e9 == pytest.approx(1763.38, rel=1e-3)
    assert cost.estimated / cost.full < 0.025
