"""Saves training states so that they survive crashes, finds them again, and exports networks from them."""
