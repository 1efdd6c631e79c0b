"""The registry: composition, errors that name the key, and the layering of the packages."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import hicache
from hicache.spans import check_mixing

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
    ("hicache", {"sigma_options": {"alpha": 1}}, "sigma_options: sigma_schedule constant has none, got 'alpha'"),
    ("hicache", {"sigma_options": 5}, "sigma_options: must be names and values, got 5"),
    ("hicache", {"policy": "mask"}, "mask: must be given exactly when policy is mask"),
    ("hicache", {"policy": "mask", "mask": 5}, "mask: must be a list of steps, got 5"),
    ("hicache", {"numerics": "reference"}, "history: must be differences"),
    ("newton", {"history": "differences"}, "history: newton has no ladder"),
]


@pytest.mark.parametrize(("name", "knobs", "message"), BAD)
def test_errors_name_key_rule_and_value(name, knobs, message):
    with pytest.raises(ValueError, match=message) as error:
        hicache.method(name, **knobs)
    assert "\n" not in str(error.value)


def test_a_method_can_be_recomposed():
    assert hicache.method("hicache", policy="mask", mask=[0, 1, 5]).policy.plan(8) == [0, 1, 5]
    assert hicache.method("fora", basis="hermite", order=3).knobs.order == 3
    assert hicache.method("none", interval=7).policy.plan(3) == [0, 1, 2]


def test_what_belongs_to_a_part_goes_with_it():
    """Options are added to those that a method fixes; another part comes without them."""
    own = {"threshold": 0.05}
    assert hicache.method("fbcache").knobs.policy_options == own
    assert hicache.method("fbcache", policy_options={"max_continuous": 3}).knobs.policy_options == {
        **own,
        "max_continuous": 3,
    }
    built = hicache.method("fbcache", policy="interval", interval=3, warmup_steps=2)
    assert built.knobs.policy_options == {} and built.policy.plan(8) == hicache.full_steps(8, 3, 2)
    assert hicache.method("fora", basis="taylor").knobs.order == 2
    assert hicache.method("teacache", scope="output").scope == "output"
    patch = hicache.method("duca", patch_options={"spread": 0.7}).patch
    assert patch is not None
    patch.prepare("dit", 2, 0)
    assert (patch.fraction, patch.spread) == (0.05, 0.7)  # DuCa's share, not ToCa's
    gates = {name: hicache.method("custom", basis=name).knobs.gated for name in ("hermite", "reuse", "dmd", "foca")}
    assert gates == {"hermite": True, "reuse": True, "dmd": False, "foca": False}
    assert not hicache.method("custom", gate=False).knobs.gated and hicache.method("dmd", gate=True).knobs.gated


def test_keys_are_read_by_the_parts_that_there_are():
    assert hicache.reads("fora") == {"interval", "warmup_steps", "scope"}
    ladder = {"order", "sigma", "sigma_schedule", "time"}
    assert hicache.reads("fora", basis="hermite") == hicache.reads("fora") | ladder
    assert hicache.reads("fora", basis="reuse") == hicache.reads("fora")
    assert hicache.reads("dbcache", basis="hermite") == {"warmup_steps"} | ladder
    assert hicache.reads("teacache", policy="interval") == {"interval", "warmup_steps"}
    assert hicache.reads("teacache", basis="dmd") == ladder
    assert hicache.reads("hicache", policy="mask") == hicache.reads("hicache") - {"interval"}
    assert hicache.reads("custom", policy="teacache", basis="reuse") == {"scope"}
    assert hicache.reads("toca", policy="modulated") == {"interval"} == hicache.reads("delta_dit")
    assert hicache.reads("hicache_adaptive", policy="mask") == {"order", "sigma", "time", "warmup_steps", "scope"}
    assert hicache.reads("none", policy="mask") == frozenset()


@pytest.mark.parametrize(
    ("name", "knobs", "said"),
    [
        ("pab", {"patch": "tokens"}, "patch: must cover a module that policy Broadcast decides about, got 'tokens'"),
        ("toca", {"policy": "alternate"}, "scope: must be what Alternate skips as a whole, .*got 'modules'"),
        ("hicache", {"policy": "alternate"}, "scope: must be what Alternate skips as a whole, .*got 'modules'"),
    ],
)
def test_parts_without_effect_on_each_other_are_refused(name, knobs, said):
    with pytest.raises(ValueError, match=said):
        check_mixing(hicache.method(name, **knobs))


@pytest.mark.parametrize("name", hicache.METHODS)
def test_every_entry_composes(name):
    spec = hicache.METHODS[name]
    assert spec.uses <= {"interval", "order", "sigma", "warmup_steps", "scope", "sigma_schedule", "time"}
    built = hicache.method(name, interval=4, order=2, sigma=0.5, warmup_steps=2)
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


@pytest.mark.slow
def test_import_needs_torch_only():
    code = (
        "import sys, torch, torch._dynamo, torch.utils.flop_counter; before = set(sys.modules); import hicache; "
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}; "
        "print(sorted(new - set(sys.stdlib_module_names) - {'hicache', 'torch', 'triton'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"
