"""The registry: composition, errors that name the key, and the layering of the packages."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import hicache

ROOT = Path(__file__).parents[2]
BAD = [
    ("hicach", {}, "method: must be one of .*hicache.*did you mean 'hicache'"),
    ("hicache", {"sigma": -1}, "sigma: must be a number > 0, got -1"),
    ("hicache", {"sigma": float("nan")}, "sigma: must be a number > 0, got nan"),
    ("hicache", {"order": 9}, "order: must be between 0 and 6, got 9"),
    ("hicache", {"order": -1}, "order: must be an integer >= 0, got -1"),
    ("hicache", {"interval": 0}, "interval: must be an integer >= 1, got 0"),
    ("hicache", {"warmup_steps": 0}, "warmup_steps: must be an integer >= 1, got 0"),
    ("hicache", {"scope": "module"}, "scope: must be one of .*did you mean 'modules'"),
    ("hicache", {"sigm": 0.5}, "knob: must be one of .*did you mean 'sigma'"),
    (
        "hicache",
        {"sigma_schedule": "adaptive", "sigma_options": {"alfa": 1}},
        "sigma_options: .*did you mean 'alpha'",
    ),
    ("hicache", {"policy": "mask"}, "mask: must be given exactly when policy is mask"),
    ("hicache", {"numerics": "reference"}, "history: must be differences"),
    ("newton", {"history": "differences"}, "history: newton has no ladder"),
]


@pytest.mark.parametrize(("name", "knobs", "message"), BAD)
def test_errors_name_key_rule_and_value(name, knobs, message):
    with pytest.raises(ValueError, match=message) as error:
        hicache.method(name, **knobs)
    assert "\n" not in str(error.value)


def test_a_method_ignores_what_it_does_not_read_and_can_be_recomposed():
    assert hicache.method("fora", order=4).knobs.order == 0
    assert hicache.method("hicache_adaptive", sigma_schedule="constant").knobs.sigma_schedule == "adaptive"
    assert hicache.method("hicache", policy="mask", mask=[0, 1, 5]).policy.plan(8) == [0, 1, 5]
    assert hicache.method("fora", basis="hermite", order=3).knobs.order == 3
    assert hicache.method("none", interval=7).policy.plan(3) == [0, 1, 2]


@pytest.mark.parametrize("name", hicache.METHODS)
def test_every_entry_composes(name):
    spec = hicache.METHODS[name]
    assert spec.uses <= {"interval", "order", "sigma", "warmup_steps", "scope", "sigma_schedule", "time"}
    built = hicache.method(name, interval=4, order=2, sigma=0.5, warmup_steps=2, scope="stack")
    assert built.name == name
    plan = built.policy.plan(12)
    assert plan is None or plan[0] == 0


def imports(package):
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module]
            for name in names:
                yield path, name.split(".")[0]


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("hicache", {"experiments", "evaluation", "hydra", "omegaconf"}),
        ("evaluation", {"experiments", "hicache", "hydra"}),
    ],
)
def test_arrows_point_one_way(package, forbidden):
    assert [(p.name, n) for p, n in imports(package) if n in forbidden] == []


def test_import_needs_torch_only():
    code = (
        "import sys, torch; before = set(sys.modules); import hicache; "
        "heavy = {'diffusers', 'transformers', 'hydra', 'numpy.testing', 'pandas', 'accelerate', 'safetensors'}; "
        "print(sorted(heavy & (set(sys.modules) - before)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"
