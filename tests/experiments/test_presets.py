"""Every preset composes, stands beside the right published rows, and runs."""

import csv
import re
from functools import cache

import pytest

import hicache
from experiments.config.compose import compose, options
from experiments.config.preset import PresetConfig, RowConfig
from experiments.errors import ConfigError
from experiments.reports.columns import directions
from experiments.reports.result_table import PAPER, read_published
from experiments.settings.cost import cost_of
from experiments.settings.identity import run_id
from experiments.settings.library_method import method_of
from experiments.settings.resolve import resolve
from experiments.settings.rows import expand, split_rows

pytestmark = pytest.mark.slow

PRESETS = options("experiment")


@cache
def rows(preset: str, *overrides: str):
    line = [f"experiment={preset}", *overrides]
    return [(row, resolve(config)) for row, config in split_rows(compose(line), line)[0]]


@pytest.mark.parametrize("preset", PRESETS)
def test_rows_compose_to_different_runs_with_the_preset_s_name(preset):
    assert compose([f"experiment={preset}"]).preset.name == preset
    made = rows(preset)
    assert len({run_id(settings) for _, settings in made}) == len(made)
    listed = expand(compose([f"experiment={preset}"]).preset)
    assert len({row.label for row in listed}) == len(listed) > 0
    assert len(listed) == len(made) + len(split_rows(compose([f"experiment={preset}"]), [f"experiment={preset}"])[1])


@pytest.mark.parametrize("preset", PRESETS)
def test_published_rows_and_columns_exist(preset):
    config = compose([f"experiment={preset}"]).preset
    if config.paper is None:
        assert not any(row.paper for row in expand(config)) and not config.compare
        return
    table = read_published(config.paper)
    named = [row.paper for row in expand(config) if row.paper is not None]
    assert named and set(named) <= set(table)
    assert set(config.compare) <= set(directions()) and set(config.compare.values()) <= set(table[named[0]])
    if preset.startswith("table"):
        assert set(named) == set(table), "every row of the paper"
        again = [row for row in expand(config) if row.paper is not None and named.count(row.paper) > 1]
        assert all(row.note for row in again), "a row of the paper stands twice only where a note says why"


@pytest.mark.parametrize("preset", PRESETS)
def test_the_label_says_what_the_row_sets(preset):
    for row, settings in rows(preset):
        said = {key: float(value) for key, value in re.findall(r"(N|m|σ)=([\d.]+)", row.label)}
        made = {"N": settings.interval, "m": settings.order, "σ": settings.sigma}
        assert said == {key: made[key] for key in said}, row.label
        if settings.method.name == "steps":
            assert str(settings.method.steps) in re.findall(r"\d+", row.label), row.label


def test_digits_table_compares_caches_with_solvers_at_equal_full_steps():
    made = rows("digits_table")
    cached = {
        len(hicache.full_steps(s.num_steps, s.interval, s.warmup_steps)) for _, s in made if s.method.name == "hicache"
    }
    for solver in ("dpmpp", "unipc"):
        assert {s.method.steps for _, s in made if getattr(s.method, "solver", None) == solver} == cached == {10, 8, 7}


@pytest.mark.parametrize("preset", ["digits_zoo", "emoji_zoo", "digits_table2", "emoji_table2"])
def test_rows_with_even_steps_have_as_many_as_they_say(preset):
    even = [(row.label, settings) for row, settings in rows(preset) if settings.method.policy in ("even", "eased")]
    assert len(even) >= 3
    for label, settings in even:
        full = method_of(settings).policy.plan(50)
        assert re.findall(r"(\d+) full steps", label) == [str(len(full))]
        assert full[-1] == 49 - ("tail 1" in label or "eased" in label)


@pytest.mark.parametrize("preset", ["table4", "digits_table4"])
def test_uniform_fora_is_every_eighth_step(preset):
    found = [settings for row, settings in rows(preset) if row.label == "FORA (N=8, uniform)"]
    assert method_of(found[0]).policy.plan(50) == [0, 8, 16, 24, 32, 40, 48]


def test_both_readings_of_fora_s_row_for_dit_are_there():
    """Its name and speed-up are those of N=6 (10 full steps), its FLOPs those of N=5 (11)."""
    found = {row.label: method_of(settings).policy.plan(50) for row, settings in rows("table4")}
    assert (len(found["FORA (N=6)"]), len(found["FORA (N=5)"])) == (10, 11)


@pytest.mark.slow
def test_rows_of_the_zoo_cost_what_their_block_says():
    """Within 8 % of 5x and 6.2x, from shapes, where the plan is known before the run."""
    checked = 0
    for row, settings in rows("digits_zoo"):
        if row.block in ("5x", "6.2x") and (cost := cost_of(settings, flops_only=True)) is not None:
            if settings.method.name == "steps":
                assert 50 / settings.method.steps == pytest.approx(float(row.block[:-1]), rel=0.01)
            else:
                assert cost.speedup == pytest.approx(float(row.block[:-1]), rel=0.08), row.label
            checked += 1
    assert checked > 30


def test_the_command_line_reaches_every_row_but_cannot_undo_one():
    assert {settings.seed for _, settings in rows("digits_sigma", "seed=7")} == {7}
    assert {settings.interval for _, settings in rows("digits_sigma", "interval=9")} == {9}
    with pytest.raises(ConfigError, match="interval: must be left to the rows of preset digits_table"):
        rows("digits_table", "interval=9")


def test_a_grid_is_a_product():
    grid = PresetConfig(name="g", title="g", grid={"sigma": [0.3, 0.5], "interval": [5, 6, 7]})
    assert [row.set for row in expand(grid)][:2] == [["sigma=0.3", "interval=5"], ["sigma=0.3", "interval=6"]]
    assert len(expand(grid)) == 6


def test_an_empty_preset_is_an_error():
    with pytest.raises(ConfigError, match="preset.rows: must list a row or a grid"):
        expand(PresetConfig(name="empty", title=""))
    assert expand(PresetConfig(name="one", title="", rows=[RowConfig(label="a")]))[0].label == "a"


def test_a_preset_runs_all_its_rows(small, run_py, tmp_path, capsys):
    given = [o for o in small if not o.startswith("interval")]
    assert run_py("experiment=digits_sigma", *given, "num_items=2", "warmup_steps=1") == 0
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("run: ")]
    assert len(said) == len(rows("digits_sigma"))
    assert len(list((tmp_path / "results" / "runs").iterdir())) == len(said) + 1


@pytest.mark.parametrize("path", sorted(PAPER.glob("*.csv")), ids=lambda path: path.stem)
def test_published_tables_are_rectangular(path):
    with open(path, newline="") as handle:
        lines = list(csv.reader(handle))
    assert len({len(line) for line in lines}) == 1 and len(lines) > 1
