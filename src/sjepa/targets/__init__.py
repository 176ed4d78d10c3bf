"""Soft targets: what the predictor is trained to match at each frame."""
