"""Constants of the neurons, as in the public code of all three backbones."""

TAU = 2.0
"""Time constant of the membrane, in time steps. The input is decayed too."""
V_RESET = 0.0
"""Potential after a spike (hard reset). No gradient flows through the reset."""
ALPHA = 4.0
"""Steepness of the sigmoid whose slope is the surrogate for a spike's derivative."""
