"""The KAN layer: its splines are scipy's, and it learns known functions."""

import math

import pytest
import torch
from scipy.interpolate import BSpline

from hicache.forecast.kan import KanLayer, bsplines, uniform_knots


@pytest.mark.parametrize("degree", [1, 2, 3])
def test_the_basis_is_scipys(degree):
    knots = uniform_knots(8, degree, -1.0, 2.0)
    x = torch.linspace(-1.9, 2.9, 101, dtype=torch.float64)
    ours = bsplines(x, knots, degree)
    assert ours.shape == (101, 8)
    for g in range(8):
        element = BSpline.basis_element(knots[g : g + degree + 2].numpy(), extrapolate=False)(x.numpy())
        torch.testing.assert_close(ours[:, g], torch.from_numpy(element).nan_to_num(0.0))
    inside = (x >= -1) & (x <= 2)
    torch.testing.assert_close(ours[inside].sum(-1), torch.ones(int(inside.sum()), dtype=torch.float64))


@pytest.mark.parametrize(
    ("function", "layers"),
    [
        (lambda x: torch.sin(math.pi * x[:, :1]), [(1, 1)]),
        (lambda x: x[:, :1] ** 2 - torch.cos(2 * x[:, 1:]), [(2, 1)]),
        (lambda x: torch.exp(torch.sin(math.pi * x[:, :1]) + x[:, 1:] ** 2) / 4, [(2, 1), (1, 1)]),
    ],
)
def test_it_learns_known_functions(function, layers):
    torch.manual_seed(0)
    net = torch.nn.Sequential(*(KanLayer(i, o, splines=12, low=-2.5, high=2.5) for i, o in layers))
    x = torch.rand(512, layers[0][0]) * 2 - 1
    optimiser = torch.optim.LBFGS(net.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure():
        optimiser.zero_grad()
        loss = (net(x) - function(x)).square().mean()
        loss.backward()
        return loss

    optimiser.step(closure)
    unseen = torch.rand(256, layers[0][0], generator=torch.Generator().manual_seed(1)) * 2 - 1
    error = (net(unseen) - function(unseen)).square().mean().sqrt()
    assert error < 0.02 * function(unseen).std()


def test_outside_the_knots_only_the_silu_is_left():
    layer = KanLayer(1, 1)
    far = torch.tensor([[50.0]])
    torch.testing.assert_close(layer(far), torch.nn.functional.silu(far) * layer.base)


@pytest.mark.parametrize(("knob", "message"), [({"splines": 3}, "splines: must be"), ({"high": -1.0}, "high: must be")])
def test_wrong_grids_are_refused(knob, message):
    with pytest.raises(ValueError, match=message):
        KanLayer(1, 1, **knob)
