"""FORMAT and the marker: what makes a prefix of a bucket a workspace, and how one is made."""

from __future__ import annotations

import secrets
import stat
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from wsfs.errors import (
    ForeignWorkspaceError,
    FormatError,
    NotFoundError,
    NoWorkspaceError,
    PreconditionFailedError,
    UsageError,
    WorkspaceExistsError,
)
from wsfs.model import (
    BLOCK_SIZE,
    FIRST_FREE_ID,
    MARKER_INO,
    MARKER_NAME,
    ROOT_INO,
    Dirent,
    Inline,
    Inode,
    segment_key,
)
from wsfs.repo import codec
from wsfs.repo.frame import digest, dump_json, load_json
from wsfs.repo.frame import field as json_field
from wsfs.repo.head import HEAD_KEY, Head, State, encode_head
from wsfs.repo.manifest import Manifest, SegmentRef, encode_manifest
from wsfs.repo.segment import Row, encode_segment
from wsfs.store.base import Store
from wsfs.store.probe import check_conditional_writes, create_probe

FORMAT_KEY: Final = "FORMAT"
FORMAT_MAX: Final = 64 << 10
VERSION: Final = 1
_INIT_EPOCH: Final = 0


@dataclass(frozen=True, slots=True)
class Format:
    """What never changes about a workspace. Written once, at init."""

    workspace_id: str
    created: str
    framework: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def marker(self) -> bytes:
        """The bytes of `.workspace.initialized`: they follow from FORMAT, so that a mount can verify them."""
        return (
            dump_json(
                {
                    "workspace_id": self.workspace_id,
                    "framework": self.framework,
                    "created": self.created,
                    "format_version": VERSION,
                }
            )
            + b"\n"
        )


def timestamp(seconds: float) -> str:
    """ISO 8601 in UTC, to the second."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def new_nonce() -> str:
    """64 random bits in hexadecimal."""
    return secrets.token_hex(8)


def encode_format(f: Format) -> bytes:
    return dump_json(
        {
            "magic": "wsfs",
            "version": VERSION,
            "workspace_id": f.workspace_id,
            "created": f.created,
            "framework": f.framework,
            "labels": dict(f.labels),
            "block_size": BLOCK_SIZE,
            "hash": "blake2b-160",
            "compression": "zstd",
            "cipher": None,
        }
    )


def decode_format(data: bytes, url: str) -> Format:
    """Raises ForeignWorkspaceError for what is not ours, FormatError for what is ours but damaged or too new."""
    try:
        if len(data) > FORMAT_MAX:
            raise FormatError("FORMAT is too large")
        v = load_json(data, "FORMAT")
    except FormatError as exc:
        raise ForeignWorkspaceError(f"the object FORMAT at {url} was not written by wsfs: check the URL") from exc
    if v.get("magic") != "wsfs":
        raise ForeignWorkspaceError(f"the object FORMAT at {url} was not written by wsfs: check the URL")
    if v.get("version") != VERSION:
        raise FormatError(
            f"the workspace at {url} has format version {v.get('version')!r}, and this wsfs reads version {VERSION}:"
            " use the wsfs that wrote it, or a newer one"
        )
    expected = {"block_size": BLOCK_SIZE, "hash": "blake2b-160", "compression": "zstd", "cipher": None}
    for name, value in expected.items():
        if v.get(name) != value:
            raise FormatError(f"the workspace at {url} has {name} {v.get(name)!r}, which this wsfs does not know")
    framework, labels = v.get("framework"), v.get("labels")
    if not (framework is None or isinstance(framework, str)) or not isinstance(labels, dict):
        raise FormatError(f"FORMAT at {url} is damaged")
    return Format(
        json_field(v, "workspace_id", str, "FORMAT"),
        json_field(v, "created", str, "FORMAT"),
        framework,
        {str(k): str(x) for k, x in labels.items()},
    )


def read_format(store: Store) -> Format:
    """Raises NoWorkspaceError, ForeignWorkspaceError or FormatError."""
    try:
        return decode_format(store.get(FORMAT_KEY).data, store.url)
    except NotFoundError as exc:
        raise NoWorkspaceError(
            f"there is no workspace at {store.url}: check the URL, or make one with 'wsfs init {store.url}'"
        ) from exc


def initialise(
    store: Store,
    *,
    framework: str | None = None,
    labels: Mapping[str, str] | None = None,
    owner: tuple[int, int] = (0, 0),
    clock: Callable[[], float] = time.time,
) -> Format:
    """Make a workspace: FORMAT, the first commit with the marker in it, HEAD.

    Raises WorkspaceExistsError, and changes nothing, when there is one already; ForeignWorkspaceError when other
    objects lie at this URL; UnsafeStoreError when the store does not enforce conditional writes. An init that was
    interrupted before HEAD is completed by the next one.
    """
    _check_labels(framework, labels or {})
    found = _existing(store)
    create_probe(store)
    check_conditional_writes(store, thorough=True)
    if found is None:
        fmt = Format(str(uuid.uuid4()), timestamp(clock()), framework, dict(labels or {}))
        try:
            store.put(FORMAT_KEY, encode_format(fmt), if_none_match=True)
        except PreconditionFailedError as exc:
            raise _exists(store.url) from exc
    else:
        fmt = found
    manifest, segment = first_commit(fmt, owner, clock)
    ref = manifest.base[0]
    store.put(ref.key, segment)
    encoded = encode_manifest(manifest)
    store.put(manifest.key, encoded, if_none_match=True)
    head = Head(
        workspace=fmt.workspace_id,
        epoch=_INIT_EPOCH,
        seq=manifest.seq,
        commit=manifest.key,
        commit_digest=digest(encoded),
        nonce=manifest.nonce,
        state=State.STOPPED,
        reason="",
        holder=None,
        saved_at=manifest.created,
        files=manifest.files,
        bytes=manifest.bytes,
    )
    try:
        store.put(HEAD_KEY, encode_head(head), if_none_match=True)
    except PreconditionFailedError as exc:
        raise _exists(store.url) from exc
    return fmt


def first_commit(fmt: Format, owner: tuple[int, int], clock: Callable[[], float]) -> tuple[Manifest, bytes]:
    """The commit that init makes: an empty root directory that holds the marker. Returns it and its one segment."""
    now = int(clock() * 1_000_000_000)
    uid, gid = owner
    root = Inode(ROOT_INO, stat.S_IFDIR | 0o755, uid, gid, 2, 0, 1, now, now, now, ROOT_INO)
    marker = Inode(MARKER_INO, stat.S_IFREG | 0o444, 0, 0, 1, 0, len(fmt.marker), now, now, now, ROOT_INO)
    rows: list[Row] = sorted(
        [
            (codec.attr_key(ROOT_INO), codec.encode_inode(root)),
            (
                codec.dirent_key(ROOT_INO, MARKER_NAME),
                codec.encode_dirent(Dirent(MARKER_INO, stat.S_IFREG >> 12, MARKER_INO)),
            ),
            (codec.attr_key(MARKER_INO), codec.encode_inode(marker)),
            (codec.block_key(MARKER_INO, 0), codec.encode_block(Inline(fmt.marker))),
        ],
        key=lambda row: row[0],
    )
    segment = encode_segment(rows)
    nonce = new_nonce()
    manifest = Manifest(
        workspace=fmt.workspace_id,
        seq=1,
        epoch=_INIT_EPOCH,
        nonce=nonce,
        parent="",
        created=timestamp(clock()),
        next_id=FIRST_FREE_ID,
        files=2,
        bytes=len(fmt.marker),
        base=(SegmentRef(f"{segment_key(_INIT_EPOCH, 0)}-{nonce}", len(segment), len(rows), digest(segment)),),
        deltas=(),
    )
    return manifest, segment


def _existing(store: Store) -> Format | None:
    """The FORMAT of an init that stopped half-way, None for an empty prefix; raises when something else is there."""
    try:
        found = read_format(store)
    except NoWorkspaceError:
        for info in store.list(""):
            if not (info.key == "probe" or info.key.startswith("probe")):
                raise ForeignWorkspaceError(
                    f"there are other objects at {store.url} (for example '{info.key}'): choose an empty prefix"
                ) from None
        return None
    try:
        store.get(HEAD_KEY)
    except NotFoundError:
        ours = f"commits/0000000001-{_INIT_EPOCH:08x}-"
        later = [i.key for folder in ("packs/", "commits/") for i in store.list(folder) if not i.key.startswith(ours)]
        if not later:
            return found
        raise FormatError(
            f"the workspace at {store.url} has lost its HEAD: do not initialise it, its commits are still there"
        ) from None
    raise _exists(store.url)


def _exists(url: str) -> WorkspaceExistsError:
    return WorkspaceExistsError(f"there is a workspace at {url} already: mount it, or choose another URL")


def _check_labels(framework: str | None, labels: Mapping[str, str]) -> None:
    texts = [*labels, *labels.values(), *([framework] if framework is not None else [])]
    if any(len(text) > 256 or not text.isprintable() for text in texts) or len(labels) > 64:
        raise UsageError("a framework or label may have at most 256 printable characters, and there may be 64 labels")
