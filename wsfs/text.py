"""Text for people: names from outside, sizes, counts; and URLs."""

from __future__ import annotations

from urllib.parse import SplitResult, urlsplit

from wsfs.errors import UsageError


def printable(name: bytes | str) -> str:
    """A name or a text from elsewhere for people: on one line, and harmless to a terminal.

    What is no printable text is escaped, as in Python, so that two names are not shown alike.
    """
    if isinstance(name, str):
        name = name.encode("utf-8", "surrogateescape" if _is_name(name) else "backslashreplace")
    text = name.decode("utf-8", "backslashreplace")
    return text if text.isprintable() else "".join(c if c.isprintable() else _escaped(c) for c in text)


def lines(text: str) -> str:
    """Like `printable`, for a text that has lines."""
    return "\n".join(printable(line) for line in text.split("\n"))


def one_line(text: str) -> str:
    """A sentence with a list below it, as ours are told, on one line."""
    first, *names = text.split("\n  ")
    return f"{first} {', '.join(names)}" if names else first


def size(count: float) -> str:
    """Bytes for people: 512 B, 1.2 MB (powers of 1000, as df -H)."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def files(count: int) -> str:
    """One file, or so many."""
    return "1 file" if count == 1 else f"{count:,} files"


def split_url(url: str) -> SplitResult:
    """The parts of a URL. Raises UsageError."""
    try:
        return urlsplit(url)
    except ValueError:
        shown = "(not repeated: it contains an @)" if "@" in url else printable(url)
        raise UsageError(f"the URL {shown} is none: write it as s3://bucket/prefix or file:///directory") from None


def _is_name(text: str) -> bool:
    """Whether all that is no character in it is a byte of a file name that is not UTF-8."""
    return not any(0xD800 <= ord(c) < 0xDC80 or 0xDCFF < ord(c) <= 0xDFFF for c in text)


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode()
