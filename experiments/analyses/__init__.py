"""The paper's analyses of recorded trajectories (`experiments.analyses.parts`), their statistics and figures."""
