"""A run's id: what changes it, what must not, and golden values that make a drift visible."""

import dataclasses
from dataclasses import field

import pytest

import hicache
from experiments.config.compose import compose, options
from experiments.config.method import MethodConfig
from experiments.settings.identity import canonical, run_id
from experiments.settings.resolve import resolve

# The revision of the weights is fixed here, so that training a new model does not change these.
FIXED = ["backend.revision=golden", "sigma=0.75", "interval=6", "order=4", "num_items=200"]
GOLDEN = {
    "method=none": "digits-none-17640af98790",
    "method=hicache": "digits-hicache-n6o4s0.75-e0f804e5640f",
    "method=hicache sigma=0.3 order=2": "digits-hicache-n6o2s0.30-685256015b4a",
    "method=hicache sigma_schedule=horizon": "digits-hicache-n6o4s0.75-116eebdb5e96",
    "method=hicache scope=stack": "digits-hicache-n6o4s0.75-a552ed147865",
    "method=hicache_adaptive method.alpha=1.4": "digits-hicache_adaptive-n6o4s0.75-0a6b501b0b6c",
    "method=taylorseer": "digits-taylorseer-n6o4-bcc20414b847",
    "method=fora seed=1": "digits-fora-n6-f8fb758ac541",
    "method=steps method.steps=10 method.solver=dpmpp": "digits-steps-t10dpmpp-bd4295a78994",
}


def id_of(*overrides: str) -> str:
    return run_id(resolve(compose([*FIXED, *overrides])))


@pytest.mark.parametrize("command", GOLDEN)
def test_golden_ids(command):
    assert id_of(*command.split()) == GOLDEN[command]


@pytest.mark.parametrize("name", options("method"))
def test_only_what_the_method_reads_is_part_of_it(name):
    settings = resolve(compose([*FIXED, f"method={name}"]))
    other = {"interval": 3, "order": 1, "sigma": 0.9, "warmup_steps": 7, "scope": "stack"}
    for key, value in other.items():
        changed = run_id(dataclasses.replace(settings, **{key: value})) != run_id(settings)
        assert changed == (key in hicache.METHODS[name].uses), key


def test_a_budget_is_one_key_for_all_that_have_one():
    even = ["method=hicache", "policy=even"]
    assert id_of(*even).startswith("digits-hicache-k8o4s0.75-")
    assert id_of(*even) == id_of(*even, "budget=8") == id_of(*even, "interval=3", "warmup_steps=7")
    assert len({id_of("method=hicache"), id_of(*even), id_of(*even, "budget=6")}) == 3
    assert id_of("method=calibrated", "budget=6") == id_of("method=calibrated", "method.budget=6")
    assert id_of("method=calibrated") == id_of("method=calibrated", "budget=8")


def test_what_exchanged_parts_read_is_part_of_it():
    parts = ["method=fora", "forecaster=hermite"]
    assert len({id_of(*parts, *more) for more in ([], ["sigma=0.9"], ["order=1"], ["time=log_snr"])}) == 4
    assert id_of("method=hicache", "policy=mask", "method.mask=[0,3]", "interval=3") == id_of(
        "method=hicache", "policy=mask", "method.mask=[0,3]", "interval=4"
    )
    assert id_of("method=teacache", "scope=output") != id_of("method=teacache")


@pytest.mark.parametrize(
    "execution",
    [
        "results=elsewhere",
        "batch_size=7",
        "shard=1/3",
        "backend.device=cpu",
        "logger=wandb",
        "cluster.threads=1",
        "metrics=none",
        "metrics.level=0.9",
        "progress_every=1",
    ],
)
def test_execution_is_no_part_of_it(execution):
    assert id_of(execution) == id_of()


@pytest.mark.parametrize(
    "semantic",
    [
        "seed=1",
        "num_items=3",
        "num_steps=20",
        "backend.guidance=2",
        "backend.solver=unipc",
        "backend.path=x",
        "method.gate=false",
    ],
)
def test_what_changes_the_media_changes_it(semantic):
    assert id_of(semantic) != id_of()


@pytest.mark.parametrize(
    "command",
    [
        "method=teacache",
        "method=dbcache",
        "method=speca",
        "method=custom policy=teacache scope=stack",
        "method=hicache_adaptive method.per=batch",
        "method=hicache guidance=adaptive",
    ],
)
def test_the_batch_is_part_of_it_where_a_batch_decides(command):
    assert id_of(*command.split(), "batch_size=10") != id_of(*command.split(), "batch_size=20")


def test_spelling_does_not_matter():
    assert id_of("sigma=1", "seed=2") == id_of("seed=2", "sigma=1.0")


def test_naming_a_default_changes_nothing():
    assert id_of("backend.guidance=1.5", "method.gate=null") == id_of()


def test_a_new_field_keeps_old_ids():
    @dataclasses.dataclass(kw_only=True)
    class Grown(MethodConfig):
        added: int = 3
        noted: str = field(default="x", metadata={"semantic": False})

    settings = resolve(compose(FIXED))
    grown = dataclasses.replace(settings, method=Grown(name="hicache"))
    assert run_id(grown) == run_id(settings)
    assert run_id(dataclasses.replace(settings, method=Grown(name="hicache", noted="y"))) == run_id(settings)
    assert run_id(dataclasses.replace(settings, method=Grown(name="hicache", added=4))) != run_id(settings)


def test_the_reference_is_shared_by_methods_and_by_their_settings():
    references = {
        run_id(resolve(compose([f"method={name}", "sigma=0.9", "interval=9"])).reference())
        for name in options("method")
    }
    assert references == {run_id(resolve(compose(["method=none"])))}


def test_the_identity_is_plain_data():
    assert canonical(resolve(compose(["sigma_schedule=linear", "sigma_schedule.sigma_end=0.2"])))["sigma_schedule"] == {
        "name": "linear",
        "sigma_end": 0.2,
    }


def test_parts_that_changed_have_an_edition_and_others_keep_their_ids():
    def edition(*overrides):
        return canonical(resolve(compose([*FIXED, *overrides]))).get("editions")

    assert edition("method=hicache") is edition("method=magcache") is edition("method=duca", "patch=none") is None
    assert edition("method=toca") == edition("method=duca") == {"tokens": 2}
    assert (
        edition("method=hi_clusca") == edition("method=hicache", "patch=clusters", "scope=modules") == {"clusters": 2}
    )
    assert [edition(f"method={name}") for name in ("speca", "pab", "smoothcache")] == [
        {"verify": 2},
        {"broadcast": 2},
        {"kinds": 2},
    ]
    assert edition("backend=hunyuan_video", "backend.size=tiny", "method=magcache") == {"magcache": 2}
    assert edition("backend=flux", "backend.size=tiny", "method=toca") is None
