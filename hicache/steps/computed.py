"""A computed step: the model's own forward, untouched; its values become an anchor."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from hicache.adapters.base import Call
from hicache.generation import Branch
from hicache.observe import observed
from hicache.steps.setup import Setup

__all__ = ["ComputedStep"]


class ComputedStep:
    """Runs the model; a patch is shown what it needs, and modules are remembered one by one where the method mixes."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup

    def run(self, branch: Branch, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The model's result."""
        setup = self.setup
        if not setup.method.caches:
            return setup.forward(*args, **kwargs)
        with ExitStack() as stack:
            if branch.patch is not None:
                branch.patch.renew()
                stack.enter_context(observed(setup.adapter, branch.patch))
            if setup.method.mixes:
                stack.enter_context(setup.observers.modules(branch))
            return setup.run(branch, call, args, kwargs)
