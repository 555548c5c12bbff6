"""Reads the samples of published data sets: one file per layout, and `layouts.py`, which recognises them."""
