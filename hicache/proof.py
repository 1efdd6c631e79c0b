r"""Whether an estimated step may leave the model's own forward out.

The fused path re-enacts the model around its blocks: `embed`, gates, `head`. At the first computed step of a branch
everything is at hand to see whether it does so truly: with the values v of that step,

    head(h_in + sum_site gate_site v_site)        must be the model's own result

to rounding, `|a - b| / |b| <= max(1e-4, 4 eps)` in the Euclidean norm with eps of the features' dtype. What reaches
into the blocks from outside breaks it: IP-adapters, ControlNet, a LoRA scale, hooks on modulation layers, weights that
are stored in another type, modules that were replaced. It costs about an estimated step per branch and generation,
which no count of FLOPs includes. Processes that share a model's tokens come to one verdict: what one of them cannot
reproduce, none leaves out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, distributed, nn

from hicache.adapters.base import Call
from hicache.generation import Branch
from hicache.steps.setup import Setup
from hicache.tree import Site
from hicache.typed import vector_norm

__all__ = ["agreed", "disprove", "distance", "in_all_processes", "sharing"]


@torch.no_grad()
def disprove(setup: Setup, branch: Branch, call: Call, result: Any) -> str:
    """Why estimated steps of a branch cannot be fused; "" where they can.

    Args:
        setup: the method on the model.
        branch: whose newest anchor is the step that was just computed.
        call: the arguments of that step.
        result: what the model returned.
    """
    if setup.method.scope in ("output", "span", "front_back"):
        return ""
    wanted = setup.adapter.output(call, result)
    if wanted.is_meta:
        return ""
    try:
        hidden = rebuilt(setup, branch, call)
        found = setup.adapter.output(call, setup.adapter.wrap(call, setup.adapter.head(call, hidden)))
    except Exception as error:  # whatever stands in the way of re-enacting the model
        return (
            f"it cannot be re-enacted ({type(error).__name__}: {str(error).splitlines()[0][:80] if str(error) else ''})"
        )
    return in_all_processes(setup.adapter.model, agreed([found], [wanted], setup.method.knobs.history_dtype))


def sharing(model: nn.Module) -> Any:
    """diffusers' configuration of the processes that share a model's tokens; None where it is whole."""
    return getattr(getattr(model, "_parallel_config", None), "context_parallel_config", None)


def in_all_processes(model: nn.Module, why: str) -> str:
    """A reason of this process, or that another one of those that share the model has one; "" where none has."""
    shared = sharing(model)
    if shared is None:
        return why
    found = torch.tensor(float(bool(why)), device=shared._device)
    distributed.all_reduce(found, distributed.ReduceOp.MAX, group=shared._flattened_mesh.get_group())
    return why or ("another process cannot reproduce its result" if float(found) else "")


def agreed(found: Sequence[Tensor], wanted: Sequence[Tensor], dtype: str | None) -> str:
    """How far results are from those that a model computed; "" where they are the same to rounding.

    Args:
        found: tensors of a result that was put together from its parts.
        wanted: those that the model computed.
        dtype: in which the parts were kept.
    """
    pairs = list(zip(found, wanted, strict=True))
    if any(a.shape != b.shape for a, b in pairs):
        return "its result has another shape"
    error = max((distance(a, b) for a, b in pairs), default=0.0)
    kept = torch.finfo(torch.bfloat16).eps if dtype == "bf16" else 0.0
    eps = max([kept, *(torch.finfo(each.dtype).eps for each in wanted)])
    return "" if error <= max(1e-4, 4 * eps) else f"its parts do not add up to its result (off by {error:.1e})"


def rebuilt(setup: Setup, branch: Branch, call: Call) -> Tensor:
    """The hidden state after the last block, from the values of the newest anchor."""
    adapter, scope = setup.adapter, setup.method.scope
    if scope == "final_hidden":
        return newest(branch, 0, call)
    hidden = adapter.embed(call)
    if scope != "modules":
        for index in range(len(setup.sites)):
            hidden = hidden + newest(branch, index, call)
        return hidden
    modules, gates = adapter.gated(), adapter.gates(call, hidden)
    values = [module_value(setup, branch, index, call) for index in range(len(modules))]
    places = {module.image_site: value for module, value in zip(modules, values, strict=True)}

    def value_of(site: Site) -> Tensor:
        return places[site]

    hidden = adapter.live(call, hidden, value_of)
    for gate, value in zip(gates, values, strict=True):
        hidden = hidden + gate[:, None] * value
    return hidden


def newest(branch: Branch, index: int, call: Call) -> Tensor:
    """The newest value of a site of the scope, where the call's tensors are."""
    device = next(value.device for value in call.values() if isinstance(value, Tensor))
    return branch.forecaster.newest(index).to(device)


def module_value(setup: Setup, branch: Branch, index: int, call: Call) -> Tensor:
    """The newest image rows of a gated module."""
    if not setup.by_module:
        return newest(branch, index, call)
    module = setup.adapter.gated()[index]
    value = branch.histories.newest(module.site).to(next(v.device for v in call.values() if isinstance(v, Tensor)))
    return value[:, setup.adapter.rows("img")] if module.site.stream == "joint" else value


def distance(found: Tensor, wanted: Tensor) -> float:
    """`|found - wanted| / |wanted|` in float32."""
    found, wanted = found.float(), wanted.float()
    return float(vector_norm(found - wanted) / vector_norm(wanted).clamp(min=1e-30))
