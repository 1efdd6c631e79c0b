"""Every method against the tensors that its authors' program computed: steps, rows, outputs."""

import pytest
import torch

from hicache.patch import clusters, tokens
from tests.hicache import originals

PLAIN = {"dit": 2e-6, "flux": 2e-6}
"""Un-cached: what another machine's rounding does."""
ALLOWED = {"dit": 3e-6, "flux": 3e-6, "spectrum": 2e-5}
"""The originals' own precision, 1e-6 to 2e-6, beside that of the machine; Spectrum's fit is float32 in a float64 run.
A mistake is larger by two orders: order 2 for 1 gives 1e-2."""


def slow_if_long(names):
    return [pytest.param(name, marks=[pytest.mark.slow] if "T=50" in name else []) for name in names]


@pytest.mark.parametrize("name", originals.settings("flux"))
def test_flux_is_the_original(name):
    stored, (kind, values) = originals.golden("flux"), originals.read(name)
    method = None if kind == "plain" else originals.flux_method(name)
    found, report = originals.run_flux(values["T"], method)
    worst = originals.difference(found[stored[f"{name}|v_steps"].long()], stored[f"{name}|v"])
    assert worst <= (PLAIN["flux"] if method is None else ALLOWED.get(kind, ALLOWED["flux"]))
    if report is not None:
        assert list(report.full_steps) == stored[f"{name}|steps"].tolist()


@pytest.mark.parametrize("name", slow_if_long(originals.settings("dit")))
def test_dit_is_the_original(name, monkeypatch):
    stored, (kind, values) = originals.golden("dit"), originals.read(name)
    method = None if kind == "plain" else originals.dit_method(name)
    picked = record_rows(monkeypatch)
    found, report = originals.run_dit(values["T"], method)
    worst = originals.difference(found[stored[f"{name}|x_steps"].long()], stored[f"{name}|x"])
    assert worst <= (PLAIN if method is None else ALLOWED)["dit"]
    if report is not None:
        assert list(report.full_steps) == stored[f"{name}|steps"].tolist()
    for layer in (0, 5, 14, 27) if kind in ("toca", "duca", "clusca") else ():
        for i, step in enumerate(stored[f"{name}|row_steps|layer={layer}"].tolist()):
            theirs = [set(rows) - {-1} for rows in stored[f"{name}|rows|layer={layer}"][i].tolist()]
            assert [set(rows) for rows in picked[step, layer].tolist()] == theirs, (step, layer)


def record_rows(monkeypatch):
    """Rows by step and layer; ClusCa's two random choices are the stored ones."""
    stored, picked = originals.golden("dit"), {}
    priority = stored["clusca|priority"].float() / originals.DIT_TOKENS
    first = torch.zeros(originals.DIT_TOKENS)
    chosen = stored["clusca|first_tokens"].long()
    first[chosen] = torch.linspace(1, 0.5, len(chosen))
    by_score = tokens.TokenPatch.pick

    def pick_tokens(self, site, clock, *shape):
        picked[clock.step, site.layer] = rows = by_score(self, site, clock, *shape)
        return rows

    def pick_clusters(self, site, clock, count, batch, device):
        order = priority[clock.step, site.layer].expand(batch, -1)
        rows = clusters.representatives(self.labels[site.stream], self.count(site, clock, count), order)
        picked[clock.step, site.layer] = rows
        return rows

    monkeypatch.setattr(tokens.TokenPatch, "pick", pick_tokens)
    monkeypatch.setattr(clusters.ClusterPatch, "pick", pick_clusters)
    monkeypatch.setattr(
        clusters.ClusterPatch, "draw", lambda self, stream, batch, count, device: first.expand(batch, -1)
    )
    return picked
