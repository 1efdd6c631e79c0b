"""HiCache on a diffusers pipeline: the same prompt without a cache and with one, and what the cache did.

python examples/pipeline.py                                          a tiny FLUX with random weights, on any machine
python examples/pipeline.py --model black-forest-labs/FLUX.1-dev     the real one, where its weights are
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from diffusers import DiffusionPipeline

import hicache


def load(model: str | None) -> DiffusionPipeline:
    """A pipeline from a folder or the hub; a tiny random FLUX if none is named."""
    if model is not None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return DiffusionPipeline.from_pretrained(model, dtype=torch.bfloat16).to(device)
    sys.path.insert(0, str(Path(__file__).parents[1]))  # the experiments beside this folder
    from experiments.backends.tiny.flux import build

    return build("tiny", guided=True)


def main() -> None:
    """Generate twice from the same noise and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder or hub id of a pipeline")
    parser.add_argument("--prompt", default="a lighthouse at dusk, oil painting")
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--interval", type=int, default=5)
    parser.add_argument("--size", type=int, help="pixels of a side; the pipeline's default if left out")
    arguments = parser.parse_args()
    pipe = load(arguments.model)

    def generate() -> torch.Tensor:
        size = {} if arguments.size is None else {"height": arguments.size, "width": arguments.size}
        noise = torch.Generator("cpu").manual_seed(0)
        call = {"num_inference_steps": arguments.steps, "generator": noise, "output_type": "pt", **size}
        return pipe(arguments.prompt, **call).images[0].float().cpu()

    plain = generate()
    method = hicache.method("hicache", interval=arguments.interval, order=2, sigma=0.5, warmup_steps=3)
    with hicache.cached(pipe, method) as cache:
        cached = generate()
    print(cache.report)
    error = float((cached - plain).square().mean())
    print(
        "PSNR against the un-cached image:", "infinite" if error == 0 else f"{-10 * torch.tensor(error).log10():.2f} dB"
    )


if __name__ == "__main__":
    main()
