"""Where and how a pipeline runs: device, offload, attention kernel, compiled blocks, tiled VAE."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from experiments.config.backend import PipelineConfig
from experiments.errors import check, choose
from hicache.generic import denoisers
from hicache.generic.blocks import flat_blocks

__all__ = ["ATTENTION", "check_placement", "place"]

ATTENTION: dict[str, tuple[str, str | None]] = {
    "sdpa": ("native", None),
    "math": ("_native_math", None),
    "cudnn": ("_native_cudnn", None),
    "efficient": ("_native_efficient", None),
    "flex": ("flex", None),
    "flash": ("flash", "flash_attn"),
    "flash3": ("_flash_3", "flash_attn_interface"),
    "sage": ("sage", "sageattention"),
    "xformers": ("xformers", "xformers"),
}
"""Name -> diffusers' name and the library it needs. Kernels that diffusers would fetch from the hub are left out."""

CUDA_ONLY = ("cudnn", "efficient", "flash", "flash3", "sage", "xformers")


def check_placement(config: PipelineConfig) -> None:
    """Raise `ConfigError` for what this machine lacks."""
    _, library = ATTENTION[choose("backend.attention", config.attention, ATTENTION)]
    installed = library is None or find_spec(library) is not None
    check(installed, "backend.attention", f"must be installed (pip install {library})", config.attention)
    cuda = torch.cuda.is_available() and config.device != "cpu"
    on_gpu = cuda or config.attention not in CUDA_ONLY
    check(on_gpu, "backend.attention", "must be sdpa, math or flex without a CUDA device", config.attention)
    check(cuda or config.offload == "none", "backend.offload", "must be none without a CUDA device", config.offload)


def place(pipe: Any, config: PipelineConfig, device: str) -> None:
    """Put a loaded pipeline in its place."""
    pipe.set_progress_bar_config(disable=True)
    for model in denoisers(pipe).values():
        set_attention(model, config.attention)
        if config.compile:
            compile_blocks(model)
    if getattr(config, "vae_tiling", False):
        pipe.vae.enable_tiling()
    if config.offload == "model":
        pipe.enable_model_cpu_offload(device=device)
    elif config.offload == "sequential":
        pipe.enable_sequential_cpu_offload(device=device)
    else:
        pipe.to(device)


def set_attention(transformer: Any, name: str) -> None:
    """Choose the kernel by diffusers' switch; always, because diffusers keeps the last choice for all models."""
    from diffusers.utils import logging  # late: who reads finished runs needs no diffusers

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # it calls the switch experimental every time
    transformer.set_attention_backend(ATTENTION[name][0])
    logging.set_verbosity(verbosity)


def compile_blocks(transformer: nn.Module) -> None:
    """Compile each block by itself.

    A cache watches modules inside the blocks by hooks that come and go; torch must look at them again, or a block that
    was compiled without hooks would never call them.
    """
    from torch._dynamo import config as dynamo

    dynamo.skip_nnmodule_hook_guards = False
    for block in blocks_of(transformer):
        block.compile()


def blocks_of(transformer: nn.Module) -> list[nn.Module]:
    """The repeated blocks, where all the time is spent; of a U-Net its levels."""
    levels = [*getattr(transformer, "down_blocks", ()), *getattr(transformer, "up_blocks", ())]
    return flat_blocks(transformer) or levels
