"""Measures on a trained network what the paper claims: what `tdformer analyze` does."""
