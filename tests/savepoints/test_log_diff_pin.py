"""wsfs log, diff and pin, through the real command line, by URL and by mount point."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from wsfs.errors import NoSavePointError
from wsfs.sync.history import find

Ask = Callable[..., Any]


def save(site: Any) -> int:
    """Save now; the number of the save point."""
    site.wsfs("sync", site.mountpoint)
    return int(site.status()["seq"])


def changes(found: dict[str, Any]) -> set[tuple[str, ...]]:
    return {(one["change"], one["path"], *([one["to"]] if "to" in one else [])) for one in found["changes"]}


@pytest.fixture
def worked(workspace: Any) -> Any:
    """A mounted workspace with four save points, the newest of them #4."""
    top = workspace.mountpoint
    (top / "dir").mkdir()
    (top / "dir" / "old").write_text("old")
    (top / "b").write_bytes(os.urandom(5000))
    os.link(top / "b", top / "second")
    assert save(workspace) == 2
    (top / "dir").rename(top / "moved")
    (top / "b").write_bytes(os.urandom(7000))
    (top / "new\nline\udcff").write_text("x")
    (top / "link").symlink_to("b")
    assert save(workspace) == 3
    (top / "second").unlink()
    (top / "moved" / "old").chmod(0o600)
    (top / "fresh").write_text("by another name")
    (top / "fresh").rename(top / "new\nline\udcff")
    assert save(workspace) == 4
    return workspace


def test_a_time_before_the_first_save_point() -> None:
    """Is told as people write it, and not as "2h" ago was worked out."""
    with pytest.raises(NoSavePointError, match=r"no save point is as old as 2026-11-30T13:51:25\+00:00: "):
        find([], "2026-11-30T13:51:25.412246+00:00")


def test_log_tells_each_save_point(worked: Any, ask: Ask) -> None:
    by_mount, by_url = ask("log", worked.mountpoint), ask("log", worked.url)
    assert by_mount == by_url
    points = by_url["save_points"]
    assert [point["id"] for point in points] == [4, 3, 2, 1]
    newest = points[0]
    assert newest["host"] == os.uname().nodename
    assert newest["files"] == worked.status()["files"]
    assert [point["files_change"] for point in points] == [0, 2, 3, None]
    assert not any(point["pinned"] for point in points)
    text = worked.wsfs("log", worked.mountpoint, "-n", 2).stdout.splitlines()
    assert len(text) == 2
    assert text[0].startswith("#4  20")
    # In the mount it needs no argument.
    assert worked.run(*worked.command("log", "-n", "1")[0]).stdout.splitlines() == text[:1]


def test_diff_tells_what_was_added_removed_changed_and_renamed(worked: Any, ask: Ask) -> None:
    assert changes(ask("diff", worked.url, 2, 3)) == {
        ("renamed", "dir", "moved"),
        ("changed", "b"),
        ("added", "new\nline\udcff"),
        ("added", "link"),
    }
    found = ask("diff", worked.mountpoint, 3)
    assert changes(found) == {("removed", "second"), ("changed", "moved/old"), ("changed", "new\nline\udcff")}
    by_path = {one["path"]: one for one in found["changes"]}
    assert (by_path["moved/old"]["content"], by_path["moved/old"]["attributes"]) == (False, True)
    assert by_path["new\nline\udcff"]["content"]
    assert found["total"] == {"added": 0, "removed": 1, "changed": 2, "renamed": 0}
    # Backwards it is the reverse.
    assert ("renamed", "moved", "dir") in changes(ask("diff", worked.url, 3, 2))
    assert changes(ask("diff", worked.url, 4, 4)) == set()
    only = ask("diff", worked.url, 2, 3, "--stat")
    assert "changes" not in only
    assert only["total"] == {"added": 2, "removed": 0, "changed": 1, "renamed": 1}


def test_what_was_restored_is_no_difference(worked: Any, ask: Ask) -> None:
    worked.wsfs("restore", "--at", 2, worked.mountpoint)
    found = ask("diff", worked.mountpoint, 2)
    assert found["changes"] == []
    assert found["to"] > 4


def test_diff_shows_each_path_on_a_line_of_its_own(worked: Any) -> None:
    lines = worked.wsfs("diff", worked.url, 2, 3).stdout.splitlines()
    assert lines == [
        "M b  7.0 kB",
        "R dir/ -> moved/",
        "+ link",
        "+ new\\nline\\xff  1 B",
        "#2 to #3: 2 added, 0 removed, 1 changed, 1 renamed, +2.0 kB.",
    ]


def test_a_time_stands_for_the_save_point_that_was_newest_then(worked: Any, ask: Ask) -> None:
    made = ask("log", worked.url)["save_points"]
    newest = next(point for point in made if point["created"] <= made[-1]["created"])
    assert ask("diff", worked.url, made[-1]["created"])["from"] == newest["id"]
    assert ask("diff", worked.url, "0s")["from"] == 4
    assert "no save point is as old" in worked.wsfs("diff", worked.url, "2001-01-01", code=27).stderr


def test_pins_by_url_and_by_mount_point(worked: Any, ask: Ask) -> None:
    assert ask("pin", worked.mountpoint, "#2", "--name", "before") == {
        "id": 2,
        "pinned": True,
        "name": "before",
        "seconds_left": None,
    }
    assert "for 90d" in worked.wsfs("pin", worked.url, 3, "--for", "90d").stdout
    points = {point["id"]: point for point in ask("log", worked.url)["save_points"]}
    assert (points[2]["name"], points[2]["seconds_left"], points[2]["kind"]) == ("before", None, "user")
    assert 89 * 86400 < points[3]["seconds_left"] <= 90 * 86400
    assert ask("diff", worked.mountpoint, "before")["from"] == 2
    assert "has the name 'before' already" in worked.wsfs("pin", worked.url, 3, "--name", "before", code=2).stderr
    assert ask("pin", worked.mountpoint, "before", "--remove") == {"id": 2, "pinned": False}
    assert "#2 is not pinned" in worked.wsfs("pin", worked.url, 2, "--remove", code=27).stderr
    assert "'before'" in worked.wsfs("diff", worked.url, "before", code=27).stderr


def test_a_restore_can_be_undone_when_a_user_has_pinned_what_was_before(worked: Any, ask: Ask) -> None:
    """And the last one is taken back, whichever was pinned last."""
    top = worked.mountpoint
    first = ask("restore", "--at", 2, top)
    second = ask("restore", "--at", 4, top / "b")
    for point in (second["before"], first["before"]):
        assert ask("pin", top, point, "--name", f"point-{point}")["seconds_left"] is None
    kinds = {one["id"]: (one["kind"], one["name"]) for one in ask("log", top)["save_points"] if one["pinned"]}
    assert kinds == {point: ("restore", f"point-{point}") for point in (first["before"], second["before"])}
    done = ask("undo", top)
    assert (done["id"], done["undone"]) == (second["before"], "before #4 was restored: b")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("diff", "URL", "99"), 27, "there is no save point #99: 'wsfs log' lists"),
        (("diff", "URL"), 2, "name one save point, or two"),
        (("diff", "URL", "1", "2", "3"), 2, "name one save point, or two"),
        (("pin", "URL", "1", "--name", "7up"), 2, "must begin with a letter"),
        (("pin", "URL", "1", "--remove", "--name", "x"), 2, "--remove goes with neither"),
        (("pin", "URL", "1", "--for", "ever"), 2, "not a duration"),
        (("pin", "URL"), 2, "name one save point"),
        (("log", "/tmp"), 42, "no workspace is mounted at /tmp"),
    ],
)
def test_errors_say_what_to_do(site: Any, arguments: tuple[str, ...], code: int, words: str) -> None:
    words_of = [site.url if word == "URL" else word for word in arguments]
    assert words in site.wsfs(*words_of, code=code).stderr


def test_an_encrypted_workspace_has_its_save_points(tmp_path: Any, new_site: Any) -> None:
    site = new_site(tmp_path, "directory")
    site.environ["WSFS_KEY_FILE"] = str(tmp_path / "key")
    site.init("--encrypt")
    site.wsfs("pin", site.url, 1, "--name", "empty")
    assert b"pinned by a user" not in b"".join(path.read_bytes() for path in site.objects("kept"))
    assert "'empty'" in site.wsfs("log", site.url).stdout
    del site.environ["WSFS_KEY_FILE"]
    assert "key" in site.wsfs("log", site.url, code=26).stderr
