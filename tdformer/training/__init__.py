"""How a network is trained: the loop, DeepSpeed behind one door, checkpoints, signals."""
