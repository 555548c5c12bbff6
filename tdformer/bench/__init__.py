"""Measures what networks, loaders and runs cost, side by side with a reference. Results can be printed as JSON."""
