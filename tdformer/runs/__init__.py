"""What was trained, read from run directories and compared. Needs no server, no torch and no MLflow: it answers on a login node."""
