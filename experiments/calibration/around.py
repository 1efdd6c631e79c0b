"""What stands around a run that is watched or changed: at its scheduler's steps, and before its model's calls."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from torch import nn

from hicache.adapters.base import Adapter
from hicache.adapters.modules import replaced

__all__ = ["Step", "bind_hook", "stepping"]

Step = Callable[..., Any]
"""A scheduler's `step`."""


def stepping(scheduler: Any, around: Callable[..., Any]) -> AbstractContextManager[None]:
    """Inside, `around(step, *args, **kwargs)` makes every step of a scheduler; `step` is the scheduler's own."""
    return replaced([(scheduler, functools.partial(around, scheduler.step))], "step")


def bind_hook(adapter: Adapter, model: nn.Module) -> Any:
    """A hook by which an adapter learns the sizes of a call before its modules are seen."""

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        adapter.bind(args, kwargs)

    return model.register_forward_pre_hook(before, with_kwargs=True)
