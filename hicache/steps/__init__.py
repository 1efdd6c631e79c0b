"""The kinds of step of a cached generation, one class each: computed, estimated, mixed, and decided half-way.

A computed, an estimated and a mixed one have `run(branch, call, args, kwargs)`, which gives the model's result at that
step. The one decided half-way has `run(branch, args, kwargs)`, which says what was done as well: `(action, result)`.
"""
