"""Holds the published networks that the top-down path is added to, one file each."""
