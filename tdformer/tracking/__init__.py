"""MLflow, as a copy of the run directory: what is written there is sent when MLflow takes it, during the run or later.

The run directory is the record: metrics.jsonl and system_metrics.jsonl have every point with its time, sessions/ what has become of
each start, config.yaml the configuration. A `Mirror` makes an MLflow run equal to that, from whatever it holds. Training keeps one
going in a thread (`Tracker`), which it never waits for; `tdformer runs sync` runs one by hand.
"""
