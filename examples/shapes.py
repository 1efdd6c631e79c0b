"""HiCache in the sampling loops of three generators of 3-D shapes, which are no diffusers pipelines.

Each function takes the generator's own objects, whatever their version: only what is named here is used of them. The
loops are those of the projects; the cache is the one line with `loop`.

    Hunyuan3D (hy3dgen, hy3dshape)     pipe.model, pipe.scheduler; one call with a doubled batch
    TRELLIS (and TRELLIS.2)            sampler._inference_model; guidance within an interval of times, sparse tensors
    SAM 3D Objects                     a dynamics function on a dict of tensors, Euler steps

Adjacent steps of a flow are alike, so that a quarter to a tenth of the calls is enough; how many is a matter of the
model. See tests/hicache/test_shapes.py for the same loops on stand-ins.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

import hicache

__all__ = ["hunyuan3d", "sam3d", "trellis"]


def hunyuan3d(
    model: Callable[..., Tensor],
    scheduler: Any,
    latents: Tensor,
    cond: Any,
    num_steps: int,
    method: hicache.CacheMethod,
    guidance_scale: float = 5.0,
) -> tuple[Tensor, hicache.Report]:
    """The loop of `Hunyuan3DDiTFlowMatchingPipeline`: both predictions in one call, `u + w (c - u)`.

    Args:
        model: the denoiser: `model(latents, timestep, cond)`, latents `[2B, N, C]`.
        scheduler: its `timesteps` are set; `step(v, t, latents).prev_sample`.
        latents: noise, `[B, N, C]`.
        cond: conditions of the doubled batch.
        num_steps: steps.
        method: from `hicache.method`.
        guidance_scale: w.
    """
    loop = hicache.Loop(method, num_steps=num_steps)
    for i, t in enumerate(scheduler.timesteps):
        doubled = torch.cat([latents] * 2)
        time = t.expand(doubled.shape[0]).to(latents.dtype) / scheduler.config.num_train_timesteps
        noise = loop(i, lambda x=doubled, at=time: model(x, at, cond))  # computed or forecast
        conditional, unconditional = noise.chunk(2)
        velocity = unconditional + guidance_scale * (conditional - unconditional)
        latents = scheduler.step(velocity, t, latents).prev_sample
    return latents, loop.report


def trellis(
    predict: Callable[[Any, float, Any], Any],
    noise: Any,
    cond: Any,
    neg_cond: Any,
    times: Sequence[float],
    method: hicache.CacheMethod,
    strength: float = 7.5,
    interval: tuple[float, float] = (0.5, 1.0),
    batch: bool = False,
) -> tuple[Any, hicache.Report]:
    """The loop of TRELLIS' `FlowEulerGuidanceIntervalSampler`: `(1 + w) c - w u` inside of an interval of times.

    A sparse tensor has to be introduced once: `hicache.register(SparseTensor, lambda x: x.feats, lambda x, f:
    x.replace(f))`. Where guidance ends the velocity jumps, so that nothing from before it is used.

    Args:
        predict: `predict(x, t, cond)`, a tensor or a sparse tensor.
        noise: what x is at the first time.
        cond: condition.
        neg_cond: condition of the unconditional prediction.
        times: falling, from 1 to 0.
        method: from `hicache.method`.
        strength: w.
        interval: the times with guidance.
        batch: whether the first axis is the batch; False for sparse tensors.
    """
    loop = hicache.Loop(method, num_steps=len(times) - 1, batch=batch)
    x, guided = noise, True
    for i, (t, following) in enumerate(zip(times[:-1], times[1:], strict=True)):
        inside = interval[0] <= t <= interval[1]
        if inside != guided and i > 0:
            loop.refresh(forget=True)
        guided = inside
        if inside:
            v = loop.guided(
                i, lambda x=x, t=t: predict(x, t, cond), lambda x=x, t=t: predict(x, t, neg_cond), strength, "1+w"
            )
        else:
            v = loop.branch("cond")(i, lambda x=x, t=t: predict(x, t, cond))
        x = x - v * (t - following)
    return x, loop.report


def sam3d(
    dynamics: Callable[[dict[str, Tensor], float], dict[str, Tensor]],
    noise: dict[str, Tensor],
    times: Sequence[float],
    method: hicache.CacheMethod,
) -> tuple[dict[str, Tensor], hicache.Report]:
    """The Euler solver of SAM 3D Objects: a dict of tensors and a guided dynamics function of it.

    Args:
        dynamics: `dynamics(x, t)`, the velocity of every tensor, guidance included.
        noise: what x is at the first time.
        times: growing, from 0 to 1.
        method: from `hicache.method`.
    """
    loop = hicache.Loop(method, num_steps=len(times) - 1, batch=False)
    x = dict(noise)
    for i, (t, following) in enumerate(zip(times[:-1], times[1:], strict=True)):
        velocity = loop(i, lambda x=x, t=t: dynamics(x, t))
        x = {name: value + velocity[name] * (following - t) for name, value in x.items()}
    return x, loop.report
