"""Data pipeline: sources, containers, decoding, scan, windows, augmentation, loading."""
