"""Adapters of every transformer class: identity, independent forwards, branches, offload, compilation, storage."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import hicache
from hicache import tree
from hicache.adapters import adapter_for
from tests.hicache.models import MODELS, build, denoise, inputs, method

SCOPES = [scope for scope in tree.SCOPES if scope != "deep"]  # which is for U-Nets

ROOT = Path(__file__).parents[2]


@pytest.mark.matrix
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_interval_one_is_the_model_itself(name, scope, dtype):
    model = build(name, dtype)
    call = inputs(model, name, batch=2)
    plain, _ = denoise(model, call, 4)
    trace = set(vars(model)), [set(vars(m)) for m in model.modules()]
    for method_name, knobs in (("hicache", {"interval": 1}), ("none", {})):
        with hicache.cached(model, method(method_name, scope, **knobs)):
            assert all(torch.equal(a, b) for a, b in zip(denoise(model, call, 4)[0], plain, strict=True))
    assert (set(vars(model)), [set(vars(m)) for m in model.modules()]) == trace
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(torch.equal(a, b) for a, b in zip(denoise(model, call, 4)[0], plain, strict=True))


@pytest.mark.matrix
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("name", MODELS)
def test_a_sample_does_not_depend_on_its_batch_nor_on_the_past(name, scope):
    model = build(name)
    call = inputs(model, name, batch=3)
    with hicache.cached(model, method("hicache_adaptive", scope)) as cache:
        together, _ = denoise(model, call)
        again, _ = denoise(model, call)
        assert cache.report.full_steps == [0, 1, 5, 9]
        one = {
            k: v[1:2] if isinstance(v, (torch.Tensor, list)) and len(v) == 3 and k not in ("img_ids", "txt_ids") else v
            for k, v in call.items()
        }
        alone, _ = denoise(model, one)
    assert all(torch.equal(a, b) for a, b in zip(together, again, strict=True))
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a[1:2], b, rtol=1e-4, atol=1e-4)


def walk(model, name, call, values):
    """An estimated forward written out: embed, add each gated module value in order, head."""
    hidden = call["hidden_states"]
    if name == "qwen_image":
        hidden = model.img_in(hidden)
        temb = model.time_text_embed(call["timestep"].to(hidden.dtype), hidden, None)
    elif name == "hunyuan_video":
        hidden = model.x_embedder(hidden)
        temb, _ = model.time_text_embed(call["timestep"], call["pooled_projections"], call["guidance"])
    else:
        hidden = model.x_embedder(hidden)
        extra = [] if call["guidance"] is None else [call["guidance"] * 1000]
        temb = model.time_text_embed(call["timestep"] * 1000, *extra, call["pooled_projections"])
    values = iter(values)
    for block in model.transformer_blocks:
        if name == "qwen_image":
            first, second = block.img_mod(temb).chunk(2, dim=-1)
            gates = first.chunk(3, -1)[2], second.chunk(3, -1)[2]
        else:
            _, gate_msa, _, _, gate_mlp = block.norm1(hidden, emb=temb)
            gates = gate_msa, gate_mlp
        for gate in gates:
            hidden = hidden + gate[:, None] * next(values)
    for block in getattr(model, "single_transformer_blocks", ()):
        _, gate = block.norm(hidden, emb=temb)
        hidden = hidden + gate[:, None] * next(values)
    return model.proj_out(model.norm_out(hidden, temb))


def image_values(model, name, tokens, text):
    """Plain hooks on the modules, image rows only."""
    seen, hooks = [], []

    def watch(module, pick):
        store = []
        seen.append(store)
        hooks.append(module.register_forward_hook(lambda m, a, o: store.append(pick(o).clone())))

    for block in model.transformer_blocks:
        watch(block.attn, lambda o: o[0])
        watch(block.img_mlp if name == "qwen_image" else block.ff, lambda o: o)
    for block in getattr(model, "single_transformer_blocks", ()):
        watch(block.proj_out, (lambda o: o[:, :tokens]) if name == "hunyuan_video" else (lambda o: o[:, text:]))
    return seen, hooks


@torch.no_grad()
@pytest.mark.parametrize("name", ["flux", "schnell", "hunyuan_video", "qwen_image"])
@pytest.mark.parametrize("basis", ["taylorseer", "hicache", "fora"])
def test_module_scope_against_an_independent_forward(name, basis):
    model = build(name)
    call = inputs(model, name, batch=2)
    tokens = 48 if name == "hunyuan_video" else call["hidden_states"].shape[1]
    chosen = method(basis)
    seen, hooks = image_values(model, name, tokens, 6)
    with hicache.cached(model, chosen) as cache:
        outputs, calls = denoise(model, call, 8)
        full = cache.report.full_steps
    for hook in hooks:
        hook.remove()
    values = []
    for store in seen:
        forecaster = chosen.build_forecaster()
        for step, value in zip(full, store, strict=True):
            forecaster.observe(step, value)
        values.append(forecaster.predict(7))
    expected = walk(model, name, calls[7], values)
    if name == "hunyuan_video":
        grid = expected.reshape(2, 3, 4, 4, 4, 1, 2, 2)
        expected = torch.einsum("bfhwctpq->bcfthpwq", grid).reshape(2, 4, 3, 8, 8)
    torch.testing.assert_close(outputs[7], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_blocks_and_stack_agree_and_an_empty_remainder_is_the_span(name):
    """A linear forecast of the sum is the sum of forecasts; the span of all blocks is the stack."""
    model = build(name)
    call = inputs(model, name, batch=2)
    found = {}
    for scope, knobs in (("stack", {}), ("blocks", {}), ("span", {"front": 0, "back": 0})):
        with hicache.cached(model, method("taylorseer", scope, **knobs)):
            found[scope], _ = denoise(model, call)
    for scope in ("blocks", "span"):
        for a, b in zip(found[scope], found["stack"], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_span_runs_the_other_blocks(name):
    model = build(name)
    call, counts = inputs(model, name), {}
    blocks = adapter_for(model).blocks()
    hooks = [p.register_forward_hook(lambda m, a, o, i=i: counts.update({i: counts.get(i, 0) + 1}))
             for i, p in enumerate(getattr(b, "attn", None) or b.attn1 for b in blocks)]  # fmt: skip
    with hicache.cached(model, method("hicache", "span", front=1, back=1)) as cache:
        denoise(model, call)
        full = len(cache.report.full_steps)
    for hook in hooks:
        hook.remove()
    last = len(blocks) - 1
    assert counts == {i: 10 if i in (0, last) else full for i in range(last + 1)}
    with pytest.raises(ValueError, match="front: front \\+ back must be below"):
        hicache.enable(model, method("hicache", "span", front=last, back=1))


@torch.no_grad()
def test_qwen_branches_have_their_own_clock_and_history():
    """Conditional and unconditional calls differ in text length; a shared history or counter would mix them."""
    model = build("qwen_image")
    calls = {"cond": inputs(model, "qwen_image", text=7), "uncond": inputs(model, "qwen_image", text=4)}

    def run(names):
        found = {name: [] for name in names}
        for step in range(9):
            for name in names:
                call = {**calls[name], "timestep": torch.tensor([1 - step / 9])}
                call["hidden_states"] = call["hidden_states"] * (1 - step / 20)
                with model.cache_context(name):
                    found[name].append(model(**call, return_dict=False)[0])
        return found

    for scope in SCOPES:
        with hicache.cached(model, method("hicache", scope)) as cache:
            cache.begin(9)
            both = run(["cond", "uncond"])
            cache.finish()
            assert cache.report.branches == {"cond": [0, 1, 5], "uncond": [0, 1, 5]}
            for name in calls:
                cache.begin(9)
                alone = run([name])[name]
                assert all(torch.equal(a, b) for a, b in zip(both[name], alone, strict=True)), (scope, name)
    assert "cache_context" not in vars(model)


@torch.no_grad()
def test_editing_forecasts_the_generated_tokens_only():
    model = build("qwen_image")
    call = adapter_for(model).example(1, torch.device("cpu"), height=64, width=64, text=5, reference=96)
    call["hidden_states"] = torch.randn(call["hidden_states"].shape, generator=torch.Generator().manual_seed(0))
    with hicache.cached(model, method("hicache", "output")) as cache:
        outputs, _ = denoise(model, call, 4)
        assert cache.report.cache_bytes == 2 * 16 * outputs[0].shape[-1] * 4
    assert [o.shape[1] for o in outputs] == [16 + 36, 16 + 36, 16, 16]
    with hicache.cached(model, method("hicache", "modules")):
        assert [o.shape[1] for o in denoise(model, call, 4)[0]] == [16 + 36] * 4


@torch.no_grad()
def test_output_scope_equals_diffusers_lite_mode():
    from diffusers import TaylorSeerCacheConfig

    model = build("flux")
    call = inputs(model, "flux")
    schedule = [s for s in range(14) if s < 3 or (s - 3 - 1) % 4 == 0]
    model.enable_cache(
        TaylorSeerCacheConfig(cache_interval=4, disable_cache_before_step=3, max_order=1, use_lite_mode=True,
                              taylor_factors_dtype=torch.float32)
    )  # fmt: skip
    with model.cache_context("cond"):
        theirs, _ = denoise(model, call, 14)
    model.disable_cache()
    lite = method("taylorseer", "output", order=1, policy="mask", mask=schedule, gate=False)
    with hicache.cached(model, lite) as cache:
        ours, _ = denoise(model, call, 14)
        assert cache.report.full_steps == schedule
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["modules", "span"])
def test_compiled_blocks_are_not_recompiled_as_the_horizon_grows(scope):
    torch._dynamo.reset()
    model = build("flux")
    call = inputs(model, "flux")
    with hicache.cached(model, method("hicache", scope)):
        expected, _ = denoise(model, call)
    for block in adapter_for(model).blocks():
        block.compile(backend="eager")
    with hicache.cached(model, method("hicache", scope)):
        denoise(model, call, 4)
        with torch._dynamo.config.patch(error_on_recompile=True):
            found, _ = denoise(model, call)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    torch._dynamo.reset()


@pytest.mark.matrix
@pytest.mark.parametrize("scope", SCOPES)
def test_sequential_offload(scope):
    """Weights that are fetched when a layer is called; the method may be enabled before or after."""
    from accelerate import cpu_offload
    from accelerate.hooks import remove_hook_from_submodules

    model = build("flux")
    call = inputs(model, "flux")
    with hicache.cached(model, method("hicache", scope)):
        expected, _ = denoise(model, call)
    for early in (False, True):
        handle = hicache.enable(model, method("hicache", scope)) if early else None
        cpu_offload(model, execution_device=torch.device("cpu"))
        handle = handle or hicache.enable(model, method("hicache", scope))
        found, _ = denoise(model, call)
        handle.disable()
        remove_hook_from_submodules(model)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("storage", [{"history_dtype": "bf16"}, {"history_dtype": "fp32"}, {"history_place": "cpu"}])
def test_storage_options(storage):
    model = build("flux")
    call = inputs(model, "flux")
    with hicache.cached(model, method("hicache")) as cache:
        expected, _ = denoise(model, call)
        size = cache.report.cache_bytes
    with hicache.cached(model, method("hicache", **storage)) as cache:
        found, _ = denoise(model, call)
        assert cache.report.cache_bytes == size * (0.5 if storage.get("history_dtype") == "bf16" else 1)
    loose = storage.get("history_dtype") == "bf16"
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0.05 if loose else 0)


def test_zero_cond_t_has_module_scope_in_its_own_forward():
    """Its gates are no vectors: the adapter does not have them, the declared ones are chosen token by token."""
    model = build("qwen_image")
    model.zero_cond_t = True
    with hicache.cached(model, method("hicache")) as cache:
        cache.begin(4)
        assert cache.executor.fused is None and cache.executor.tapped.gated is not None


@pytest.mark.slow
def test_the_triton_kernel_agrees_with_the_reference():
    """Run by Triton's interpreter where there is no GPU."""
    pytest.importorskip("triton")
    code = """
import torch
from hicache.forecast.combine import gated_sum
from hicache.forecast.fused import kernel_for, triton_gated_sum
g = torch.Generator().manual_seed(0)
for frames in (1, 3, 6, 7):
    base, gates = torch.randn(2, 19, 136, generator=g), torch.randn(2, 2, 136, generator=g)
    joint = [torch.randn(2, 2, 24, 136, generator=g) for _ in range(frames)]
    per_site = [torch.rand(2, 2, generator=g) for _ in range(frames)]
    for weights in ([0.5 - j for j in range(frames)], [-1.0] * frames, per_site):
        values = [frame[:, :, 5:] for frame in joint]  # the image rows of joint frames
        assert kernel_for(base, values) == "triton"
        torch.testing.assert_close(triton_gated_sum(base, gates, weights, values), gated_sum(base, gates, weights, values), rtol=1e-5, atol=1e-5)
        for last in (0, 1, 2) if frames == 3 else ():  # what has weight zero is not read
            for zero in (0.0, torch.zeros(2, 2)):
                some = [zero if j == last else w for j, w in enumerate(weights)]
                expected = gated_sum(base, gates, some, values)
                kept = values[last].clone()
                values[last].fill_(torch.nan)
                torch.testing.assert_close(triton_gated_sum(base, gates, some, values), expected, rtol=1e-5, atol=1e-5)
                values[last].copy_(kept)
assert kernel_for(base, [joint[0].mT]) == "torch"
print("agree")
"""
    env = {"TRITON_INTERPRET": "1", "PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "HOME": "/tmp"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, cwd=ROOT)
    assert done.stdout.strip() == "agree", done.stderr[-2000:]


def test_gates_from_slices_equal_the_whole_modulation():
    model = build("flux")
    adapter, condition = adapter_for(model), torch.randn(2, 32)
    whole = [
        part.modulation(F.silu(condition)).chunk(6 if part.site.module != "fused" else 3, dim=1)[part.chunk]
        for part in adapter.gated()
    ]
    adapter.condition = lambda call, hidden: condition
    torch.testing.assert_close(adapter.gates({}, torch.zeros(2, 1, 32)), torch.stack(whole))
