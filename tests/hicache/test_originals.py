"""Every method against the tensors that its authors' program computed: steps, rows, outputs."""

import pytest

from tests.hicache import originals

PLAIN = {"dit": 2e-6, "flux": 2e-6}
"""Un-cached: what another machine's rounding does."""
ALLOWED = {"dit": 3e-6, "flux": 3e-6, "spectrum": 2e-5}
"""The originals' own precision, 1e-6 to 2e-6, beside that of the machine; Spectrum's fit is float32 in a float64 run.
A mistake is larger by two orders: order 2 for 1 gives 1e-2."""


def slow_if_long(names):
    return [pytest.param(name, marks=[pytest.mark.slow] if "T=50" in name else []) for name in names]


@pytest.mark.matrix
@pytest.mark.parametrize("name", originals.settings("flux"))
def test_flux_is_the_original(name):
    kind = originals.read(name)[0]
    worst, ours, theirs, _ = originals.compare("flux", name)
    assert worst <= (PLAIN["flux"] if kind == "plain" else ALLOWED.get(kind, ALLOWED["flux"]))
    assert ours == theirs


@pytest.mark.matrix
@pytest.mark.parametrize("name", slow_if_long(originals.settings("dit")))
def test_dit_is_the_original(name):
    stored, kind = originals.golden("dit"), originals.read(name)[0]
    worst, ours, theirs, picked = originals.compare("dit", name)
    assert worst <= (PLAIN if kind == "plain" else ALLOWED)["dit"]
    assert ours == theirs
    for layer in (0, 5, 14, 27) if kind in ("toca", "duca", "clusca") else ():
        for i, step in enumerate(stored[f"{name}|row_steps|layer={layer}"].tolist()):
            theirs = [set(rows) - {-1} for rows in stored[f"{name}|rows|layer={layer}"][i].tolist()]
            assert [set(rows) for rows in picked[step, layer].tolist()] == theirs, (step, layer)
