"""Random pipelines of the published classes, built in memory without a download.

`build("tiny")` takes a second and makes small pictures of noise: the tests and `backend.size=tiny` run on it.
`build("full")` has the transformer and VAE of the published size, for measuring speed and memory, which do
not depend on the values of weights; its text encoders keep their width and lose their depth.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

__all__ = ["SEED", "image_vae", "random_weights"]

SEED = 0


def image_vae(**options: Any) -> dict[str, Any]:
    """Arguments of an `AutoencoderKL` with one level per entry of `block_out_channels`."""
    levels = len(options["block_out_channels"])
    kinds = {"down_block_types": "DownEncoderBlock2D", "up_block_types": "UpDecoderBlock2D"}
    return {**options, **{key: (kind,) * levels for key, kind in kinds.items()}}


@contextmanager
def random_weights(dtype: torch.dtype, device: str) -> Iterator[None]:
    """Models built inside have random weights of `dtype` on `device`, the same in every process."""
    before = torch.get_default_dtype()
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(SEED)
        torch.set_default_dtype(dtype)
        try:
            yield
        finally:
            torch.set_default_dtype(before)
