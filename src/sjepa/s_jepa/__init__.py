"""S-JEPA: encoder, targets and training towards soft clusters."""
