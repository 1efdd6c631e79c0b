"""The sparse operators one by one: attention by columns, the MLP by units."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from hicache.operators import Chipmunk
from hicache.operators.attention import AttentionState, attend, column_mass
from hicache.operators.kernels import Reference
from hicache.operators.mlp import Layers, MlpState, chances, choose_units, correct, renew

SMALL = Chipmunk(
    query_group=24, key_multiple=4, token_group=8, hidden_multiple=8, sampled=64, dense_layers=1, order=(4, 2)
)


def masked(query, key, value, columns, group):
    """Attention over chosen columns as a full softmax under a mask of minus infinity."""
    tokens = query.shape[-2]
    mask = torch.full((*query.shape[:2], tokens, tokens), -math.inf, dtype=query.dtype)
    for b in range(query.shape[0]):
        for h in range(query.shape[1]):
            for i in range(tokens):
                mask[b, h, i, columns[b, h, i // group]] = 0
    scores = torch.einsum("bhid,bhjd->bhij", query, key) / math.sqrt(query.shape[-1]) + mask
    return torch.einsum("bhij,bhjd->bhid", scores.softmax(-1), value)


@pytest.mark.parametrize("tokens", [48, 40])  # the last group is full, or not
def test_attention_agrees_with_a_masked_softmax(tokens):
    torch.manual_seed(0)
    config = replace(SMALL, query_group=16, attention=0.25, key_multiple=4)
    state, before, rest, columns = AttentionState(), None, None, None
    start, drift = torch.randn(2, 3, 2, 3, tokens, 8, dtype=torch.float64)[0], torch.randn(3, 2, 3, tokens, 8).double()
    for step in range(13):
        q, k, v = start + 0.05 * step * drift
        found = attend(state, q, k, v, config, Reference())
        full = masked(q, k, v, torch.arange(tokens).expand(2, 3, 3, tokens), 16)
        scores = torch.einsum("bhid,bhjd->bhij", q, k) / math.sqrt(8)
        if step == 0:
            before = scores.exp().sum(-1, keepdim=True).log()
        if step == 1:
            mass = torch.zeros(2, 3, 3, tokens, dtype=q.dtype)
            for i in range(tokens):
                mass[:, :, i // 16] += (scores - before).exp()[:, :, i]
            columns = mass.argsort(-1, descending=True)[..., : config.keys(tokens)]
            assert torch.equal(state.columns, columns.sort(-1).values)
        if step in (1, 10):
            rest = full - masked(q, k, v, columns, 16)
        expected = full if step in (0, 1, 10) else rest + masked(q, k, v, columns, 16)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_columns_are_chosen_anew_only_when_asked():
    torch.manual_seed(0)
    first, second = torch.randn(2, 3, 1, 1, 32, 8)
    chosen = {}
    for renewing in (False, True):
        state = AttentionState()
        config = replace(SMALL, query_group=16, full_every=4, renew=renewing)
        for step in range(6):
            attend(state, *(first if step < 4 else second), config, Reference())
        chosen[renewing] = state.columns
    assert not torch.equal(chosen[False], chosen[True])


def test_column_mass_of_one_own_step_sums_to_the_queries():
    q, k = torch.randn(2, 1, 2, 40, 8)
    mass, lse = column_mass(q, k, None, 16)
    assert mass.shape == (1, 2, 3, 40) and lse.shape == (1, 2, 40, 1)
    torch.testing.assert_close(mass.sum(-1), torch.tensor([16.0, 16.0, 8.0]).expand(1, 2, 3))


def test_numbers_of_the_release():
    config = Chipmunk()
    assert config.keys(4608) == 784  # 17.0 % at 1024 x 1024
    assert config.keys(4080 + 512) == 784 and replace(config, attention=1.0).keys(4608) == 4608
    assert config.rounded(4097, 12288) == 4352 and config.rounded(12200, 12288) == 12288
    assert 0.335 < config.hidden(12288) / 12288 < 0.355


def layers_of(units=96, width=24, dtype=torch.float64):
    torch.manual_seed(1)
    weights = [torch.randn(*shape, dtype=dtype) / 5 for shape in ((units, width), (units,), (width, units))]
    return Layers(*weights, act=lambda z: F.gelu(z, approximate="tanh"), layer=3)


def test_mlp_agrees_with_one_unit_at_a_time():
    """The oracle recomputes the output from all remembered activations instead of correcting it."""
    config, layers = replace(SMALL, mlp=0.3, random=0.1), layers_of()
    x0, drift = torch.randn(2, 16, 24, dtype=torch.float64)
    state, remembered, means, units = MlpState(), None, None, None
    for step in range(14):
        x = x0 + 0.1 * step * drift
        state.executed += 1
        pre = torch.einsum("nc,fc->nf", x, layers.up) + layers.up_bias
        fresh = 0.5 * pre * (1 + torch.tanh(math.sqrt(2 / math.pi) * (pre + 0.044715 * pre**3)))
        if step % 10 == 0:
            renew(state, x, fresh.clone(), fresh @ layers.down.T, layers, config)
            remembered, means = fresh.clone(), torch.stack([pre[:8].mean(0), pre[8:].mean(0)])
            continue
        if step < 10 or step % 2 == 0:
            now = torch.stack([pre[:8].mean(0), pre[8:].mean(0)])
            order, counts = choose_units((now - means).abs().float(), config, (3, step))
            units = [order[g, : counts[g]] for g in range(2)]
            for g in range(2):
                means[g, units[g]] = now[g, units[g]]
        for g in range(2):
            for unit in units[g].tolist():
                remembered[8 * g : 8 * g + 8, unit] = fresh[8 * g : 8 * g + 8, unit]
        found = correct(state, x, layers, config, Reference())
        torch.testing.assert_close(found, remembered @ layers.down.T, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(state.means, means, rtol=1e-9, atol=1e-9)
    assert len(state.density) == 12 and 0.3 < sum(state.density) / 12 < 0.6


def test_what_a_step_returns_is_not_changed_later():
    config, layers = SMALL, layers_of()
    x = torch.randn(16, 24, dtype=torch.float64)
    state = MlpState(executed=0)
    hidden = layers.act(F.linear(x, layers.up, layers.up_bias))
    renew(state, x, hidden, hidden @ layers.down.T, layers, config)
    state.executed = 1
    first = correct(state, x + 1, layers, config, Reference())
    kept = first.clone()
    state.executed = 2
    correct(state, x - 1, layers, config, Reference())
    assert torch.equal(first, kept)


def test_the_threshold_is_read_from_the_first_units():
    moved = torch.arange(64.0).expand(2, 64).contiguous()
    config = replace(SMALL, mlp=0.25, random=0.0, hidden_multiple=1)
    assert choose_units(moved, replace(config, sampled=64), (0, 1))[1] == (16, 16)
    assert choose_units(moved, replace(config, sampled=16), (0, 1))[1] == (52, 52)  # above 11.25: all later ones


def test_padding_takes_what_moved_most_among_the_rest():
    moved = torch.arange(64.0).flip(0)[None].contiguous()
    order, counts = choose_units(moved, replace(SMALL, mlp=0.25, random=0.0, hidden_multiple=10), (0, 1))
    assert counts == (20,) and sorted(order[0, :20].tolist()) == list(range(20))


def test_random_units_depend_on_where_and_when_alone():
    draw = chances((6, 4096), 5, (3, 7), "cpu")
    assert torch.equal(draw, chances((6, 4096), 5, (3, 7), "cpu"))
    torch.manual_seed(99)  # the global generator is not asked
    assert torch.equal(draw[:2], chances((2, 4096), 5, (3, 7), "cpu"))  # nor how many groups there are
    for other in (
        chances((6, 4096), 6, (3, 7), "cpu"),
        chances((6, 4096), 5, (4, 7), "cpu"),
        chances((6, 4096), 5, (3, 8), "cpu"),
    ):
        assert abs(float(torch.corrcoef(torch.stack([draw.flatten(), other.flatten()]))[0, 1])) < 0.03
    assert draw.min() >= 0 and draw.max() < 1 and abs(float((draw < 0.05).double().mean()) - 0.05) < 0.005
    assert abs(float(torch.corrcoef(draw)[0, 1])) < 0.06
