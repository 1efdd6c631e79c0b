"""Which tests run when: of a matrix a share, of the slow ones a part."""

import argparse
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.conftest import part, pytest_collection_modifyitems


class Item:
    """As much of a collected test as the choice reads."""

    def __init__(self, name, *marks):
        self.nodeid, self.path, self.marks = name, Path("tests") / name.partition("::")[0], set(marks)

    def get_closest_marker(self, name):
        return name if name in self.marks else None

    def add_marker(self, mark):
        self.marks.add(mark.name)


def collected(chosen=None):
    """Names of the fast and of the slow ones that are left."""
    items = [Item(f"test_all.py::test_case[{case}]", "matrix") for case in range(160)]
    items += [Item(f"{room}test_all.py::test_slow[{case}]", "slow") for case in range(40) for room in ("", "faults/")]
    items.append(Item("test_all.py::test_other"))
    left, count = [], len(items)
    hook = SimpleNamespace(pytest_deselected=lambda items: left.extend(items))
    pytest_collection_modifyitems(SimpleNamespace(getoption={"part": chosen}.get, hook=hook), items)
    assert len(items) + len(left) == count
    slow = {item.nodeid for item in items if "slow" in item.marks}
    return {item.nodeid for item in items} - slow, slow


def test_of_a_matrix_one_case_in_eight_is_fast():
    fast, slow = collected()
    cases = {name for name in fast if "test_case" in name}
    assert 10 <= len(cases) <= 30 and fast - cases == {"test_all.py::test_other"}
    assert len(slow) == 160 - len(cases) + 80


def test_the_parts_are_all_of_the_slow_ones_and_faults_are_in_each():
    parts = [collected((k, 4)) for k in (1, 2, 3, 4)]
    assert all(fast == collected()[0] for fast, _ in parts)
    faults = {name for name in collected()[1] if name.startswith("faults")}
    others = [slow - faults for _, slow in parts]
    assert len(faults) == 40 and all(slow >= faults for _, slow in parts)
    assert sorted(name for each in others for name in each) == sorted(collected()[1] - faults)
    assert all(30 <= len(each) <= 60 for each in others)


@pytest.mark.parametrize("wrong", ["0/4", "5/4", "a/4", "1", "1/0"])
def test_a_part_that_is_none_is_refused(wrong):
    with pytest.raises(argparse.ArgumentTypeError, match="must be K/N with 1 <= K <= N, got"):
        part(wrong)
    assert part("2/4") == (2, 4)
