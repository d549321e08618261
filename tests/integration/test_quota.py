"""A quota on a real mount: df, ENOSPC where a program sees it, and a full workspace that can be used and emptied."""

from __future__ import annotations

import os
from typing import Any

import pytest


def test_a_full_workspace(site: Any) -> None:
    site.mount("-o", "quota=4M,files=30")
    top = site.mountpoint
    before = os.statvfs(top)
    assert before.f_blocks * before.f_frsize == pytest.approx(4 << 20, abs=8192)
    assert before.f_files == 30
    assert before.f_bavail < before.f_bfree
    (top / "big").mkdir()
    (top / "big" / "first").write_bytes(os.urandom(3 << 20))
    assert os.statvfs(top).f_bfree * before.f_frsize == pytest.approx(1 << 20, abs=8192)
    with (top / "big" / "second").open("wb") as file:
        file.write(os.urandom(2 << 20))
        file.flush()
        with pytest.raises(OSError, match="No space left"):
            os.fsync(file.fileno())
    assert "quota reached" in site.log()
    assert "/big +3145728 bytes" in site.log()
    made = [number for number in range(40) if site.run("touch", top / f"file{number}", code=None).returncode == 0]
    assert made[:20] == list(range(20))
    assert len(made) < 30
    # The program knows: a save is none the worse for it.
    site.wsfs("sync", top)
    # It can still be used, saved, and emptied.
    (top / "big" / "first").rename(top / "moved")
    with (top / "moved").open("r+b") as file:
        file.write(b"changed")
    site.wsfs("sync", top)
    assert site.status()["quota"] == 4 << 20
    os.truncate(top / "moved", 1000)
    for name in os.listdir(top):
        if name.startswith("file"):
            (top / name).unlink()
    (top / "again").write_bytes(os.urandom(1 << 20))
    site.elsewhere()
    assert (top / "again").stat().st_size == 1 << 20
    assert (top / "moved").read_bytes()[:7] == b"changed"


@pytest.mark.parametrize("save_interval", ["0", "300ms"])
def test_what_no_program_was_told_is_told_once(site: Any, tools: Any, save_interval: str) -> None:
    """Also when a background save was the one who asked the kernel. All else is saved, and the next one succeeds."""
    site.mount("-o", f"quota=4M,save_interval={save_interval}")
    top = site.mountpoint
    (top / "fits").write_text("fits")
    with (top / "too large").open("wb", buffering=0) as file:
        for _ in range(6):
            file.write(os.urandom(1 << 20))
        if save_interval != "0":
            tools.until(lambda: "op=write" in site.log())
        result = site.wsfs("sync", top, code=50)
        assert "/too large" in result.stderr
        assert "No space left" in result.stderr
        assert site.log().count('op=write path="/too large" errno=ENOSPC error="No space left on device"') == 1
        seq = site.status(site.url)["seq"]
        site.wsfs("sync", top)
        assert site.status(site.url)["seq"] == seq
        with pytest.raises(OSError, match="No space left"):
            os.fsync(file.fileno())
    site.umount()


def test_a_program_that_was_told_is_enough(site: Any) -> None:
    """ENOSPC and EFBIG, at fsync or close: what it did about that is its business, and no save fails."""
    site.mount("-o", "quota=4M")
    top = site.mountpoint
    for offset, error in ((8 << 20, "No space left"), (5 << 50, "File too large")):
        descriptor = os.open(top / "file", os.O_WRONLY | os.O_CREAT)
        os.pwrite(descriptor, b"x", offset)
        with pytest.raises(OSError, match=error):
            os.fsync(descriptor)
        os.close(descriptor)
        site.wsfs("sync", top)
    descriptor = os.open(top / "file", os.O_WRONLY)
    os.pwrite(descriptor, b"x", 8 << 20)
    with pytest.raises(OSError, match="No space left"):
        os.close(descriptor)
    site.umount()


def test_a_file_that_is_gone_lacks_nothing(site: Any) -> None:
    site.mount("-o", "quota=4M")
    with (site.mountpoint / "file").open("wb", buffering=0) as file:
        file.write(os.urandom(6 << 20))
        (site.mountpoint / "file").unlink()
        site.wsfs("sync", site.mountpoint)


def test_what_is_no_quota_is_refused(site: Any) -> None:
    assert "is not a size" in site.mount("-o", "quota=much", code=2).stderr
    assert "is not a number of files" in site.mount("-o", "quota_files=0", code=2).stderr
