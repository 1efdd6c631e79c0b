r"""Training of the router of Learning-to-Cache (arXiv 2406.01733), on paired steps.

For the pair of steps (s, s + 1) an image is noised to the level of s, the model makes the full step s and the sampler
moves on to s + 1. There the model runs twice: in full, and with the value of every module (before its gate) mixed,

    v = beta v_computed + (1 - beta) v_cached(s),        beta = sigmoid(logit[pair, module]),
    loss = MSE(full output, routed output) + penalty * sum_m beta.

Only the logits are trained; they start from a standard normal and are kept within +-5. The pairs do not
influence each other, so an update has images of all of them. Both guidance branches are rows of the batch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from experiments.backends.base import Backend, Sampling
from experiments.backends.digits.backend import DigitsBackend
from experiments.backends.digits.data import NULL_CLASS, split
from experiments.errors import ConfigError, check
from experiments.learning.training_loop import Phase
from hicache.adapters import adapter_for
from hicache.adapters.base import Adapter
from hicache.adapters.modules import Module

__all__ = ["Router", "RouterTask", "mixing"]

BOUND = 5.0
HELD_OUT_SEED = 1234


class Router(nn.Module):
    """A logit per pair of steps and module."""

    def __init__(self, pairs: int, modules: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.randn(pairs, modules))


@contextlib.contextmanager
def mixing(adapter: Adapter, cached: list[Tensor], betas: Tensor | None) -> Iterator[None]:
    """Inside, modules mix their value with the cached one, or without `betas` put it into `cached`.

    Args:
        adapter: of the model.
        cached: values of the full step, in the order of the gated modules.
        betas: `[rows, modules]`.
    """

    def hook(index: int, gated: Module) -> Any:
        def leave(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
            if betas is None:
                cached.append(adapter.image_value(gated, output))
                return None
            beta = betas[:, index, None, None]
            return beta * output + (1 - beta) * cached[index]

        return leave

    hooks = [m.module.register_forward_hook(hook(i, m)) for i, m in enumerate(adapter.gated())]
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()


class RouterTask:
    """Trains a router for the embedded model.

    Args:
        backend: the model; its training images must be known.
        sampling: the run that the router is for.
        penalty: lambda.
        images: per pair and update.
        items: training images in use.
        held_out: held-out images per pair.
        phases: of the training.
    """

    def __init__(
        self,
        backend: Backend,
        sampling: Sampling,
        penalty: float,
        images: int,
        items: int,
        held_out: int,
        phases: list[Phase],
    ) -> None:
        if not isinstance(backend, DigitsBackend):
            raise ConfigError(f"backend: must be digits, whose training images are known, got {backend.config.name!r}")
        check(sampling.num_steps >= 2, "num_steps", "must be an integer >= 2", sampling.num_steps)
        backend.prepare(sampling)
        scheduler = backend.pipe.scheduler
        scheduler.set_timesteps(sampling.num_steps)
        pairs = sampling.num_steps // 2
        self.model, self.adapter = backend.transformer, adapter_for(backend.transformer)
        self.sites = [str(module.image_site) for module in self.adapter.gated()]
        self.module, self.phases = Router(pairs, len(self.sites)), phases
        self._guidance, self._penalty, self._images = backend.config.guidance, penalty, images
        self._timesteps = scheduler.timesteps[: 2 * pairs].long().cpu().reshape(pairs, 2)
        self._signal = scheduler.alphas_cumprod[self._timesteps].float()
        (known, labels), (unseen, unseen_labels) = split()
        self._train = known[:items], labels[:items]
        self._unseen, self._held_out = (unseen, unseen_labels), held_out

    def loss(self, phase: str, generator: torch.Generator) -> Tensor:
        del phase
        error = torch.stack([self.errors(self._train, generator) for _ in range(self._images)]).mean(0)
        return (error + self._penalty * self.module.logits.sigmoid().sum(1)).mean()

    @torch.no_grad()
    def held_out(self, phase: str) -> float:
        del phase
        generator = torch.Generator().manual_seed(HELD_OUT_SEED)
        error = torch.stack([self.errors(self._unseen, generator) for _ in range(self._held_out)]).mean(0)
        return float((error + self._penalty * self.module.logits.sigmoid().sum(1)).mean())

    @torch.no_grad()
    def settle(self) -> None:
        self.module.logits.clamp_(-BOUND, BOUND)

    def errors(self, data: tuple[Tensor, Tensor], generator: torch.Generator) -> Tensor:
        """Mean square difference of the full and the routed output for each pair, one image each."""
        images, labels = data
        pairs = len(self._timesteps)
        pick = torch.randint(len(images), (pairs,), generator=generator)
        noise = torch.randn(pairs, *images.shape[1:], generator=generator)
        now, after = (self._signal[:, i, None, None, None] for i in (0, 1))
        classes = torch.cat([labels[pick], torch.full((pairs,), NULL_CLASS)])
        cached: list[Tensor] = []
        with torch.no_grad():
            sample = now.sqrt() * images[pick] + (1 - now).sqrt() * noise
            with mixing(self.adapter, cached, None):
                predicted = self._call(sample, 0, classes)
            conditional, unconditional = predicted.chunk(2)
            guided = unconditional + self._guidance * (conditional - unconditional)
            clean = (sample - (1 - now).sqrt() * guided) / now.sqrt()
            moved = after.sqrt() * clean + (1 - after).sqrt() * guided
            wanted = self._call(moved, 1, classes)
        betas = self.module.logits.sigmoid().repeat(2, 1)
        with mixing(self.adapter, cached, betas):
            routed = self._call(moved, 1, classes)
        return (routed - wanted).square().flatten(1).mean(1).reshape(2, pairs).mean(0)

    def _call(self, sample: Tensor, place: int, classes: Tensor) -> Tensor:
        """The model at the first or second step of every pair, for both guidance branches."""
        doubled, timesteps = torch.cat([sample, sample]), self._timesteps[:, place].repeat(2)
        with sdpa_kernel(SDPBackend.MATH):
            return self.model(doubled, timestep=timesteps, class_labels=classes, return_dict=False)[0]
