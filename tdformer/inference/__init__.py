"""Uses a trained network outside its training."""
