"""A trained encoder in forms that others read."""
