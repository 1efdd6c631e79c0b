"""The zoo: the committed page is what the code makes, and acceptance is what a run is checked with."""

import dataclasses

import pytest

import hicache
from experiments.backends import BACKENDS, PRESETS, backend_class
from experiments.config.compose import compose
from experiments.errors import ConfigError
from experiments.settings.compatibility import check_method, check_pair
from experiments.settings.library_method import method_of
from experiments.settings.on_presets import groups
from experiments.settings.resolve import resolve
from experiments.settings.zoo import PAGE, accepting, entry, main, markdown


@pytest.fixture(scope="module")
def page():
    return markdown()


@pytest.mark.slow
def test_the_committed_page_is_what_the_code_makes(page):
    assert PAGE.read_text() == page, "python -m experiments methods --markdown"


@pytest.mark.slow
def test_every_method_and_backend_is_on_the_page(page):
    for name in hicache.METHODS:
        assert page.count(f"| `{name}` |") >= 2, name
    assert all(name in page for name in BACKENDS)


def test_presets_say_which_methods_they_take(page):
    found = {preset: methods for names, methods in groups() for preset in names}
    assert found.keys() == {*PRESETS} - {"diffusers"} and all(f"`{name}`" in page for name in found)
    for preset, methods in found.items():
        unet = preset in ("sd15", "sdxl")
        assert methods["deepcache"] == (("deep",) if unet else ()) and "output" in methods["hicache"]
        assert ("modules" in methods["hicache"]) == ("stack" in methods["hicache"]) == (not unet)
        assert (methods["toca"] == ("modules",)) == (preset == "flux_kontext")  # which has an adapter


def test_an_entry_says_its_parts_needs_and_where_it_runs():
    found = entry("hicache")
    assert found.composition == "any scope · interval · hermite · sigma constant or another"
    assert found.reads[-1] == "scope" and {"interval", "order", "sigma"} <= set(found.reads) and not found.needs
    assert found.backends == list(BACKENDS) and found.later == []
    assert entry("toca").backends == [name for name in BACKENDS if not name.startswith("inf_dit")]
    assert entry("dbcache").scopes == ["span"] and "full steps that depend on the data" in entry("dbcache").needs
    assert entry("none").composition == "the model as it is" and entry("none").scopes == []


def test_artefacts_that_are_not_there_are_told_apart():
    found = entry("lesa")
    assert found.backends == ["digits"] and "flux" in found.later and "flux*" in found.accepted
    assert any("weights trained" in need for need in found.needs)


def test_what_is_listed_passes_the_check_of_a_run():
    for backend in ("flux", "dit"):
        settings = resolve(compose([f"backend={backend}", "method=hicache"]))
        for scope in accepting("hicache")[backend]:
            check_method(
                scoped := dataclasses.replace(settings, scope=scope), backend_class(backend), method_of(scoped)
            )


@pytest.mark.parametrize(
    ("knobs", "rule"),
    [
        ({"policy": "probe"}, "scope: must be span for backend flux with method hicache"),
        ({"policy": "broadcast"}, "scope: must be modules for policy Broadcast.*backend flux with method hicache"),
        (
            {"patch": "tokens", "patch_options": {"amend": "after"}},
            "scope: must be modules for a patch.*backend flux with method hicache",
        ),
    ],
)
def test_unsupported_pairs_name_both_and_the_reason(knobs, rule):
    kind = backend_class("flux").transformer_class
    with pytest.raises(ConfigError, match=rule):
        check_pair(hicache.method("hicache", scope="stack", **knobs), kind, "flux")
    with pytest.raises(ConfigError, match="scope: backend flux with method hicache has modules, .*got 'nowhere'"):
        check_pair(dataclasses.replace(hicache.method("hicache"), scope="nowhere"), kind, "flux")


def test_it_prints_one_entry_and_refuses_unknown_names(capsys):
    main(["taylorseer"])
    said = capsys.readouterr().out
    assert said.startswith("taylorseer  (TaylorSeer)") and "arXiv 2503.06923" in said
    with pytest.raises(ConfigError, match="method: must be one of .*did you mean taylorseer"):
        main(["taylorsee"])
