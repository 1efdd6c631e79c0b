"""Models that were changed before or while a method is enabled: quantised, cast, hooked, with LoRA.

For the very same inputs an estimate by reuse is the model's own result: whatever is done to the model between its blocks'
values and its output must be done at estimated steps too.
"""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import hicache

from .pipelines import flux, method

peft = pytest.importorskip("peft")

SCOPES = ("modules", "blocks", "span", "stack", "final_hidden", "output")


class Twice(nn.Module):
    """A parametrisation."""

    def forward(self, weight):
        return weight * 2


def quantise(model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, torch.qint8)


def quantise_by_torchao(model):
    quantization = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())


def cast(model):
    model.enable_layerwise_casting(
        storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32, skip_modules_pattern=()
    )


def parametrise(model):
    for block in model.transformer_blocks:
        parametrize.register_parametrization(block.norm1.linear, "weight", Twice())


def hook_modulation(model):
    for block in model.transformer_blocks:
        block.norm1.linear.register_forward_pre_hook(lambda _, given: (given[0] * 0.5,))


def steer(model):
    for block in model.transformer_blocks:
        block.attn.register_forward_hook(lambda _, given, out: (out[0] * 3, out[1]))


def train(model):
    model.enable_gradient_checkpointing()
    return model.train()


def adapt(model):
    """LoRA on attention, on modulation, on the embedder and on the head."""
    targets = ["to_q", "to_out.0", "proj_out", "x_embedder", "norm.linear", "norm1.linear", "ff.net.0.proj"]
    model.add_adapter(peft.LoraConfig(r=2, lora_alpha=8, target_modules=targets, init_lora_weights=False), "a")
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)


CHANGES = {
    "quantised": quantise,
    "quantised by torchao": quantise_by_torchao,
    "cast": cast,
    "fused projections": lambda model: model.fuse_qkv_projections(),
    "channels last": lambda model: model.to(memory_format=torch.channels_last),
    "training": train,
    "parametrised": parametrise,
    "hooked modulation": hook_modulation,
    "steered": steer,
    "lora": adapt,
}


def inputs(**more):
    def draw(seed, *shape):
        return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))

    return {
        "hidden_states": draw(3, 1, 64, 16),
        "encoder_hidden_states": draw(4, 1, 6, 32),
        "pooled_projections": draw(5, 1, 32),
        "timestep": torch.ones(1),
        "guidance": torch.ones(1),
        "img_ids": torch.zeros(64, 3),
        "txt_ids": torch.zeros(6, 3),
        "return_dict": False,
        **more,
    }


def twice(model, scope, given, between=lambda model: None):
    """The model's own result, a computed step's, and an estimate's."""
    handle = hicache.enable(model, method("fora", interval=2, warmup_steps=1, scope=scope))
    try:
        between(model)
        handle.begin(2)
        computed, estimated = model(**given)[0], model(**given)[0]
    finally:
        handle.disable()
    return model(**given)[0], computed, estimated


@pytest.mark.matrix
@torch.no_grad()
@pytest.mark.parametrize("change", CHANGES)
def test_an_estimate_for_the_same_inputs_is_the_models_own_result(change):
    model = flux().transformer
    model = CHANGES[change](model) or model
    for scope in SCOPES:
        plain, computed, estimated = twice(model, scope, inputs())
        assert torch.equal(computed, plain), scope
        torch.testing.assert_close(estimated, plain, rtol=1e-5, atol=1e-5, msg=scope)


@torch.no_grad()
@pytest.mark.parametrize("scale", [0.0, 0.5])
def test_the_scale_of_lora_holds_at_estimates(scale):
    model = flux().transformer
    adapt(model)
    given = inputs(joint_attention_kwargs={"scale": scale})
    for scope in SCOPES:
        plain, computed, estimated = twice(model, scope, given)
        assert torch.equal(computed, plain), scope
        torch.testing.assert_close(estimated, plain, rtol=1e-5, atol=1e-5, msg=scope)
    assert not torch.allclose(model(**inputs(joint_attention_kwargs={"scale": 1.0}))[0], plain)


@torch.no_grad()
def test_lora_may_be_loaded_and_unloaded_while_a_method_is_enabled():
    for scope in SCOPES:
        model = flux().transformer
        without = model(**inputs())[0]
        plain, computed, estimated = twice(model, scope, inputs(), between=adapt)
        assert torch.equal(computed, plain) and not torch.allclose(plain, without), scope
        torch.testing.assert_close(estimated, plain, rtol=1e-5, atol=1e-5, msg=scope)
        plain, computed, estimated = twice(model, scope, inputs(), between=lambda model: model.unload_lora())
        assert torch.equal(computed, plain) and torch.equal(plain, without), scope
        torch.testing.assert_close(estimated, plain, rtol=1e-5, atol=1e-5, msg=scope)
