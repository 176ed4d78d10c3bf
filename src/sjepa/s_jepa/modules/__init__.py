"""Network modules."""
