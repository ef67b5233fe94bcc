"""Targets: vectors of views that a store keeps beside its labels (features, heads, tokens, dense).

docs/targets.md has the formulas. Numpy only.
"""
