"""One look per method everywhere, told apart in greyscale too; labels that do not lie on each other."""

import itertools

import matplotlib
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_rgb

import hicache
from experiments.reports import plot as plots
from experiments.runs.picture import gain_of
from experiments.runs.style import FAMILIES, SOLVERS, look_of, spread, styled


def grey(colour: str) -> float:
    return sum(part * weight for part, weight in zip(to_rgb(colour), (0.299, 0.587, 0.114)))


def test_every_method_has_a_look_of_its_own():
    looks = {name: look_of(name) for name in (*hicache.METHODS, *SOLVERS)}
    assert len({look.title for look in looks.values()}) == len(looks)
    for (a, one), (b, other) in itertools.combinations(looks.items(), 2):
        alike = one.marker == other.marker and one.fill == other.fill
        assert not alike or abs(grey(one.colour) - grey(other.colour)) > 0.15, f"{a} and {b} look alike in greyscale"
        assert (one.colour, one.marker) != (other.colour, other.marker)
    assert set().union(*(family.methods for family in FAMILIES.values())) <= {*hicache.METHODS, *SOLVERS}


def test_a_method_of_no_family_keeps_its_name():
    assert look_of("new method").title == "new method" and look_of("hicache", "X + HiCache").title == "X + HiCache"


@given(st.lists(st.floats(-1, 2), max_size=20).map(sorted), st.floats(0.001, 0.2))
def test_labels_keep_their_order_and_distance(places, gap):
    found = spread(places, gap, 0.0, 1.0)
    room = min(gap, 1 / max(len(places) - 1, 1))
    assert len(found) == len(places) and all(-1e-9 <= place <= 1 + 1e-9 for place in found)
    assert all(b - a >= room - 1e-9 for a, b in itertools.pairwise(found))


def test_labels_that_have_room_stay():
    assert spread([0.1, 0.5, 0.9], 0.1, 0, 1) == pytest.approx([0.1, 0.5, 0.9])


def test_the_style_ends_with_its_figures():
    matplotlib.use("Agg")
    before = dict(matplotlib.rcParams)
    with styled() as pyplot:
        pyplot.figure()
        assert matplotlib.rcParams["savefig.dpi"] == 300
    assert dict(matplotlib.rcParams) == before and pyplot.get_fignums() == []


def test_differences_are_as_bright_as_they_may_be():
    assert [gain_of(value) for value in (1.0, 0.5, 0.2, 0.07, 0.001, 0.0, 3.0)] == [1, 2, 5, 10, 50, 50, 1]


def test_values_at_points_do_not_lie_on_each_other():
    """Points a few letters apart: the second value goes below, the same value at one place is written once."""
    curves = [
        ([plots.PlotPoint(6.0, 27.6, 0, 0, {"interval": 8})], "interval", "red"),
        ([plots.PlotPoint(6.02, 27.61, 0, 0, {"method.steps": 8})], "method.steps", "grey"),
        ([plots.PlotPoint(6.0, 27.65, 0, 0, {"interval": 8})], "interval", "blue"),
    ]
    with styled() as pyplot:
        figure, axis = pyplot.subplots(figsize=(3.1, 2.3))
        axis.set(xlim=(2, 8), ylim=(25, 42))
        plots.mark(axis, curves)
        texts = axis.texts
        assert [text.get_text() for text in texts] == ["N=8", "8"]
        one, other = (text.get_window_extent(figure.canvas.get_renderer()) for text in texts)
        assert not one.overlaps(other)
