"""A sweep of the experiments, ranked and plotted: sigma of HiCache beside TaylorSeer and FORA on the embedded model.

    python examples/sweep.py                     16 images per run, about a minute on two cores
    python examples/sweep.py --items 200         as in the tables

It does what `python run.py -m method=... sigma=...` does, and reads the runs' metrics back. Finished runs are not
repeated, so a second call only draws.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pandas as pd

ROOT = Path(__file__).parents[1]


def run(*settings: str) -> Path:
    """One run; its folder, which is the last thing that it prints."""
    done = subprocess.run([sys.executable, ROOT / "run.py", *settings], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return Path(done.stdout.strip().splitlines()[-1].removeprefix("run: "))


def main() -> None:
    """Run, rank, plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=16)
    parser.add_argument("--sigmas", type=float, nargs="+", default=[0.3, 0.5, 0.7, 0.9])
    parser.add_argument("--results", default="results")
    parser.add_argument("--set", nargs="*", default=[], help="further settings, such as num_steps=10")
    arguments = parser.parse_args()
    common = [f"num_items={arguments.items}", f"results={arguments.results}", *arguments.set]
    rows = [("hicache", sigma) for sigma in arguments.sigmas] + [("taylorseer", None), ("fora", None)]
    table = []
    for method, sigma in rows:
        folder = run(f"method={method}", *([] if sigma is None else [f"sigma={sigma}"]), *common)
        psnr = json.loads((folder / "metrics.json").read_text())["psnr"]
        table.append({"method": method, "sigma": sigma, "psnr": psnr["mean"], "low": psnr["low"], "high": psnr["high"]})
    ranked: Any = pd.DataFrame(table).sort_values("psnr", ascending=False)
    print(ranked.to_string(index=False, float_format="%.2f"))

    figure, axes = plt.subplots(figsize=(4, 3), layout="constrained")
    ours = ranked[ranked.method == "hicache"].sort_values("sigma")
    spread = [ours.psnr - ours.low, ours.high - ours.psnr]
    axes.errorbar(ours.sigma, ours.psnr, spread, marker="o", capsize=2, label="HiCache")
    for method, style in (("taylorseer", "--"), ("fora", ":")):
        axes.axhline(float(ranked[ranked.method == method].psnr.iloc[0]), ls=style, color="black", label=method)
    axes.set(xlabel="σ", ylabel="PSNR (dB)")
    axes.legend(frameon=False)
    target = Path(arguments.results) / "sweep.png"
    figure.savefig(target, dpi=200)
    print(f"plot: {target}")


if __name__ == "__main__":
    main()
