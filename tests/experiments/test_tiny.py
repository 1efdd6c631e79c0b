"""The random pipelines: the published sizes, the same model every time, prompts that matter."""

import pytest
import torch
from diffusers import (
    DiffusionPipeline,
    DiTTransformer2DModel,
    FluxTransformer2DModel,
    HunyuanVideoTransformer3DModel,
    QwenImageTransformer2DModel,
)

from experiments.tiny import dit, flux, hunyuan_video, qwen_image, text

PARAMETERS = {"flux": 11.901, "flux_schnell": 11.891, "hunyuan_video": 12.821, "qwen_image": 20.430, "dit": 0.750}


def full(name: str):
    """The transformer at its published size, without memory."""
    if name == "dit":
        return DiTTransformer2DModel(
            **dit.TRANSFORMER["full"], norm_type="ada_norm_zero", num_embeds_ada_norm=1000, **DIT
        )
    if name == "hunyuan_video":
        return HunyuanVideoTransformer3DModel(**hunyuan_video.TRANSFORMER["full"], guidance_embeds=True)
    if name == "qwen_image":
        return QwenImageTransformer2DModel(**qwen_image.TRANSFORMER["full"])
    return FluxTransformer2DModel(**flux.TRANSFORMER["full"], guidance_embeds=name == "flux")


DIT = {"patch_size": 2, "in_channels": 4, "out_channels": 8, "attention_bias": True}


@pytest.mark.parametrize("name", PARAMETERS)
def test_full_size_is_the_published_size(name):
    with torch.device("meta"):
        billions = sum(p.numel() for p in full(name).parameters()) / 1e9
    assert billions == pytest.approx(PARAMETERS[name], rel=1e-3)


BUILDERS = {
    "flux": lambda: flux.build("tiny", True),
    "flux_schnell": lambda: flux.build("tiny", False),
    "dit": lambda: dit.build("tiny"),
    "hunyuan_video": lambda: hunyuan_video.build("tiny"),
    "qwen_image": lambda: qwen_image.build("tiny"),
    "qwen_image_edit": lambda: qwen_image.build_edit("tiny", False),
    "qwen_image_edit_plus": lambda: qwen_image.build_edit("tiny", True),
}


@pytest.mark.parametrize("name", BUILDERS)
def test_it_is_the_same_model_every_time_and_leaves_the_random_state_alone(name):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one = BUILDERS[name]()
    assert torch.equal(torch.rand(1), expected)
    two = BUILDERS[name]()
    assert isinstance(one, DiffusionPipeline)
    for mine, theirs in zip(one.transformer.parameters(), two.transformer.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert sum(p.numel() for p in one.transformer.parameters()) < 1e6


def test_dtype_reaches_the_models():
    pipe = flux.build("tiny", True, torch.bfloat16)
    assert {pipe.transformer.dtype, pipe.vae.dtype, pipe.text_encoder_2.dtype} == {torch.bfloat16}
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize("make", [text.clip_tokenizer, text.llama_tokenizer, text.qwen_tokenizer])
def test_any_text_has_tokens_of_its_own(make):
    tokenizer = make()
    codes = [tuple(tokenizer(words).input_ids) for words in ("a cat", "a bat", "ein Käfer", "猫", "a")]
    assert len(set(codes)) == 5
    assert all(0 <= code < len(tokenizer) for row in codes for code in row)


def test_the_edit_pipelines_leave_diffusers_as_it_was():
    from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit as module

    original = module.calculate_dimensions
    with pytest.raises(Exception):
        BUILDERS["qwen_image_edit"]()(image=None, prompt="x")
    assert module.calculate_dimensions is original
