"""Every line of docs/compare.md: the command composes to the method that is compared with the stored tensors."""

import dataclasses
from pathlib import Path

import pytest

import hicache
from experiments.config.compose import compose
from experiments.settings import compare
from experiments.settings.compared import LINES, METHODS
from experiments.settings.library_method import method_of
from experiments.settings.resolve import resolve
from tests.hicache import originals


def composed(line):
    return resolve(compose([f"backend={line.backend}", "backend.size=tiny", *line.overrides]))


@pytest.mark.matrix
@pytest.mark.parametrize("line", LINES, ids=lambda line: line.peer)
def test_a_line_is_the_method_that_was_compared(line):
    settings = composed(line)
    ours = method_of(settings)
    family, _, setting = line.golden.partition("|")
    if not line.golden:
        return
    kind, values = originals.read(setting)
    assert settings.num_steps == values["T"] and line.backend == family
    if kind == "plain":
        assert settings.method.name == "none" and settings.backend.time_embedding == "published"
        return
    theirs = (originals.flux_method if family == "flux" else originals.dit_method)(setting)
    assert ours.name == theirs.name and ours.scope == theirs.scope
    for a, b in ((ours.policy, theirs.policy), (ours.patch, theirs.patch)):
        assert (a is None) == (b is None) and (a is None or public(prepared(a, family)) == public(prepared(b, family)))
    basis = [m.knobs.build_basis() for m in (ours, theirs)]
    assert basis[0] == basis[1] and ours.knobs.gated == theirs.knobs.gated
    keys = hicache.reads(theirs.name, theirs.knobs.policy, theirs.knobs.basis, theirs.knobs.patch) - {"time", "scope"}
    for key in keys - {"warmup_steps", "sigma_schedule"}:
        assert getattr(ours.knobs, key) == getattr(theirs.knobs, key), key
    if theirs.knobs.gated and basis[0].uses_order:
        assert ours.knobs.warmup_steps == theirs.knobs.warmup_steps
    assert (ours.knobs.front, ours.knobs.back) == (theirs.knobs.front, theirs.knobs.back)


def prepared(part, family):
    part.prepare(family, 28, *([28] if hasattr(part, "amend") else []))
    return part


def public(part):
    found = {f.name: getattr(part, f.name) for f in dataclasses.fields(part) if f.init}
    return type(part), {key: list(value) if isinstance(value, (tuple, list)) else value for key, value in found.items()}


def line(peer):
    return next(entry for entry in LINES if entry.peer == peer)


def test_diffusers_full_steps_are_behind_ours_by_one():
    """0..w-1, then w+1+jN, for w = 3 and N = 5 of 28 steps."""
    for peer in ("diffusers `TaylorSeerCacheConfig`", "diffusers `TaylorSeerCacheConfig(use_lite_mode=True)`"):
        chosen = method_of(composed(line(peer)))
        assert chosen.policy.plan(28) == [0, 1, 2, *range(4, 28, 5)]
        assert chosen.build_forecaster().history.warmup_steps is None


def test_what_the_other_lines_set():
    taylor = method_of(composed(line("cache-dit DBCache with its TaylorSeer calibrator")))
    assert taylor.knobs.basis == "taylor" and taylor.build_forecaster().history.warmup_steps is None
    foca = method_of(composed(line("cache-dit FoCa calibrator"))).knobs.build_basis()
    assert foca.variant == "anchored" and foca.anchors(0) >= 50
    for backend, published in (("DiT", (0.3, 0.05, 0.01, 3, "hidden")), ("FLUX", (7.0, 0.3, 0.1, 2, "modules"))):
        policy = prepared(method_of(composed(line(f"SpeCa on {backend}"))).policy, backend.lower())
        assert (policy.base, policy.decay, policy.floor, policy.min_drafts, policy.compare) == published
        assert policy.warmup_steps == 3
    kontext = prepared(method_of(composed(line("MagCache on FLUX Kontext"))).policy, "flux")
    assert (kontext.limits.threshold, kontext.limits.max_skips, len(kontext.plan(28))) == (0.05, 4, 14)


def test_qwen_image_edit_has_its_own_curve():
    for backend, count in (("qwen_image", 37), ("qwen_image_edit", 35)):
        settings = resolve(compose([f"backend={backend}", "backend.size=tiny", "method=magcache", "num_steps=50"]))
        assert len(prepared(method_of(settings).policy, "qwen_image").plan(50)) == count


def test_the_page_is_current():
    assert METHODS.keys() == hicache.METHODS.keys()
    page = Path(compare.PAGE)
    assert page.read_text() == compare.markdown(), "run `python -m experiments compare --markdown`"
