"""L5: names and attributes. See docs/ARCHITECTURE.md."""
