"""docs/DAY.md is what `scripts/day` prints; and the day goes as it says, on real mounts."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CANNOT = 77


@pytest.fixture
def wheels() -> Iterator[Path]:
    """A directory with a package of the name that the day installs, so that no index is needed. The machines of the day
    have a /tmp of their own, and the /var of this one."""
    with tempfile.TemporaryDirectory(prefix="wsfs-day-", dir="/var/tmp") as directory:
        found = version("rich")  # that of the environment, to whose other packages pip compares it
        about = f"rich-{found}.dist-info"
        with zipfile.ZipFile(Path(directory, f"rich-{found}-py3-none-any.whl"), "w") as wheel:
            wheel.writestr("rich/__init__.py", "")
            for number in range(20):
                wheel.writestr(f"rich/module{number}.py", f"value = {number}\n" * 1000)
            wheel.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: rich\nVersion: {found}\n")
            wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{about}/RECORD", "")
        yield Path(directory)


def typed(page: str) -> list[str]:
    """All of a page but for what was printed: that has times and numbers in it which are never the same."""
    found = []
    inside = False
    for line in page.splitlines():
        inside = inside != line.startswith("```")
        if not inside or re.match(r"```|[\w-]+:/\w*\$ ", line):
            found.append(line)
    return found


@pytest.mark.long
@pytest.mark.mount
@pytest.mark.timeout(300)
def test_the_day_goes_as_its_page_says(wheels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    words = [sys.executable, ROOT / "scripts" / "day"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode == CANNOT:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr
    page = (ROOT / "docs" / "DAY.md").read_text()
    assert typed(done.stdout) == typed(page), "make the page anew: scripts/day > docs/DAY.md"
    assert not re.search(r"Traceback|/tmp/|/work/|/home/|\bvm\b", page)
