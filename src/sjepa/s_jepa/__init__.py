"""S-JEPA: encoder, soft-cluster targets and training."""
