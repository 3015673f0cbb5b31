"""Local training, inference, evaluation and checkpoints: everything that runs a network."""
