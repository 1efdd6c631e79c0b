"""The fused path proves itself, and is left for the model's own forward where it does not reproduce the model."""

import pytest
import torch
from diffusers import FluxControlNetModel, FluxControlNetPipeline

import hicache
from hicache.adapters import adapter_for
from hicache.generic.gated import GatedTap

from . import denoisers
from .models import build, denoise, inputs
from .models import method as of_model
from .pipelines import PICTURE, flux, method, quiet, run

SCOPES = ["modules", "stack", "blocks", "final_hidden", "span", "front_back", "output"]


@torch.no_grad()
def twice(model, call, chosen):
    """A computed step and an estimate of reuse for identical inputs, and the report."""
    with hicache.cached(model, chosen) as cache:
        cache.begin(2)
        computed = model(**call)[0]
        cache.step()
        estimated = model(**call)[0]
        assert cache.report.estimated_steps == [1]
        return computed, estimated, cache.report


def reuse(scope):
    return hicache.method("fora", interval=2, warmup_steps=1, scope=scope)


@pytest.mark.parametrize("scope", SCOPES)
def test_hooks_on_modulation_layers(scope):
    """Gates of zero, put there by a user's hook: estimates for identical inputs are the model's own result."""
    model = build("flux")
    call = {**inputs(model, "flux"), "timestep": torch.ones(1), "return_dict": False}
    for block in model.transformer_blocks:
        block.norm1.linear.register_forward_hook(lambda m, a, out: out * 0)
    true = model(**call)[0]
    computed, estimated, report = twice(model, call, reuse(scope))
    assert torch.equal(computed, true)
    assert (estimated - true).abs().max() <= 1e-5 * true.abs().max()
    assert (report.path, bool(report.reason)) == (("tapped", True) if scope == "modules" else ("fused", False))


@pytest.mark.parametrize("scope", SCOPES)
def test_ip_adapter(scope):
    """An image prompt that the attention of the blocks adds is not lost at estimates."""
    from diffusers.models.embeddings import ImageProjection, MultiIPAdapterImageProjection
    from diffusers.models.transformers.transformer_flux import FluxIPAdapterAttnProcessor

    model = build("flux")
    torch.manual_seed(1)
    own = {name: old for name, old in model.attn_processors.items() if name.startswith("single")}
    ours = {
        name: FluxIPAdapterAttnProcessor(hidden_size=32, cross_attention_dim=32, scale=1.0, num_tokens=(4,))
        for name in model.attn_processors.keys() - own.keys()
    }
    model.set_attn_processor({**own, **ours})
    projection = ImageProjection(cross_attention_dim=32, image_embed_dim=16, num_image_text_embeds=4)
    model.encoder_hid_proj = MultiIPAdapterImageProjection([projection])
    call = {**inputs(model, "flux"), "timestep": torch.ones(1), "return_dict": False}
    picture = torch.zeros(1, 1, 16)

    def prompted(*args, **kwargs):
        kwargs["joint_attention_kwargs"] = {"ip_adapter_image_embeds": [picture]}
        return args, kwargs

    model.register_forward_pre_hook(lambda m, a, k: prompted(*a, **k), with_kwargs=True)
    with torch.no_grad():
        without = model(**call)[0]
        picture.normal_(generator=torch.Generator().manual_seed(2)).mul_(3)
        true = model(**call)[0]
    assert not torch.allclose(true, without, rtol=1e-2, atol=1e-2)
    computed, estimated, report = twice(model, call, reuse(scope))
    assert torch.equal(computed, true)
    assert (estimated - true).abs().max() <= 1e-5 * true.abs().max(), report.reason


@pytest.mark.parametrize("scope", ["modules", "stack"])
def test_weights_stored_in_another_type(scope):
    model = build("flux", torch.bfloat16)
    model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.bfloat16)
    call = {**inputs(model, "flux"), "timestep": torch.ones(1, dtype=torch.bfloat16), "return_dict": False}
    call = {k: v.bfloat16() if torch.is_tensor(v) and v.is_floating_point() else v for k, v in call.items()}
    with torch.no_grad():
        true = model(**call)[0]
    computed, estimated, _ = twice(model, call, reuse(scope))
    assert torch.equal(computed, true)
    assert (estimated - true).abs().max() <= 0.05 * true.abs().max()


@pytest.mark.parametrize("knobs", [{"scope": scope} for scope in SCOPES] + [{"policy": "broadcast"}], ids=str)
@pytest.mark.parametrize("name", ["flux", "dit"])
def test_a_history_in_float32_of_a_model_in_bfloat16(name, knobs):
    model = build(name, torch.bfloat16)
    call = inputs(model, name)
    found = []
    for dtype in ("feature", "fp32"):
        with hicache.cached(model, of_model("taylorseer", history_dtype=dtype, **knobs)) as cache:
            cache.begin(10)
            outputs, _ = denoise(model, call)
            assert (cache.report.path, cache.report.reason) == ("fused", "")
            found.append(torch.stack(outputs))
    assert torch.equal(*found)


@pytest.mark.parametrize("scope", ["modules", "stack", "span", "output"])
def test_controlnet(scope):
    """Residuals that reach into the blocks are not lost and not added twice."""
    base = flux()
    torch.manual_seed(0)
    net = FluxControlNetModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=32, guidance_embeds=True, axes_dims_rope=(4, 4, 8),
    )  # fmt: skip
    for parameter in net.parameters():
        if not parameter.abs().max():
            torch.nn.init.normal_(parameter, std=0.1)
    pipe = quiet(FluxControlNetPipeline(**base.components, controlnet=net))
    call = {"control_image": PICTURE, "controlnet_conditioning_scale": 1.0, "steps": 6}
    plain = run(pipe, **call)
    with hicache.cached(pipe, method(interval=1, scope=scope)):
        assert torch.equal(run(pipe, **call), plain)
    with hicache.cached(pipe, method(scope=scope)) as cache:
        found = run(pipe, **call)
        assert cache.report.full_steps == [0, 1, 4]
        assert cache.report.path == ("fused" if scope == "output" else "tapped")
    assert (found - plain).abs().max() < 0.2 * plain.abs().max()


@pytest.mark.parametrize("name", ["dit", "flux", "hunyuan_video", "qwen_image"])
def test_the_paths_agree(name, monkeypatch):
    """The same pictures whether estimated steps are fused or tapped, and only the fused ones are said to be so."""
    model = build(name)
    call = inputs(model, name)
    for scope in ("stack", "blocks", "final_hidden"):
        with hicache.cached(model, of_model(scope=scope)) as cache:
            fused = denoise(model, call)[0]
            assert cache.report.path == "fused" and not cache.report.reason
        with monkeypatch.context() as patch:
            patch.setattr("hicache.executor.disprove", lambda *args: "asked for")
            with hicache.cached(model, of_model(scope=scope)) as cache:
                tapped = denoise(model, call)[0]
                assert (cache.report.path, cache.report.reason) == ("tapped", "asked for")
        for step, (a, b) in enumerate(zip(fused, tapped)):
            assert (a - b).abs().max() <= 1e-4 * a.abs().max(), (scope, step)


ADAPTED = [
    "DiTTransformer2DModel",
    "FluxTransformer2DModel",
    "HunyuanVideoTransformer3DModel",
    "QwenImageTransformer2DModel",
    "QwenImageTransformer2DModel-2",
]
"""Configurations of classes that have gates beside their adapter."""


@torch.no_grad()
@pytest.mark.matrix
@pytest.mark.parametrize("name", [*denoisers.declared(), *ADAPTED])
def test_declared_gates(name, monkeypatch):
    """Where gates are declared no block runs at an estimate, and the result is that of the modules one by one."""
    for user in ("handle", "generic.structure"):
        monkeypatch.setattr(f"hicache.{user}.find_adapter", lambda model: None)
    model = denoisers.build(name)
    assert hicache.scopes(model)["model"].modules == "declared"
    chosen, found, ran = of_model(interval=3, warmup_steps=1), {}, []
    blocks = GatedTap(model).stack.blocks
    for path in ("fused", "tapped"):
        if path == "tapped":
            monkeypatch.setattr("hicache.steps.tapped.agreed", lambda *args: "asked for")
        with hicache.cached(model, chosen) as cache:
            cache.begin(8)
            found[path] = []
            for step in range(8):
                hooks = [block.register_forward_hook(lambda *_: ran.append(1)) for block in blocks]
                ran.clear()
                found[path].append(denoisers.tensors_of(model(**denoisers.inputs_of(name, step))))
                if path == "fused" and step not in (0, 3, 6):
                    assert not ran
                for hook in hooks:
                    hook.remove()
                cache.step()
            cache.finish()
            assert (cache.report.path, cache.report.reason) == (path, "" if path == "fused" else "asked for")
    for step, pair in enumerate(zip(found["fused"], found["tapped"], strict=True)):
        for a, b in zip(*pair, strict=True):
            assert (a - b).abs().max() <= 1e-5 * b.abs().max(), step


def test_interval_1_and_none_are_never_refused():
    """Whatever the model is."""
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU())
    x = torch.randn(3, 4)
    for chosen in (hicache.method("none"), hicache.method("hicache", interval=1), hicache.method("toca", interval=1)):
        with hicache.cached(model, chosen):
            assert torch.equal(model(x), model[1](model[0](x)))


@torch.no_grad()
def test_any_module_at_its_output():
    """A plain module is forecast: lines are continued exactly."""
    model = torch.nn.Linear(1, 1)
    with hicache.cached(model, hicache.method("taylorseer", scope="output", order=1, interval=4, warmup_steps=2)) as c:
        c.begin(8)
        found = []
        for i in range(8):
            found.append(model(torch.tensor([[float(i)]])))
            c.step()
    assert c.report.full_steps == [0, 1, 5]
    for i, y in enumerate(found):
        torch.testing.assert_close(y, model(torch.tensor([[float(i)]])), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="scope: Linear has output, got 'stack'"):
        hicache.enable(model, of_model(scope="stack"))


def test_errors_of_forecasts_and_the_printed_report():
    pipe = flux()
    with hicache.cached(pipe, method(), errors=True) as cache:
        run(pipe, steps=20)
    errors = cache.report.errors
    assert list(errors) == cache.report.full_steps[1:]
    assert all(0 < low <= middle <= high < 2 for low, middle, high in errors.values())
    lines = str(cache.report).splitlines()
    assert len(lines) <= 12 and max(map(len, lines)) <= 120 and "forecast error" in str(cache.report)


@torch.no_grad()
@pytest.mark.parametrize("scope", ["final_hidden", "stack", "modules"])
def test_reference_tokens_do_not_leave_the_fused_path(scope):
    """Editing: the pipeline uses the generated tokens alone, and only they are compared."""
    model = build("qwen_image")
    call = adapter_for(model).example(1, torch.device("cpu"), height=64, width=64, text=5, reference=96)
    call["hidden_states"] = torch.randn(call["hidden_states"].shape, generator=torch.Generator().manual_seed(0))
    with hicache.cached(model, hicache.method("hicache", interval=3, scope=scope)) as cache:
        cache.begin(4)
        for step in range(4):
            model(**call | {"timestep": torch.tensor([1 - step / 4])}, return_dict=False)
        cache.finish()
    assert cache.report.path == "fused", cache.report.reason
