"""Shared foundations: frame geometry, keyed randomness, devices, files, errors, progress."""
