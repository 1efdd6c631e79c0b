"""Speed and memory, measured as ratios within one process; dated results are in `benchmarks/results/`."""
