"""`.wsfsignore`: which paths stay on this machine. Patterns and their meaning are those of gitignore(5).

The file lies at the top of the workspace, and nowhere else. As with git, a directory that is ignored takes along all
that is in it, whatever other patterns say.
"""

from __future__ import annotations

import os
import re
import warnings
from typing import Final, NamedTuple

from wsfs.data.files import Files
from wsfs.errors import FormatError, NotFoundError, WsfsError
from wsfs.index.index import Index
from wsfs.log import get_log
from wsfs.model import MARKER_NAME, ROOT_INO, Ino, Inode
from wsfs.remote import NeedRemote

log = get_log(__name__)

IGNORE_NAME: Final = b".wsfsignore"
SIZE_MAX: Final = 1 << 20
"""No more of the file is read."""

_NEVER: Final = frozenset({MARKER_NAME, IGNORE_NAME})
_REMEMBERED: Final = 1 << 16


class Pattern(NamedTuple):
    """A line of the file that matches something. `ignores`: not one that begins with an exclamation mark."""

    line: int
    text: str
    ignores: bool


class Rules:
    """The patterns of a file. Lines that are no patterns are left out, and the log says so."""

    def __init__(self, text: bytes) -> None:
        self._patterns: list[tuple[Pattern, re.Pattern[str]]] = []
        lines = os.fsdecode(text.removeprefix(b"\xef\xbb\xbf")).replace("\r\n", "\n").split("\n")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # classes such as [[:alpha:]], which pathspec does not know
            for number, line in enumerate(lines, 1):
                try:
                    found = _compile(line)
                except ValueError as exc:
                    log.warning("a line is no pattern, and is left out", path="/.wsfsignore", line=number, error=exc)
                    continue
                if found is not None:
                    ignores, regex = found
                    self._patterns.append((Pattern(number, line, ignores), regex))

    def match(self, path: bytes, *, is_dir: bool) -> Pattern | None:
        """The last pattern that matches a path, a relative one, or None: whatever becomes of the directories above."""
        if path in _NEVER:
            return None
        # To a regular expression a line feed ends a name. No name has a NUL, and no pattern either of them.
        text = os.fsdecode(path.replace(b"\n", b"\0")) + ("/" if is_dir else "")
        for pattern, regex in reversed(self._patterns):
            # Not what only matches a directory above: that has been asked about itself. One without groups matches all.
            if regex.fullmatch(text) or not regex.groups:
                return pattern
        return None

    def decide(self, path: bytes, *, is_dir: bool) -> tuple[bytes, Pattern] | None:
        """The pattern that decides about a path, and the path that it matches: this one, or a directory above."""
        parts = path.split(b"/")
        for number in range(1, len(parts)):
            above = b"/".join(parts[:number])
            found = self.match(above, is_dir=True)
            if found is not None and found.ignores:
                return above, found
        last = self.match(path, is_dir=is_dir)
        return None if last is None else (path, last)


def _compile(line: str) -> tuple[bool, re.Pattern[str]] | None:
    """Whether a pattern ignores, and what it matches; None for a comment or an empty line. Raises ValueError."""
    from pathspec import GitIgnoreSpec, RegexPattern  # few workspaces have such a file, and it costs a start some time

    bare = line.rstrip(" ")
    if bare.endswith("/**"):
        line = bare + "/*"  # what is inside, and not the directory itself
    elif bare.endswith("/**/"):
        line = bare + "*/"
    elif bare.removeprefix("!") in ("*/", "**/"):
        return not bare.startswith("!"), re.compile("(.+/)")
    for pattern in GitIgnoreSpec.from_lines([line]).patterns:
        if isinstance(pattern, RegexPattern) and pattern.include is not None and pattern.regex is not None:
            # A negated class must not match a slash, and with pathspec 1.1 it does.
            return pattern.include, re.compile(pattern.regex.pattern.replace("[^", "[^/"))
    return None


class Ignore:
    """The rules of a workspace as its own `.wsfsignore` has them now. Belongs to the owner thread.

    It remembers where directories are, so whoever moves one has to tell.
    """

    def __init__(self, index: Index, files: Files) -> None:
        self._index = index
        self._files = files
        self.absent = False
        """Known: there is no such file."""
        self._known = False
        self._ino: Ino | None = None
        self._read: Inode | None = None
        self._rules: Rules | None = None
        self._unreadable: Inode | None = None
        self.damaged = False
        """Whether the file cannot be read: then no rule is new, and none is gone."""
        self._names: dict[int, bytes] = {}
        self._places: dict[int, tuple[bytes, bool]] = {}

    def renamed(self, directory: int, name: bytes) -> None:
        """This name leads to something else now, or to nothing."""
        if directory == ROOT_INO and name == IGNORE_NAME:
            self._known = self.absent = False

    def moved(self, directory: int) -> None:
        """A directory has another path, and so has what is below it."""
        self._names.pop(directory, None)
        self._places.clear()

    def made(self, ino: int, name: bytes) -> None:
        """A new directory: so that its name need not be looked for."""
        if self._rules is not None:
            self._make_room()
            self._names[ino] = name

    def rules(self) -> Rules | None:
        """The same object as long as nothing has changed; None without a file. Raises NeedRemote."""
        if not self._known:
            found = self._index.dirent(ROOT_INO, IGNORE_NAME)
            inode = None if found is None else self._index.inode(found.ino)
            self._ino = inode.ino if inode is not None and inode.is_file else None
            self._known = True
            self.absent = self._ino is None
        if self._ino is None:
            self._read = self._rules = None
            self.damaged = False
            return None
        inode = self._index.inode(self._ino)
        if inode is not None and inode != self._read:
            text = self._text(inode)
            self.damaged = text is None
            if text is not None:
                self._rules = Rules(text)
            self._read = inode
            self._places.clear()
        return self._rules

    def _text(self, inode: Inode) -> bytes | None:
        """What is in the file; None if that is damaged, for neither making files nor a save may depend on it."""
        if self._unreadable == inode:
            return None
        try:
            return self._files.read(inode.ino, 0, SIZE_MAX)
        except FormatError as exc:
            self._give_up(inode, exc)
            return None
        except NeedRemote as missing:
            need = missing

        def fetch() -> None:
            try:
                need.fetch()
            except (FormatError, NotFoundError) as exc:
                self._give_up(inode, exc)

        raise NeedRemote({("rules", *need.fetches): fetch})

    def _give_up(self, inode: Inode, exc: WsfsError) -> None:
        """Any thread: as long as this is the file, it cannot be read."""
        log.error("patterns cannot be read", path="/.wsfsignore", error=exc, remedy="write the file anew")
        self._unreadable = inode

    def covers(self, directory: int, name: bytes, *, is_dir: bool) -> bool:
        """Whether the path of a name in a directory is ignored. Raises NeedRemote, FormatError."""
        rules = self.rules()
        if rules is None:
            return False
        path, ignored = self._place(directory, rules)
        if ignored:
            return True
        found = rules.match(path + name, is_dir=is_dir)
        return found is not None and found.ignores

    def _place(self, directory: int, rules: Rules) -> tuple[bytes, bool]:
        """The path of a directory, with a slash at its end, and whether it is ignored."""
        above: dict[int, bytes] = {}
        while (known := self._places.get(directory)) is None:
            inode = self._index.inode(directory) if directory != ROOT_INO else None
            if inode is None or directory in above:  # the top; or a damaged workspace
                known = b"", False
                break
            above[directory] = self._name_of(inode)
            directory = inode.parent
        if len(self._places) > _REMEMBERED:
            self._places.clear()
        for ino, name in reversed(above.items()):
            path = known[0] + name
            found = None if known[1] else rules.match(path, is_dir=True)
            known = path + b"/", known[1] or (found is not None and found.ignores)
            self._places[ino] = known
        return known

    def _name_of(self, directory: Inode) -> bytes:
        """The name of a directory; those of its neighbours are remembered with it."""
        if directory.ino not in self._names:
            self._make_room()
            for name, dirent in self._index.names(directory.parent, 0):
                if dirent.is_dir:
                    self._names[dirent.ino] = name
        return self._names.get(directory.ino, b"?")

    def _make_room(self) -> None:
        if len(self._names) > _REMEMBERED:
            self._names.clear()
