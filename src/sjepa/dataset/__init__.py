"""Audio in, batches out: sources, containers, decoding, the scan, windows, augmentation, loading."""
