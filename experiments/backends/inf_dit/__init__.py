"""Inf-DiT: super-resolution by a diffusion transformer whose attention reaches to the left and above only."""
