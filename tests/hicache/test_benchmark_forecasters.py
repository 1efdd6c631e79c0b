"""The micro-benchmark: published errors on the published trajectories, and the claims about DMD and auto."""

import statistics

import pytest

from benchmarks.forecasters import ARMS, HORIZONS, SCENARIOS, SHOWN, main, measure, pool, read_published
from experiments.errors import ConfigError

DMD, CUBIC, HERMITE, AUTO = "DMD", "cubic (Newton, m=3)", "HiCache (m=2, σ=0.5)", "auto (1step)"


@pytest.mark.parametrize("arm", read_published())
@pytest.mark.parametrize("horizon", SHOWN)
def test_published_errors_are_reproduced(arm, horizon):
    """To the two published digits; Padé looks at six of the eight snapshots for its bound."""
    ours = statistics.mean(measure("exponentials", arm, horizon, 20))
    assert ours == pytest.approx(read_published()[arm][horizon], rel=0.06 if arm.startswith("Pad") else 0.02)


def test_dmd_is_flat_where_the_polynomial_diverges():
    dmd, cubic = ({h: measure("exponentials", arm, h, 20) for h in HORIZONS} for arm in (DMD, CUBIC))
    assert max(max(errors) for errors in dmd.values()) < 1e-6
    assert statistics.mean(cubic[8]) > 100 * statistics.mean(cubic[1])


def test_auto_is_never_worse_than_the_better_arm():
    auto, dmd, hermite = (
        pool({h: measure("regime switch", arm, h, 20) for h in HORIZONS}) for arm in (AUTO, DMD, HERMITE)
    )
    assert auto <= 1.01 * min(dmd, hermite)
    for scenario in ("exponentials", "damped oscillation", "drift"):
        assert measure(scenario, AUTO, 4, 20) == measure(scenario, DMD, 4, 20)


@pytest.mark.slow
def test_the_command_writes_its_files(tmp_path, capsys):
    main(["--out", str(tmp_path), "--seeds", "2"])
    assert {path.name for path in tmp_path.iterdir()} == {"forecasters.md", "forecasters.csv", "forecasters.png"}
    lines = (tmp_path / "forecasters.csv").read_text().splitlines()
    assert len(lines) == 1 + len(SCENARIOS) * len(ARMS) * len(HORIZONS)
    assert "Regime switch" in capsys.readouterr().out
    picture = tmp_path / "forecasters.png"
    picture.unlink()
    main(["--out", str(tmp_path), "--draw"])
    assert picture.is_file() and (tmp_path / "forecasters.csv").read_text().splitlines() == lines
    with pytest.raises(ConfigError, match=r"--out: must have forecasters.csv"):
        main(["--out", str(tmp_path / "other"), "--draw"])
