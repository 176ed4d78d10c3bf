"""The configuration: what may be set (schema), how it is read (load), what it means over time (schedule)."""
