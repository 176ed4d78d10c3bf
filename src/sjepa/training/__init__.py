"""Training: run position, schedule, training loop, validation, checkpoints."""
