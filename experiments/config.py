"""The typed schema of a run, as Hydra composes it, and the settings it resolves to.

`RunConfig` and the group schemas are what the command line can say: every key typed, every range checked in
`__post_init__`. `resolve` fills what was left open with the backend's recommended values and returns
`Settings`, the only form that the rest of the code sees. Fields marked `semantic=False` change how a run is
executed, never what it computes; they are no part of its identity (`experiments.identity`).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

import hicache
from experiments.errors import ConfigError, check, choose
from experiments.preset import PaperConfig, PresetConfig, RowConfig
from experiments.sampling_config import (
    AdaptiveGuidanceConfig,
    AdaptiveScheduleConfig,
    GuidanceConfig,
    HorizonScheduleConfig,
    LinearScheduleConfig,
    SigmaScheduleConfig,
)
from hicache.forecast import BASES
from hicache.methods import MAX_ORDER, TIMES
from hicache.patch import PATCHES
from hicache.policy import POLICIES

__all__ = [
    "BackendConfig",
    "ClusterConfig",
    "DigitsConfig",
    "GuidanceConfig",
    "MethodConfig",
    "MetricsConfig",
    "PaperConfig",
    "PresetConfig",
    "RowConfig",
    "RunConfig",
    "Settings",
    "Shard",
    "SigmaScheduleConfig",
    "StepsConfig",
    "register",
    "resolve",
]

SOLVERS = ("ddim", "dpmpp", "unipc")


def execution(default: Any) -> Any:
    """A field that is not part of a run's identity."""
    return field(default=default, metadata={"semantic": False})


@dataclass(kw_only=True)
class Recommended:
    """What a backend recommends for the top-level keys left open."""

    interval: int = MISSING
    order: int = MISSING
    sigma: float = MISSING
    warmup_steps: int = MISSING
    num_steps: int = MISSING
    num_items: int = MISSING
    batch_size: int = MISSING
    scope: str = "modules"


@dataclass(kw_only=True)
class BackendConfig:
    """A model with its pipeline, sampler and inputs."""

    name: str = MISSING
    revision: str = MISSING
    """Version of the weights: changes when they change, so that old runs are not taken for new ones."""
    path: str | None = None
    """Folder of the weights (or hub id); null = where the backend ships or looks for them."""
    device: str = execution("auto")
    """auto = cuda where there is one, else cpu."""
    recommended: Recommended = field(default_factory=Recommended, metadata={"semantic": False})

    def contents(self) -> dict[str, Any]:
        """What identifies the run besides the fields: digests of the files that it reads."""
        return {}


@dataclass(kw_only=True)
class DigitsConfig(BackendConfig):
    """The embedded default: a class-conditional DiT on handwritten digits, in pixel space."""

    guidance: float = 1.5
    solver: str = "ddim"

    def __post_init__(self) -> None:
        check(self.guidance >= 1, "backend.guidance", "must be >= 1 (1 = no guidance)", self.guidance)
        choose("backend.solver", self.solver, SOLVERS)


@dataclass(kw_only=True)
class MethodConfig:
    """A method, and the choices that it otherwise makes itself (null; see `hicache.methods.Knobs`)."""

    name: str = MISSING
    policy: str | None = None
    """A key of `hicache.policy.POLICIES`: interval, mask, growing, teacache, probe, ..."""
    policy_options: Any = None
    """Further parameters of the policy: window and alpha of growing, threshold of teacache and probe, ..."""
    mask: list[int] | None = None
    """The full steps of policy mask."""
    basis: str | None = None
    """A key of `hicache.forecast.BASES`: reuse, taylor, hermite, dmd, ..."""
    basis_options: Any = None
    """Parameters of the basis, such as variant of foca, degree of chebyshev, rank of dmd, holdout of auto."""
    history: str | None = None
    """snapshots, or differences in the feature dtype."""
    gate: bool | None = None
    """false builds differences from the first pair of anchors on."""
    numerics: str | None = None
    """clean, or reference: the in-dtype arithmetic of the published code."""
    history_dtype: str | None = None
    """feature, fp32, bf16."""
    front: int | None = None
    """Blocks before the span of scope `span`, always run."""
    back: int | None = None
    """Blocks after it, always run."""
    history_place: str | None = None
    """device, or cpu for pinned host memory."""
    patch: str | None = None
    """none, tokens, clusters: which token rows are recomputed inside an estimate."""
    scope: str | None = None
    """Set by the top-level `scope` for methods that have one of their own."""
    patch_options: Any = None
    """Parameters of the patch, such as fraction and select of tokens, clusters and gamma of clusters."""

    def defaults(self) -> dict[str, Any]:
        """Values of top-level keys that the method prefers to the backend's."""
        return {}

    def reads(self) -> frozenset[str]:
        """The top-level keys that the method reads, with the parts that were exchanged."""
        try:
            return hicache.reads(self.name, self.policy, self.basis, self.patch)
        except ValueError as error:
            raise ConfigError(str(error)) from error


@dataclass(kw_only=True)
class AdaptiveConfig(MethodConfig):
    """HiCache-Adaptive: the parameters of its sigma (Equations 41-42)."""

    alpha: float = 1.28
    beta: float = 0.01
    epsilon: float = 1e-6
    per: str = "sample"


@dataclass(kw_only=True)
class StepsConfig(MethodConfig):
    """Fewer solver steps instead of a cache; `solver: null` keeps the backend's."""

    steps: int = 8
    solver: str | None = None

    def __post_init__(self) -> None:
        check(self.steps >= 1, "method.steps", "must be an integer >= 1", self.steps)
        if self.solver is not None:
            choose("method.solver", self.solver, SOLVERS)


@dataclass(kw_only=True)
class MetricsConfig:
    """What is measured at the end of a run, and how its uncertainty is estimated."""

    names: list[str] = MISSING
    reference: str | None = None
    """Real images for fid, sfid, precision and recall: a folder, or their statistics as .npz."""
    level: float = 0.95
    resamples: int = 2000
    bootstrap_seed: int = 0
    latency_batch: int = 8
    latency_repeats: int = 3
    latency_warmup: int = 1

    def __post_init__(self) -> None:
        check(0 < self.level < 1, "metrics.level", "must be between 0 and 1", self.level)
        for name in ("resamples", "latency_batch", "latency_repeats"):
            check(getattr(self, name) >= 1, f"metrics.{name}", "must be an integer >= 1", getattr(self, name))
        check(self.latency_warmup >= 0, "metrics.latency_warmup", "must be an integer >= 0", self.latency_warmup)


@dataclass(kw_only=True)
class ClusterConfig:
    """The machine."""

    name: str = MISSING
    threads: int | None = None
    """CPU threads of this process; null = torch's default."""

    def __post_init__(self) -> None:
        check(self.threads is None or self.threads >= 1, "cluster.threads", "must be an integer >= 1", self.threads)


@dataclass(kw_only=True)
class LoggerConfig:
    """Where progress is sent besides the run folder."""

    name: str = MISSING
    project: str = "hicache"


@dataclass(kw_only=True)
class RunConfig:
    """Everything that the command line can say. Null top-level keys take the backend's recommended value."""

    backend: BackendConfig = MISSING
    method: MethodConfig = MISSING
    sigma_schedule: SigmaScheduleConfig = MISSING
    guidance: GuidanceConfig = MISSING
    metrics: MetricsConfig = MISSING
    cluster: ClusterConfig = MISSING
    logger: LoggerConfig = MISSING
    preset: PresetConfig | None = None
    interval: int | None = None
    order: Any = None
    """An integer, or `auto`: from stored trajectories (`experiments.calibration.scale`)."""
    sigma: Any = None
    """A number, or `auto`."""
    time: str = "index"
    """What the basis extrapolates in: index (of the step), sigma, log_snr."""
    warmup_steps: int | None = None
    num_steps: int | None = None
    scope: str | None = None
    policy: str | None = None
    """Overrides `method.policy`."""
    forecaster: str | None = None
    """Overrides `method.basis`."""
    patch: str | None = None
    """Overrides `method.patch`."""
    seed: int = 0
    num_items: int | None = None
    batch_size: int | None = None
    shard: str = "0/1"
    results: str = "results"
    progress_every: int = 50

    def __post_init__(self) -> None:
        for name in ("interval", "warmup_steps", "num_steps", "num_items", "batch_size", "progress_every"):
            value = getattr(self, name)
            check(value is None or value >= 1, name, "must be an integer >= 1", value)
        if self.order not in (None, "auto"):
            whole = isinstance(self.order, int) and not isinstance(self.order, bool)
            rule = f"must be auto or an integer from 0 to {MAX_ORDER}"
            check(whole and 0 <= self.order <= MAX_ORDER, "order", rule, self.order)
        if self.sigma not in (None, "auto"):
            real = isinstance(self.sigma, (int, float)) and not isinstance(self.sigma, bool)
            self.sigma = float(self.sigma) if real else self.sigma
            check(real and 0 < self.sigma < float("inf"), "sigma", "must be auto or a finite number > 0", self.sigma)
        for name, known in (("time", TIMES), ("policy", POLICIES), ("forecaster", BASES), ("patch", PATCHES)):
            if (value := getattr(self, name)) is not None:
                choose(name, value, known)
        check(self.seed >= 0, "seed", "must be an integer >= 0", self.seed)


@dataclass(frozen=True, kw_only=True)
class Shard:
    """Part `rank` of `world` of a run's batches."""

    rank: int = 0
    world: int = 1

    @staticmethod
    def parse(text: str) -> Shard:
        """`"1/4"` = the second of four parts."""
        rank, _, world = text.partition("/")
        valid = rank.isdecimal() and world.isdecimal() and int(rank) < int(world)
        check(valid, "shard", "must be rank/world with 0 <= rank < world, as in 0/4", text)
        return Shard(rank=int(rank), world=int(world))


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A resolved run: no value is open any more."""

    backend: BackendConfig
    method: MethodConfig
    sigma_schedule: SigmaScheduleConfig
    metrics: MetricsConfig
    cluster: ClusterConfig
    logger: LoggerConfig
    interval: int
    order: int
    sigma: float
    warmup_steps: int
    num_steps: int
    scope: str
    seed: int
    num_items: int
    batch_size: int
    shard: Shard
    results: Path
    progress_every: int
    time: str = "index"
    guidance: GuidanceConfig = field(default_factory=GuidanceConfig)
    chosen: dict[str, Any] = field(default_factory=dict)
    """What `auto` stood for in `sigma` and `order`, with the artefact that said so; no part of the identity."""

    def reference(self) -> Settings:
        """The un-cached run that this one is compared with."""
        return dataclasses.replace(self, method=MethodConfig(name="none"), guidance=GuidanceConfig(), chosen={})

    @property
    def plain(self) -> bool:
        """Whether this is itself a run that others are compared with."""
        return self.method.name == "none" and self.guidance.name == "plain"


def register() -> None:
    """Put the schemas into Hydra's store, where `conf/` finds them."""
    from experiments.backends.config import CONFIGS
    from experiments.calibration.config import CalibratedConfig, SmoothCacheConfig
    from experiments.cluster import SlurmConfig
    from experiments.learning.config import L2cConfig, LesaConfig

    store = ConfigStore.instance()
    store.store(name="schema", node=RunConfig)
    groups: dict[str, dict[str, type]] = {
        "backend": {"digits": DigitsConfig, **CONFIGS},
        "method": {
            "plain": MethodConfig,
            "steps": StepsConfig,
            "adaptive": AdaptiveConfig,
            "calibrated": CalibratedConfig,
            "smoothcache": SmoothCacheConfig,
            "lesa": LesaConfig,
            "l2c": L2cConfig,
        },
        "sigma_schedule": {
            "plain": SigmaScheduleConfig,
            "adaptive": AdaptiveScheduleConfig,
            "horizon": HorizonScheduleConfig,
            "linear": LinearScheduleConfig,
        },
        "guidance": {"plain": GuidanceConfig, "adaptive": AdaptiveGuidanceConfig},
        "metrics": {"plain": MetricsConfig},
        "cluster": {"plain": ClusterConfig, "slurm": SlurmConfig},
        "logger": {"plain": LoggerConfig},
    }
    for group, nodes in groups.items():
        for name, node in nodes.items():
            store.store(group=f"schema/{group}", name=name, node=node)


def to_dataclass(config: DictConfig) -> RunConfig:
    """The composed configuration as typed objects; the one place where a DictConfig is read."""
    typed = OmegaConf.to_object(config)
    if not isinstance(typed, RunConfig):
        raise ConfigError(f"config: must be composed from conf/config.yaml, got {type(typed).__name__}")
    return typed


def resolve(config: RunConfig) -> Settings:
    """Fill the open keys with the method's own defaults, else with the backend's recommended values."""
    recommended, own = config.backend.recommended, config.method.defaults()
    filled: dict[str, Any] = {}
    for f in dataclasses.fields(Recommended):
        given = getattr(config, f.name)
        filled[f.name] = own.get(f.name, getattr(recommended, f.name)) if given in (None, "auto") else given
    parts = {"policy": config.policy, "basis": config.forecaster, "patch": config.patch}
    method = dataclasses.replace(config.method, **{key: part for key, part in parts.items() if part is not None})
    if config.scope is not None and "scope" not in method.reads():
        method = dataclasses.replace(method, scope=config.scope)
    settings = Settings(
        backend=config.backend,
        method=method,
        sigma_schedule=config.sigma_schedule,
        metrics=config.metrics,
        cluster=config.cluster,
        logger=config.logger,
        seed=config.seed,
        shard=Shard.parse(config.shard),
        results=Path(config.results),
        progress_every=config.progress_every,
        time=config.time,
        guidance=config.guidance,
        **filled,
    )
    open_keys = [key for key in ("sigma", "order") if getattr(config, key) == "auto"]
    if not open_keys:
        return settings
    from experiments.calibration.scale import automatic

    return automatic(settings, open_keys)
