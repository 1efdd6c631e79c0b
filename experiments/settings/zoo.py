"""The zoo: what every method is composed of, what it needs, and which backends and scopes accept it.

    python -m experiments methods                 every method
    python -m experiments methods hicache toca    some of them
    python -m experiments methods --markdown      write docs/methods.md

All of it is read from the registries of `hicache` and from the backends; acceptance is the check that a run has to
pass before its model is loaded (`experiments.settings.library_method`). A new entry appears without a change here.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import hicache
from experiments.artefacts.stored_curves import COEFFICIENTS
from experiments.backends import BACKENDS, backend_class
from experiments.cli import Exit
from experiments.config.compose import compose, options
from experiments.config.method import (
    TRAINED_SCOPES,
    CalibratedConfig,
    LearnedConfig,
    MethodConfig,
    SmoothCacheConfig,
)
from experiments.config.run import RunConfig
from experiments.errors import ConfigError, choose
from experiments.files import write_text
from experiments.settings.compared import METHODS as COMPARED
from experiments.settings.compatibility import adapter_class, check_method, check_pair
from experiments.settings.library_method import method_of
from experiments.settings.on_presets import groups
from experiments.settings.resolve import resolve
from hicache import CacheMethod
from hicache.forecast import BASES
from hicache.patch import PATCHES
from hicache.policy import POLICIES
from hicache.tree import SCOPES

__all__ = ["Entry", "compared_table", "entry", "main", "markdown", "table", "text"]

PAGE = Path(__file__).parents[2] / "docs" / "methods.md"
STEPS = 50
USUAL = [scope for scope in SCOPES if scope != "deep"]
"""The scopes of transformers."""

ARTEFACTS: dict[type[MethodConfig], str] = {
    LearnedConfig: "weights trained for the backend (`experiments train predictor`)",
    CalibratedConfig: "a plan calibrated for the backend (`experiments calibrate`)",
    SmoothCacheConfig: "error curves calibrated for the backend (`experiments calibrate`)",
}
SEES = {
    "attention": "attention scores of tokens",
    "keys": "norms of keys",
    "hidden": "hidden states of a block",
}
NOTHING = "–"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One method, in words."""

    name: str
    title: str
    paper: str
    scope: str
    policy: str
    basis: str
    sigma: str
    patch: str
    reads: list[str]
    needs: list[str]
    scopes: list[str]
    backends: list[str]
    later: list[str]
    """Backends for which an artefact must be made first."""

    @property
    def composition(self) -> str:
        """Its parts in one line."""
        parts = [self.scope, self.policy, self.basis, self.sigma and f"sigma {self.sigma}", self.patch]
        return " · ".join(part for part in parts if part) or "the model as it is"

    @property
    def accepted(self) -> str:
        """Its backends; those marked `*` need an artefact first."""
        return join_words([*self.backends, *(f"{name}*" for name in self.later)])


def entry(name: str) -> Entry:
    """What the registries say of a method."""
    spec, built = hicache.METHODS[choose("method", name, hicache.METHODS)], hicache.method(name)
    knobs, caches = built.knobs, built.caches
    basis = knobs.build_basis()
    ready, later = split(name)
    sigma = knobs.sigma_schedule if caches and basis.uses_sigma else ""
    trained = TRAINED_SCOPES if name == "lesa" else ()
    anywhere = ", ".join(trained) or "any scope"
    usable = [scope for scope in SCOPES if caches and any(scope in found for found in accepting(name).values())]
    return Entry(
        name=name,
        title=spec.title,
        paper=spec.paper,
        scope="" if not caches else anywhere if "scope" in spec.uses else built.scope,
        policy=knobs.policy if caches else "",
        basis=knobs.basis if caches else "",
        sigma=f"{sigma} or another" if "sigma_schedule" in spec.uses and sigma else sigma,
        patch=knobs.patch if built.patch is not None else "",
        reads=[key for key in [f.name for f in dataclasses.fields(RunConfig)] if key in spec.uses],
        needs=needs(name, built),
        scopes=[scope for scope in usable if not trained or scope in trained],
        backends=ready,
        later=later,
    )


def needs(name: str, built: CacheMethod) -> list[str]:
    """What a method wants besides the values that it caches."""
    if not built.caches:
        return []
    config, policy = method_config(name), built.policy
    found: list[str] = [words for kind, words in ARTEFACTS.items() if isinstance(config, kind)]
    if built.knobs.policy in COEFFICIENTS:
        _, what, published = COEFFICIENTS[built.knobs.policy]
        known = join_words(family for family in families() if family in published)
        found.append(f"{what} of the model: published for {known}, calibrated for the others")
    if policy.indicator:
        found.append("the modulated input of the first block")
    if policy.probe:
        found.append("the blocks before the span at every step")
    if policy.timed:
        found.append("the timestep")
    if policy.mixes or built.patch is not None:
        found.append("the model's own forward at mixed steps")
    seen = {str(patch.needs) for family in families() if (patch := prepare_patch(built, family)) is not None} - {""}
    found += [SEES.get(word, word) for word in sorted(seen)]
    if not_planned(built):
        found.append(f"full steps that depend on the {'timesteps' if policy.timed else 'data'}")
    if built.policy.batched:
        found.append("one decision for a whole batch, so that results depend on batch_size")
    return found


def prepare_patch(built: CacheMethod, family: str) -> Any:
    """A copy of the method's patch as it is for a family of models."""
    patch = copy.deepcopy(built.patch)
    if patch is not None:
        patch.prepare(family, 2, 1)
    return patch


def not_planned(built: CacheMethod) -> bool:
    """Whether the full steps cannot be known before the run."""
    return copy.deepcopy(built.policy).plan(STEPS) is None


@cache
def families() -> list[str]:
    """The families of models that the backends belong to."""
    kinds = [backend_class(name).transformer_class for name in BACKENDS]
    return sorted({str(adapter_class(kind).family) for kind in kinds if kind is not None})


@cache
def run_of(backend: str) -> RunConfig:
    """A run of a backend."""
    return compose([f"backend={backend}"])


@cache
def method_config(name: str) -> MethodConfig | None:
    """The settings of a method; None if `conf/method` has none."""
    return compose([f"method={name}"]).method if name in options("method") else None


@cache
def accepting(name: str) -> dict[str, list[str]]:
    """Backend -> the scopes at which it takes the method; empty where it takes none."""
    spec = hicache.METHODS[name]
    wanted = list(SCOPES) if "scope" in spec.uses else [hicache.method(name).scope]
    return {backend: [scope for scope in wanted if accepts(backend, name, scope)] for backend in BACKENDS}


def accepts(backend: str, name: str, scope: str) -> bool:
    """Whether a backend takes the method at a scope, whatever artefacts there are."""
    kind = backend_class(backend).transformer_class
    try:
        check_pair(hicache.method(name, scope=scope), kind, backend)
    except ValueError:
        return False
    return True


def split(name: str) -> tuple[list[str], list[str]]:
    """The backends that take the method: as shipped, and once an artefact is made."""
    config, found = method_config(name), accepting(name)
    takers = [backend for backend, scopes in found.items() if scopes]
    if config is None:
        return [], takers
    ready = [backend for backend in takers if any(runs(backend, config, scope) for scope in found[backend])]
    return ready, [backend for backend in takers if backend not in ready]


def runs(backend: str, config: MethodConfig, scope: str) -> bool:
    """Whether a run passes its checks today."""
    scope = config.defaults().get("scope", scope)
    try:
        settings = resolve(dataclasses.replace(run_of(backend), method=config, scope=scope))
        check_method(settings, backend_class(backend), method_of(settings))
    except ConfigError:
        return False
    return True


# The page


def join_words(words: Iterable[str]) -> str:
    """Words with commas."""
    return ", ".join(words) or NOTHING


def table(heads: list[str], rows: Iterable[list[str]]) -> str:
    """A markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(cell or NOTHING for cell in line)} |" for line in lines)


def parts(registry: Mapping[str, Any]) -> list[list[str]]:
    """Names of a registry with the first sentence of what they name."""
    found = []
    for name, part in registry.items():
        kind = part if isinstance(part, type) else type(part)
        said = (inspect.getdoc(kind) or "").split("\n\n")[0].replace("\n", " ").replace("|", "\\|")
        found.append([f"`{name}`", said if part is not None else "no patch"])
    return found


def markdown() -> str:
    """The page docs/methods.md."""
    entries = [entry(name) for name in hicache.METHODS]
    composed = [
        [f"`{e.name}`", e.title, e.scope, e.policy, e.basis, e.sigma, e.patch, e.paper.replace("|", "\\|")]
        for e in entries
    ]
    accepted = [
        [f"`{e.name}`", join_words(e.reads), "; ".join(e.needs), same(e.scopes, USUAL, "all"), backends_of(e)]
        for e in entries
    ]
    return (
        "\n\n".join(
            [
                "# Methods",
                "Written by `python -m experiments methods --markdown` from the registries of the library; a test "
                "checks that it is current. A method is a scope, a policy, a forecaster and perhaps a patch, and "
                "every part can be replaced on the command line (`scope=`, `policy=`, `forecaster=`, `patch=`).",
                "## Composition",
                table(["`method=`", "title", "scope", "policy", "forecaster", "sigma", "patch", "source"], composed),
                "## What they read, need and run on",
                "A backend with `*` runs the method once the artefact for it has been made; the others run it as "
                "shipped. Other pairs are refused before a model is loaded.",
                table(["`method=`", "reads", "needs", "scopes", "backends"], accepted),
                "## Beside their authors' programs",
                "Settings that make a run equal to another program: [compare.md](compare.md).",
                compared_table(),
                "## On pipelines of diffusers",
                "The presets of `backend=diffusers` ([backends.md](backends.md)); those that take the same methods "
                "share a column. Found by enabling each method on each preset's tiny counterpart. *transformer*: "
                "every scope of a transformer.",
                table(["`method=`", *(", ".join(f"`{n}`" for n in names) for names, _ in groups())], on_presets()),
                "## Parts",
                "### `scope=`",
                table(["name", "what is cached"], [[f"`{s.name}`", s.description] for s in SCOPES.values()]),
                "### `policy=`",
                table(["name", "when to compute"], parts(POLICIES)),
                "### `forecaster=`",
                table(["name", "how values are estimated"], parts(BASES)),
                "### `patch=`",
                table(["name", "which rows are recomputed inside an estimate"], parts(PATCHES)),
            ]
        )
        + "\n"
    )


def compared_table() -> str:
    """With which program each method was compared, how close it is, and what differs on purpose."""
    found = [[f"`{name}`", COMPARED[name].program, COMPARED[name].found] for name in hicache.METHODS]
    purposes = [COMPARED[name].purpose for name in hicache.METHODS]
    rows = [[*row, purpose] for row, purpose in zip(found, purposes, strict=True)]
    return table(["`method=`", "program", "compared", "differs on purpose"], rows)


def on_presets() -> list[list[str]]:
    """Method by method, the scopes at which each group of presets takes it."""
    rows = [name for name in hicache.METHODS if hicache.method(name).caches]
    return [[f"`{name}`", *(scopes_in_short(methods[name]) for _, methods in groups())] for name in rows]


def scopes_in_short(scopes: Iterable[str]) -> str:
    """Scopes in a cell of a table."""
    found = list(scopes)
    return "*transformer*" if found == USUAL else join_words(f"`{scope}`" for scope in found)


def same(words: list[str], whole: Iterable[str], short: str) -> str:
    """`short` for all of them."""
    return short if words == list(whole) else join_words(words)


def backends_of(e: Entry) -> str:
    """The backends, `all` for all of them."""
    return same(e.backends, BACKENDS, "all") if not e.later else e.accepted


def text(e: Entry) -> str:
    """An entry for the terminal."""
    lines = {
        "composition": e.composition,
        "source": e.paper,
        "reads": join_words(e.reads),
        "needs": "; ".join(e.needs),
        "scopes": same(e.scopes, USUAL, "all"),
        "backends": backends_of(e),
    }
    if e.scopes or e.name == "deepcache":
        by_group = [
            f"{', '.join(names)}: {', '.join(methods[e.name])}" for names, methods in groups() if methods[e.name]
        ]
        lines["presets"] = "; ".join(by_group)
    return "\n".join([f"{e.name}  ({e.title})", *(f"  {key:<12} {said or NOTHING}" for key, said in lines.items())])


def main(arguments: list[str]) -> None:
    """Print the zoo, or write its page."""
    if "--markdown" in arguments:
        write_text(PAGE, markdown())
        print(f"written: {PAGE}")
        return
    for name in arguments or hicache.METHODS:
        print(text(entry(name)), end="\n\n")
    print("*: once the artefact of the method has been made for that backend")


if __name__ == "__main__":
    outcome = Exit()
    outcome.guard(lambda: main(sys.argv[1:]))
    sys.exit(outcome.code)
