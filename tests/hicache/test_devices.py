"""Work for a GPU goes to the GPU of its tensors, and is waited for before the host changes what it reads."""

import contextlib

import pytest
import torch

import hicache
from hicache.forecast import fused
from hicache.generation_report import Stopwatch
from hicache.operators import triton as operators
from hicache.operators.mlp import Layers


class Launches:
    """Stands for compiled kernels: notes the tensor whose device was current at each launch."""

    def __init__(self, monkeypatch):
        self.current, self.seen = None, []
        monkeypatch.setattr(torch.cuda, "device_of", self.device_of)

    @contextlib.contextmanager
    def device_of(self, tensor):
        self.current = tensor
        yield
        self.current = None

    def __getitem__(self, grid):
        return self if isinstance(grid, str) else lambda *args, **kwargs: self.seen.append(self.current)


@pytest.fixture
def launches(monkeypatch):
    return Launches(monkeypatch)


def test_a_sum_over_sites_is_launched_where_its_tensors_are(launches, monkeypatch):
    monkeypatch.setattr(fused, "_kernel", lambda: launches)
    base = torch.zeros(1, 4, 8)
    fused.triton_gated_sum(base, torch.zeros(2, 1, 8), [1.0], [torch.zeros(2, 1, 4, 8)])
    assert len(launches.seen) == 1 and launches.seen[0] is base


def test_sparse_operators_are_launched_where_their_tensors_are(launches, monkeypatch):
    monkeypatch.setattr(operators, "triton_kernels", lambda: launches)
    kernels, x = operators.TritonKernels(), torch.zeros(16, 8)
    columns = torch.zeros(1, 1, 1, 4, dtype=torch.long)
    kernels.attention(*torch.zeros(3, 1, 1, 16, 8), columns, 16, None)
    layers = Layers(torch.zeros(32, 8), None, torch.zeros(8, 32), torch.relu, 0)
    kernels.mlp(x, layers, torch.zeros(16, 32), torch.zeros(16, 8), torch.zeros(1, 32, dtype=torch.long), (4,), 16)
    assert len(launches.seen) == 3 and all(isinstance(each, torch.Tensor) for each in launches.seen)


def test_a_stopwatch_marks_the_stream_of_its_device(monkeypatch):
    class Event:
        def __init__(self, enable_timing):
            self.on = []

        def record(self, stream=None):
            self.on.append(stream)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: device)
    watch = Stopwatch(torch.device("cuda:1"))
    watch.stop()
    assert watch._started.on == watch._stopped.on == [torch.device("cuda:1")]


@pytest.mark.parametrize(("name", "waits"), [("pade", 2), ("hicache", 0)])
def test_a_forecast_in_host_memory_is_not_written_while_the_last_one_is_copied(name, waits, monkeypatch):
    seen = []

    class Stream:
        def synchronize(self):
            seen.append("waited")

    made = hicache.method(name, history_place="cpu", warmup_steps=1).build_forecaster(lead=2)
    for step in range(4):
        made.observe(step, torch.full((1, 1, 2, 4), float(step)))
    made._device = torch.device("cuda:0")  # as if the values had come from there
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream())
    made.coefficients(4), made.coefficients(5)
    assert len(seen) == waits
