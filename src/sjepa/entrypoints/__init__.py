"""The five commands."""
