"""L3: names, attributes and block rows on this machine. See docs/ARCHITECTURE.md."""
