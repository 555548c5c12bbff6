"""TDFormer (arXiv 2505.15840): a spiking transformer with a top-down path, and the system that trains it."""

__version__ = "0.1.0"
