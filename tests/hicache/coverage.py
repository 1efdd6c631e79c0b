"""The page docs/models.md: which classes and pipelines of diffusers have which scopes.

python -m tests.hicache.coverage writes it; a test compares.
"""

from __future__ import annotations

import inspect
import re
from functools import cache
from pathlib import Path

import torch

from hicache.generic import scopes
from hicache.tree import SCOPES
from tests.hicache.denoisers import TABLE, kind_of

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
TAKES = ("transformer", "transformer_2", "unet", "prior", "decoder")
BLOCKS = "stack"


@cache
def found() -> dict[str, tuple[tuple[str, ...], str, str]]:
    """Class -> its scopes, how the streams of its blocks are known before a call, and how its modules are."""
    known = {}
    for name in TABLE:
        if "-" in name:
            continue
        with torch.device("meta"):
            structure = scopes(kind_of(name)(**TABLE[name]["init"]))["model"]
        how = {how for blocks in structure.lists for how in blocks.how.values()}
        known[name] = structure.scopes, ", ".join(sorted(how)), structure.modules
    return known


@cache
def pipelines() -> dict[str, set[str]]:
    """Pipeline -> the denoiser classes that its constructor names."""
    import diffusers

    known = {}
    for name in dir(diffusers):
        kind = getattr(diffusers, name) if "Pipeline" in name else None
        if not inspect.isclass(kind) or kind.__module__.startswith("diffusers.modular"):
            continue
        asked = inspect.signature(kind.__init__).parameters
        text = " ".join(str(asked[key].annotation) for key in TAKES if key in asked)
        classes = set(re.findall(r"\b(\w+(?:Model|UNet|Transformer))\b", text))
        if classes:
            known[name] = classes
    return known


def cache_dit() -> list[str]:
    """The prefixes of pipeline names that cache-dit registers."""
    import cache_dit.caching.block_adapters
    from cache_dit.caching.block_adapters.block_registers import BlockAdapterRegister

    del cache_dit.caching.block_adapters
    return sorted(BlockAdapterRegister._adapters)


def counts() -> list[list[str]]:
    """Scope -> how many classes and pipelines have it."""
    known, taking = found(), pipelines()
    rows = []
    for scope in SCOPES:
        classes = {name for name, (have, *_) in known.items() if scope in have}
        users = sum(bool(asked & classes) for asked in taking.values())
        rows.append([f"`{scope}`", str(len(classes)), str(users)])
    prefixes = tuple(cache_dit())
    theirs = sum(name.startswith(prefixes) for name in taking)
    rows.append(["in cache-dit's registry (by the names of pipelines)", "–", str(theirs)])
    return rows


def table(heads: list[str], rows: list[list[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def markdown() -> str:
    """The page."""
    import cache_dit
    import diffusers

    said = (
        "Written by `python -m tests.hicache.coverage`; a test checks that it is current. Every class is built small "
        "and every scope that it has is checked (`tests/hicache/test_generic_matrix.py`): a computed step is the "
        "model bit by bit, no real block runs at an estimate, and the estimate equals an oracle that runs all blocks "
        "and overwrites their results."
    )
    counted = (
        f"diffusers {diffusers.__version__} has {len(pipelines())} pipelines that name a denoiser's class; "
        f"{len(found())} such classes are built here. cache-dit {cache_dit.__version__}."
    )
    rows = [
        [f"`{name}`", ", ".join(have), how or "–", modules or "–"]
        for name, (have, how, modules) in sorted(found().items())
    ]
    own = (
        "A module of your own that keeps its blocks in a `ModuleList` has the same scopes: `hicache.scopes(model)` "
        "says which, and how the streams between its blocks are known: *declared* in `hicache/generic/declared.py`, "
        "by diffusers' *registry*, or found at the first call from the identity or the shapes of tensors. An estimate "
        "at scope `modules` runs no block where the model has an *adapter* or the gates of its blocks are *declared* "
        "in `hicache/generic/gate_rows.py`: the values of all modules are added up at once, provided that this gives "
        "the model's own result at the first computed step of the generation. Otherwise the blocks run, with "
        "stand-ins for the modules that are *found* in them."
    )
    parts = ["# Models", said, "## Counted", counted, table(["scope", "classes", "pipelines"], counts())]
    parts += ["## Classes", own, table(["class", "scopes", "streams", "modules"], rows)]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    PAGE.write_text(markdown())
    print(f"written: {PAGE}")
