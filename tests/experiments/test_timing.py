"""What a run is timed with: the budget, rounds in turn or no ratio, and what asks for more. No test looks at a clock."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from experiments.config.metrics import MetricsConfig
from experiments.errors import ConfigError
from experiments.runs.timing import SHARE, has_times, timing


def records(batches: int, size: int, seconds: float, full: int = 2) -> list[dict[str, Any]]:
    """Batches of which the first was slower."""
    return [
        {"batch": b, "batch_size": size, "batch_seconds": seconds * (1 + (b == 0)), "full_steps": [*range(full)]}
        for b in range(batches)
        for _ in range(size)
    ]


class Machine:
    """A run of 10 steps, its reference, and what times them: an item takes 0.5 s, of the reference 2 s, times the load.

    The load of the machine changes from round to round, as `loads` say.
    """

    def __init__(self, *loads: float, **metrics: Any) -> None:
        config = MetricsConfig(names=[], **{"latency_batch": 2, **metrics})
        common = {"settings": SimpleNamespace(metrics=config), "items": [None] * 400,
                  "sampling": SimpleNamespace(num_steps=10)}  # fmt: skip
        self.reference: Any = SimpleNamespace(id="r", reference=None, **common)
        self.run: Any = SimpleNamespace(id="m", reference=self.reference, **common)
        self.loads = loads or (1.0,)
        self.calls: list[str] = []
        self.seconds: list[float] = []

    def timed(self, candidate: Any, count: int) -> float:
        load = self.loads[min(len(self.calls) // 2, len(self.loads) - 1)]
        self.calls.append(candidate.id)
        self.seconds.append(count * load * (0.5 if candidate is self.run else 2.0))
        return self.seconds[-1]


def test_a_short_run_has_no_ratio_and_is_not_generated_again():
    machine = Machine()
    found = timing(machine.run, records(5, 2, 1.0), machine.timed)
    assert machine.calls == []
    assert found == {"latency": {"median": 1.0, "q25": 1.0, "q75": 1.0, "n": 4, "batch": 2}}


def test_a_long_run_is_timed_in_turn_within_a_tenth():
    machine = Machine()
    made = records(40, 2, 1.0)  # 41 s allow one round of 0.5 + 2.5 s
    assert set(timing(machine.run, made, machine.timed)) == {"latency"} and machine.calls == []
    made = records(100, 2, 1.0)  # 101 s allow four of 2.5 s, of which the first is the warm-up
    found = timing(machine.run, made, machine.timed)
    assert machine.calls == ["m", "r"] * 4 and sum(machine.seconds) <= 0.1 * 101
    assert (found["latency"]["n"], found["latency"]["batch"], found["wall_speedup"]) == (3, 1, 4.0)
    assert found["wall_speedup_range"] == [4.0, 4.0] and found["timing"] == "quick"


@pytest.mark.parametrize("option", ["quick", "full"])
def test_a_change_of_load_between_rounds_changes_no_ratio(option):
    machine = Machine(1.0, 5.0, 0.2, 3.0, timing=option)
    found = timing(machine.run, records(400, 2, 1.0), machine.timed)
    assert found["wall_speedup"] == pytest.approx(4.0) and found["wall_speedup_range"] == pytest.approx([4.0, 4.0])


def test_the_range_tells_of_a_change_within_a_round():
    machine = Machine(latency_warmup=0)
    steady, times = machine.timed, iter([1.0, 3.0, 2.0])
    machine.timed = lambda candidate, count: steady(candidate, count) * (next(times) if candidate.id == "r" else 1)
    found = timing(machine.run, records(400, 2, 1.0), machine.timed)
    assert found["wall_speedup"] == 8.0 and found["wall_speedup_range"] == [4.0, 12.0]


@pytest.mark.parametrize("load", [1.0, 1.5, 2.0, 4.0, 9.0, 25.0])
@pytest.mark.parametrize("batches", [30, 50, 100, 400])
def test_never_more_than_a_tenth_whatever_an_item_costs_alone(load, batches):
    """An item alone may take several times its share of a batch; of such, one is generated to see it."""
    machine = Machine(load)
    made = records(batches, 2, 1.0)
    found = timing(machine.run, made, machine.timed)
    counted = machine.seconds if len(machine.seconds) > 1 else []
    assert sum(counted) <= SHARE * (batches + 1)
    assert ("wall_speedup" in found) == (machine.calls.count("r") >= 2)


def test_full_and_none_are_what_was_asked():
    machine = Machine(timing="full", latency_repeats=2)
    found = timing(machine.run, records(5, 2, 1.0), machine.timed)
    assert machine.calls == ["m", "r"] * 3
    assert (found["latency"]["n"], found["latency"]["batch"], found["wall_speedup"]) == (2, 2, 4.0)
    machine = Machine(timing=False)
    assert timing(machine.run, records(200, 2, 1.0), machine.timed) == {} and machine.calls == []


def test_a_run_without_a_reference_is_its_own():
    machine = Machine(timing="full")
    found = timing(machine.reference, records(5, 2, 1.0), machine.timed)
    assert found["wall_speedup"] == 1.0 and found["latency"]["n"] == 4 and machine.calls == []


@pytest.mark.parametrize(
    ("option", "metrics", "has"),
    [
        ("quick", {"reference": "r", "latency": {"n": 4}}, True),
        ("full", {"reference": "r", "latency": {"n": 4}}, False),
        ("full", {"reference": "r", "timing": "quick", "wall_speedup": 4.0}, False),
        ("full", {"reference": "r", "timing": "full", "wall_speedup": 4.0}, True),
        ("full", {"reference": None, "latency": {"n": 4}}, True),
        (False, {"reference": "r"}, True),
    ],
)
def test_full_times_of_a_finished_run_are_taken_once(option, metrics, has):
    assert has_times(MetricsConfig(names=[], timing=option), metrics) is has


@pytest.mark.parametrize("value", [True, 0, None, "fast", "False"])
def test_other_words_are_refused(value):
    with pytest.raises(ConfigError, match=r"metrics.timing: must be one of false, quick, full, got"):
        MetricsConfig(names=[], timing=value)
