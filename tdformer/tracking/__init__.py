"""Copies run directories to MLflow, during a run or later.

The run directory is the record: metrics.jsonl and system_metrics.jsonl hold every point with its time, sessions/ every start, config.yaml
the configuration. A `Mirror` sends what an MLflow run lacks of it. During training a `Tracker` does so in a thread, which training never
waits for. `tdformer runs sync` does so by hand.
"""
