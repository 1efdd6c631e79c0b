"""Every backend with every method of the paper at every scope: real pipeline classes, tiny random weights."""

import dataclasses
import functools
import json
import math

import pytest
import torch
from PIL import Image

import hicache
from experiments.backends import ALIASES, PRESETS, backend_class, load_backend
from experiments.config.compose import compose, options
from experiments.config.run import Settings
from experiments.runs import runner
from experiments.runs.runner import execute, folder_of, items_of
from experiments.runs.summary import print_outcome
from experiments.settings.compatibility import adapter_class
from experiments.settings.library_method import method_of
from experiments.settings.resolve import resolve
from experiments.settings.zoo import entry
from hicache.policy.speculative import Verify

pytestmark = pytest.mark.slow

BACKENDS = [name for name in options("backend") if name not in ("digits", "emoji", "inf_dit_small", *ALIASES, *PRESETS)]
PLAIN = ["none", "steps"]
CACHED = ["fora", "taylorseer", "hi_taylor", "hicache", "hicache_adaptive"]
STEPS, INTERVAL = 6, 3
ARTEFACTS = ["calibrated", "smoothcache", "lesa", "l2c"]
OTHERS = [name for name in hicache.METHODS if name not in [*PLAIN, *CACHED, *ARTEFACTS, "deepcache"]]
EAGER = {
    "toca": ["method.patch_options={fraction:0.5}"],
    "duca": ["method.patch_options={fraction:0.5}"],
    "teacache": ["method.policy_options={threshold:3.0}"],
    "fbcache": ["method.policy_options={threshold:9.0}"],
    "dbcache": ["method.policy_options={threshold:9.0}", "method.front=1", "method.back=0"],
    "pab": ["method.policy_options={range:3,low:0.0,high:1.0}"],
}
"""What makes a method cache within six steps of a tiny model."""


def scopes_of(backend: str) -> tuple[str, ...]:
    return adapter_class(backend_class(backend).transformer_class).scopes


def wanted(backend: str, method: str) -> list[str]:
    """HiCache at every scope; the others at the papers' scope and at one that moves on from backend to backend."""
    scopes = scopes_of(backend)
    if method == "hicache":
        return list(scopes)
    turn = BACKENDS.index(backend) + CACHED.index(method) if method in CACHED else 0
    return list(dict.fromkeys(["modules", scopes[turn % len(scopes)]])) if method in CACHED else ["modules"]


CASES = [
    (backend, method, scope) for backend in BACKENDS for method in PLAIN + CACHED for scope in wanted(backend, method)
]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """One folder for all, so that a backend's reference is generated once."""
    return tmp_path_factory.mktemp("results")


@functools.cache
def composed(backend: str, method: str) -> Settings:
    common = ["backend.size=tiny", f"num_steps={STEPS}", f"interval={INTERVAL}", "num_items=1"]
    brief = ["metrics.latency_repeats=1", "metrics.latency_warmup=0"]
    steps = ["method.steps=4"] if method == "steps" else []
    return resolve(compose([f"backend={backend}", f"method={method}", *common, *brief, *steps]))


def settings(results, backend: str, method: str, **others: object) -> Settings:
    made = dataclasses.replace(composed(backend, method), results=results, **others)
    runner.check(made)
    return made


def digests(of: Settings) -> list[str]:
    return [record["sha256"] for record in folder_of(of).records().values()]


@pytest.mark.parametrize(("backend", "method", "scope"), CASES)
def test_it_writes_media_metrics_and_a_report(backend, method, scope, results, capsys):
    of = settings(results, backend, method, scope=scope)
    outcome = execute(of)
    cached = method in CACHED
    steps = 4 if method == "steps" else STEPS
    expected = hicache.full_steps(STEPS, INTERVAL, of.warmup_steps) if cached else list(range(steps))
    metrics = json.loads(outcome.folder.metrics_file.read_text())
    assert metrics["full_steps"] == expected
    assert (len(expected) < steps) == cached
    (record,) = outcome.folder.records().values()
    assert all((outcome.folder.media / name).stat().st_size > 0 for name in record["files"])
    (item,) = items_of(of)
    media = backend_class(backend).load_media(outcome.folder.media, item)
    assert media.shape[-3] == 3 and 0 <= float(media.min()) < float(media.max()) <= 1
    assert Image.open(outcome.folder.picture).size[0] > 0
    print_outcome(outcome)
    assert capsys.readouterr().out.splitlines()[-1] == f"run: {outcome.folder.path}"
    if method == "none":
        return
    assert metrics["flops_speedup"] > 1
    for name in ("psnr", "ssim"):
        assert math.isfinite(metrics[name]["mean"]) if metrics[name]["n"] else metrics[name]["infinite"] == 1
    assert digests(of) != digests(of.reference())
    assert (metrics["cache_bytes"] > 0) == cached
    model = load_backend(of.backend).pipe.transformer
    assert "forward" not in vars(model) and not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_other_method_runs_where_the_zoo_says_so(backend, name, results, monkeypatch):
    """Two branches, two items in a batch or one by one, and the plan that the cost model counts."""
    if backend == "inf_dit" and backend not in entry(name).backends:
        assert hicache.method(name).patch is not None or backend in entry(name).later
        return
    assert backend in entry(name).backends
    few = ["num_steps=6", "warmup_steps=1", "interval=3", "num_items=2", "backend.size=tiny", "metrics=none"]
    few.append("metrics.latency_batch=1")
    of = resolve(compose([f"backend={backend}", f"method={name}", *few, *EAGER.get(name, []), f"results={results}"]))
    runner.check(of)
    monkeypatch.setattr(runner, "draw_comparison", lambda *given: None)
    monkeypatch.setattr(runner, "timing", lambda *given: {})
    outcome = execute(of)
    full = outcome.metrics["full_steps"]
    assert full[0] == 0 and len(full) < STEPS and outcome.metrics["flops_speedup"] > 1
    assert outcome.metrics["cache_bytes"] > 0
    model, items = load_backend(of.backend), items_of(of)
    policy = method_of(of).policy
    if policy.indicator or policy.probe or isinstance(policy, Verify):
        return  # these decide for a batch as a whole
    for item in items:
        (alone,), facts = runner.generate_batch(model, of, [item])
        assert facts["full_steps"] == full
        kept = model.load_media(outcome.folder.media, item)
        torch.testing.assert_close(alone, kept, rtol=0, atol=1 / 255 + 1e-3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_interval_one_is_bit_identical_to_no_cache(backend, results):
    plain = settings(results, backend, "none")
    model, items = load_backend(plain.backend), items_of(plain)
    (expected,), _ = runner.generate_batch(model, plain, items)
    for scope in scopes_of(backend):
        of = settings(results, backend, "hicache", scope=scope, interval=1)
        (media,), facts = runner.generate_batch(model, of, items)
        assert torch.equal(media, expected) and facts["full_steps"] == list(range(STEPS)), scope


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_plan_of_the_paper_is_the_default(backend):
    of = resolve(compose([f"backend={backend}", "backend.size=tiny"]))
    steps, interval, order, sigma, warmup = {
        "flux": (50, 7, 2, 0.5, 3),
        "flux_schnell": (4, 3, 1, 0.3, 2),
        "dit": (50, 6, 4, 0.75, 2),
        "hunyuan_video": (50, 6, 1, 0.5, 1),
        "qwen_image": (50, 6, 2, 0.5, 3),
        "qwen_image_edit": (50, 6, 2, 0.5, 3),
        "inf_dit": (39, 4, 2, 0.5, 2),
    }[backend]
    assert (of.num_steps, of.interval, of.order, of.sigma, of.warmup_steps) == (steps, interval, order, sigma, warmup)
