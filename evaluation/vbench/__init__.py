"""VBench (Huang et al., CVPR 2024): prompts, names, aggregation, light dimensions, a runner for the rest."""
