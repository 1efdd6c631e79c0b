"""What a run is timed with: the budget, where the numbers come from, and what asks for more."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from experiments.config.metrics import MetricsConfig
from experiments.errors import ConfigError
from experiments.runs import timing as module
from experiments.runs.timing import timing


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch):
    monkeypatch.setattr(module, "measured", {})


def records(batches: int, size: int, seconds: float, full: int = 2) -> list[dict[str, Any]]:
    """Batches of which the first was slower."""
    return [
        {"batch": b, "batch_size": size, "batch_seconds": seconds * (1 + (b == 0)), "full_steps": [*range(full)]}
        for b in range(batches)
        for _ in range(size)
    ]


def example(batches: int, size: int, **metrics: Any) -> tuple[Any, list[Any], Any]:
    """A run of 10 steps, the list of what is timed, and what times it: 1 s the method, 4 s the reference."""
    config = MetricsConfig(names=[], **{"latency_batch": 2, **metrics})
    common = {"settings": SimpleNamespace(metrics=config, backend=SimpleNamespace(device="cpu")),
              "items": [None] * batches * size, "sampling": SimpleNamespace(num_steps=10)}  # fmt: skip
    reference = SimpleNamespace(id="r", reference=None, **common)
    run = SimpleNamespace(id="m", reference=reference, **common)
    calls: list[Any] = []

    def timed(candidate: Any) -> float:
        calls.append(candidate.id)
        return 1.0 if candidate is run else 4.0

    return run, calls, timed


def test_a_short_run_is_not_generated_again():
    run, calls, timed = example(5, 2)
    found = timing(run, records(5, 2, 1.0), records(3, 4, 6.0, full=10), timed)
    assert calls == []
    assert found["latency"] == {"median": 1.0, "q25": 1.0, "q75": 1.0, "n": 4, "batch": 2}
    assert found["reference_latency"]["batch"] == 4 and found["wall_speedup"] == pytest.approx(3.0)


def test_times_of_another_machine_are_not_compared():
    run, _, timed = example(5, 2)
    assert set(timing(run, records(5, 2, 1.0), None, timed)) == {"latency"}


def test_a_long_run_is_repeated_within_a_tenth():
    run, calls, timed = example(200, 2)
    found = timing(run, records(200, 2, 1.0), None, timed)
    assert calls == ["m", "r"] * 3 and found["latency"]["n"] == 2  # 20.1 s allow 3 rounds of 1 + 5 s
    assert found["wall_speedup"] == 4.0


def test_a_reference_is_timed_once_a_process():
    run, calls, timed = example(200, 2)
    timing(run, records(200, 2, 1.0), None, timed)
    calls.clear()
    assert timing(run, records(200, 2, 1.0), None, timed)["wall_speedup"] == 4.0
    assert calls == ["m"] * 4


def test_full_and_none_are_what_was_asked():
    run, calls, timed = example(5, 2, timing="full", latency_repeats=2)
    assert timing(run, records(5, 2, 1.0), None, timed)["wall_speedup"] == 4.0
    assert calls == ["m", "r"] * 3
    run, calls, timed = example(200, 2, timing=False)
    assert timing(run, records(200, 2, 1.0), None, timed) == {} and calls == []


def test_a_run_without_a_reference_is_its_own():
    run, _, timed = example(5, 2)
    assert timing(run.reference, records(5, 2, 1.0), None, timed)["wall_speedup"] == 1.0


@pytest.mark.parametrize("value", [True, 0, None, "fast", "False"])
def test_other_words_are_refused(value):
    with pytest.raises(ConfigError, match=r"metrics.timing: must be one of false, quick, full, got"):
        MetricsConfig(names=[], timing=value)
