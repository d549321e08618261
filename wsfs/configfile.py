"""Configuration files: TOML, with settings for all workspaces and, in sections named by a URL, for some.

    save_interval = "1m"

    ["s3://bucket/team"]
    endpoint_url = "https://s3.example.org"

A section is for its URL and all below. The user's file wins over the machine's, and within a file the section with the
longest URL wins. This module finds what is written for a workspace; what the keys mean is up to `wsfs.config`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from wsfs.errors import UsageError
from wsfs.text import printable, split_url

MACHINE_FILE = Path("/etc/wsfs/config.toml")


@dataclass(frozen=True, slots=True)
class Entry:
    """One key of a file."""

    file: Path
    section: str  # the URL that it is for; empty for all
    key: str
    value: object

    def __str__(self) -> str:
        return f"{printable(str(self.file))}: " + (f'["{printable(self.section)}"] ' if self.section else "")

    def applies_to(self, url: str) -> bool:
        """Whether it is for the workspace at `url`."""
        top = self.section.rstrip("/")
        return not self.section or url.rstrip("/") == top or url.startswith(f"{top}/")


def paths(environ: Mapping[str, str]) -> list[Path]:
    """The files that are read where they exist, the one that wins last. WSFS_CONFIG names one in place of all."""
    if environ.get("WSFS_CONFIG"):
        return [Path(environ["WSFS_CONFIG"]).absolute()]
    found = [MACHINE_FILE]
    home = environ.get("XDG_CONFIG_HOME") or (environ["HOME"] + "/.config" if environ.get("HOME") else "")
    return [*found, Path(home, "wsfs", "config.toml")] if home else found


def read(environ: Mapping[str, str]) -> list[Entry]:
    """Everything that is in the files, what wins last. Raises UsageError, which names the file."""
    entries: list[Entry] = []
    for path in paths(environ):
        try:
            text = path.read_bytes().decode()
        except (FileNotFoundError, NotADirectoryError):
            if environ.get("WSFS_CONFIG"):
                raise UsageError(f"{path}: there is no such file, and WSFS_CONFIG names it") from None
            continue
        except OSError as exc:
            raise UsageError(f"{path}: cannot be read: {exc.strerror}; let this user read it, or remove it") from None
        except UnicodeDecodeError:
            raise UsageError(f"{path}: is not text in UTF-8") from None
        import tomllib  # most machines have no such file

        try:
            table = tomllib.loads(text)
        except (tomllib.TOMLDecodeError, RecursionError) as exc:
            raise UsageError(f"{path}: is not TOML: {exc}") from None
        entries += sorted(_entries(path, table), key=lambda entry: len(entry.section.rstrip("/")))
    return entries


def _entries(path: Path, table: Mapping[str, object]) -> Iterator[Entry]:
    for name, value in table.items():
        if not isinstance(value, dict):
            yield Entry(path, "", name, value)
            continue
        if "://" not in name:
            raise UsageError(
                f'{path}: [{printable(name)}] is no section: name it by the URL of a workspace, as in ["s3://bucket"]'
            )
        if "@" in split_url(name).netloc:
            raise UsageError(f"{path}: a section has credentials in its URL: they do not belong there, remove them")
        for key, inner in value.items():
            yield Entry(path, name, key, inner)
