"""Studies on the embedded model: each writes its table, and its figure, to results/embedded."""
