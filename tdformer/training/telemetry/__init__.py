"""Measures training steps while they run. Changes no bit of them."""
