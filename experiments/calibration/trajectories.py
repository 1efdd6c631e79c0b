"""Record how the values of a model move over the steps of an un-cached run.

    python -m experiments trajectories backend=digits num_items=64 sites=output,stack
    python -m experiments trajectories backend=flux num_items=8 sites=modules tokens=64 keep=gram

`sites` are `output` (the guided prediction, as the sampler is given it), `sample` (the sampler's state before each
step), scopes of the adapter (`stack`, `final_hidden`, `blocks`, `modules`) or single modules (`3.attn.img`). With
`keep=tensors` a shard holds the values `[items, T, ...]`, with `keep=gram` the inner products over the steps per
element, `[items, T, T]`, and the means `[items, T]`: norms and the moments of differences follow from those. Both
calls of two-call guidance are kept side by side. `tokens=64` keeps a seeded subset of the token rows.

One batch is one shard, `shard-00000.safetensors`, written beside and renamed; `manifest.json` lists what is done and
what the values belong to. The same command continues; other settings in the same folder are refused. Before each shard
the space is checked: recording stops before less than `reserve` (GB) is left. The trajectories of a batch are in
memory, also with `keep=gram`, whose inner products need the steps before: `sites` x `batch_size` x T x pair x tokens x
channels numbers in the dtype of the model; `tokens` and `batch_size` bound them.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import math
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments import stopping
from experiments.artefacts.artefact import keys_of
from experiments.backends import load_backend
from experiments.backends.base import Backend, Item, sampling_of
from experiments.calibration.around import Step, bind_hook, stepping
from experiments.calibration.feature_taps import FeatureTaps
from experiments.calibration.recordings import damages, ledger_of, load, nearest_folder, read_manifest, shard_name
from experiments.cli import Exit
from experiments.config.compose import compose
from experiments.config.run import Settings
from experiments.errors import ConfigError, check, choose
from experiments.files import sweep, write_json, write_tensors
from experiments.progress import Progress
from experiments.runs.runner import check as check_settings
from experiments.runs.runner import items_of
from experiments.settings.resolve import resolve
from hicache.adapters import find_adapter
from hicache.adapters.base import Adapter
from hicache.adapters.hooks import attach_scope
from hicache.generic import scopes_of

__all__ = ["TrajectoryRecorder", "Recording", "grams", "load", "record", "require_plain", "split_arguments", "watch"]

SAMPLER_SITES = ("output", "sample")
KEEPS = ("tensors", "gram")
TOKEN_SEED = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recording:
    """What to record and where to."""

    sites: tuple[str, ...] = ("output",)
    keep: str = "gram"
    tokens: int | None = None
    folder: Path | None = None
    reserve: float = 2.0

    def __post_init__(self) -> None:
        check(bool(self.sites), "sites", "must name at least one site", self.sites)
        check(self.keep in KEEPS, "keep", f"must be one of {', '.join(KEEPS)}", self.keep)
        check(self.tokens is None or self.tokens >= 1, "tokens", "must be an integer >= 1", self.tokens)
        finite = 0 <= self.reserve < math.inf
        check(finite, "reserve", "must be a finite number >= 0", self.reserve)


class TrajectoryRecorder:
    """Collects the values of sites while a pipeline runs; `frames[site]` is a list over steps.

    The hooks stand on the modules themselves, so a recorder works beside a method that is enabled: it then sees the
    computed steps only.
    """

    def __init__(self, backend: Backend, sites: Sequence[str], tokens: int | None = None) -> None:
        self.backend = backend
        self.tokens = tokens
        self.frames: dict[str, list[list[Tensor]]] = {}
        self.step = 0
        self.scheduler: Any = None
        """The scheduler as the pipeline had set it when its first step began."""
        self.final = torch.empty(0)
        """The sample after the last step."""
        self._adapter = find_adapter(backend.transformer)
        self._sampler = [site for site in sites if site in SAMPLER_SITES]
        self._inner = [site for site in sites if site not in SAMPLER_SITES]
        self.features: FeatureTaps | None = None
        """Of a model without an adapter."""
        if self._adapter is None and self._inner:
            check_scopes(backend.transformer, self._inner)
            self.features = FeatureTaps(backend.transformer, self._inner, self._keep)

    @contextlib.contextmanager
    def watching(self, calls: bool = True) -> Iterator[None]:
        """Record inside; a generation at a time. Without `calls`, `features` are told what to see."""
        self.frames, self.step = {}, 0
        hooks, scheduler = self._hooks(), self.backend.pipe.scheduler

        def around(step: Step, model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
            if self.step == 0:
                self.scheduler = fresh(scheduler)
            for name, value in (("output", model_output), ("sample", sample)):
                if name in self._sampler:
                    self._keep(name, value)
            self.step += 1
            result = step(model_output, timestep, sample, *args, **kwargs)
            self.final = result[0]
            return result

        seen = self.features.watching() if self.features is not None and calls else contextlib.nullcontext()
        try:
            with stepping(scheduler, around), seen:
                yield
        finally:
            for hook in hooks:
                hook.remove()

    def _hooks(self) -> list[Any]:
        """Those of a model with an adapter."""
        adapter, model = self._adapter, self.backend.transformer
        if adapter is None:
            return []
        hooks = [hook for site in self._inner for hook in attach(adapter, site, self._keep)]
        return [*hooks, bind_hook(adapter, model)]

    def _keep(self, site: str, value: Tensor) -> None:
        steps = self.frames.setdefault(site, [])
        while len(steps) <= self.step:
            steps.append([])
        if self.tokens is not None and site not in SAMPLER_SITES and value.dim() == 3:
            value = value[:, choose_tokens(value.shape[1], self.tokens).to(value.device)]
        steps[self.step].append(value.detach().to("cpu", copy=True))

    def trajectories(self, num_items: int) -> dict[str, Tensor]:
        """`take` of every site."""
        return {site: self.take(site, num_items) for site in list(self.frames)}

    def take(self, site: str, num_items: int) -> Tensor:
        """`[items, T, ...]` of a site, whose frames are let go; an item's guided pair, or two calls, stand behind T."""
        pairs = torch.stack([torch.cat(calls).float() for calls in self.frames.pop(site)], dim=1)
        return pairs.reshape(-1, num_items, *pairs.shape[1:]).transpose(0, 1).movedim(2, 1).contiguous()


def fresh(scheduler: Any) -> Any:
    """A copy that no recorder watches."""
    made = copy.copy(scheduler)
    vars(made).pop("step", None)
    return copy.deepcopy(made)


def attach(adapter: Adapter, site: str, keep: Callable[[str, Tensor], None]) -> list[Any]:
    """Hooks for a scope or for a single module of it."""
    blocks = len(adapter.blocks())
    if site in adapter.scopes and site != "span":
        names = [str(s) for s in adapter.sites(site)] if site in ("modules", "blocks") else [site]
        return attach_scope(adapter, site, [(0, blocks)], lambda index, value: keep(names[index], value))
    check_sites(adapter, [site])
    modules = [str(s) for s in adapter.sites("modules")]

    def sink(index: int, value: Tensor) -> None:
        if modules[index] == site:
            keep(site, value)

    return attach_scope(adapter, "modules", [(0, blocks)], sink)


def check_sites(adapter: Adapter, sites: Sequence[str]) -> None:
    """Refuse sites that the model does not have.

    Raises:
        ConfigError: naming those that there are.
    """
    scopes = [scope for scope in adapter.scopes if scope not in ("span", "output")]
    modules = [str(s) for s in adapter.sites("modules")]
    for site in sites:
        if site not in (*SAMPLER_SITES, *scopes, *modules):
            known = ", ".join([*SAMPLER_SITES, *scopes, modules[0]])
            raise ConfigError(f"sites: must be one of {known}, ..., got {site!r}")


def check_scopes(model: torch.nn.Module, sites: Sequence[str]) -> None:
    """Refuse scopes that a model without an adapter does not have.

    Raises:
        ConfigError: naming those that there are.
    """
    known = [*SAMPLER_SITES, *(scope for scope in scopes_of(model) if scope not in ("span", "front_back", "output"))]
    for site in sites:
        choose("sites", site, known)


def choose_tokens(count: int, tokens: int) -> Tensor:
    """The seeded subset of token rows."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(TOKEN_SEED))[:tokens].sort().values


def grams(values: Tensor) -> Tensor:
    """Inner products over the steps per element, `[items, T, T]` in float64, of values `[items, T, ...]`."""
    flat = values.flatten(2).double()
    return flat @ flat.mT / flat.shape[-1]


def reduce_values(recorder: TrajectoryRecorder, num_items: int, keep: str) -> dict[str, Tensor]:
    """What a shard holds; site by site, so that with `gram` one site at a time is there in float64."""
    found: dict[str, Tensor] = {}
    for site in list(recorder.frames):
        values = recorder.take(site, num_items)
        if keep == "tensors":
            found[site] = values
        else:
            found[f"{site}/gram"], found[f"{site}/mean"] = grams(values), values.flatten(2).double().mean(-1)
    return found


def watch(
    backend: Backend, settings: Settings, batch: list[Item], sites: Sequence[str], tokens: int | None = None
) -> TrajectoryRecorder:
    """A recorder that has seen a batch under the un-cached model."""
    sampling = sampling_of(settings)
    backend.prepare(sampling)
    recorder = TrajectoryRecorder(backend, sites, tokens)
    with recorder.watching():
        backend.generate(batch, sampling)
    return recorder


def generate(
    backend: Backend, settings: Settings, batch: list[Item], sites: Sequence[str], tokens: int | None = None
) -> dict[str, Tensor]:
    """Trajectories of a batch under the un-cached model."""
    return watch(backend, settings, batch, sites, tokens).trajectories(len(batch))


def record(settings: Settings, recording: Recording, folder: Path) -> dict[str, Any]:
    """Record what is missing in `folder`, or damaged; returns the manifest."""
    manifest = open_folder(settings, recording, folder)
    for name, said in damages(folder, manifest).items():
        print(f"{folder.name}: {name} {said}; it is recorded again", file=sys.stderr, flush=True)
        del manifest["shards"][name]
    items, size = items_of(settings), settings.batch_size
    batches = [items[start : start + size] for start in range(0, len(items), size)]
    todo = [(i, batch) for i, batch in enumerate(batches) if shard_name(i) not in manifest["shards"]]
    if not todo:
        return manifest
    backend = load_backend(settings.backend)
    adapter = find_adapter(backend.transformer)
    if adapter is None:
        check_scopes(backend.transformer, recording.sites)
    else:
        check_sites(adapter, recording.sites)
    folder.mkdir(parents=True, exist_ok=True)
    sweep(folder)
    done = len(items) - sum(len(batch) for _, batch in todo)
    with Progress(folder.name, len(items), done, settings.progress_every) as progress:
        for index, batch in todo:
            stopping.check()
            recorder = watch(backend, settings, batch, recording.sites, recording.tokens)
            shard = reduce_values(recorder, len(batch), recording.keep)
            size_now = sum(t.numel() * t.element_size() for t in shard.values())
            left = sum(len(other) for i, other in todo if i >= index)
            require_space(folder, size_now * left / len(batch), recording.reserve)
            write_tensors(folder / shard_name(index), shard)
            digest = ledger_of(folder).add([folder / shard_name(index)])[shard_name(index)]
            names = [item.name for item in batch]
            manifest["shards"][shard_name(index)] = {"items": names, "bytes": size_now, "file": digest.as_data()}
            manifest["dtype"] = {name: str(t.dtype).removeprefix("torch.") for name, t in shard.items()}
            manifest["bytes"] = sum(entry["bytes"] for entry in manifest["shards"].values())
            write_json(folder / "manifest.json", manifest)
            progress.advance(len(batch))
    return manifest


def open_folder(settings: Settings, recording: Recording, folder: Path) -> dict[str, Any]:
    """The folder's manifest, new or found; one that belongs to other settings is refused."""
    wanted: dict[str, Any] = {
        "keys": keys_of(settings),
        "revision": settings.backend.revision,
        "path": settings.backend.path,
        "contents": settings.backend.contents(),
        "sites": list(recording.sites),
        "keep": recording.keep,
        "tokens": recording.tokens,
        "token_seed": TOKEN_SEED,
        "seed": settings.seed,
        "items": settings.num_items,
        "batch_size": settings.batch_size,
    }
    if (folder / "manifest.json").is_file():
        found = read_manifest(folder)
        for key, value in wanted.items():
            if key not in found:
                raise ConfigError(f"folder: {folder} does not say with which {key} it was recorded, got {value!r}")
            if found[key] != value:
                raise ConfigError(f"folder: {folder} was recorded with {key}={found[key]!r}, got {value!r}")
        return found
    free = shutil.disk_usage(nearest_folder(folder)).free / 1e9
    rule = f"must leave room for the recording ({free:.2f} GB are there)"
    check(recording.reserve < free, "reserve", rule, recording.reserve)
    return wanted | {"dtype": {}, "bytes": 0, "shards": {}}


def require_plain(settings: Settings) -> None:
    """What is recorded is the model itself: methods and other guidance would be left out without a word."""
    check(settings.method.name == "none", "method", "must be none: un-cached runs are recorded", settings.method.name)
    name = settings.guidance.name
    check(name == "plain", "guidance", "must be plain: every step is recorded with its own guidance", name)


def require_space(folder: Path, needed: float, reserve: float) -> None:
    """Refuse to fill the disk."""
    free = shutil.disk_usage(folder).free / 1e9
    rule = f"{needed / 1e9:.2f} GB are needed and {reserve:g} GB stay free, {free:.2f} GB are there"
    check(needed / 1e9 + reserve <= free, "reserve", f"must leave room for the recording ({rule})", reserve)


def split_arguments(arguments: Sequence[str], own: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """`key=value` arguments of this command, and the overrides that are a run's."""
    mine: dict[str, str] = {}
    others = []
    for argument in arguments:
        key, separator, value = argument.partition("=")
        check(bool(separator), "argument", "must read key=value", argument)
        if key in own:
            mine[key] = value
        else:
            others.append(argument)
    return mine, others


def main(arguments: Sequence[str]) -> None:
    """The command line."""
    own, overrides = split_arguments(arguments, ("sites", "keep", "tokens", "folder", "reserve"))
    for key, kind in (("tokens", int), ("reserve", float)):
        try:
            kind(own.get(key, 1))
        except ValueError:
            raise ConfigError(f"{key}: must be of type {kind.__name__}, got {own[key]!r}") from None
    check(own.get("folder") != "", "folder", "must be the name of a folder", own.get("folder"))
    recording = Recording(
        sites=tuple(own.get("sites", "output").split(",")),
        keep=own.get("keep", "tensors"),
        tokens=int(own["tokens"]) if "tokens" in own else None,
        reserve=float(own.get("reserve", 2.0)),
    )
    settings = resolve(compose(["method=none", *overrides]))
    require_plain(settings)
    check_settings(settings)
    if "folder" in own:
        nearest_folder(Path(own["folder"]))
    name = f"{settings.backend.name}-t{settings.num_steps}-n{settings.num_items}-{recording.keep}"
    folder = Path(own["folder"]) if "folder" in own else settings.results / "trajectories" / name
    manifest = record(settings, recording, folder)
    print(f"trajectories: {folder} ({len(manifest['shards'])} shards, {manifest['bytes'] / 1e6:.1f} MB)")


if __name__ == "__main__":
    outcome = Exit()
    outcome.guard(lambda: main(sys.argv[1:]))
    sys.exit(outcome.code)
