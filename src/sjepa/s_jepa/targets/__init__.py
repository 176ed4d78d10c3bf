"""Soft targets: posteriors of a Gaussian mixture."""
