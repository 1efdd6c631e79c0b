"""The analyses: the energy test keeps its size and has power, forecasts agree with the forecasters, files are left."""

import csv
import math

import pytest
import torch

import hicache
from experiments.analyses.energy import energy_test, mean_distance
from experiments.analyses.parts import PARTS, main
from experiments.analyses.predict import bound, forecast_path, horizons_of, simulate
from experiments.errors import ConfigError


def draw(kind, n, d, generator):
    z = torch.randn(n, d, generator=generator, dtype=torch.float64)
    if kind == "normal":
        return z @ torch.randn(d, d, generator=generator, dtype=torch.float64) + 3
    if kind == "t3":
        chi = torch.randn(n, 3, generator=generator, dtype=torch.float64).square().sum(1, keepdim=True)
        return z / (chi / 3).sqrt()
    return z + 6 * (torch.rand(n, 1, generator=generator) > 0.5)  # bimodal


@pytest.mark.parametrize("d", [1, 4, 64, 1024])
def test_mean_distance_is_that_of_samples(d):
    generator = torch.Generator().manual_seed(d)
    squares = torch.tensor([0.0, 0.5, float(d), 4.0 * d], dtype=torch.float64)
    samples = torch.randn(4000, d, generator=generator, dtype=torch.float64)
    for square, value in zip(squares, mean_distance(squares, d)):
        samples_at = samples.clone()
        samples_at[:, 0] -= math.sqrt(float(square))
        assert float(value) == pytest.approx(float(samples_at.norm(dim=1).mean()), rel=0.03)
    chi = math.sqrt(2) * math.exp(math.lgamma((d + 1) / 2) - math.lgamma(d / 2))
    assert float(mean_distance(squares[:1], d)) == pytest.approx(chi, rel=1e-9)


def test_the_energy_test_keeps_its_size():
    generator = torch.Generator().manual_seed(1)
    found = [energy_test(draw("normal", 60, 8, generator), draws=999).p for _ in range(600)]
    assert 0.03 <= sum(p <= 0.05 for p in found) / len(found) <= 0.07
    assert sum(found) / len(found) == pytest.approx(0.5, abs=0.05)


@pytest.mark.slow
def test_the_energy_test_keeps_its_size_as_it_is_used():
    """400 rows in 8 dimensions with the default draws, whose critical value all tests of that size share."""
    generator = torch.Generator().manual_seed(5)
    found = [energy_test(draw("normal", 400, 8, generator)).p for _ in range(400)]
    assert 0.03 <= sum(p <= 0.05 for p in found) / len(found) <= 0.07


@pytest.mark.parametrize("kind", ["t3", "bimodal"])
@pytest.mark.parametrize("d", [8, 64])
def test_the_energy_test_rejects(kind, d):
    generator = torch.Generator().manual_seed(2)
    found = [energy_test(draw(kind, 400, d, generator), components=8, draws=99) for _ in range(8)]
    assert sum(result.p <= 0.05 for result in found) >= 7
    excess = sum(result.excess for result in found) / len(found)
    assert excess > 0.3 if kind == "t3" else abs(excess) < 0.3
    assert all(result.dimensions == 8 and not result.vacuous for result in found)


@pytest.mark.parametrize("kind", ["normal", "t3", "bimodal"])
@pytest.mark.parametrize(("n", "d"), [(30, 40), (10, 10), (10, 9)])
def test_the_corners_of_a_simplex_are_vacuous(kind, n, d):
    generator = torch.Generator().manual_seed(3)
    with pytest.warns(UserWarning, match=f"vacuous with n = {n} rows in {d} dimensions"):
        found = energy_test(draw(kind, n, d, generator), mode="raw", draws=19)
    assert found.vacuous and found.p == 1.0 and found.ratio == pytest.approx(1.0, abs=1e-6)


def test_one_row_more_than_a_simplex_says_something():
    generator = torch.Generator().manual_seed(3)
    found = [energy_test(draw("normal", 11, 9, generator), mode="raw", draws=19) for _ in range(3)]
    assert len({result.value for result in found}) == 3 and not any(result.vacuous for result in found)
    with pytest.raises(ConfigError, match="components: must be 1 to n - 2, got 9"):
        energy_test(torch.zeros(10, 20), components=9)


def test_simulated_errors_are_those_of_the_forecaster():
    generator = torch.Generator().manual_seed(4)
    values = torch.randn(30, 20, generator=generator, dtype=torch.float64).cumsum(0)
    errors = simulate(values @ values.T, "hermite", 2, 0.6, interval=5)
    for h in range(1, 5):
        error = total = 0.0
        for start in range(10, 30, 5):
            forecaster = hicache.forecaster("hicache", order=2, sigma=0.6, gate=False)
            for anchor in range(0, start + 1, 5):
                forecaster.observe(anchor, values[anchor])
            error += float((forecaster.predict(start + h) - values[start + h]).square().sum())
            total += float(values[start + h].square().sum())
        assert errors[h - 1] == pytest.approx(error / total, rel=1e-6)


def test_a_path_of_forecasts_is_exact_on_lines_and_holds_the_anchors():
    line = torch.arange(20.0, dtype=torch.float64)[:, None] * torch.tensor([2.0, -1.0])
    path = forecast_path(line, "taylor", 1, 1.0, interval=4)
    assert torch.allclose(path[4:], line[4:]) and torch.equal(path[::4], line[::4])
    assert torch.equal(path[1:4], line[:1].expand(3, 2))  # one anchor is reused


def test_the_bound_by_hand():
    assert bound(2, 1, 0.5) == pytest.approx(2 / math.sqrt(2) * math.exp(0.5))
    assert all(bound(h + 1, 3, 0.5) > bound(h, 3, 0.5) for h in range(1, 6))


@pytest.mark.slow
def test_the_command_leaves_a_figure_and_a_table_per_part(small, tmp_path, capsys):
    run = [o for o in small if not o.startswith(("num_items", "num_steps", "interval"))]
    main([*run, "num_steps=26", "interval=4", "items=4", "tokens=8", f"folder={tmp_path / 'out'}"])
    names = {path.name for path in (tmp_path / "out").iterdir()}
    figures = {"prediction", "paths", "basis", "bound", "gaussianity"}
    assert names == {f"{f}.png" for f in figures} | {f"{t}.csv" for t in (*figures, "ratio", "stability")}
    with open(tmp_path / "out" / "ratio.csv") as handle:
        ratios = list(csv.DictReader(handle))
    bases = {"reuse", "taylor", "scaled_taylor", "newton", "foca", "chebyshev", "dmd", "auto"}
    assert {row["basis"] for row in ratios} == bases and all(float(row["R"]) > 0 for row in ratios)
    assert len(ratios) == 5 * 8 * 5 * 3  # sites, bases, orders, horizons
    assert {(row["order"], row["from step"]) for row in ratios} == {(str(m), str(4 * m + 1)) for m in range(1, 6)}
    with open(tmp_path / "out" / "gaussianity.csv") as handle:
        tests = list(csv.DictReader(handle))
    assert len(tests) == 4 * 5 * 3 and {row["dimensions"] for row in tests} == {"8"}
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == list(PARTS)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("part=predict", "part: must be one of .*did you mean prediction"),
        ("mode=cooked", "mode: must be one of raw, reduced"),
        ("bases=pade,dmd", r"bases: must have weights from times .*, got 'pade'"),
        ("bases=table", "bases: must have weights .*dmd.*, got 'table'"),
        ("items=x", "items, tokens: must be integers"),
        ("tokens=0", "tokens: must be an integer >= 1, got 0"),
    ],
)
def test_errors_name_the_key(small, argument, message):
    with pytest.raises(ConfigError, match=message):
        main([*small, argument])


def test_interval_too_long_for_the_run():
    with pytest.raises(ConfigError, match="interval: must leave a forecast after 3 anchors in 13 steps, got 6"):
        simulate(torch.eye(13), "taylor", 2, interval=6)
    assert len(simulate(torch.eye(14), "taylor", 2, interval=6)) == 1


@pytest.mark.parametrize(("steps", "interval", "counts"), [(20, 6, (5, 5, 1, 0)), (50, 12, (11, 11, 11, 1))])
def test_an_order_is_judged_from_the_first_step_that_it_can_be(steps, interval, counts):
    assert tuple(len(horizons_of(steps, order, interval)) for order in (1, 2, 3, 4)) == counts


@pytest.mark.parametrize("basis", ["dmd", "auto"])
def test_bases_of_inner_products_are_fitted_per_item(basis):
    """Against the forecaster, each item on its own: exponentials with other poles in each."""
    t = torch.arange(40.0, dtype=torch.float64)
    items = torch.stack([torch.stack([(p**t), (0.9 * p) ** t, (t / 9 + p).cos()], 1) for p in (0.98, 0.9)])
    errors = simulate(items @ items.mT, basis, 2, 0.6, interval=4)
    for h in range(1, 4):
        error = total = 0.0
        for values in items[:, :, None]:  # a batch of one item
            for start in range(8, 40 - h, 4):
                forecaster = hicache.forecaster("hicache", basis=basis, order=2, sigma=0.6, gate=False)
                for anchor in range(0, start + 1, 4):
                    forecaster.observe(anchor, values[anchor])
                error += float((forecaster.predict(start + h) - values[start + h]).square().sum())
                total += float(values[start + h].square().sum())
        assert errors[h - 1] == pytest.approx(error / total, rel=1e-4, abs=1e-9)


@pytest.mark.parametrize("interval", [1, 25])
def test_a_run_in_which_nothing_can_be_judged_is_refused(small, tmp_path, interval):
    run = [o for o in small if not o.startswith(("num_items", "num_steps", "interval"))]
    with pytest.raises(ConfigError, match=f"interval: must be from 2 to 24 for a forecast .*, got {interval}"):
        main([*run, "num_steps=26", f"interval={interval}", "items=2", f"folder={tmp_path}", "part=prediction"])
