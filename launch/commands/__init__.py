"""Holds the commands of `tdformer`, one file per verb."""
