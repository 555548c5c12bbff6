"""Trains a network. Read loop.py first; engine.py is the only file that knows DeepSpeed."""
