r"""What a patch sees of a computed step: a score for every token from the attention of its block, and hidden states.

Attention scores are column means of the attention map, `s_i = mean over heads h and queries q of A_h[q, i]`. The
map is never stored: it is computed again beside the model's own kernel in chunks of queries of at most 64 MiB,
which doubles the arithmetic of attention at these steps. Masked tokens neither receive a score nor give one.
The call that is looked at is PyTorch's `scaled_dot_product_attention`; another attention backend never makes it, which
is an error rather than a silent guess. Compiled blocks run uncompiled while they are looked at.

Key scores are `-mean over heads |k_i|`, of the key projection before any normalisation (after it, all keys of a
model with QK normalisation have nearly the same norm); they work with every backend.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hicache.adapters.base import Adapter
from hicache.adapters.hooks import eager, see_hooks
from hicache.adapters.modules import Module, compiled, replaced
from hicache.generic.stubs import uncompiled
from hicache.patch import Patch
from hicache.typed import vector_norm

__all__ = ["attention_scores", "observed"]

CHUNK = 2**24
"""Values of the attention map that are held at once."""


@contextmanager
def observed(adapter: Adapter, patch: Patch) -> Generator[None]:
    """Inside, the model's forward shows `patch` what it needs."""
    patch.valid = {stream: adapter.valid(stream) for stream in ("img", "txt", "joint")}
    if not patch.needs:
        yield
        return
    with ExitStack() as stack:
        if patch.needs == "hidden":
            stack.callback(hidden_hook(adapter, patch).remove)
        else:
            modules = [module for module in adapter.modules() if module.site.module == "attn"]
            watch = keyed if patch.needs == "keys" else attended
            stack.enter_context(uncompiled(adapter.blocks()))
            stack.enter_context(replaced([(module.module, watch(module, adapter, patch)) for module in modules]))
        yield


def hidden_hook(adapter: Adapter, patch: Patch) -> Any:
    """A hook that shows the streams after the block by which tokens are told apart."""

    @eager
    @torch.no_grad()
    def leave(module: nn.Module, args: tuple[Any, ...], result: Any) -> None:
        image, text = adapter.unpack(result)
        patch.see_hidden("img", image)
        if text is not None:
            patch.see_hidden("txt", text)

    if any(compiled(block) for block in adapter.blocks()):
        see_hooks()
    return adapter.blocks()[adapter.featured_block].register_forward_hook(leave)


def show(module: Module, adapter: Adapter, patch: Patch, scores: Tensor) -> None:
    """Hand the joint scores of a block's attention to the streams of its other modules."""
    for stream in ("img", "txt", "joint"):
        patch.see_scores(module.site.layer, stream, scores[:, adapter.rows(stream)])


def attended(module: Module, adapter: Adapter, patch: Patch) -> Callable[..., Any]:
    """The attention's forward, which also shows its scores."""
    original = module.module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        with ScoreMode() as mode:
            output = original(*args, **kwargs)
        if mode.scores is None:
            raise ValueError(
                "select: attention needs PyTorch's own attention, which this attention backend does not call; "
                "must be keys or random"
            )
        show(module, adapter, patch, mode.scores)
        return output

    return forward


def keyed(module: Module, adapter: Adapter, patch: Patch) -> Callable[..., Any]:
    """The attention's forward, which also shows its keys' norms."""
    attention: Any = module.module
    original, heads = attention.forward, attention.heads

    def forward(*args: Any, **kwargs: Any) -> Any:
        found: dict[str, Tensor] = {}
        layers = {"img": getattr(attention, "to_k", None), "txt": getattr(attention, "add_k_proj", None)}
        if layers["img"] is None:
            raise ValueError(f"select: keys needs a separate key projection, which {type(attention).__name__} lacks")

        def keep(name: str, _module: nn.Module, _inputs: Any, key: Tensor) -> None:
            found[name] = key

        hooks = [
            layer.register_forward_hook(functools.partial(keep, name))
            for name, layer in layers.items()
            if layer is not None
        ]
        try:
            output = original(*args, **kwargs)
        finally:
            for hook in hooks:
                hook.remove()
        keys = found["img"]
        if "txt" in found:
            keys = torch.cat([found["txt"], keys] if adapter.rows("txt").start == 0 else [keys, found["txt"]], dim=1)
        norms = vector_norm(torch.unflatten(keys.detach().float(), -1, (heads, -1)), dim=-1)
        show(module, adapter, patch, -norms.mean(-1))
        return output

    return forward


class ScoreMode(TorchFunctionMode):
    """Inside, calls of `scaled_dot_product_attention` leave the scores of their keys in `scores`."""

    scores: Tensor | None = None

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            with torch.no_grad(), torch._C.DisableTorchFunction():  # pyright: ignore[reportPrivateUsage]
                self.scores = attention_scores(*args, **kwargs)
        return func(*args, **kwargs)


def attention_scores(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Mean attention that every token receives, `[B, n]`, from queries and keys `[B, H, n, d]`.

    The arguments are those of `scaled_dot_product_attention`; dropout is left out.

    Raises:
        ValueError: for causal attention, and for keys with fewer heads than queries.
    """
    if is_causal or key.shape[1] != query.shape[1]:
        kind = "causal attention" if is_causal else f"{key.shape[1]} key heads for {query.shape[1]} query heads"
        raise ValueError(f"select: attention needs full attention with a key head for each query head, got {kind}")
    batch, heads, tokens, width = query.shape
    factor = width**-0.5 if scale is None else scale
    chunk = max(1, CHUNK // (batch * heads * key.shape[2]))
    valid = query_mask(attn_mask, batch, tokens, query.device)
    total = torch.zeros(batch, key.shape[2], device=query.device)
    for start in range(0, tokens, chunk):
        part = slice(start, start + chunk)
        logits = (query[:, :, part] @ key.transpose(-1, -2)).float() * factor
        if attn_mask is not None:
            mask = attn_mask if attn_mask.shape[-2] == 1 else attn_mask[..., part, :]
            logits = logits.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else logits + mask
        received = torch.nan_to_num(logits.softmax(-1)) * valid[:, None, part, None]
        total += received.sum((1, 2))
    return total / (heads * valid.sum(1, keepdim=True))


def query_mask(mask: Tensor | None, batch: int, tokens: int, device: torch.device) -> Tensor:
    """Which tokens are not padding, `[B, n]` of zeros and ones; a masked key is taken to be a masked query too."""
    if mask is None:
        return torch.ones(batch, tokens, device=device)
    seen = mask if mask.dtype == torch.bool else mask == 0
    return seen.any(1).any(1).expand(batch, -1).float() if seen.dim() == 4 else seen.expand(batch, -1).float()
