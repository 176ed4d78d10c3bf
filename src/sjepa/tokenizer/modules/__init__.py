"""Layers of the tokenizer."""
