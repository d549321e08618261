"""L6: to and from the bucket. See docs/ARCHITECTURE.md."""
