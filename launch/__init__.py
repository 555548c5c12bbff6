"""The command line `tdformer`, and the ways in which it starts a run: processes on this machine, or a job on a cluster."""
