"""One table of all schema classes: for Hydra's store, where `conf/` finds them, and for reading plans back."""

from __future__ import annotations

from hydra.core.config_store import ConfigStore

from experiments.config.backend import (
    DigitsConfig,
    DiTConfig,
    EmojiConfig,
    FluxConfig,
    HunyuanVideoConfig,
    QwenConfig,
    QwenEditConfig,
)
from experiments.config.cluster import ClusterConfig, SlurmConfig
from experiments.config.diffusers import DiffusersConfig
from experiments.config.guidance import AdaptiveGuidanceConfig, GuidanceConfig
from experiments.config.logger import LoggerConfig
from experiments.config.method import (
    AdaptiveConfig,
    CalibratedConfig,
    L2cConfig,
    LesaConfig,
    MethodConfig,
    SmoothCacheConfig,
    SpectrumConfig,
    StepsConfig,
)
from experiments.config.metrics import MetricsConfig
from experiments.config.operators import ChipmunkConfig, OperatorsConfig
from experiments.config.run import RunConfig
from experiments.config.sigma_schedule import (
    AdaptiveScheduleConfig,
    HorizonScheduleConfig,
    LinearScheduleConfig,
    SigmaScheduleConfig,
)
from experiments.config.super_resolution import InfDiTConfig, InfDiTSmallConfig
from experiments.errors import check

__all__ = ["GROUPS", "register", "schema_of"]


Groups = dict[str, dict[str, type]]

GROUPS: Groups = {
    "backend": {
        "digits": DigitsConfig,
        "emoji": EmojiConfig,
        "diffusers": DiffusersConfig,
        "flux": FluxConfig,
        "dit": DiTConfig,
        "hunyuan_video": HunyuanVideoConfig,
        "qwen_image": QwenConfig,
        "qwen_image_edit": QwenEditConfig,
        "inf_dit": InfDiTConfig,
        "inf_dit_small": InfDiTSmallConfig,
    },
    "method": {
        "plain": MethodConfig,
        "steps": StepsConfig,
        "adaptive": AdaptiveConfig,
        "calibrated": CalibratedConfig,
        "smoothcache": SmoothCacheConfig,
        "lesa": LesaConfig,
        "l2c": L2cConfig,
        "spectrum": SpectrumConfig,
    },
    "sigma_schedule": {
        "plain": SigmaScheduleConfig,
        "adaptive": AdaptiveScheduleConfig,
        "horizon": HorizonScheduleConfig,
        "linear": LinearScheduleConfig,
    },
    "guidance": {"plain": GuidanceConfig, "adaptive": AdaptiveGuidanceConfig},
    "operators": {"plain": OperatorsConfig, "chipmunk": ChipmunkConfig},
    "metrics": {"plain": MetricsConfig},
    "cluster": {"plain": ClusterConfig, "slurm": SlurmConfig},
    "logger": {"plain": LoggerConfig},
}
"""Group -> name of a schema in the defaults lists of `conf/` -> its class."""


def register() -> None:
    """Put the schemas into Hydra's store."""
    store = ConfigStore.instance()
    store.store(name="schema", node=RunConfig)
    for group, nodes in GROUPS.items():
        for name, node in nodes.items():
            store.store(group=f"schema/{group}", name=name, node=node)


def schema_of(group: str, name: str) -> type:
    """The schema class of that class name.

    Raises:
        ConfigError: if this version has none.
    """
    known = {node.__name__: node for node in GROUPS[group].values()}
    check(name in known, f"manifest.{group}.schema", "must be a schema of this version", name)
    return known[name]
