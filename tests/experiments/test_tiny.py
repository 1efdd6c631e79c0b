"""The random pipelines: the published sizes, the same model every time, prompts that matter."""

import pytest
import torch
from diffusers import DiffusionPipeline

from experiments.backends import backend_class
from experiments.backends.tiny import dit, flux, hunyuan_video, qwen_image, text
from experiments.config.compose import compose
from experiments.settings.cost import count_flops
from experiments.settings.resolve import resolve

META = (torch.bfloat16, "meta")
FULL = {
    "flux": lambda: flux.build("full", True, *META),
    "flux_schnell": lambda: flux.build("full", False, *META),
    "hunyuan_video": lambda: hunyuan_video.build("full", *META),
    "qwen_image": lambda: qwen_image.build("full", *META),
    "qwen_image_edit": lambda: qwen_image.build_edit("full", False, *META),
    "dit": lambda: dit.build("full", *META),
}
PUBLISHED = {  # billions of parameters of the transformer; 1e12 FLOPs of a step
    "flux": (11.901, 74.3847),
    "flux_schnell": (11.891, 74.3846),
    "hunyuan_video": (12.821, 595.4282),
    "qwen_image": (20.430, 2 * 131.0),
    "qwen_image_edit": (20.430, 2 * 195.5),
    "dit": (0.750, 0.47467),
}


@pytest.mark.matrix
@pytest.mark.parametrize("name", FULL)
def test_full_size_has_the_published_parameters_and_flops(name):
    """Built without memory; the FLOPs are those that a run at the default settings reports."""
    of = resolve(compose([f"backend={name}", "backend.weights=random", "method=none"]))
    backend = object.__new__(backend_class(name))
    backend.config, backend.pipe = of.backend, FULL[name]()
    parameters, flops = PUBLISHED[name]
    assert sum(p.numel() for p in backend.transformer.parameters()) / 1e9 == pytest.approx(parameters, rel=1e-3)
    step = count_flops(backend, of).full / 1e12
    assert step == pytest.approx(
        flops, rel=0.02 if name.startswith("qwen") else 1e-4
    )  # Qwen's text has no fixed length


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
