"""Sparse operators on a tiny FLUX without a cache: exactness, selection, schedule, refusals."""

import doctest
import os
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import hicache.operators.chipmunk
import hicache.operators.order
from hicache.adapters import adapter_for
from hicache.operators import Chipmunk, Operators
from hicache.operators.kernels import Reference
from hicache.operators.mlp import Layers
from hicache.operators.order import permutation
from hicache.operators.providers import kernels_of
from tests.hicache.models import build, denoise, inputs
from tests.hicache.test_operators_parts import SMALL, layers_of

STEPS = 14


@pytest.fixture(scope="module")
def model():
    return build("flux")


def grid_call(model):
    """64 image tokens in a grid of 8 x 8, 8 text tokens."""
    found = inputs(model, "flux", text=8)
    found["hidden_states"] = torch.randn(1, 64, 16, generator=torch.Generator().manual_seed(3))
    n = torch.arange(64)
    found["img_ids"] = torch.stack([torch.zeros(64), n // 8, n % 8], dim=1)
    return found


@pytest.fixture(scope="module")
def call(model):
    return grid_call(model)


@pytest.fixture(scope="module")
def dense(model, call):
    return denoise(model, call, STEPS)[0]


def run(model, call, config, steps=STEPS):
    operators = Operators(adapter_for(model), config)
    try:
        return denoise(model, call, steps)[0], operators.facts
    finally:
        operators.remove()


def distance(found, expected):
    return max(float((a - b).norm() / b.norm()) for a, b in zip(found, expected))


# -- exactness -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [None, (4, 2)])
def test_density_one_is_the_dense_model(model, call, dense, order):
    found, facts = run(model, call, replace(SMALL, attention=1.0, mlp=1.0, order=order))
    assert distance(found, dense) <= 1e-6
    shares = {"attention": 1.0, "mlp": 1.0, "executed": STEPS}
    assert facts.items() >= {"name": "chipmunk", "provider": "reference", **shares}.items() and facts["bytes"] > 0


def test_dense_steps_are_the_model_bit_for_bit(model, call, dense):
    found, _ = run(model, call, replace(SMALL, full_every=1, order=None))
    assert all(torch.equal(a, b) for a, b in zip(found, dense))


def test_taken_off_the_model_is_what_it_was(model, call, dense):
    before = {name: set(vars(module)) for name, module in model.named_modules()}
    found, _ = run(model, call, SMALL)
    assert distance(found, dense) > 1e-4  # they did something
    again, _ = denoise(model, call, STEPS)
    assert all(torch.equal(a, b) for a, b in zip(again, dense))
    assert {name: set(vars(module)) for name, module in model.named_modules()} == before
    assert not model._forward_hooks and not model._forward_pre_hooks


def test_the_error_falls_with_the_density(model, call, dense):
    keys = [distance(run(model, call, replace(SMALL, attention=a, mlp=None))[0], dense) for a in (0.06, 0.2, 0.5, 1.0)]
    units = [
        distance(run(model, call, replace(SMALL, attention=None, mlp=m, random=0.0))[0], dense)
        for m in (0.05, 0.3, 0.7, 1.0)
    ]
    for errors in (keys, units):
        assert errors == sorted(errors, reverse=True) and errors[-1] <= 1e-6 < errors[-2]


def test_two_generations_are_equal_and_the_first_leaves_nothing(model, call):
    operators = Operators(adapter_for(model), SMALL)
    try:
        first = denoise(model, call, STEPS)[0]
        assert operators.bytes > 0
        operators.reset()
        assert operators.bytes == 0
        second = denoise(model, call, STEPS)[0]
        assert all(torch.equal(a, b) for a, b in zip(first, second))
        unlike = denoise(model, call, STEPS)[0]  # without a reset the dense steps are elsewhere
        assert not torch.equal(unlike[3], first[3])
    finally:
        operators.remove()


def test_branches_do_not_see_each_other(model, call):
    other = {**call, "encoder_hidden_states": call["encoder_hidden_states"].flip(1) + 1}
    alone = [run(model, c, SMALL, 4)[0] for c in (call, other)]
    branch = [""]
    operators = Operators(adapter_for(model), SMALL, lambda: (None, branch[0]))
    calls = [denoise(model, c, 4)[1] for c in (call, other)]  # the same latents may be used only for step 0
    operators.reset()
    try:
        for step in range(4):
            for name, own, expected in zip("ab", calls, alone):
                branch[0] = name
                now = own[step]
                with torch.no_grad():
                    out = model(**now, return_dict=False)[0]
                if step == 0:
                    assert torch.equal(out, expected[0])
        states = {key[1] for key in operators._attentions}
        assert states == {"a", "b"} and {s.executed for s in operators._attentions.values()} == {3}
    finally:
        operators.remove()


def test_bfloat16_stays_near(call):
    model = build("flux", torch.bfloat16)
    cast = {k: v.bfloat16() if isinstance(v, torch.Tensor) and k != "img_ids" else v for k, v in call.items()}
    plain = denoise(model, cast, STEPS)[0]
    found, _ = run(model, cast, replace(SMALL, attention=1.0, mlp=1.0))
    assert found[0].dtype == torch.bfloat16 and distance(found, plain) < 0.05


# -- attention -----------------------------------------------------------------------------------------------------


# -- MLP -----------------------------------------------------------------------------------------------------------


def test_random_units_leave_the_global_generator_alone_and_items_in_any_order_are_equal(model, call):
    items = [{**call, "hidden_states": call["hidden_states"] * scale} for scale in (1.0, 0.5)]
    torch.manual_seed(7)
    state = torch.get_rng_state()
    forth = [run(model, item, replace(SMALL, random=0.3), 4)[0] for item in items]
    assert torch.equal(torch.get_rng_state(), state)
    back = [run(model, item, replace(SMALL, random=0.3), 4)[0] for item in items[::-1]][::-1]
    assert all(torch.equal(a, b) for one, two in zip(forth, back) for a, b in zip(one, two))
    seeded, _ = run(model, items[0], replace(SMALL, random=0.3, seed=1), 4)
    assert not torch.equal(seeded[-1], forth[0][-1])


# -- schedule ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("executed", "attention", "mlp"),
    [
        (range(50), [0, 1, 10, 20, 30, 40], [0, 10, 20, 30, 40]),
        ([0, 1, 2, *range(7, 50, 5)], [0, 1, 42], [0, 42]),  # N = 5, e = 3
        (range(0, 50, 5), [0, 5], [0]),  # Algorithm 1: t mod N = 0; step 1 is never executed
    ],
)
def test_dense_steps_are_counted_on_executed_steps(executed, attention, mlp):
    assert Chipmunk().schedule(executed) == {"attention": attention, "mlp": mlp}


def test_masks_of_the_mlps_are_chosen_at_every_step_at_first():
    chosen = [step for step in range(24) if Chipmunk().mlp_chooses(step)]
    assert chosen == [1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 14, 16, 18, 22]


# -- order ---------------------------------------------------------------------------------------------------------


def test_order_is_squares_in_squares_and_has_an_inverse():
    order = permutation(16, 24, 8, 4)
    assert sorted(order.tolist()) == list(range(16 * 24))
    assert torch.equal(order[order.argsort()], torch.arange(16 * 24))
    rows, columns = order.view(-1, 16) // 24, order.view(-1, 16) % 24
    assert (rows.amax(1) - rows.amin(1) == 3).all() and (columns.amax(1) - columns.amin(1) == 3).all()
    outer = order.view(-1, 64)
    assert ((outer // 24).amax(1) - (outer // 24).amin(1) == 7).all()


def test_the_model_does_not_see_the_order(model, call, dense):
    found, _ = run(model, call, replace(SMALL, attention=None, mlp=None))
    assert distance(found, dense) <= 1e-6
    operators = Operators(adapter_for(model), replace(SMALL, attention=None, mlp=None))
    with torch.no_grad():
        named = model(**{**call, "timestep": torch.ones(1)})  # a named result
        moved = model(**{**call, "timestep": torch.ones(1), "return_dict": False})
    operators.remove()
    assert torch.equal(named.sample, moved[0])


# -- refusals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"attention": 0.0}, "operators.attention: must be null or a share, 0 < share <= 1, got 0.0"),
        ({"mlp": 1.5}, "operators.mlp: must be null or a share, 0 < share <= 1, got 1.5"),
        ({"random": -0.1}, "operators.random: must be between 0 and 1, got -0.1"),
        ({"full_every": 0}, "operators.full_every: must be an integer >= 1, got 0"),
        ({"order": (8, 3)}, "operators.order: must be two sides"),
        ({"provider": "cuda"}, "operators.provider: must be one of reference, triton, chipmunk, got 'cuda'"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_wrong_values_are_refused(values, line):
    with pytest.raises(ValueError, match="operators") as error:
        Chipmunk(**values)
    assert line in str(error.value) and "\n" not in str(error.value)


def refused(model, call, config, line):
    operators = Operators(adapter_for(model), config)
    try:
        with pytest.raises(ValueError) as error, torch.no_grad():
            model(**call)
        assert line in str(error.value) and "\n" not in str(error.value)
    finally:
        operators.remove()


def test_what_does_not_fit_is_refused(model, call):
    refused(model, call, replace(SMALL, token_group=10), "tokens of an MLP: must be a multiple of 10")
    refused(model, call, replace(SMALL, order=(16, 4)), "height, width: must be multiples of 16 tokens a side")
    short = {**call, "hidden_states": call["hidden_states"][:, :60], "img_ids": call["img_ids"][:60].roll(3, 0)}
    refused(model, short, SMALL, "img_ids: must be one full grid of 8 x 8 tokens, got 60 tokens")
    two = {
        **call,
        **{
            k: torch.cat([call[k]] * 2)
            for k in ("hidden_states", "encoder_hidden_states", "pooled_projections", "timestep", "guidance")
        },
    }
    refused(model, two, SMALL, "batch_size: must be 1 for chipmunk's MLPs (operators.mlp=null has none), got 2")
    mask = torch.ones(1, 1, 1, 72, dtype=torch.bool)
    masked_call = {**call, "joint_attention_kwargs": {"attention_mask": mask}}
    refused(model, masked_call, SMALL, "operators: must be none for attention with a mask")


def test_attention_alone_takes_a_batch(model, call):
    two = {
        **call,
        **{
            k: torch.cat([call[k]] * 2)
            for k in ("hidden_states", "encoder_hidden_states", "pooled_projections", "timestep", "guidance")
        },
    }
    two["hidden_states"] = torch.cat([call["hidden_states"], call["hidden_states"].flip(1)])
    both, _ = run(model, two, replace(SMALL, mlp=None), 4)
    one, _ = run(model, call, replace(SMALL, mlp=None), 4)
    assert distance([b[:1] for b in both], one) < 1e-5


def test_models_and_providers_that_cannot_are_refused(model, monkeypatch):
    with pytest.raises(
        ValueError, match="operators: chipmunk knows the blocks of flux, got QwenImageTransformer2DModel"
    ):
        Operators(adapter_for(build("qwen_image")), SMALL)
    with pytest.raises(ValueError, match="provider: chipmunk needs its package"):
        Operators(adapter_for(model), replace(SMALL, provider="chipmunk"))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match="provider: triton needs Triton and a CUDA device, got a model on cpu"):
        Operators(adapter_for(model), replace(SMALL, provider="triton"))
    wrapped = build("flux")
    wrapped.transformer_blocks[1].ff.net[2].base_layer = torch.nn.Linear(1, 1)
    with pytest.raises(ValueError, match="operators: chipmunk needs plain linear layers"):
        Operators(adapter_for(wrapped), SMALL)
    compiled = build("flux")
    compiled.transformer_blocks[1].compile()
    with pytest.raises(ValueError, match="operators: must be none for compiled blocks"):
        Operators(adapter_for(compiled), SMALL)


# -- providers -----------------------------------------------------------------------------------------------------

KERNELS = """
import torch, torch.nn.functional as F
from hicache import Chipmunk
from hicache.operators.kernels import Reference
from hicache.operators.providers import kernels_of
from hicache.operators.mlp import Layers
torch.manual_seed(0)
one, two = Reference(), kernels_of(Chipmunk(provider="triton"), torch.device("cpu"), torch.float32)
assert two.name == "triton"
q, k, v = torch.randn(3, 1, 2, 80, 32)
columns = torch.rand(1, 2, 4, 80).topk(20, -1).indices.sort(-1).values
for scale in (None, 0.5):
    torch.testing.assert_close(two.attention(q, k, v, columns, 24, scale), one.attention(q, k, v, columns, 24, scale))
down = torch.randn(40, 140)[:, 44:] / 10
layers = Layers(torch.randn(96, 40) / 6, torch.randn(96), down, lambda z: F.gelu(z, approximate="tanh"), 0)
x, hidden, output = torch.randn(48, 40), torch.randn(48, 96), torch.randn(48, 40)
units = torch.stack([torch.randperm(96), torch.randperm(96)])
found = {}
for kernels in (one, two):
    found[kernels.name] = hidden.clone(), output.clone()
    kernels.mlp(x, layers, *found[kernels.name], units, (33, 70), 24)
for a, b in zip(*found.values()):
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
"""


@pytest.mark.slow
def test_the_triton_kernels_agree_with_the_reference():
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    subprocess.run([sys.executable, "-c", KERNELS], check=True, env=environment)


def test_the_original_kernels_are_given_what_they_read(monkeypatch):
    """A stand-in for the package, which takes the arguments of the published calls."""
    from hicache.operators import original

    def mlp(x, fc1w, fc1b, fc2w_T, indices, counts, sparse_act_T, cached_out, num_sms_scatter_add):
        hidden, layers = sparse_act_T.t().contiguous(), Layers(fc1w, fc1b, fc2w_T.t(), layers_of().act, 0)
        Reference().mlp(x, layers, hidden, cached_out, indices.long(), tuple(counts.tolist()), 8)
        sparse_act_T.copy_(hidden.t())

    def csp_attn(q, k, v, out, indices, counts, sign):
        assert indices.shape == (*counts.shape, q.shape[-2]) and indices.dtype == counts.dtype == torch.int32
        out += sign * Reference().attention(q, k, v, indices[..., : counts[0, 0, 0]].long(), 16, None)

    kernels = object.__new__(original.OriginalKernels)
    kernels.package, kernels._transposed = SimpleNamespace(mlp=mlp), {}
    monkeypatch.setattr(torch.ops, "chipmunk", SimpleNamespace(csp_attn=csp_attn), raising=False)
    q, k, v = torch.randn(3, 1, 2, 48, 8)
    columns = torch.rand(1, 2, 3, 48).topk(12, -1).indices
    assert torch.equal(kernels.attention(q, k, v, columns, 16, None), Reference().attention(q, k, v, columns, 16, None))
    with pytest.raises(ValueError, match=r"provider: chipmunk needs scores scaled by d\^-1/2 = 0.353553, got 0.5"):
        kernels.attention(q, k, v, columns, 16, 0.5)
    assert torch.equal(kernels.attention(q, k, v, columns, 16, 8**-0.5), kernels.attention(q, k, v, columns, 16, None))
    layers = layers_of()
    x, hidden, output = (torch.randn(16, n, dtype=torch.float64) for n in (24, 96, 24))
    units, found = torch.stack([torch.randperm(96), torch.randperm(96)]), []
    for one in (Reference(), kernels):
        found.append((hidden.clone(), output.clone()))
        one.mlp(x, layers, *found[-1], units, (8, 16), 8)
    assert all(torch.allclose(a, b) for a, b in zip(*found))


def test_the_original_kernels_refuse_what_they_are_not_told(monkeypatch):
    """Groups and heads of other sizes: they have arguments for none of them."""
    monkeypatch.setitem(sys.modules, "chipmunk.ops", SimpleNamespace())
    release, place = Chipmunk(provider="chipmunk"), (torch.device("cuda"), torch.bfloat16)
    assert kernels_of(release, *place, 128).name == kernels_of(release, *place).name == "chipmunk"
    kernels_of(replace(release, attention=None, query_group=96), *place, 64)
    kernels_of(replace(release, mlp=None, token_group=64), *place, 128)
    for changed, width, line in (
        ({"query_group": 96}, 128, "operators.query_group: must be 192 with operators.provider=chipmunk, got 96"),
        ({"token_group": 64}, 128, "operators.token_group: must be 128 with operators.provider=chipmunk, got 64"),
        ({}, 64, "operators.provider: chipmunk needs heads of 128, got 64"),
    ):
        with pytest.raises(ValueError) as error:
            kernels_of(replace(release, **changed), *place, width)
        assert str(error.value) == line


@pytest.mark.parametrize("module", [hicache.operators.chipmunk, hicache.operators.order])
def test_examples(module):
    assert doctest.testmod(module).failed == 0
