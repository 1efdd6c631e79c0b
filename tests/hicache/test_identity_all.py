"""Every caching method with the knobs that turn it off is the un-cached model, bit for bit.

Two branches that are told apart by `cache_context`, as pipelines with true guidance have them, or a doubled batch;
and two generations in a row, so that nothing of the first is left in the second.
"""

import pytest
import torch

import hicache
from tests.hicache.models import build, inputs, method

STEPS = 4
CACHING = [name for name, spec in hicache.METHODS.items() if spec.caches and spec.fixed.get("scope") != "deep"]
BRANCHES = {"qwen_image": ("cond", "uncond"), "dit": ("",)}


@torch.no_grad()
def generate(model, call, branches, seed):
    """Euler steps with the guided output of all branches; returns every output of every branch."""
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(call["hidden_states"].shape, generator=generator).to(model.dtype)
    text = call.get("encoder_hidden_states")
    outputs, scale = [], 1000 if call["timestep"].dtype == torch.long else 1
    for step in range(STEPS):
        timestep = torch.full((len(latents),), (1 - step / STEPS) * scale).to(call["timestep"].dtype)
        found = []
        for i, branch in enumerate(branches):
            now = {**call, "hidden_states": latents, "timestep": timestep}
            if text is not None:
                now["encoder_hidden_states"] = text.flip(1) if i else text
            if branch:
                with model.cache_context(branch):
                    found.append(model(**now, return_dict=False)[0])
            else:
                found.append(model(**now, return_dict=False)[0])
        outputs += found
        guided = found[-1] + 4 * (found[0] - found[-1])
        latents = latents - guided[:, : latents.shape[1]] / STEPS
    return torch.stack(outputs)


@pytest.fixture(scope="module", params=[(m, d) for m in BRANCHES for d in (torch.float32, torch.bfloat16)], ids=str)
def case(request):
    """A model, its arguments, and what it gives in two generations."""
    name, dtype = request.param
    model = build(name, dtype)
    call = inputs(model, name, batch=2)
    plain = [generate(model, call, BRANCHES[name], seed) for seed in (1, 2)]
    assert all(torch.isfinite(outputs).all() for outputs in plain) and not torch.equal(*plain)
    return model, call, BRANCHES[name], plain


@pytest.mark.matrix
@pytest.mark.parametrize("name", CACHING)
def test_a_method_that_computes_every_step_is_the_model(case, name):
    model, call, branches, plain = case
    with hicache.cached(model, method(name, **hicache.METHODS[name].off)) as handle:
        for seed, expected in zip((1, 2), plain):
            handle.begin(STEPS)
            assert torch.equal(generate(model, call, branches, seed), expected)
            handle.finish()
            assert handle.report.branches == {branch: list(range(STEPS)) for branch in branches}
    assert torch.equal(generate(model, call, branches, 1), plain[0])  # nothing is left in the model
