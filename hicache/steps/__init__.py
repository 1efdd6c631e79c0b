"""The kinds of step of a cached generation, one class each: computed, estimated, mixed, and decided half-way.

Each has `run(branch, call, args, kwargs)`, which gives the model's result at that step.
"""
