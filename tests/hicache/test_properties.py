"""What holds for every method of the registry on every model class: nothing here names a method but its options."""

import pytest
import torch

import hicache
from hicache.adapters import adapter_for
from hicache.patch import ClusterPatch
from hicache.policy import Clock
from hicache.policy.scheduled import kind_of
from hicache.policy.speculative import Verify
from hicache.tree import Site
from tests.hicache.models import MODELS, build, denoise, inputs, method

STEPS = 6
EAGER = {
    "toca": {"patch_options": {"fraction": 0.3}},
    "duca": {"patch_options": {"fraction": 0.3}},
    "clusca": {"patch_options": {"clusters": 4, "gamma": 0.0}},
    "hi_clusca": {"patch_options": {"clusters": 4, "gamma": 0.0}},
    "teacache": {"policy_options": {"threshold": 3.0}},
    "fbcache": {"policy_options": {"threshold": 1.0}},
    "dbcache": {"policy_options": {"threshold": 1.0}},
    "pab": {"policy_options": {"range": 3, "low": 0.1, "high": 0.95}},
    "smoothcache": {"policy_options": {"table": {"attn.img": [0, 2, 4], "attn.joint": [0, 2, 4], "mlp.img": [0, 3]}}},
}
"""Options with which a method caches within a few steps of a tiny model. Clusters that propagate mix tokens, and so are
not exact on constant features; without propagation they are."""
CACHING = [name for name, spec in hicache.METHODS.items() if spec.caches and spec.fixed.get("scope") != "deep"]
KINDS = [(torch.float32, 2, 1e-5), (torch.bfloat16, 1, 2e-2)]


def fitting(options, model):
    """The options, with the lines of a table that are of modules of the model."""
    table = options.get("policy_options", {}).get("table")
    if table is None:
        return options
    known = {kind_of(module.site) for module in adapter_for(model).modules()}
    return {"policy_options": {"table": {kind: steps for kind, steps in table.items() if kind in known}}}


@torch.no_grad()
def run(model, call, chosen, steps=STEPS, constant=False):
    """Every output of a generation; `constant` gives the model the same input at every step."""
    with hicache.cached(model, chosen) as handle:
        handle.begin(steps)
        if constant:
            outputs = [model(**call, return_dict=False)[0] for _ in range(steps)]
        else:
            outputs = denoise(model, dict(call), steps)[0]
        handle.finish()
    return torch.stack(outputs), handle.report


@pytest.fixture(scope="module", params=[(m, *kind) for m in MODELS for kind in KINDS], ids=str)
def case(request):
    """A model, its arguments, its own outputs, and the same with constant arguments."""
    name, dtype, batch, tolerance = request.param
    model = build(name, dtype)
    call = inputs(model, name, batch=batch)
    middle = 500 if call["timestep"].dtype == torch.long else 0.5
    still = {**call, "timestep": torch.full_like(call["timestep"], middle)}
    with torch.no_grad():
        plain, kept = torch.stack(denoise(model, dict(call), STEPS)[0]), model(**still, return_dict=False)[0]
    return model, call, plain, still, kept, tolerance


@pytest.mark.matrix
@pytest.mark.parametrize("name", CACHING)
def test_identity_determinism_shape_and_constants(case, name):
    model, call, plain, still, kept, tolerance = case
    outputs, report = run(model, call, method(name, **hicache.METHODS[name].off))
    assert torch.equal(outputs, plain) and report.full_steps == list(range(STEPS))

    chosen = method(name, **fitting(EAGER.get(name, {}), model))
    first, report = run(model, call, chosen)
    assert 0 < len(report.full_steps) < STEPS, "the options let it compute everything"
    assert sorted(report.full_steps + report.mixed_steps + report.estimated_steps) == list(range(STEPS))
    assert first.shape == plain.shape and first.dtype == plain.dtype and torch.isfinite(first).all()
    assert not torch.equal(first, plain)

    constant, report = run(model, still, chosen, constant=True)
    error = (constant.float() - kept.float()).abs().max() / kept.float().abs().max()
    assert len(report.full_steps) < STEPS and error <= tolerance
    assert torch.equal(run(model, call, chosen)[0], first)  # the same again; nothing of the one in between is left


PADDED = [(name, EAGER.get(name, {})) for name in CACHING] + [
    ("toca", {"patch_options": {"fraction": 0.5, "select": select, "profile": "flat"}})
    for select in ("attention", "keys", "random")
]
PADDED += [
    ("clusca", {"patch_options": {"clusters": 6, "gamma": 0.5}}),  # more clusters than the shorter text has tokens
    ("hi_clusca", {"patch_options": {"clusters": 4}, "sigma_schedule": "adaptive"}),
    ("speca", {"policy_options": {"base": 0.01, "floor": 0.0, "min_drafts": 1}}),
    ("speca", {"basis": "dmd", "warmup_steps": 5}),
    ("dmd", {"scope": "span", "warmup_steps": 5}),
    ("auto", {"scope": "front_back", "policy": "stages", "interval": 2}),
]
MASKS = {"hunyuan_video": "encoder_attention_mask", "qwen_image": "encoder_hidden_states_mask"}


@pytest.mark.matrix
@pytest.mark.parametrize("model_name", MASKS)
def test_padding_of_texts_cannot_be_seen(model_name, monkeypatch):
    """Whatever stands in the padded text tokens: not in scores, norms, measured errors nor weights."""
    errors, decide = [], Verify.decide
    monkeypatch.setattr(Verify, "decide", lambda self, clock: errors.append(clock.error) or decide(self, clock))
    model = build(model_name)
    call = inputs(model, model_name, batch=2, text=8)
    mask = torch.arange(8) < torch.tensor([[5], [3]])
    call[MASKS[model_name]] = mask
    text = call["encoder_hidden_states"]
    noise = 3 * torch.randn(text.shape, generator=torch.Generator().manual_seed(5))
    other = {**call, "encoder_hidden_states": torch.where(mask[..., None], text, noise)}
    for name, options in PADDED:
        chosen = method(name, **fitting(options, model))
        first, _ = run(model, call, chosen, 9)
        seen, errors[:] = list(errors), []
        second, _ = run(model, other, chosen, 9)
        assert torch.equal(first, second) and seen == errors, (name, options)
        errors.clear()


def test_padding_is_in_no_cluster():
    torch.manual_seed(0)
    tokens, valid = torch.randn(2, 9, 3), torch.arange(9) < torch.tensor([[6], [2]])
    other = torch.where(valid[..., None], tokens, 50.0)
    found = []
    for hidden in (tokens, other):
        patch = ClusterPatch(clusters=4)
        patch.valid = {"txt": valid}
        for _ in range(2):
            patch.see_hidden("txt", hidden)
        found.append(patch)
        rows = patch.pick(Site(0, "mlp", "txt"), Clock(step=1, num_steps=5), 9, 2, torch.device("cpu"))
        assert valid.gather(1, rows).all() and rows.shape == (2, 4)
    assert torch.equal(found[0].centroids["txt"], found[1].centroids["txt"])
    assert torch.equal(found[0].labels["txt"][valid], found[1].labels["txt"][valid])
