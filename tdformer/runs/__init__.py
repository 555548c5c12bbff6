"""Reads trained runs from their directories and compares them. Needs no server, no torch and no MLflow, so it works on a login node."""
