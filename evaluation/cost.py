"""What a generation costs: seconds, FLOPs, memory.

- `latency`: wall-clock seconds of a call after warm-up calls, the device synchronised before and after
  each; median and quartiles of at least five repetitions. Time the denoising loop alone and say on which
  device.
- `count_flops`: floating-point operations of matrix products, convolutions and attention in one call, two per
  multiply-add, by torch's dispatcher; element-wise work is not counted, nor is what runs inside custom
  kernels.
- `peak_memory`: most CUDA bytes allocated during a call. `tensor_bytes`: bytes of all distinct tensors in
  nested containers, storages shared by views counted once: the size of a cache.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Latency", "count_flops", "device_name", "latency", "peak_memory", "tensor_bytes"]


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Seconds per call."""

    median: float
    q1: float
    q3: float
    n: int
    device: str


def _synchronise(device: str) -> None:
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize(device)


def device_name(device: str) -> str:
    """The accelerator's product name, or the processor architecture."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.get_device_name(device)
    return platform.processor() or platform.machine()


def latency(call: Callable[[], object], device: str = "cpu", warmup: int = 2, repeats: int = 5) -> Latency:
    """Time `call`; warm-up calls are not counted."""
    if repeats < 5:
        raise ValueError(f"repeats: must be at least 5, got {repeats}")
    if warmup < 1:
        raise ValueError(f"warmup: must be at least 1, got {warmup}")
    for _ in range(warmup):
        call()
    seconds: list[float] = []
    for _ in range(repeats):
        _synchronise(device)
        start = time.perf_counter()
        call()
        _synchronise(device)
        seconds.append(time.perf_counter() - start)
    q1, median, q3 = statistics.quantiles(seconds, n=4, method="inclusive")
    return Latency(median=median, q1=q1, q3=q3, n=repeats, device=device_name(device))


def count_flops(call: Callable[[], object]) -> int:
    """Operations of one call; run it on the meta device to count without computing."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())


def peak_memory(call: Callable[[], object], device: str) -> int:
    """Most bytes allocated on a CUDA device during `call`, what was there before included."""
    import torch

    if not device.startswith("cuda"):
        raise ValueError(f"device: peak memory is measured on CUDA devices, got {device!r}")
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device)


def tensor_bytes(container: Any) -> int:
    """Bytes of the storages under all tensors in nested mappings and sequences."""
    storages: dict[tuple[str, int], int] = {}
    for tensor in _tensors(container):
        storage = tensor.untyped_storage()
        storages[(str(tensor.device), storage.data_ptr())] = storage.nbytes()
    return sum(storages.values())


def _tensors(container: Any) -> Iterable[Any]:
    import torch

    if isinstance(container, torch.Tensor):
        yield container
    elif isinstance(container, Mapping):
        for value in container.values():
            yield from _tensors(value)
    elif isinstance(container, (list, tuple, set, frozenset)):
        for value in container:
            yield from _tensors(value)
    elif container is not None and not isinstance(container, (int, float, str, bool)):
        raise TypeError(f"tensor_bytes: containers, tensors and plain values are understood, got {type(container)}")
