"""A workspace out of its store and into one, without a mount: export, import, and what both have to do with mounts."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tarfile
import threading
from pathlib import Path
from typing import Any

import pytest

MARKER = b".workspace.initialized"
BLOCK = 1 << 20
FORMS = ["directory", "tar", pytest.param("stdout", marks=pytest.mark.long)]


def make_tree(top: Path, *, xattrs: bool = True) -> None:
    """Everything that a tree can hold, but for what only a mount refuses."""
    top.mkdir(exist_ok=True)
    (top / "package").mkdir()
    for number in range(40):
        (top / "package" / f"module{number}.py").write_bytes(b"# module %d\n" % number * 100)
    (top / "package" / "__init__.py").touch()
    (top / "package" / "tiny").write_bytes(b"tiny")
    (top / "empty").mkdir(mode=0o700)
    (top / "deep" / "er" / "still").mkdir(parents=True)
    (top / "deep" / "er" / "still" / "file").write_bytes(os.urandom(3 * BLOCK + 17))
    (top / "twin").write_bytes(b"same bytes " * 200_000)
    (top / "twin again").write_bytes(b"same bytes " * 200_000)
    (top / "hard").hardlink_to(top / "package" / "module7.py")
    (top / "soft").symlink_to("package/module7.py")
    os.link(top / "soft", top / "soft too", follow_symlinks=False)
    (top / "nowhere").symlink_to("/no such place/" + "x" * 200)
    with (top / "sparse").open("wb") as file:
        file.seek(5 * BLOCK + 100)
        file.write(b"in the middle")
        file.truncate(9 * BLOCK + 1)
    with (top / "only holes").open("wb") as file:
        file.truncate(40 << 20)
    os.mkfifo(top / "fifo", 0o640)
    os.mknod(top / "null", 0o20666, os.makedev(1, 3))
    Path(os.fsdecode(os.fsencode(top) + b"/not \xff utf-8")).write_bytes(b"x" * 600)
    (top / ("long " * 40)).write_bytes(b"y" * 700)
    (top / "package").chmod(0o2751)
    (top / "twin").chmod(0o4755)
    (top / "null").chmod(0o606)
    os.chown(top / "empty", 12, 34)
    os.chown(top / "soft", 5, 6, follow_symlinks=False)
    if xattrs:
        os.setxattr(top / "twin again", "user.empty", b"")
        os.setxattr(top / "package", "user.binary", b"\0\xff=\n")
    for path, ns in ((top / "soft", -1), (top / "fifo", 981_173_106_123_456_789), (top / "deep", 1)):
        os.utime(path, ns=(ns, ns), follow_symlinks=False)
    os.utime(top, ns=(7, 1_000_000_000_000_000_007))


def facts(tree: Any, top: Path) -> dict[bytes, Any]:
    """All that an export or import has to keep, the marker left out."""
    found = tree.of(top, inodes=False, skip=[MARKER])
    groups: dict[tuple[int, int], list[bytes]] = {}
    for name, about in found.items():
        path = os.path.join(os.fsencode(top), name)
        status = os.lstat(path)
        if about["mode"].startswith("0o4"):
            del about["nlink"]  # not every file system counts those of directories
        elif status.st_nlink > 1:
            groups.setdefault((status.st_dev, status.st_ino), []).append(name)
        try:
            names = os.listxattr(path, follow_symlinks=False)
        except OSError:
            names = []
        about["xattrs"] = {x: os.getxattr(path, x, follow_symlinks=False) for x in names if x.startswith("user.")}
    for names_of_one in groups.values():
        for name in names_of_one:
            found[name]["names"] = sorted(names_of_one)
    return dict(found)


def unpacked(form: str, found: dict[bytes, Any]) -> dict[bytes, Any]:
    """What tar(1) brings back: the archive has the times of access, and it does not care."""
    return {name: {k: v for k, v in one.items() if form == "directory" or k != "atime"} for name, one in found.items()}


def export(site: Any, form: str, out: Path, *arguments: object, code: int = 0, url: str | None = None) -> str:
    """`wsfs export` into a directory, whatever the form; what it said."""
    url = url or site.url
    if form == "directory":
        return str(site.wsfs("export", url, out, *arguments, code=code).stderr)
    archive = out.with_name(out.name + ".tar")
    if form == "tar":
        said = str(site.wsfs("export", url, archive, *arguments, code=code).stderr)
    else:
        words, environ = site.command("export", url, "-", *arguments)
        with archive.open("wb") as file:
            done = subprocess.run(words, env=environ, stdout=file, stderr=subprocess.PIPE, text=True, check=False)
        assert done.returncode == code, done.stderr
        said = done.stderr
    out.mkdir()
    subprocess.run(["tar", "--xattrs", "-C", out, "-xpf", archive], check=True, capture_output=True)
    return said


@pytest.fixture
def source(tmp_path: Path) -> Path:
    make_tree(tmp_path / "source")
    return tmp_path / "source"


@pytest.mark.parametrize("form", FORMS)
def test_an_export_is_what_the_mount_shows(site: Any, tree: Any, tools: Any, tmp_path: Path, form: str) -> None:
    """Also by diff and rsync, of what came in through several commits."""
    site.mount("-o", "xattr")
    make_tree(site.mountpoint)
    site.wsfs("sync", site.mountpoint)
    with (site.mountpoint / "deep" / "er" / "still" / "file").open("r+b") as file:
        file.seek(BLOCK + 5)
        file.write(b"changed later")
        file.truncate(2 * BLOCK + 3)
    (site.mountpoint / "package" / "module3.py").unlink()
    os.utime(site.mountpoint / "deep", ns=(1, 1))
    site.wsfs("sync", site.mountpoint)
    before = facts(tree, site.mountpoint)
    out = tmp_path / "out"
    export(site, form, out)
    assert unpacked(form, facts(tree, out)) == unpacked(form, before)
    assert (out / os.fsdecode(MARKER)).read_bytes() == (site.mountpoint / os.fsdecode(MARKER)).read_bytes()
    (out / "fifo").unlink()
    (out / "null").unlink()
    names = tools.run("diff", "-rq", "--no-dereference", site.mountpoint, out, code=None).stdout
    assert {line.rpartition(" ")[2] for line in names.splitlines()} <= {"fifo", "null"}
    different = tools.run("rsync", "-aHXnic", "--exclude=fifo", "--exclude=null", f"{site.mountpoint}/", f"{out}/")
    assert [line for line in different.stdout.splitlines() if not line.endswith(" ./")] == []


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "site",
    [pytest.param("directory", marks=pytest.mark.long), "moto", pytest.param("real", marks=pytest.mark.s3)],
    indirect=True,
)
def test_what_is_imported_is_exported_the_same(site: Any, source: Path, tree: Any, tmp_path: Path, form: str) -> None:
    url = f"{site.url}-imported"
    site.wsfs("import", source, url)
    export(site, form, tmp_path / "out", url=url)
    assert unpacked(form, facts(tree, tmp_path / "out")) == unpacked(form, facts(tree, source))
    assert (tmp_path / "out" / "only holes").stat().st_blocks == 0
    assert (tmp_path / "out" / "sparse").stat().st_blocks * 512 <= 2 * BLOCK
    assert "All is well" in site.wsfs("fsck", url, "--data").stdout


def test_everyone_counts_the_same_files(site: Any, source: Path, tools: Any, tmp_path: Path) -> None:
    """import, status, fsck and export: all that find(1) finds, a file with several names once."""
    url = f"{site.url}-imported"
    came = site.wsfs("import", source, url).stdout
    went = site.wsfs("export", url, tmp_path / "out").stdout
    inodes = len(set(tools.run("find", tmp_path / "out", "-printf", "%i\n").stdout.split()))
    for text in (came, site.wsfs("status", url).stdout, site.wsfs("fsck", url).stdout, went):
        assert re.search(rf"\b{inodes} files, ", text), text


@pytest.mark.parametrize(
    "how", ["directory", "tar", *(pytest.param(how, marks=pytest.mark.long) for how in ("gnu tar", "again"))]
)
def test_a_mount_shows_what_was_imported_and_goes_on_from_there(
    site: Any, source: Path, tree: Any, tmp_path: Path, how: str
) -> None:
    """From a directory, from archives of GNU tar in two formats, and from one of ours."""
    before = facts(tree, source)
    given = source
    if how != "directory":
        given = tmp_path / "given.tar"
        if how == "again":
            site.wsfs("import", source, f"{site.url}-first")
            site.wsfs("export", f"{site.url}-first", given)
        else:
            words = ["--format=gnu", "--sparse"] if how == "gnu tar" else ["--format=pax", "--xattrs", "--sparse"]
            subprocess.run(["tar", *words, "-C", source, "-cf", given, "."], check=True)
    site.wsfs("import", given, site.url)
    site.mount("-o", "xattr")
    found = facts(tree, site.mountpoint)
    if how == "gnu tar":  # that format has whole seconds, and no extended attributes
        for about in (*found.values(), *before.values()):
            about["mtime"] //= 10**9
            about.pop("atime", None)
            about["xattrs"] = {}
    elif how == "tar":
        for about in (*found.values(), *before.values()):
            about.pop("atime", None)  # changed by tar, which read the files
    assert found == before
    (site.mountpoint / "new").write_text("new")
    (site.mountpoint / "package" / "module1.py").unlink()
    site.elsewhere()
    assert (site.mountpoint / "new").read_text() == "new"
    assert not (site.mountpoint / "package" / "module1.py").exists()
    site.umount()
    assert "All is well" in site.wsfs("fsck", site.url, "--data").stdout


def test_equal_blocks_are_stored_once_and_the_sentence_says_what_was_done(site: Any, tmp_path: Path) -> None:
    top = tmp_path / "top"
    top.mkdir()
    block = os.urandom(BLOCK)
    for number in range(8):
        (top / f"{number}").write_bytes(block * 2)
    done = site.wsfs("import", top, site.url).stdout
    assert done.startswith("Saved: 10 files, 16.8 MB in ")  # with the top directory and the marker
    assert done.rstrip().endswith("#2.")
    assert site.stored_bytes() < 2 * BLOCK
    status = json.loads(site.wsfs("status", site.url, "--json").stdout)
    assert (status["state"], status["seq"], status["files"]) == ("STOPPED", 2, 10)


def test_owners_can_be_mapped_and_json_has_the_fields(site: Any, source: Path, tmp_path: Path) -> None:
    url = f"{site.url}-owned"
    told = json.loads(site.wsfs("import", source, url, "--owner", "1000:100", "--label", "a=b", "--json").stdout)
    assert set(told) == {
        *("url", "workspace_id", "made", "files", "bytes", "seq", "saved_at", "seconds", "sent", "requests")
    }
    assert told["made"] is True
    done = json.loads(site.wsfs("export", url, tmp_path / "out", "--json").stdout)
    assert set(done) == {
        *("url", "id", "saved_at", "files", "bytes", "incomplete", "skipped", "bare", "problems", "seconds")
    }
    owners = {(path.lstat().st_uid, path.lstat().st_gid) for path in (tmp_path / "out").rglob("*")}
    assert owners == {(1000, 100), (0, 0)}  # the marker is root's
    assert site.wsfs("import", source, url, code=21).stderr.count("\n") == 1


def test_an_encrypted_workspace_is_imported_and_exported_with_its_key(
    site: Any, source: Path, tree: Any, tmp_path: Path
) -> None:
    url, key = f"{site.url}-secret", tmp_path / "key"
    site.wsfs("import", source, url, "--encrypt", code=2)
    site.wsfs("import", source, url, "--key-file", key, code=20)
    site.wsfs("import", source, url, "--encrypt", "--key-file", key)
    site.wsfs("export", url, tmp_path / "no", code=26)
    export(site, "directory", tmp_path / "out", "--key-file", key, url=url)
    assert facts(tree, tmp_path / "out") == facts(tree, source)
    stored = b"".join(path.read_bytes() for path in Path(url.removeprefix("file://")).rglob("*") if path.is_file())
    assert b"module7" not in stored
    assert b"same bytes" not in stored


def test_an_older_save_point_is_exported(site: Any, tmp_path: Path) -> None:
    site.mount()
    (site.mountpoint / "note").write_text("one")
    seq = json.loads(site.wsfs("sync", site.mountpoint, "--json").stdout)["seq"]
    (site.mountpoint / "note").write_text("two")
    site.umount()
    site.wsfs("export", site.url, tmp_path / "then", "--at", seq)
    site.wsfs("export", site.url, tmp_path / "now")
    assert [(tmp_path / name / "note").read_text() for name in ("then", "now")] == ["one", "two"]
    site.wsfs("export", site.url, tmp_path / "never", "--at", 999, code=27)
    pinned = json.loads(site.wsfs("log", site.url, "--json").stdout)["save_points"]
    assert {point["kind"] for point in pinned if point["id"] == seq} == {"reader"}


@pytest.mark.parametrize("form", FORMS)
def test_a_damaged_file_is_named_and_all_others_are_exported(site: Any, tmp_path: Path, form: str) -> None:
    top = tmp_path / "top"
    top.mkdir()
    contents = {f"f{number}": os.urandom(3000) for number in range(20)}
    for name, data in contents.items():
        (top / name).write_bytes(data)
    (top / "z second name").hardlink_to(top / "f5")
    site.wsfs("import", top, site.url)
    (pack,) = site.objects("packs")
    stored = bytearray(pack.read_bytes())
    stored[stored.index(contents["f5"]) + 99] ^= 1
    pack.write_bytes(stored)
    out = tmp_path / "out"
    said = export(site, form, out, code=25)
    assert "f5" in said
    assert "f6" not in said
    for name, data in contents.items():
        if name != "f5":
            assert (out / name).read_bytes() == data
    for name in ("f5", "z second name"):
        assert (out / f"{name}.incomplete").exists()
        assert not (out / name).exists() or form != "directory"
    if form != "directory":
        assert (out / "f5").read_bytes() == bytes(3000)
    pack.unlink()
    said = export(site, form, tmp_path / "nothing", code=25)
    assert len(said.splitlines()) >= 20


def test_damaged_names_are_told_and_the_rest_is_exported(site: Any, tmp_path: Path) -> None:
    """A delta that is gone: the commit before it can be seen, and the exit code says that something is missing."""
    site.mount()
    (site.mountpoint / "old").write_text("old")
    site.wsfs("sync", site.mountpoint)
    (site.mountpoint / "new").write_text("new")
    site.umount()
    newest = max(site.objects("meta"), key=lambda path: path.stat().st_mtime_ns)
    newest.unlink()
    said = site.wsfs("export", site.url, tmp_path / "out", code=25).stderr
    assert newest.name in said
    assert (tmp_path / "out" / "old").read_text() == "old"


def test_nothing_is_overwritten(site: Any, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    site.wsfs("export", site.url, tmp_path / "out", code=2)
    (tmp_path / "out.tar").write_text("mine")
    site.wsfs("export", site.url, tmp_path / "out.tar", code=2)
    assert (tmp_path / "out.tar").read_text() == "mine"
    site.wsfs("export", site.url, code=2)
    site.wsfs("export", site.url, tmp_path / "new", "--unsaved", tmp_path / "other", code=2)
    site.wsfs("export", site.url, tmp_path / "new", "--cache-dir", tmp_path, code=2)
    site.wsfs("export", f"{site.url}-none", tmp_path / "new.tar", code=20)
    assert not (tmp_path / "new.tar").exists()


def test_who_has_it_mounted_or_has_files_in_it_is_not_overrun(site: Any, source: Path) -> None:
    site.mount()
    said = site.wsfs("import", source, site.url, code=30).stderr
    assert "mounted" in said
    (site.mountpoint / "mine").write_text("mine")
    site.umount()
    site.wsfs("import", source, site.url, code=21)
    site.mount()
    assert sorted(os.listdir(site.mountpoint)) == [os.fsdecode(MARKER), "mine"]


def test_archives_that_lead_out_or_contradict_themselves_are_refused(site: Any, tmp_path: Path) -> None:
    """The workspace stays empty."""

    def archive(*members: tuple[str, bytes, str]) -> Path:
        path = tmp_path / "given.tar"
        with tarfile.open(path, "w") as tar:
            for name, kind, target in members:
                member = tarfile.TarInfo(name)
                member.type, member.linkname = kind, target
                tar.addfile(member)
        return path

    for members in (
        [("../out", tarfile.REGTYPE, "")],
        [("a", tarfile.SYMTYPE, "/etc"), ("a/b", tarfile.REGTYPE, "")],
        [("a", tarfile.DIRTYPE, ""), ("a", tarfile.REGTYPE, "")],
        [("a", tarfile.LNKTYPE, "later"), ("later", tarfile.REGTYPE, "")],
        [("x" * 256, tarfile.REGTYPE, "")],
    ):
        site.wsfs("import", archive(*members), site.url, code=2)
    compressed = tmp_path / "given.tar.gz"
    with tarfile.open(compressed, "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("a"))
    assert "unpack it first" in site.wsfs("import", compressed, site.url, code=2).stderr
    good = archive(
        ("x/y", tarfile.REGTYPE, ""),
        ("twice", tarfile.SYMTYPE, "one"),
        ("./twice", tarfile.SYMTYPE, "two"),
        (".workspace.initialized", tarfile.SYMTYPE, "mine"),
    )
    site.wsfs("import", good, site.url)
    site.mount()
    assert os.readlink(site.mountpoint / "twice") == "two"
    assert sorted(os.listdir(site.mountpoint)) == [os.fsdecode(MARKER), "twice", "x"]
    assert not (site.mountpoint / os.fsdecode(MARKER)).is_symlink()
    site.umount()
    assert "All is well" in site.wsfs("fsck", site.url, "--data").stdout


def test_progress_is_told_where_there_is_no_terminal(
    site: Any, source: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A line now and then; the module's own clock is not waited for."""
    from wsfs.cli import progress
    from wsfs.sync.progress import Progress

    told: list[str] = []
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.01)
    monkeypatch.setattr(progress.click, "echo", lambda text, err: told.append(text))
    monkeypatch.setattr("sys.stderr.isatty", lambda: False, raising=False)
    account = Progress()
    with progress.shown("importing", account):
        account.plan(10, 1000)
        account.done(5, 500, 100)
        deadline = 200
        while not told and deadline:
            deadline -= 1
            threading.Event().wait(0.01)
    assert told
    assert told[0].startswith("wsfs: importing: 5 of 10 files, 500 B of 1000 B") or told[0].startswith(
        "wsfs: importing: 5 of 10 files, 500 B of 1.0 kB"
    )


def test_a_mount_is_exported_as_it_was_saved(site: Any, tmp_path: Path) -> None:
    """By its mount point: what is in the store, and not what is being written."""
    site.mount()
    (site.mountpoint / "file").write_text("saved")
    site.wsfs("sync", site.mountpoint)
    (site.mountpoint / "file").write_text("not saved")
    site.wsfs("export", site.mountpoint, tmp_path / "out")
    assert (tmp_path / "out" / "file").read_text() == "saved"
    assert "name its URL" in site.wsfs("export", tmp_path, tmp_path / "other", code=42).stderr
