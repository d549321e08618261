"""Python runs this at start: `import wsfs.mount` gives the stub, without loading pyfuse3 where nobody asks for it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path


class _Finder:
    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> object:
        if name != "wsfs.mount":
            return None
        return importlib.util.spec_from_file_location(name, Path(__file__).with_name("stub_mount.py"))


sys.meta_path.insert(0, _Finder)  # type: ignore[arg-type]
