"""Gauss-Newton with held-out items, on problems whose answers are known."""

import pytest
import torch

from hicache.fitting.newton import decibels, gradient, levenberg

TRAIN = torch.tensor([True, True, True, False] * 4)


def problem(seed=0, noise=0.05, curve=0.3):
    """16 items of 30 numbers that depend on 3 parameters, not quite linearly; the true ones are (1, -2, 0.5)."""
    draw = torch.Generator().manual_seed(seed)
    slope = torch.randn(16, 30, 3, dtype=torch.float64, generator=draw)
    offset = noise * torch.randn(16, 30, dtype=torch.float64, generator=draw)
    truth = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)

    def residuals(by):
        away = slope @ (by - truth)
        return away + curve * away**2 / 10 + offset

    def jacobian(by):
        return torch.func.jacfwd(residuals)(by)[TRAIN]

    return residuals, jacobian, truth


def test_the_gradient_is_that_of_the_mean_psnr():
    residuals, _, _ = problem()
    by = torch.tensor([0.3, 0.1, -0.2], dtype=torch.float64, requires_grad=True)
    residuals(by).square().sum(1).log().sum().backward()
    g, curvature = gradient(residuals(by).detach(), torch.func.jacfwd(residuals)(by.detach()))
    assert torch.allclose(2 * g, by.grad)
    assert torch.allclose(curvature, curvature.T) and bool((torch.linalg.eigvalsh(curvature) > 0).all())
    assert decibels(torch.full((2, 5), 0.02)) == pytest.approx(40.0)


@pytest.mark.parametrize("curve", [0.0, 0.3])
def test_the_least_error_is_found_with_one_measured_jacobian(curve):
    residuals, jacobian, truth = problem(curve=curve)
    fit = levenberg(residuals, jacobian, torch.zeros(3, dtype=torch.float64), TRAIN, tries=12, least=1e-3)
    assert fit.jacobians == 1 and fit.runs <= 13
    assert torch.allclose(fit.parameters, truth, atol=0.02)
    assert fit.held_out[1] == pytest.approx(decibels(residuals(fit.parameters)[~TRAIN]))
    assert fit.held_out[1] > fit.held_out[0] + 20 and fit.trained[1] > fit.trained[0] + 20


def test_what_does_not_help_held_out_items_is_not_taken():
    residuals, jacobian, truth = problem()
    start = truth + 0.01

    def misled(by):
        found = residuals(by)
        return torch.where(TRAIN[:, None], residuals(by - 1), found)

    fit = levenberg(misled, lambda by: jacobian(by - 1), start, TRAIN)
    assert torch.equal(fit.parameters, start) and fit.held_out[0] == fit.held_out[1]


def test_a_step_that_fails_is_damped():
    residuals, jacobian, truth = problem()
    fit = levenberg(residuals, lambda by: jacobian(by) / 20, torch.zeros(3, dtype=torch.float64), TRAIN, tries=30)
    assert fit.held_out[1] > fit.held_out[0]


@pytest.mark.parametrize("train", [[True] * 16, [False] * 16])
def test_items_must_be_held_out_and_fitted(train):
    residuals, jacobian, truth = problem()
    with pytest.raises(ValueError, match="train: must hold out an item and fit one"):
        levenberg(residuals, jacobian, truth, torch.tensor(train))
