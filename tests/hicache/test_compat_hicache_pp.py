"""The functions of `hicache-pp` beside the package itself, on random trajectories."""

from __future__ import annotations

import cmath

import pytest
import torch

from hicache.compat import hicache_pp as ours

theirs = pytest.importorskip("hicache_pp")

STEPS = 50
POLES = [0.97 * cmath.exp(0.2j), 0.9, 0.99 * cmath.exp(0.07j), 0.8, 0.95, 0.99]


def trajectory(noise, shape=(64,), dtype=torch.float32, seed=1):
    generator = torch.Generator().manual_seed(seed)
    size = torch.Size(shape).numel()
    modes = torch.randn(size, len(POLES), dtype=torch.complex128, generator=generator)
    poles = torch.tensor(POLES, dtype=torch.complex128)
    smooth = [(modes @ poles**step).real for step in range(STEPS)]
    return [
        (value + noise * torch.randn(size, generator=generator).double()).reshape(shape).to(dtype) for value in smooth
    ]


def flat_loop(package, backend, values, given=None, own=True, **options):
    """A loop as a user of the package writes it; `given` is the history of each call, by default the state's.

    `own` is whether the state keeps its own.
    """
    state = package.hicache_init(num_steps=STEPS, backend=backend, **options)
    given = given or state["history"]
    if not own:
        del state["history"]
    forecast = {
        "hermite": package.hicache_forecast,
        "dmd": package.dmd_forecast_state,
        "auto": package.auto_forecast_state,
    }[backend]
    found = []
    for step in range(STEPS):
        if package.hicache_decide(state) == "forecast":
            found.append(forecast(state))
        else:
            found.append(values[step])
            package.hicache_update_derivatives(state, values[step])
            package.dmd_update_snapshots(state, values[step], given)
        state["step"] += 1
    return found, state


def tree_loop(package, backend, values, **options):
    state = package.hicache_init(num_steps=STEPS, backend=backend, **options)
    found = []
    for step in range(STEPS):
        if package.hicache_decide(state) == "forecast":
            found.append(
                package.hicache_forecast_tree(state) if backend == "hermite" else package.dmd_forecast_tree(state)
            )
        else:
            found.append(values[step])
            package.hicache_update_tree(state, values[step])
            package.dmd_update_snapshots_tree(state, values[step])
        state["step"] += 1
    return found, state


def distance(a, b):
    return float((a - b).norm() / b.norm())


@pytest.mark.matrix
@pytest.mark.parametrize("backend", ["hermite", "dmd", "auto"])
@pytest.mark.parametrize("noise", [0.0, 1e-3, 1e-2])
@pytest.mark.parametrize(
    "options",
    [
        {"interval": 5, "first_enhance": 4, "max_order": 2},
        {"interval": 4, "first_enhance": 2, "history": 6},
        {"interval": 3, "first_enhance": 0, "end_enhance": 45, "max_order": 3, "sigma": 0.7},
        {"interval": 6, "first_enhance": 6, "holdout": "horizon"},
    ],
)
def test_flat(backend, noise, options):
    values = trajectory(noise)
    expected, their_state = flat_loop(theirs, backend, values, **options)
    found, state = flat_loop(ours, backend, values, **options)
    assert state["activated_steps"] == their_state["activated_steps"]
    nearly_singular = (
        noise == 0 and options["first_enhance"] == 6
    )  # five anchors of six poles, whose Gram matrix loses digits
    assert max(map(distance, found, expected)) <= (3e-6 if nearly_singular else 1e-6)
    counted, reference = ours.hicache_telemetry(state), theirs.hicache_telemetry(their_state)
    assert counted["decisions"] == reference["decisions"]
    if backend != "auto":
        assert counted["method_counts"] == {name: n for name, n in reference["method_counts"].items() if n}
        assert counted["fallbacks"] == reference["fallbacks"]


def test_a_history_counts_for_a_state_that_has_none():
    values = trajectory(1e-2)
    five, eight = (flat_loop(ours, "dmd", values, interval=3, history=n)[0] for n in (5, 8))
    assert max(map(distance, five, eight)) > 1e-3
    for own, expected in ((True, five), (False, eight)):
        options = {"interval": 3, "history": 5, "given": 8, "own": own}
        found, reference = (flat_loop(package, "dmd", values, **options)[0] for package in (ours, theirs))
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        assert max(map(distance, found, reference)) < 1e-6


@pytest.mark.parametrize("backend", ["hermite", "dmd"])
def test_trees(backend):
    tree = [
        {"shape": a, "pose": [b, c]}
        for a, b, c in zip(
            trajectory(1e-3, (5, 4)), trajectory(1e-3, (7,), seed=2), trajectory(0.0, (2, 3), seed=3), strict=True
        )
    ]
    options = {"interval": 5, "first_enhance": 4, "max_order": 2}
    expected, their_state = tree_loop(theirs.tree, backend, tree, **options)
    found, state = tree_loop(ours.tree, backend, tree, **options)
    assert state["activated_steps"] == their_state["activated_steps"]
    for a, b in zip(found, expected, strict=True):
        assert distance(a["shape"], b["shape"]) <= 1e-6
        assert max(map(distance, a["pose"], b["pose"])) <= 1e-6


def test_a_batch_has_one_set_of_weights_as_there():
    values = trajectory(1e-2, (3, 20))
    options = {"interval": 5, "first_enhance": 4}
    assert (
        max(map(distance, flat_loop(ours, "dmd", values, **options)[0], flat_loop(theirs, "dmd", values, **options)[0]))
        <= 1e-6
    )


@pytest.mark.parametrize("count", [2, 3, 4, 6])
@pytest.mark.parametrize("k", [0.4, 1, 3])
def test_dmd_forecast(count, k):
    snapshots = trajectory(1e-3, (4, 16), torch.float64)[:count]
    assert distance(ours.dmd_forecast(snapshots, k), theirs.dmd_forecast(snapshots, k)) <= 1e-6


def test_hermite_functions():
    x = torch.linspace(-2, 3, 7)
    for n in range(6):
        torch.testing.assert_close(ours.physicists_hermite(n, x), theirs.physicists_hermite(n, x))
        torch.testing.assert_close(ours.scaled_hermite(n, x, 0.6), theirs.scaled_hermite(n, x, 0.6))
        if n:
            assert ours.tree.hermite_coeff(n, 3, 0.6) == pytest.approx(theirs.tree.hermite_coeff(n, 3, 0.6))


def test_guidance():
    a, b = ({"v": torch.randn(2, 3), "w": [torch.randn(4)]} for _ in range(2))
    for package in (ours, theirs):
        state = package.tree.adaptive_cfg_init(num_steps=10)
        state["step"] = 4
        assert package.tree.adaptive_cfg_decide(state, 0.99) is True
        state["anchors"].append((2, a))
        assert [package.tree.adaptive_cfg_decide(state, gamma) for gamma in (0.95, 0.9, None)] == [False, True, True]
        state["step"] = 9
        assert package.tree.adaptive_cfg_decide(state, 0.99) is True
    for name in ("guidance_term_tree", "tree_axpy", "tree_sub_div"):
        args = (2.0, a, b) if name == "tree_axpy" else (a, b, 2.0)
        torch.testing.assert_close(getattr(ours.tree, name)(*args), getattr(theirs.tree, name)(*args))
    assert ours.tree.tree_cosine(a, b) == pytest.approx(theirs.tree.tree_cosine(a, b), abs=1e-6)
    torch.testing.assert_close(ours.tree.reconstruct_cfg_tree(a, b), theirs.tree.reconstruct_cfg_tree(a, b))
    for order in (0, 1, 2):
        for anchors in ([(0, a)], [(0, a), (2, b)], [(0, a), (2, b), (7, ours.tree_axpy(2.0, a, b))]):
            torch.testing.assert_close(
                ours.tree.forecast_guidance_tree(anchors, 9, order),
                theirs.tree.forecast_guidance_tree(anchors, 9, order),
            )


def test_a_state_is_reset_and_refuses_what_theirs_refuses():
    values = trajectory(0.0)
    first, state = flat_loop(ours, "dmd", values, interval=5)
    ours.hicache_reset(state, branch_id="cond")
    assert (state["step"], state["activated_steps"], state["branch_id"]) == (0, [], "cond")
    with pytest.raises(RuntimeError, match="before any computed step"):
        ours.hicache_forecast(state)
    for wrong in ({"interval": 0}, {"sigma": 1.0}, {"backend": "pade"}, {"holdout": "2step"}, {"max_order": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            ours.hicache_init(10, **wrong)
        with pytest.raises(ValueError):
            theirs.hicache_init(10, **wrong)


def test_every_name_is_there():
    left_out = {"budget", "controller", "forward_audit"}
    extra = {
        name for name in theirs.__all__ if name[0].isupper() or name in ("stable_digest", "hermite", "dmd", "tree")
    }
    assert set(theirs.__all__) - extra - left_out <= set(ours.__all__)
    assert {name for name in vars(theirs.tree) if name.startswith(("tree_", "hicache_", "dmd_", "adaptive"))} <= set(
        vars(ours.tree)
    )
