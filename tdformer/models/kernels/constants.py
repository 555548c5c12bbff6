"""The neurons' constants: those of the public code of all three backbones."""

TAU = 2.0
"""In time steps; the input is decayed too."""
V_RESET = 0.0
"""Hard reset, detached."""
ALPHA = 4.0
"""Of the sigmoid whose slope stands for a spike's derivative."""
