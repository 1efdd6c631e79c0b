"""What is seen of a model without an adapter: the features of its scopes, and its modules one by one."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor, nn

from hicache.adapters.modules import replaced
from hicache.generic import Tap, flatten
from hicache.generic.blocks import flat_blocks
from hicache.generic.gated import GatedTap
from hicache.generic.modules_tap import ModulesTap
from hicache.policy.scheduled import kind_of
from hicache.steps.tapped_modules import site_of

__all__ = ["FeatureTaps", "first_tensor", "fused_from", "watch_modules"]

Keep = Callable[[str, Tensor], None]
"""`(site, value)` of what is seen."""


class FeatureTaps:
    """Hands on the features of scopes, call by call; those of a scope with several have numbers before its name."""

    def __init__(self, model: nn.Module, scopes: Sequence[str], keep: Keep) -> None:
        self.model, self.keep = model, keep
        self.taps = {scope: tap_of(model, scope) for scope in scopes}

    def see(self, call: Callable[[], Any]) -> Any:
        """The result of a call of the model, whose features are handed on."""
        for scope in self.taps:
            call = functools.partial(self._seen, scope, call)
        return call()

    def _seen(self, scope: str, call: Callable[[], Any]) -> Any:
        result, features, *_ = self.taps[scope].compute(call)
        for index, feature in enumerate(features):
            self.keep(scope if len(features) == 1 else f"{index}.{scope}", feature)
        return result

    def watching(self) -> AbstractContextManager[None]:
        """Inside, every call of the model is seen."""
        own = self.model.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            return self.see(functools.partial(own, *args, **kwargs))

        return replaced([(self.model, forward)])


def tap_of(model: nn.Module, scope: str) -> Tap | GatedTap:
    """What a method sees of the model at a scope, so that its sites are those of a plan."""
    return GatedTap(model) if scope == "modules" and GatedTap.has(model) else Tap(model, scope)


def first_tensor(value: Any) -> Tensor:
    """The first tensor of what a module takes or returns."""
    return flatten(value)[0][0]


def watch_modules(model: nn.Module, keep: Keep) -> list[Any]:
    """Hooks that hand on what every attention and feed-forward module returns, as `kind/layer`."""
    hooks = []
    for layer, block in enumerate(flat_blocks(model)):
        for name, feeds in ModulesTap.named(block).items():
            label = f"{kind_of(site_of(layer, name))}/{layer}"

            def seen(_: nn.Module, args: Any, result: Any, label: str = label) -> None:
                del args
                keep(label, first_tensor(result))

            if not feeds:
                hooks.append(block.get_submodule(name).register_forward_hook(seen))
    return hooks


def fused_from(model: nn.Module) -> int | None:
    """The first layer whose attention and MLP are fused in one projection."""
    return next((i for i, block in enumerate(flat_blocks(model)) if ModulesTap.joint(block)), None)
