"""wsfs: a notebook's home that survives a stop."""

__version__ = "0.1.0"
