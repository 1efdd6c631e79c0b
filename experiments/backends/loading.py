"""A pipeline from its folder, with a value from there for every weight.

transformers draws at random what a checkpoint lacks, such as names that another version gave, and diffusers leaves it
without a value; either is an error here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from experiments.errors import check
from experiments.files import read_json

__all__ = ["load_pipeline"]


def load_pipeline(pipeline: Any, folder: Path, dtype: torch.dtype) -> Any:
    """The pipeline of a class, its models in `dtype`.

    Raises:
        ConfigError: naming a model and a weight that its files lack.
    """
    options: dict[str, Any] = {"dtype": dtype, "use_safetensors": True, "local_files_only": True}
    expected, optional = pipeline._get_signature_keys(pipeline)
    parts: dict[str, Any] = {}
    for name, entry in read_json(folder / "model_index.json").items():
        library, kind = entry if isinstance(entry, list) and len(entry) == 2 else ("", "")
        made: Any = getattr(transformers, str(kind), None) if library == "transformers" else None
        if name not in {*expected, *optional} or not is_model(made):
            continue
        parts[name], found = made.from_pretrained(folder / name, output_loading_info=True, **options)
        check_values(folder / name, sorted(found["missing_keys"]))
    pipe = pipeline.from_pretrained(folder, **parts, **options)
    for name, part in pipe.components.items():
        if isinstance(part, nn.Module):
            check_values(folder / name, [key for key, value in part.named_parameters() if value.is_meta])
    return pipe


def is_model(kind: Any) -> bool:
    """Whether a class is that of a model of transformers."""
    return isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)


def check_values(part: Path, missing: list[str]) -> None:
    """Nothing may be missing."""
    said = f"{len(missing)} missing in {part}, such as {', '.join(missing[:1])}"
    check(not missing, "backend.path", "must have all weights of its models (are its classes of other versions?)", said)
