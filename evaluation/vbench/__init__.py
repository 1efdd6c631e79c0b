"""VBench (Huang et al., CVPR 2024): prompts and names, aggregation, light dimensions, a runner for the rest."""
