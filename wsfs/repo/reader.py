#!/usr/bin/env python3
"""Reads a wsfs workspace out of a copy of its bucket, without wsfs. Each workspace has this file in it, as READER.py.

    aws s3 sync s3://bucket/prefix copy          or rclone; the directory of a file:// workspace is a copy already
    python3 copy/READER.py commits copy          the save points that are there
    python3 copy/READER.py list copy             the files of the newest one, or with --at NUMBER of another
    python3 copy/READER.py extract copy target   all of them into a directory that is new or empty

It changes nothing in the copy, and verifies every byte. Files with damage are told on stderr, and called
NAME.incomplete; the exit code is 1 then. Owners and devices need root; extended attributes need a file system that has
them.

It needs Python 3.9 or later, and something that unpacks zstd: Python 3.14, or the package zstandard, or the command
zstd (which is slow here, for it is started for each block). For an encrypted workspace it needs the package
cryptography, and --key-file. A workspace that is a fork needs a copy of its base as well: --base DIR, once for each.

The format is described in docs/FORMAT.md of wsfs. In short: HEAD names a commit; that names segments of sorted rows
(attributes, names, blocks), older ones first; and a block's row says where in which pack its bytes are.
"""

from __future__ import annotations

import argparse
import hashlib
import hmac
import importlib
import json
import os
import re
import shutil
import signal
import stat
import struct
import subprocess
import sys
from typing import Any, Callable, Iterator, NamedTuple  # noqa: UP035 - this also runs on Python 3.9

BLOCK = 1 << 20
ROOT = 1
SEGMENT_MAX = 256 << 20
MANIFEST_MAX = 64 << 20
CHUNK, NONCE, TAG = 16384, 12, 16
CLEAR = ("FORMAT", "probe", "READER.py")
INODE = struct.Struct(">BIIIIIQQqIqIqI")

Rows = dict[bytes, bytes]


class DamagedError(Exception):
    """Something is not what was written. Its text is for the user, as is that of MissingError."""


class MissingError(Exception):
    """Something is missing that the user can give."""


# --- pieces ---------------------------------------------------------------------------------------------------------


def digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=20).digest()


def printable(name: bytes) -> str:
    """A name for people, on one line, and harmless to a terminal."""
    text = name.decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def find_zstd() -> Callable[[bytes, int], bytes]:
    """What unpacks one zstd frame; its second argument is the size that it must have."""
    try:
        module = importlib.import_module("compression.zstd")  # Python 3.14
    except ImportError:
        pass
    else:
        return lambda data, size: bytes(module.ZstdDecompressor().decompress(data, max_length=size + 1))
    try:
        package = importlib.import_module("zstandard")
    except ImportError:
        pass
    else:
        return lambda data, size: bytes(package.ZstdDecompressor().stream_reader(data).read(size + 1))
    command = shutil.which("zstd")
    if command is None:
        raise MissingError("zstd is needed: install the command zstd, or the Python package zstandard")
    program = command
    return lambda data, _size: (
        subprocess.run(
            [program, "-dcq"], input=data, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False
        ).stdout
    )


class Unpacker:
    def __init__(self) -> None:
        self._zstd = find_zstd()

    def __call__(self, data: bytes, size: int, what: str) -> bytes:
        """Exactly `size` bytes, or DamagedError."""
        try:
            found = self._zstd(data, size)
        except Exception as exc:  # each of the three has errors of its own
            raise DamagedError(f"{what} cannot be unpacked: {exc}") from exc
        if len(found) != size:
            raise DamagedError(f"{what} unpacks to {len(found)} bytes instead of {size}")
        return found


# --- objects --------------------------------------------------------------------------------------------------------


class Cipher:
    """AES-256-GCM in chunks of 16 KiB, each object with a key of its own."""

    def __init__(self, fmt: dict[str, Any], key_file: str | None) -> None:
        if key_file is None:
            raise MissingError("this workspace is encrypted: give the file with its key as --key-file")
        if fmt["key"]["kind"] != "file":
            raise MissingError(
                f"its key is not in a file, but in {fmt['key']['kind']}; docs/FORMAT.md of wsfs says how"
            )
        try:
            self._gcm = importlib.import_module("cryptography.hazmat.primitives.ciphers.aead").AESGCM
        except ImportError as exc:
            raise MissingError("for an encrypted workspace the Python package cryptography is needed") from exc
        self._workspace = fmt["workspace_id"]
        with open(key_file, "rb") as file:
            outer = self._gcm(bytes.fromhex(file.read().decode().strip()))
        wrapped = bytes.fromhex(fmt["key"]["wrapped"])
        about = f"wsfs data key\0{self._workspace}".encode()
        try:
            self._key = outer.decrypt(wrapped[:NONCE], wrapped[NONCE:], about)
        except Exception as exc:
            raise MissingError(f"{key_file} is not the key of this workspace") from exc

    def open(self, name: str, data: bytes, first: int, *, whole: bool) -> bytes:
        """The content of the chunks from number `first` on."""
        about = f"{self._workspace}\0{name}\0".encode()
        # HKDF-Expand for the length of one hash
        gcm = self._gcm(hmac.new(self._key, about + b"\1", "sha256").digest())
        parts, sealed = [], CHUNK + NONCE + TAG
        if whole and len(data) % sealed < NONCE + TAG:
            raise DamagedError(f"the object {name} is cut off")
        for number, at in enumerate(range(0, len(data), sealed), first):
            chunk = data[at : at + sealed]
            try:
                parts.append(gcm.decrypt(chunk[:NONCE], chunk[NONCE:], about + number.to_bytes(8, "big")))
            except Exception as exc:
                raise DamagedError(f"the object {name} is not what was written there") from exc
        return b"".join(parts)


class Copy:
    """A directory with the objects of one workspace; those of an old epoch are in its base, if it is a fork."""

    def __init__(self, directory: str, key_file: str | None, bases: list[str]) -> None:
        self._directory = directory
        try:
            with open(os.path.join(directory, "FORMAT"), "rb") as file:
                self.format = json.loads(file.read())
        except (OSError, ValueError) as exc:
            raise MissingError(f"{directory} is no copy of a workspace: {exc}") from exc
        known = {"magic": "wsfs", "version": 1, "block_size": BLOCK, "hash": "blake2b-160", "compression": "zstd"}
        for name, value in known.items():
            if self.format.get(name) != value:
                raise MissingError(f"{directory} has {name} {self.format.get(name)!r}, which this reader does not know")
        self._cipher = Cipher(self.format, key_file) if self.format.get("cipher") else None
        self._base: Copy | None = None
        base = self.format.get("base")
        if base is not None:
            for other in bases:
                with open(os.path.join(other, "FORMAT"), "rb") as file:
                    if json.loads(file.read()).get("workspace_id") == base["workspace"]:
                        self._base = Copy(other, key_file, [one for one in bases if one != other])
            if self._base is None:
                raise MissingError(f"this is a fork of {base['url']}: name a copy of that with --base")

    def _owner(self, name: str) -> Copy:
        named = re.fullmatch(r"(?:packs/[0-9a-f]{2}|meta)/([0-9a-f]{8})[-/].*", name)
        base = self.format.get("base")
        if named and base and self._base and int(named[1], 16) <= base["epoch"]:
            return self._base._owner(name)
        return self

    def read(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        """An object, or a part of it."""
        return self._owner(name)._read(name, start, length)

    def _read(self, name: str, start: int, length: int | None) -> bytes:
        if not re.fullmatch(r"[A-Za-z0-9_=-][A-Za-z0-9._=-]*(/[A-Za-z0-9_=-][A-Za-z0-9._=-]*)*", name):
            raise DamagedError(f"{name!r} is not the name of an object")
        try:
            with open(os.path.join(self._directory, name), "rb") as file:
                if self._cipher is None or name in CLEAR:
                    file.seek(start)
                    return file.read() if length is None else file.read(length)
                if length is None:
                    return self._cipher.open(name, file.read(), 0, whole=True)
                first, last, sealed = start // CHUNK, (start + length - 1) // CHUNK, CHUNK + NONCE + TAG
                file.seek(first * sealed)
                data = self._cipher.open(name, file.read((last - first + 1) * sealed), first, whole=False)
                return data[start - first * CHUNK :][:length]
        except OSError as exc:
            raise DamagedError(f"the object {name} cannot be read: {exc.strerror}") from exc

    def commits(self) -> list[str]:
        """The names of all that are there, oldest first."""
        directory = os.path.join(self._directory, "commits")
        names = os.listdir(directory) if os.path.isdir(directory) else []
        return [f"commits/{name}" for name in sorted(names) if re.fullmatch(r"\d{10,}-[0-9a-f]{8}-\w+", name)]


# --- a commit -------------------------------------------------------------------------------------------------------


class Attributes(NamedTuple):
    version: int
    mode: int
    uid: int
    gid: int
    nlink: int
    rdev: int
    size: int
    parent: int
    atime: int
    atime_ns: int
    mtime: int
    mtime_ns: int
    ctime: int
    ctime_ns: int


def read_manifest(copy: Copy, unpack: Unpacker, name: str, expected: str | None) -> dict[str, Any]:
    data = copy.read(name)
    magic, size = struct.unpack_from(">8sI", data.ljust(12, b"\0"))
    if (expected and digest(data).hex() != expected) or magic != b"WSFSMAN1" or size > MANIFEST_MAX:
        raise DamagedError(f"the commit {name} is not the one that was written")
    found: dict[str, Any] = json.loads(unpack(data[12:], size, name))
    if found["workspace"] != copy.format["workspace_id"]:
        raise DamagedError(f"the commit {name} is of another workspace")
    return found


class Commit:
    """All rows of one commit."""

    def __init__(self, copy: Copy, wanted: str | None, unpack: Unpacker) -> None:
        self._copy = copy
        self._unpack = unpack
        self.damage: list[str] = []
        self.manifest = read_manifest(copy, unpack, *self._choose(wanted))
        self._rows: dict[int, Rows] = {}
        over: dict[bytes, bytes | None] = {}
        for ref in self.manifest["base"] + self.manifest["deltas"]:
            try:
                over.update(self._segment(ref))
            except (DamagedError, struct.error) as exc:
                self.damage.append(str(exc))
        for key, value in sorted(over.items()):
            if value is not None:
                self._rows.setdefault(int.from_bytes(key[:8], "big"), {})[key[8:]] = value

    def _choose(self, wanted: str | None) -> tuple[str, str | None]:
        if wanted is None:
            head = json.loads(self._copy.read("HEAD"))
            return head["commit"], head["commit_digest"]
        names = [name for name in self._copy.commits() if int(name[8:].partition("-")[0]) == int(wanted)]
        if len(names) != 1:
            raise MissingError(
                f"there are {len(names)} commits with the number {wanted}; 'commits' lists those that are there"
            )
        return names[0], None

    def _segment(self, ref: dict[str, Any]) -> Iterator[tuple[bytes, bytes | None]]:
        name = ref["key"]
        data = self._copy.read(name)
        if digest(data).hex() != ref["digest"] or data[:8] != b"WSFSSEG1":
            raise DamagedError(f"the object {name} is not the one that was written")
        size, count = struct.unpack_from(">II", data, 8)
        raw = self._unpack(data[16:], size if size <= SEGMENT_MAX else 0, name)
        at = 0
        for _ in range(count):
            key_length, coded = struct.unpack_from(">HI", raw, at)
            at += 6 + key_length
            value_length = max(coded - 1, 0)
            yield raw[at - key_length : at], raw[at : at + value_length] if coded else None
            at += value_length

    # A key is the inode's number and what follows here: a table, and what belongs to it.

    def attributes(self, ino: int) -> Attributes | None:
        row = self._rows.get(ino, {}).get(b"a", b"")
        return Attributes._make(INODE.unpack(row)) if len(row) == INODE.size else None

    def table(self, ino: int, table: bytes) -> Iterator[tuple[bytes, bytes]]:
        for key, row in self._rows.get(ino, {}).items():
            if key[:1] == table:
                yield key[1:], row

    def entries(self, ino: int) -> Iterator[tuple[bytes, int]]:
        for name, row in self.table(ino, b"d"):
            if name in (b"", b".", b"..") or b"/" in name or b"\0" in name:
                self.damage.append(f"inode {ino} has an entry with an impossible name")
            else:
                yield name, int.from_bytes(row[:8], "big")

    def walk(self) -> Iterator[tuple[bytes, int, Attributes]]:
        """Path, number and attributes of everything, directories before what is in them. A file with several names
        comes several times."""
        pending, seen = [(b"", ROOT)], set()
        while pending:
            path, ino = pending.pop()
            about = self.attributes(ino)
            if about is None or (stat.S_ISDIR(about.mode) and ino in seen):
                self.damage.append(f"/{printable(path)} leads to nothing")
                continue
            seen.add(ino)
            yield path, ino, about
            if stat.S_ISDIR(about.mode):
                below = [(path + b"/" + name if path else name, child) for name, child in self.entries(ino)]
                pending += reversed(below)

    def blocks(self, ino: int, size: int) -> Iterator[tuple[int, bytes | DamagedError]]:
        """Offset and bytes of what is no hole in a file."""
        for key, row in self.table(ino, b"b"):
            offset = int.from_bytes(key, "big") * BLOCK
            if offset < size:
                try:
                    yield offset, self._block(row)[: size - offset]
                except DamagedError as exc:
                    yield offset, exc

    def _block(self, row: bytes) -> bytes:
        if row[:1] == b"\1":
            return row[1:]
        if row[:1] != b"\2" or len(row) != 46:
            raise DamagedError("a block has a row that cannot be")
        _, epoch, pack, offset, stored, raw, length, codec, expected = struct.unpack(">BIIIIIIB20s", row)
        name = f"packs/{pack & 0xFF:02x}/{epoch:08x}-{pack:08x}"
        data = self._copy.read(name, offset, stored)
        if codec == 1:
            data = self._unpack(data, min(raw, BLOCK), name)
        if len(data) != raw or digest(data) != expected:
            raise DamagedError(f"in the pack {name} a block does not have the bytes that were written")
        return data[:length]


# --- commands -------------------------------------------------------------------------------------------------------


def list_commits(copy: Copy, unpack: Unpacker) -> None:
    for name in copy.commits():
        manifest = read_manifest(copy, unpack, name, None)
        print(f"{manifest['seq']:>8}  {manifest['created']}  {manifest['files']:>9} files  {manifest['bytes']} bytes")


def list_files(commit: Commit) -> None:
    for path, _, about in commit.walk():
        print(f"{stat.filemode(about.mode)} {about.uid:>6} {about.gid:>6} {about.size:>14}  /{printable(path)}")


def extract(commit: Commit, target: str) -> None:
    os.makedirs(target, exist_ok=True)
    if os.listdir(target):
        raise MissingError(f"{target} is not empty: name a directory that is new")
    top = os.fsencode(target)
    made: dict[int, bytes] = {}
    directories: list[tuple[bytes, int, Attributes]] = []
    broken: list[bytes] = []
    for path, ino, about in commit.walk():
        place = top + b"/" + path if path else top
        if stat.S_ISDIR(about.mode):
            if path:
                os.mkdir(place, 0o700)
            directories.append((place, ino, about))
            continue
        if ino in made:
            os.link(made[ino], place, follow_symlinks=False)
            if made[ino] in broken:
                broken.append(place)
            continue
        if stat.S_ISREG(about.mode):
            whole = write(commit, ino, about, place)
            if not whole:
                broken.append(place)
        elif stat.S_ISLNK(about.mode):
            os.symlink(dict(commit.table(ino, b"s")).get(b"", b"?"), place)
        else:
            try:
                os.mknod(place, about.mode, about.rdev)
            except PermissionError:
                print(f"only root can make {printable(path)}", file=sys.stderr)
                continue
        made[ino] = place
        dress(commit, ino, about, place)
    for place in broken:
        if os.path.lexists(place + b".incomplete"):
            print(f"{printable(place)} keeps its name, and is not whole", file=sys.stderr)
        else:
            os.rename(place, place + b".incomplete")
    for place, ino, about in reversed(directories):
        dress(commit, ino, about, place)


def write(commit: Commit, ino: int, about: Attributes, place: bytes) -> bool:
    """Write a file; False if some of its bytes are lost."""
    whole = True
    with open(place, "xb") as file:
        for offset, data in commit.blocks(ino, about.size):
            if isinstance(data, DamagedError):
                commit.damage.append(f"{printable(place)}: {data}")
                whole = False
            else:
                file.seek(offset)
                file.write(data)
        file.truncate(about.size)
    return whole


def dress(commit: Commit, ino: int, about: Attributes, place: bytes) -> None:
    """Owner, extended attributes, mode and times."""
    mode = stat.S_IMODE(about.mode)
    try:
        os.chown(place, about.uid, about.gid, follow_symlinks=False)
    except PermissionError:
        mode &= ~(stat.S_ISUID | stat.S_ISGID)  # it would be run as somebody else than it was meant to be
    for name, value in commit.table(ino, b"x"):
        try:
            os.setxattr(place, name, value[1:], follow_symlinks=False)
        except OSError as exc:
            print(f"{printable(place)} lacks an extended attribute: {exc.strerror}", file=sys.stderr)
    if not stat.S_ISLNK(about.mode):
        os.chmod(place, mode)
    second = 1_000_000_000
    times = (about.atime * second + about.atime_ns, about.mtime * second + about.mtime_ns)
    os.utime(place, ns=times, follow_symlinks=False)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("commits", "list", "extract"))
    parser.add_argument("copy", help="a directory with the objects of the workspace")
    parser.add_argument("target", nargs="?", help="of extract: a directory that is new or empty")
    parser.add_argument("--at", metavar="NUMBER", help="the number of a save point; default: the newest")
    parser.add_argument("--base", metavar="DIR", action="append", default=[], help="a copy of what this is a fork of")
    parser.add_argument("--key-file", metavar="FILE", help="the key of an encrypted workspace")
    given = parser.parse_args()
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # who reads the list may have seen enough
    if (given.target is None) == (given.command == "extract") or (given.at and not given.at.isdecimal()):
        parser.error("extract needs a target, the others none; --at needs a number")
    try:
        copy, unpack = Copy(given.copy, given.key_file, given.base), Unpacker()
        if given.command == "commits":
            list_commits(copy, unpack)
            return 0
        commit = Commit(copy, given.at, unpack)
        if given.command == "list":
            list_files(commit)
        else:
            extract(commit, given.target)
    except MissingError as exc:
        print(exc, file=sys.stderr)
        return 2
    except (DamagedError, ValueError, KeyError, TypeError, struct.error) as exc:
        print(f"the copy is damaged: {exc}", file=sys.stderr)
        return 1
    except OSError as exc:
        print(exc, file=sys.stderr)
        return 1
    for text in commit.damage:
        print(text, file=sys.stderr)
    return 1 if commit.damage else 0


if __name__ == "__main__":
    sys.exit(main())
