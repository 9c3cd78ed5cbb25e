"""Training networks: one loop, its data order and checkpoints, and passes through compressed copies of the weights."""
