"""Schemas of conf/, composed by Hydra."""
