"""Tiny random transformers of the real classes, and a denoising loop over each without a pipeline."""

import torch

import hicache
from hicache.adapters import adapter_for


def dit():
    from diffusers import DiTTransformer2DModel

    return DiTTransformer2DModel(
        sample_size=8, num_layers=3, attention_head_dim=8, num_attention_heads=2, in_channels=4, out_channels=8,
        num_embeds_ada_norm=10, norm_type="ada_norm_zero",
    )  # fmt: skip


def flux(guidance=True):
    from diffusers import FluxTransformer2DModel

    return FluxTransformer2DModel(
        in_channels=16, num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=32, guidance_embeds=guidance, axes_dims_rope=(4, 4, 8),
    )  # fmt: skip


def schnell():
    return flux(guidance=False)


def hunyuan_video():
    from diffusers import HunyuanVideoTransformer3DModel

    return HunyuanVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=16, num_layers=2, num_single_layers=2,
        num_refiner_layers=1, patch_size=2, text_embed_dim=16, pooled_projection_dim=8, rope_axes_dim=(4, 6, 6),
        guidance_embeds=True,
    )  # fmt: skip


def qwen_image():
    from diffusers import QwenImageTransformer2DModel

    return QwenImageTransformer2DModel(
        in_channels=16, out_channels=4, num_layers=3, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=16, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip


MODELS = {f.__name__: f for f in (dit, flux, schnell, hunyuan_video, qwen_image)}
SHAPES = {"hunyuan_video": {"height": 64, "width": 64, "frames": 9, "text": 5}}


def build(name, dtype=torch.float32):
    torch.manual_seed(0)
    model = MODELS[name]().to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # gates and modulations that matter
            if parameter.dim() == 1:
                parameter.normal_(std=0.3)
    return model


def inputs(model, name, batch=1, text=None):
    """Random arguments of one call; the image latents are the key of the loop below."""
    generator = torch.Generator().manual_seed(1)
    shape = SHAPES.get(name, {"height": 64, "width": 64, "text": 6} if name != "dit" else {})
    call = adapter_for(model).example(batch, torch.device("cpu"), **{**shape, **({"text": text} if text else {})})
    for key, value in call.items():
        if isinstance(value, torch.Tensor) and value.is_floating_point() and key not in ("img_ids", "txt_ids"):
            call[key] = torch.randn(value.shape, generator=generator).to(value.dtype)
    if "class_labels" in call:
        call["class_labels"] = torch.arange(batch) % 10
    return call


@torch.no_grad()
def denoise(model, call, steps=10):
    """Euler steps with the model's own output; returns every output and every call."""
    latents, outputs, calls = call["hidden_states"].clone(), [], []
    scale = 1000 if call["timestep"].dtype == torch.long else 1
    for step in range(steps):
        t = torch.full((latents.shape[0],), (1 - step / steps) * scale).to(call["timestep"].dtype)
        now = {**call, "hidden_states": latents, "timestep": t}
        outputs.append(model(**now, return_dict=False)[0])
        calls.append(now)
        latents = latents * 0.97
        if outputs[-1].dim() == latents.dim() and outputs[-1].shape[2:] == latents.shape[2:]:
            rows = min(outputs[-1].shape[1], latents.shape[1])
            latents[:, :rows] -= outputs[-1][:, :rows] / steps
    return outputs, calls


def method(name="hicache", scope=None, **knobs):
    """A method with small numbers for what it reads; scope modules unless it has one of its own."""
    common = {"scope": "modules", "interval": 4, "order": 2, "sigma": 0.6, "warmup_steps": 2}
    read = hicache.reads(name, *(knobs.get(part) for part in ("policy", "basis", "patch")))
    given = {key: value for key, value in common.items() if key in read}
    return hicache.method(name, **{**given, **({"scope": scope} if scope else {}), **knobs})
