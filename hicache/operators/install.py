"""Chipmunk on a model: the forwards of its attentions and MLPs are exchanged, and put back exactly.

Modules stay where they are, so hooks that a cache has on them, or will have, see what they are to see. Attention keeps
its projections, norms and positions: only the call of PyTorch's `scaled_dot_product_attention` inside it is taken over.
A single block of FLUX opens and fuses its MLP in layers of its own; there `proj_mlp` and `act_mlp` hand their input on
and `proj_out`, which then sees attention and tokens side by side, does the rest. Dense steps give what the model gives,
bit for bit.

State is kept per module and branch, forgotten when a generation begins.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hicache.adapters.base import Adapter
from hicache.adapters.modules import Module, compiled
from hicache.operators.attention import AttentionState, attend
from hicache.operators.chipmunk import Chipmunk
from hicache.operators.kernels import Kernels
from hicache.operators.mlp import Layers, MlpState, correct, renew
from hicache.operators.order import hooked
from hicache.operators.providers import kernels_of

__all__ = ["FAMILIES", "Operators", "sparse_modules"]

FAMILIES = ("flux",)
"""Model families whose blocks are laid out as this module expects."""


class Operators:
    """Chipmunk installed on one model; see the module docstring.

    Args:
        adapter: of the model.
        config: densities, groups, schedule, provider.
        now: the generation under way, as an object of its own, and the branch of the call; by default there is one
            of either until `reset`.
    """

    def __init__(
        self, adapter: Adapter, config: Chipmunk, now: Callable[[], tuple[object, str]] = lambda: (None, "")
    ) -> None:
        self.adapter, self.config, self.now = adapter, config, now
        self._generation: object = None
        check_model(adapter)
        parameter = next(adapter.model.parameters())
        width = int(adapter.model.config.attention_head_dim)
        self.kernels: Kernels = kernels_of(config, parameter.device, parameter.dtype, width)
        self._attentions: dict[tuple[int, str], AttentionState] = {}
        self._mlps: dict[tuple[int, str], MlpState] = {}
        self._patched: list[tuple[nn.Module, Callable[..., Any], Any]] = []
        self._hooks = [] if config.order is None else hooked(adapter.model, adapter.bind, config.order)
        for module in sparse_modules(adapter, config):
            self._exchange(module)

    # -- life --------------------------------------------------------------------------------------------------

    def branch(self) -> str:
        """The branch of the call under way; what the last generation left is dropped first."""
        generation, branch = self.now()
        if generation is not self._generation:
            self.reset()
            self._generation = generation
        return branch

    def reset(self) -> None:
        """A generation begins: forget everything."""
        self._attentions, self._mlps = {}, {}

    def remove(self) -> None:
        """Put the model's own operators back and drop the state. A second call does nothing."""
        for module, ours, before in reversed(self._patched):
            slots = vars(module)
            if slots.get("forward") is ours:
                del slots["forward"]
                if before is not None:
                    slots["forward"] = before
        for hook in self._hooks:
            hook.remove()
        self._patched, self._hooks = [], []
        self.reset()

    @property
    def bytes(self) -> int:
        """Memory of the state of all branches."""
        return sum(state.bytes for state in (*self._attentions.values(), *self._mlps.values()))

    @property
    def facts(self) -> dict[str, Any]:
        """What ran in the generation under way: see `hicache.Report.operators`."""
        self.branch()
        kept = [
            s.columns.shape[-1] / s.rest.shape[-2]
            for s in self._attentions.values()
            if s.columns is not None and s.rest is not None
        ]
        shares = [share for state in self._mlps.values() for share in state.density or []]
        states = [*self._attentions.items(), *self._mlps.items()]
        first = states[0][0][1] if states else ""
        return {
            "name": "chipmunk",
            "provider": self.kernels.name,
            "attention": statistics.mean(kept) if kept else None,
            "mlp": statistics.mean(shares) if shares else None,
            "executed": max((s.executed + 1 for (_, branch), s in states if branch == first), default=0),
            "bytes": self.bytes,
        }

    # -- the exchange ------------------------------------------------------------------------------------------

    def _exchange(self, module: Module) -> None:
        """Give a module its new forward."""
        layer, inner = module.site.layer, module.module
        block: Any = self.adapter.blocks()[layer]
        if module.site.module == "attn":
            return self._patch(inner, self._attention(layer, inner))
        if module.up is None:
            return self._patch(inner, self._mlp(layer, inner))
        self._patch(block.proj_out, self._fused(layer, block))
        for name in ("proj_mlp", "act_mlp"):
            self._patch(getattr(block, name), handed_on)
        return None

    def _patch(self, module: nn.Module, ours: Callable[..., Any]) -> None:
        slots = vars(module)
        self._patched.append((module, ours, slots.get("forward")))
        slots["forward"] = ours

    def _attention(self, layer: int, module: nn.Module) -> Callable[..., Any]:
        """The attention's forward with its innermost call taken over."""
        original = module.forward

        def sparse(query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
            branch = self.branch()
            state = self._attentions.setdefault((layer, branch), AttentionState())
            return attend(state, query, key, value, self.config, self.kernels, scale)

        def forward(*args: Any, **kwargs: Any) -> Any:
            with AttentionMode(sparse) as mode:
                output = original(*args, **kwargs)
            if not mode.seen:
                raise ValueError(
                    "operators: chipmunk needs PyTorch's own attention, which this attention backend does not call"
                )
            return output

        return forward

    def _state(self, layer: int, x: Tensor) -> MlpState:
        """The state of an MLP at its next executed step."""
        check_tokens(x, self.config)
        branch = self.branch()
        state = self._mlps.setdefault((layer, branch), MlpState())
        state.executed += 1
        return state

    def _mlp(self, layer: int, module: Any) -> Callable[..., Any]:
        """The forward of a double block's MLP."""
        original, opening, closing = module.forward, module.net[0], module.net[2]

        def act(x: Tensor) -> Tensor:
            return F.gelu(x, approximate=opening.approximate)

        @torch.no_grad()
        def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            state = self._state(layer, x)
            layers = Layers(opening.proj.weight, opening.proj.bias, closing.weight, act, layer)
            if not self.config.mlp_dense(state.executed):
                return correct(state, x[0], layers, self.config, self.kernels)[None]
            seen: list[Tensor] = []

            def keep(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
                seen.append(inputs[0][0])

            hook = closing.register_forward_pre_hook(keep)
            try:
                output = original(x, *args, **kwargs)
            finally:
                hook.remove()
            renew(state, x[0], seen[0].clone(), output[0].clone(), layers, self.config)
            return output

        return forward

    def _fused(self, layer: int, block: Any) -> Callable[..., Any]:
        """The forward of a single block's output projection, given attention and tokens side by side."""
        original, up, act, width = (
            block.proj_out.forward,
            block.proj_mlp,
            block.act_mlp.forward,
            block.proj_out.out_features,
        )

        @torch.no_grad()
        def forward(joined: Tensor) -> Tensor:
            attention, x = joined[..., :width], joined[..., width:]
            state, weight = self._state(layer, x), block.proj_out.weight
            projected = F.linear(attention, weight[:, :width])
            layers = Layers(up.weight, up.bias, weight[:, width:], act, layer)
            if not self.config.mlp_dense(state.executed):
                return projected + correct(state, x[0], layers, self.config, self.kernels)[None]
            hidden = act(F.linear(x, up.weight, up.bias))
            output = original(torch.cat([attention, hidden], dim=2))
            renew(state, x[0], hidden[0], (output - projected)[0], layers, self.config)
            return output

        return forward


def handed_on(x: Tensor) -> Tensor:
    """The forward of a layer whose work is done elsewhere."""
    return x


class AttentionMode(TorchFunctionMode):
    """Inside, calls of `scaled_dot_product_attention` are answered by `sparse`."""

    def __init__(self, sparse: Callable[[Tensor, Tensor, Tensor, float | None], Tensor]) -> None:
        super().__init__()
        self.sparse, self.seen = sparse, False

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        given = dict(kwargs or {})
        if func is not F.scaled_dot_product_attention:
            return func(*args, **given)
        names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale")
        given |= dict(zip(names, args, strict=False))
        if given.get("attn_mask") is not None or given.get("is_causal"):
            raise ValueError("operators: must be none for attention with a mask, which chipmunk's columns do not know")
        self.seen = True
        return self.sparse(given["query"], given["key"], given["value"], given.get("scale"))


def sparse_modules(adapter: Adapter, config: Chipmunk) -> list[Module]:
    """The modules that the configuration makes sparse: text MLPs and the first layers stay dense."""
    found: list[Module] = []
    for module in adapter.modules():
        share = config.attention if module.site.module == "attn" else config.mlp
        if share is not None and module.site.layer >= config.dense_layers and module.site.stream != "txt":
            found.append(module)
    return found


def check_model(adapter: Adapter) -> None:
    """What these operators cannot do with a model, in one line.

    Raises:
        ValueError: for other families, compiled blocks, and layers that something else has wrapped.
    """
    kind = type(adapter.model).__name__
    if adapter.family not in FAMILIES:
        raise ValueError(f"operators: chipmunk knows the blocks of {', '.join(FAMILIES)}, got {kind}")
    for block in adapter.blocks():
        if compiled(block):
            raise ValueError("operators: must be none for compiled blocks, in which nothing can be exchanged")
        for module in block.modules():
            if hasattr(module, "_hf_hook"):
                raise ValueError("operators: must be none with sequential offload, which moves weights at every call")
            if hasattr(module, "base_layer") or (
                hasattr(module, "weight")
                and type(module).__name__.startswith("Linear")
                and type(module) is not nn.Linear
            ):
                raise ValueError(f"operators: chipmunk needs plain linear layers, got {type(module).__name__}")


def check_tokens(x: Tensor, config: Chipmunk) -> None:
    """Whether the tokens `[B, N, C]` of an MLP are of one sample and fill its groups."""
    batch, tokens = x.shape[:2]
    if batch != 1:
        raise ValueError(f"batch_size: must be 1 for chipmunk's MLPs (operators.mlp=null has none), got {batch}")
    if tokens % config.token_group:
        rule = f"must be a multiple of {config.token_group} (operators.token_group)"
        raise ValueError(f"tokens of an MLP: {rule}, got {tokens}")
