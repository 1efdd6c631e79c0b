"""Every option of conf/ composes; everything wrong is one line that names key, rule and value."""

import dataclasses
import re

import pytest
from omegaconf import OmegaConf

import hicache
from experiments.backends import ALIASES
from experiments.config.backend import Recommended
from experiments.config.compose import CONF, compose, compose_untyped, merge_values, options
from experiments.config.words import check_words
from experiments.errors import ConfigError
from experiments.settings.library_method import method_of
from experiments.settings.resolve import resolve


def test_without_arguments_it_is_hicache_on_digits_as_recommended():
    config = compose([])
    settings = resolve(config)
    assert (settings.backend.name, settings.method.name) == ("digits", "hicache")
    for field in dataclasses.fields(Recommended):
        assert getattr(settings, field.name) == getattr(config.backend.recommended, field.name)


@pytest.mark.matrix
@pytest.mark.parametrize("group", ["backend", "method", "sigma_schedule", "cluster", "logger"])
def test_every_option_of_a_group_composes_under_its_own_name(group):
    for name in options(group):
        assert getattr(compose([f"{group}={name}"]), group).name == ALIASES.get(name, name)


def test_method_group_and_library_know_the_same_methods():
    assert set(options("method")) == set(hicache.METHODS)


@pytest.mark.parametrize("name", options("method"))
def test_every_method_reaches_the_library_with_its_settings(name):
    settings = resolve(compose([f"method={name}", "interval=7", "order=2", "sigma=0.6", "warmup_steps=3"]))
    method = method_of(settings)
    spec = hicache.METHODS[name]
    assert method.name == name
    expected = {"interval": 7, "order": 2, "sigma": 0.6, "warmup_steps": 3}
    for key in spec.uses & set(expected):
        assert getattr(method.knobs, key) == expected[key]


@pytest.mark.matrix
@pytest.mark.parametrize("name", options("method"))
def test_a_method_put_in_afterwards_is_what_hydra_composes(name):
    for line in (["backend=emoji"], ["experiment=digits_zoo"]):
        assert merge_values([*line, f"method={name}"]) == compose_untyped([*line, f"method={name}"])


def test_no_preset_sets_a_method():
    for preset in options("experiment"):
        assert "method" not in OmegaConf.load(CONF / "experiment" / f"{preset}.yaml"), preset


@pytest.mark.parametrize("name", options("sigma_schedule"))
def test_every_sigma_schedule_reaches_the_library(name):
    assert method_of(resolve(compose([f"sigma_schedule={name}"]))).knobs.sigma_schedule == name


def test_parameters_of_schedules_reach_the_library():
    horizon = method_of(resolve(compose(["sigma_schedule=horizon", "sigma_schedule.c=0.7"])))
    assert horizon.knobs.sigma_options == {"c": 0.7}
    adaptive = method_of(resolve(compose(["method=hicache_adaptive", "method.alpha=1.4"])))
    assert adaptive.knobs.sigma_options["alpha"] == 1.4


def test_a_method_can_be_composed_on_the_command_line():
    mask = method_of(resolve(compose(["method.policy=mask", "method.mask=[0,1,5]", "method.basis=newton"])))
    assert mask.policy.plan(8) == [0, 1, 5]
    assert mask.knobs.basis == "newton"


WRONG = {
    "method=hicach": "method: must be one of .*got 'hicach' .did you mean hicache",
    "backend=digit": "backend: must be one of .*got 'digit' .did you mean digits",
    "sigma_schedule=horizn": "sigma_schedule: must be one of .*did you mean horizon",
    "experiment=digits_tabl": "experiment: must be one of .*did you mean digits_table",
    "sigm=1": "sigm: must be a known key .*did you mean sigma",
    "metod=fora": "metod: must be a known key .*did you mean method",
    "method.stepz=3": "method.stepz: must be a known key",
    "sigma=-1": "sigma: must be .* > 0, .*got -1.0",
    "sigma=inf": "sigma: must be auto or a number > 0, at most 1000, got inf",
    "sigma=1e300": "sigma: must be auto or a number > 0, at most 1000, got 1e.300",
    "sigma=abc": "sigma: must be auto or a number > 0, at most 1000, got 'abc'",
    "order=9": "order: must be auto or an integer from 0 to 6, got 9",
    "order=-1": "order: must be auto or an integer from 0 to 6, got -1",
    "order=2.5": "order: must be auto or an integer from 0 to 6, got 2.5",
    "sigma=auto": r"sigma: must be a number where no trajectories are stored \(python -m experiments calibrate",
    "time=snr": "time: must be one of .*got 'snr'",
    "interval=0": "interval: must be an integer >= 1, got 0",
    "warmup_steps=0": "warmup_steps: must be an integer >= 1, got 0",
    "num_steps=2.5": "num_steps: must be of type integer, got '2.5'",
    "num_items=0": "num_items: must be an integer >= 1, got 0",
    "seed=-1": "seed: must be an integer >= 0, got -1",
    "seed=null": "seed: must have a value, got null",
    "shard=3/2": "shard: must be rank/world .*got '3/2'",
    "scope=modul": "scope: must be one of .*did you mean 'modules'",
    "method.basis=hermit": "method.basis: must be one of .*did you mean 'hermite'",
    "backend.guidance=0.5": "backend.guidance: must be >= 1 .*got 0.5",
    "backend.solver=euler": "backend.solver: must be one of .*got 'euler'",
    "backend.path=/nowhere": "backend.path: must be a folder with .*got '/nowhere'",
    "backend.device=cuda:99": "backend.device: must be one of .*got 'cuda:99'",
    "metrics.names=[psn]": "metrics.names: must be one of .*did you mean psnr",
    "metrics.level=2": "metrics.level: must be between 0 and 1, got 2.0",
    "results=/proc/nothing": "results: must be a writable folder, got '/proc/nothing'",
    "policy=intervall": "policy: must be one of .*did you mean interval",
    "policy=probe": "scope: must be span for backend digits with method hicache",
    "policy=even budget=9": "budget: must be at most num_steps=8, got 9",
    "policy=even budget=0": "budget: must be an integer >= 1, got 0",
    "policy=even method.gate=true": "method.gate: must be left open for policy even, which has no warm-up",
    "budget=4": "budget: must be left open for policy interval .policy=even, late, eased or placed and method=calibrated read it., got 4",
    "method=teacache budget=4": "budget: must be left open for policy teacache",
    "policy=mask method.mask=[0,99]": "method.mask: must stay below num_steps=8, got 99",
    "policy=mask method.mask=[1,2]": "method.mask: must be increasing steps that start with 0, got .1, 2.",
    "method=none metrics.names=[psnr] metrics.objective=psnr": "metrics.objective: must be left open for the un-cached run",
    "forecaster=hermit": "forecaster: must be one of .*did you mean hermite",
    "patch=token": "patch: must be one of clusters, none, tokens, got 'token'",
    "patch=clusters forecaster=dmd": "method.history: must be differences for a patch that amends before the forecast",
    "method=toca method.patch_options={fraction:abc}": "method.patch_options: fraction must be of type float.*got 'abc'",
    "method=toca method.patch_options={tile:2.5}": "method.patch_options: tile: must be an integer >= 1, got 2.5",
    "method=toca method.patch_options=3": "method.patch_options: must be names and values, got 3",
    "method=speca method.policy_options={base:abc}": "method.policy_options: base must be of type float .*got 'abc'",
    "method=hicache policy=kinds": "policy: must come with method.policy_options={table: ...}",
    "method=delta_dit method.front=1": "method.front: must be left open without scope=span, got 1",
    "method=pab patch=tokens": "patch: must cover a module that policy Broadcast decides about, got 'tokens'",
    "method=teacache method.policy_options={per:sample}": "method.policy_options: must be one of threshold, .*got 'per'",
    "time=hours": "time: must be one of .*got 'hours'",
    "time=log_snr forecaster=lesa": "time: must be index for basis lesa",
    "guidance=adaptiv": "guidance: must be one of .*did you mean adaptive",
    "guidance=adaptive guidance.threshold=abc": "guidance.threshold: must be of type float, got 'abc'",
    "guidance=adaptive backend.guidance=1": "guidance: must be plain with backend.guidance=1",
    "sigma": "override: must read key=value, got 'sigma'",
}


@pytest.mark.parametrize("argument", WRONG)
def test_what_is_wrong_is_said_in_one_line_with_code_2_and_nothing_is_written(argument, run_py, small, tmp_path, capfd):
    given = [o for o in small if o.partition("=")[0] != argument.partition("=")[0]]
    assert run_py(*given, *argument.split()) == 2
    out, err = capfd.readouterr()
    lines = err.strip().splitlines()
    assert out == "" and len(lines) == 1
    assert re.match("error: " + WRONG[argument], lines[0]), lines[0]
    assert list(tmp_path.iterdir()) == []


def test_a_value_that_the_method_does_not_read_is_checked_all_the_same():
    with pytest.raises(ConfigError, match="sigma: must be"):
        compose(["method=fora", "sigma=-1"])


def test_results_that_is_a_file_is_refused(run_py, small, tmp_path, capfd):
    (tmp_path / "results").write_text("")
    assert run_py(*small) == 2
    assert "results: must be a writable folder" in capfd.readouterr().err


def test_results_that_lead_nowhere_are_refused(run_py, small, tmp_path, capfd):
    (tmp_path / "results").symlink_to(tmp_path / "nowhere")
    assert run_py(*small) == 2
    said = capfd.readouterr().err
    assert "results: must be a writable folder" in said and said.count("\n") == 1


def test_flags_may_stand_anywhere():
    words = ["num_items=4", "-m", "method=hicache", "--cfg", "job", "sigma=0.5,0.7", "--info"]
    found = ["num_items=4", "method=hicache", "sigma=0.5,0.7", "-m", "--cfg", "job", "--info"]
    assert check_words(words) == found == check_words(found)


def test_schemas_stay_out_of_the_groups():
    assert not any(path.name.startswith("schema") for path in CONF.glob("*/*"))
