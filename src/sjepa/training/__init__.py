"""The training run: clock, optimiser, one step, validation, checkpoints, the loop."""
