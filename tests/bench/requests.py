"""How many requests the kernel sends to a FUSE mount, by kind, as the kernel itself counts them: its tracepoint
fuse/fuse_request_send. So it works for every file system and costs the daemon nothing. FORGET is not among them.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_TRACING = Path("/sys/kernel/tracing")
_EVENT = re.compile(r"fuse_request_send: connection \d+ req \d+ opcode \d+ \(FUSE_(\w+)\)")


def available() -> bool:
    """Whether this kernel has the tracepoint; mounts tracefs if need be."""
    if not (_TRACING / "events").exists():
        subprocess.run(["mount", "-t", "tracefs", "none", str(_TRACING)], check=False, capture_output=True)
    return (_TRACING / "events/fuse/fuse_request_send").exists()


@contextmanager
def counted(mount: Path) -> Iterator[Counter[str]]:
    """The requests to the mount while this is entered, filled in at its end."""
    counts: Counter[str] = Counter()
    # The connection is the kernel's number of the device, of which stat(2) tells the halves.
    device = mount.stat().st_dev
    number = os.major(device) << 20 | os.minor(device)
    instance = _TRACING / "instances" / f"wsfs-bench-{os.getpid()}"
    instance.mkdir()
    event = instance / "events/fuse/fuse_request_send"
    try:
        (instance / "buffer_size_kb").write_text("16384")
        (event / "filter").write_text(f"connection == {number}")
        (event / "enable").write_text("1")
        yield counts
        (event / "enable").write_text("0")
        with (instance / "trace").open() as lines:
            counts.update(found[1] for line in lines if (found := _EVENT.search(line)))
    finally:
        (event / "enable").write_text("0")
        instance.rmdir()
