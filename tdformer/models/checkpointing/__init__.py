"""Decides what a forward pass keeps for the backward pass, and computes the rest again there."""
