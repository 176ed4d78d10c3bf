"""Soft targets: posteriors of a mixture."""
