r"""FLOPs that sparse operators save, from shapes and the executed plan.

Per module and executed step, 2 per multiply-add, with n tokens, width C, F hidden units (FLUX at 1024 x 1024: 4608 and,
for the MLPs of double blocks, 4096 tokens):

    attention, sparse    4 n^2 C (1 - t / n)                    t keys a group, of n
    MLP, sparse          4 n C F (1 - f / F)                    f hidden units a group, of F
    MLP, choosing        - 2 (n / 128) C F                      the pre-activations of the groups' means

What a dense step keeps and chooses by is at hand in the original kernels and not counted; the element-wise work of the
deltas is not either. `f` is expected (`Chipmunk.hidden`) unless a run's own share is given.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hicache.adapters.base import Adapter
from hicache.adapters.modules import Module
from hicache.operators.chipmunk import Chipmunk
from hicache.operators.install import sparse_modules

__all__ = ["saved", "saved_by"]


def saved(
    adapter: Adapter,
    config: Chipmunk,
    call: dict[str, Any],
    executions: Callable[[Module], int],
    mlp_share: float | None = None,
) -> float:
    """FLOPs that the operators save in a run.

    Args:
        adapter: of the model, on any device.
        config: the operators.
        call: the arguments of one model call.
        executions: how many times a module runs.
        mlp_share: share of the hidden units that sparse steps recomputed; None = the expected one.
    """
    counted: dict[tuple[str, str, int], float] = {}
    total = 0.0
    for module in sparse_modules(adapter, config):
        times = executions(module)
        key = (module.site.module, module.site.stream, times)
        if key not in counted:
            steps = (saved_by(adapter, config, call, module, executed, mlp_share) for executed in range(times))
            counted[key] = sum(steps)
        total += counted[key]
    return total


def saved_by(
    adapter: Adapter,
    config: Chipmunk,
    call: dict[str, Any],
    module: Module,
    executed: int,
    mlp_share: float | None = None,
) -> float:
    """FLOPs that one module saves at its executed step."""
    batch, image = call["hidden_states"].shape[:2]
    joint = image + call["encoder_hidden_states"].shape[1]
    layer: Any = module.module
    if module.site.module == "attn":
        if config.attention_dense(executed):
            return 0.0
        return 4.0 * batch * joint * (joint - config.keys(joint)) * layer.inner_dim
    if config.mlp_dense(executed):
        return 0.0
    opening: Any = layer.net[0].proj if module.up is None else module.up
    tokens, width, units = (image if module.up is None else joint), opening.in_features, opening.out_features
    kept = config.hidden(units) if mlp_share is None else mlp_share * units
    groups = tokens / config.token_group if config.mlp_chooses(executed) else 0.0
    return batch * width * (4.0 * tokens * (units - kept) - 2.0 * groups * units)
