"""Runs one dimension of the vbench package with that package's interpreter; imports nothing of this project.

ENV/bin/python package_process.py DIMENSION VIDEOS INFO OUT DEVICE
"""

from __future__ import annotations

import importlib
import sys


def main(dimension: str, videos: str, info: str, out: str, device: str) -> None:
    """One process, so that the package's own reductions are those of its documentation."""
    torch = importlib.import_module("torch")
    package = importlib.import_module("vbench")
    bench = package.VBench(torch.device(device), info, out)
    bench.evaluate(videos_path=videos, name=dimension, dimension_list=[dimension], mode="vbench_standard")


if __name__ == "__main__":
    del sys.path[0]  # the folder of this file, whose modules are not meant here
    main(*sys.argv[1:])
