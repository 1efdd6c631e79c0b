"""Runs with sparse operators: identity, refusals, and tiny FLUX from the command line to the metrics."""

import dataclasses
import json

import pytest

from experiments.config.compose import compose
from experiments.config.operators import ChipmunkConfig
from experiments.errors import ConfigError
from experiments.plans.freeze import freeze_settings, restore_settings
from experiments.runs import runner
from experiments.runs.runner import execute
from experiments.settings.describe import describe_method
from experiments.settings.identity import canonical, run_id
from experiments.settings.library_method import operators_of
from experiments.settings.resolve import resolve
from experiments.settings.rows import split_rows
from hicache import Chipmunk

TINY = ["backend=flux_chipmunk", "backend.size=tiny", "num_items=2", "num_steps=12", "interval=5"]
BRIEF = ["metrics.latency_repeats=1", "metrics.latency_warmup=0", "metrics.resamples=50"]


def settings(*overrides):
    return resolve(compose(list(overrides)))


def refused(*overrides):
    with pytest.raises(ConfigError) as error:
        runner.check(settings(*overrides))
    assert "\n" not in str(error.value)
    return str(error.value)


# -- identity ------------------------------------------------------------------------------------------------------


def test_the_preset_s_name_is_flux_with_chipmunk():
    assert run_id(settings("backend=flux_chipmunk")) == run_id(settings("backend=flux", "operators=chipmunk"))
    assert run_id(settings("backend=flux_chipmunk", "operators=none")) == run_id(settings("backend=flux"))
    of = settings("backend=flux_chipmunk", "method=none")
    assert run_id(of).startswith("flux-chipmunk-none-") and not of.plain
    assert run_id(of.reference()) == run_id(settings("backend=flux", "method=none")) and of.reference().plain


def test_the_identity_changes_only_where_operators_are_chosen():
    assert "operators" not in canonical(settings("backend=flux"))
    assert run_id(settings()) == "digits-hicache-n6o4s0.70-32d3b64fe48b"  # as before there were operators
    assert run_id(settings("backend=flux", "method=none")) == "flux-none-3e4bbc3a2946"
    ids = [
        run_id(settings("backend=flux_chipmunk", *more))
        for more in (
            [],
            ["operators.attention=0.2"],
            ["operators.order=null"],
            ["operators.seed=1"],
            ["operators.mlp=null"],
        )
    ]
    assert len(set(ids)) == len(ids)


def test_a_plan_keeps_them(tmp_path):
    of = settings(*TINY, "operators.mlp=0.4")
    again = restore_settings(json.loads(json.dumps(freeze_settings(of))), tmp_path)
    assert isinstance(again.operators, ChipmunkConfig) and run_id(again) == run_id(of)
    older = {name: value for name, value in freeze_settings(settings("backend=flux")).items() if name != "operators"}
    assert restore_settings(older, tmp_path).operators.name == "none"


def test_the_groups_are_the_release_s_and_small_on_a_tiny_model():
    assert operators_of(settings("backend=flux_chipmunk")) == Chipmunk()
    assert operators_of(settings("backend=flux")) is None
    tiny = operators_of(settings(*TINY))
    assert tiny == dataclasses.replace(Chipmunk(), **ChipmunkConfig.TINY)
    theirs = operators_of(settings("backend=flux", "operators=chipmunk_hicache"))
    assert theirs == Chipmunk(attention=0.15, key_multiple=64) and theirs.keys(4608) == 704
    assert describe_method(settings("backend=flux_chipmunk", "method=none")) == "Chipmunk"
    assert describe_method(settings("backend=flux_chipmunk", "interval=5")) == "Chipmunk + HiCache (N=5, m=2, σ=0.5)"


@pytest.mark.slow
def test_presets_have_all_their_rows():
    for table in ("table3", "table9"):
        line = [f"experiment={table}"]
        assert split_rows(compose(line), line)[1] == []


# -- refusals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["operators=chipmunk"], "operators: must be none for backend digits (chipmunk knows flux, flux_schnell), got"),
        (["backend=emoji", "operators=chipmunk"], "operators: must be none for backend emoji (chipmunk knows flux,"),
        ([*TINY, "method=toca"], "operators: must be none for method toca, which recomputes rows, got 'chipmunk'"),
        ([*TINY, "method=clusca"], "operators: must be none for method clusca"),
        ([*TINY, "batch_size=2"], "batch_size: must be 1 with operators.mlp (null leaves the MLPs dense), got 2"),
        ([*TINY, "metrics.latency_batch=2"], "metrics.latency_batch: must be 1 with operators.mlp"),
        ([*TINY, "backend.height=48"], "backend.height: must be a multiple of 32 with operators.order, got 48"),
        ([*TINY, "operators.token_group=48"], "backend.height, backend.width: must make a multiple of 48 tokens"),
        ([*TINY, "backend.text_tokens=100"], "backend.text_tokens: must be a multiple of 16 with operators.mlp, got 100"),
        ([*TINY, "backend.compile=true"], "backend.compile: must be false with operators, got True"),
        ([*TINY, "operators.provider=triton"], "operators.provider: triton needs Triton and a CUDA device"),
        ([*TINY, "operators.provider=chipmunk"], "operators.provider: chipmunk needs its package"),
        ([*TINY, "operators.provider=cuda"], "operators.provider: must be one of reference, triton, chipmunk"),
        ([*TINY, "operators.attention=0"], "operators.attention: must be null or a share, 0 < share <= 1, got 0.0"),
        ([*TINY, "operators.order=[8]"], "operators.order: must be null or two sides, got [8]"),
        ([*TINY, "operators.top_keys=0.1"], "operators.top_keys: must be a known key"),
        (["operators=chipmonk"], "operators: must be one of chipmunk, chipmunk_hicache, none, got 'chipmonk'"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said_in_one_line(overrides, said, tmp_path, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert said in refused(*overrides, f"results={tmp_path / 'results'}")
    assert list(tmp_path.iterdir()) == []


def test_attention_alone_takes_a_batch(tmp_path):
    runner.check(settings(*TINY, "operators.mlp=null", "batch_size=2", f"results={tmp_path}"))


# -- a run ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_tiny_flux_from_settings_to_metrics(tmp_path):
    names = "metrics.names=[psnr,ssim,psnr_u8wrap,ssim_skimage7]"
    of = settings(*TINY, *BRIEF, names, f"results={tmp_path}")
    runner.check(of)
    outcome = execute(of)
    metrics = outcome.metrics
    facts = metrics["operators"]
    assert (facts["name"], facts["provider"], facts["executed"]) == ("chipmunk", "reference", 4)
    assert facts["attention"] == pytest.approx(32 / 192) and 0.3 < facts["mlp"] < 0.6 and facts["bytes"] > 0
    assert metrics["full_steps"] == [0, 1, 2, 7]
    assert all(metrics[name]["mean"] is not None for name in ("psnr", "ssim", "psnr_u8wrap", "ssim_skimage7"))
    assert metrics["cache_bytes"] > facts["bytes"]
    dense = execute(settings("backend=flux", *TINY[1:], *BRIEF, names, f"results={tmp_path}"))
    assert dense.metrics["reference"] == metrics["reference"]  # one dense, un-cached run for both
    assert metrics["flops_speedup"] > dense.metrics["flops_speedup"] and "operators" not in dense.metrics
    exact = execute(settings(*TINY, *BRIEF, names, "operators.attention=1", "operators.mlp=1", f"results={tmp_path}"))
    assert exact.metrics["psnr"]["mean"] == pytest.approx(dense.metrics["psnr"]["mean"], abs=0.01)
    assert exact.metrics["flops_speedup"] <= dense.metrics["flops_speedup"]
