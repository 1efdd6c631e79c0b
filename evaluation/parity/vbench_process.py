"""Scores videos with functions of the vbench package and its interpreter; imports nothing of this project.

    ENV/bin/python vbench_process.py MAP VIDEO... > scores.json

MAP is an `.npy` matrix `[d, 3 * 16 * 16]`: a linear map of the input pooled to 16x16, standing in for DINO
and for CLIP so that reading, resizing, normalising and averaging are compared without their weights.
"""

from __future__ import annotations

import importlib
import json
import sys


def main(map_file: str, videos: list[str]) -> None:
    """Print per-video scores by dimension as JSON."""
    numpy, torch = importlib.import_module("numpy"), importlib.import_module("torch")
    matrix = torch.from_numpy(numpy.load(map_file, allow_pickle=False)).float()

    def linear(images: object) -> object:
        pooled = torch.nn.functional.adaptive_avg_pool2d(images, 16).flatten(1)
        return pooled @ matrix.T

    class Encoder:
        encode_image = staticmethod(linear)

    flickering = importlib.import_module("vbench.temporal_flickering")
    subject = importlib.import_module("vbench.subject_consistency")
    background = importlib.import_module("vbench.background_consistency")
    scores = {
        "temporal_flickering": flickering.temporal_flickering(videos)[1],
        "subject_consistency": subject.subject_consistency(linear, videos, "cpu", False)[1],
        "background_consistency": background.background_consistency(Encoder, None, videos, "cpu", False)[1],
    }
    print(json.dumps({name: [float(row["video_results"]) for row in rows] for name, rows in scores.items()}))


if __name__ == "__main__":
    del sys.path[0]  # the folder of this file, whose modules are not meant here
    main(sys.argv[1], sys.argv[2:])
