"""One of two processes that share a denoiser by context parallelism: `python -m tests.hicache.parallel STORE RANK`.

Prints, as one line of JSON, what the test compares. Of every model: how far it is from itself in a single process
(`plain`), how many tokens enter its second block, not shared and shared (`tokens`), and the messages of methods that
cannot be shared (`refused`); how far estimates are, and the reasons of both processes, where one of them finds that the
model is not reproduced (`parted`). Of every scope: whether interval 1 is the shared model (`whole`), how far estimates are
from those of a single process (`cached`), and how far those are from the plain model (`estimated`).
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
from torch import Tensor, nn

import hicache
from hicache import proof
from hicache.steps import tapped
from tests.hicache import denoisers

CASES = {"FluxTransformer2DModel": "transformer_blocks", "WanTransformer3DModel": "blocks"}
"""With an adapter, its tokens split before the model; without one, split before the first block."""

SCOPES = ("output", "modules", "stack", "blocks")
REFUSED = ("toca", "teacache", "speca", "dbcache")
STEPS = 7


def method(scope: str, interval: int) -> hicache.CacheMethod:
    """A small method."""
    return hicache.method("taylorseer", interval=interval, order=1, warmup_steps=1, scope=scope)


@torch.no_grad()
def outputs(model: nn.Module, name: str, chosen: hicache.CacheMethod | None = None) -> list[Tensor]:
    """What a loop of a few steps gets."""
    found: list[Tensor] = []
    with hicache.cached(model, chosen or hicache.method("none")) as cache:
        cache.begin(STEPS)
        for step in range(STEPS):
            found.append(denoisers.tensors_of(model(**denoisers.inputs_of(name, step), return_dict=False))[0])
            cache.step()
        cache.finish()
    return found


def distance(found: list[Tensor], wanted: list[Tensor]) -> float:
    """The greatest difference, relative to the greatest value."""
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, wanted, strict=True))


def parted(model: nn.Module, name: str, alone: list[Tensor]) -> dict[str, Any]:
    """The proof fails in the first process: the second one follows it, and estimates are what they are alone."""
    own, kept = proof.agreed, []
    changed = {"proof": proof, "tapped": tapped}
    for module in changed.values():
        module.agreed = (lambda *given: "off") if torch.distributed.get_rank() == 0 else own
    try:
        with hicache.cached(model, method("modules", 3)) as cache:
            cache.begin(STEPS)
            for step in range(STEPS):
                kept.append(denoisers.tensors_of(model(**denoisers.inputs_of(name, step), return_dict=False))[0])
                cache.step()
            cache.finish()
    finally:
        for module in changed.values():
            module.agreed = own
    return {"distance": distance(kept, alone), "why": str(cache.report)}


def refused(model: nn.Module, name: str, chosen: hicache.CacheMethod) -> str:
    """The message of a method that cannot be shared."""
    try:
        outputs(model, name, chosen)
    except ValueError as error:
        return str(error)
    return ""


def case(name: str, blocks: str) -> dict[str, Any]:
    """What one model says."""
    from diffusers import ContextParallelConfig

    model: Any = denoisers.build(name)
    tokens: list[int] = []
    plain = outputs(model, name)
    alone = {scope: outputs(model, name, method(scope, 3)) for scope in SCOPES}
    hook = getattr(model, blocks)[1].register_forward_pre_hook(
        lambda module, args, kwargs: tokens.append((*args, *kwargs.values())[0].shape[1]), with_kwargs=True
    )
    outputs(model, name)
    model.enable_parallelism(config=ContextParallelConfig(ulysses_degree=2))
    shared = outputs(model, name)
    hook.remove()
    found: dict[str, Any] = {"plain": distance(shared, plain), "tokens": tokens}
    found["refused"] = [refused(model, name, hicache.method(each)) for each in REFUSED if blocks != "blocks"]
    found["parted"] = parted(model, name, alone["modules"])
    for scope in SCOPES:
        whole = outputs(model, name, method(scope, 1))
        found[scope] = {
            "whole": all(torch.equal(a, b) for a, b in zip(whole, shared, strict=True)),
            "cached": distance(outputs(model, name, method(scope, 3)), alone[scope]),
            "estimated": distance(alone[scope], plain),
        }
    return found


def main(store: str, rank: int) -> None:
    """Run all cases."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    torch._C._get_accelerator = lambda: torch.device("cpu")  # which diffusers asks without an alternative
    torch.accelerator.device_count = lambda: 1
    print(json.dumps({name: case(name, blocks) for name, blocks in CASES.items()}), flush=True)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
