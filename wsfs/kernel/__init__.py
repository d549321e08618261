"""L7: the FUSE side. See docs/ARCHITECTURE.md."""
