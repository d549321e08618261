"""FORMAT and the marker: what makes a prefix of a bucket a workspace, and how one is made."""

from __future__ import annotations

import secrets
import stat
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from wsfs.errors import (
    EncryptionKeyError,
    ForeignWorkspaceError,
    FormatError,
    NotFoundError,
    NoWorkspaceError,
    PreconditionFailedError,
    TransientStoreError,
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
from wsfs.repo.encryption import WrappedKey, Wrapper, new_key, unwrap
from wsfs.repo.frame import U32, digest, dump_json, load_json, number, word
from wsfs.repo.frame import field as json_field
from wsfs.repo.head import HEAD_KEY, Head, State, encode_head, no_workspace, read_head
from wsfs.repo.manifest import Manifest, SegmentRef, encode_manifest, new_segment
from wsfs.repo.segment import Row
from wsfs.store.base import Store
from wsfs.store.forked import ForkedStore
from wsfs.store.keys import is_key
from wsfs.store.probe import check_conditional_writes, create_probe
from wsfs.store.sealed import Cipher, SealedStore

FORMAT_KEY: Final = "FORMAT"
READER_KEY: Final = "READER.py"
FORMAT_MAX: Final = 64 << 10
VERSION: Final = 1
_TOLD_MAX: Final = 28 << 10  # encrypted and in hexadecimal it must fit into FORMAT
CIPHER: Final = "aes-256-gcm"
_INIT_EPOCH: Final = 0


@dataclass(frozen=True, slots=True)
class BaseRef:
    """What a fork was made from: a workspace, and a commit of it. Objects up to `epoch` are in the base."""

    url: str
    workspace: str
    epoch: int
    commit: str


@dataclass(frozen=True, slots=True)
class Format:
    """What never changes about a workspace. Written once, at init."""

    workspace_id: str
    created: str
    framework: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    base: BaseRef | None = None

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


def encode_format(f: Format, key: WrappedKey | None = None, cipher: Cipher | None = None) -> bytes:
    """FORMAT. With a key, and its cipher, what init was told is encrypted as well."""
    told: dict[str, Any] = {"framework": f.framework, "labels": dict(f.labels)}
    public: dict[str, Any] = {
        "magic": "wsfs",
        "version": VERSION,
        "workspace_id": f.workspace_id,
        "created": f.created,
        "block_size": BLOCK_SIZE,
        "hash": "blake2b-160",
        "compression": "zstd",
    }
    if f.base is not None:
        public["base"] = asdict(f.base)
    if key is None or cipher is None:
        return dump_json(public | told | {"cipher": None})
    sealed = cipher.seal(FORMAT_KEY, dump_json(told))
    wrapped = {"kind": key.kind, "wrapped": key.wrapped.hex()}
    return dump_json(public | {"cipher": CIPHER, "key": wrapped, "sealed": sealed.hex()})


def decode_format(data: bytes, url: str, cipher: Cipher | None = None) -> Format:
    """Raises ForeignWorkspaceError for what is not ours, FormatError for what is ours but damaged or too new, and
    EncryptionKeyError when `cipher` is missing or none is needed."""
    v = _public(data, url)
    workspace = word(v, "workspace_id", "FORMAT")
    if v["cipher"] is None:
        if cipher is not None:
            raise _not_encrypted(url)
    elif cipher is None:
        raise EncryptionKeyError(f"the workspace at {url} is encrypted: name its key with --key-file or --kms-key")
    else:
        told, whole = cipher.open(FORMAT_KEY, _from_hex(v, "sealed", url))
        if not whole:
            raise FormatError(
                f"FORMAT at {url} is not what was written with this workspace's key: restore it from a copy"
            )
        v |= load_json(told, "FORMAT")
    framework, labels = v.get("framework"), v.get("labels")
    if not (framework is None or isinstance(framework, str)) or not isinstance(labels, dict):
        raise FormatError(f"FORMAT at {url} is damaged")
    return Format(
        workspace,
        word(v, "created", "FORMAT"),
        framework,
        {str(k): str(x) for k, x in labels.items()},
        _base_in(v, url),
    )


def _base_in(v: dict[str, Any], url: str) -> BaseRef | None:
    if v.get("base") is None:
        return None
    what = f"FORMAT at {url}"
    base = json_field(v, "base", dict, what)
    where = json_field(base, "url", str, what)
    if not where.isprintable() or not is_key(word(base, "commit", what)):
        raise FormatError(f"{what} names its base in a way that cannot be")
    return BaseRef(where, word(base, "workspace", what), number(base, "epoch", what, U32 - 2), base["commit"])


def _public(data: bytes, url: str) -> dict[str, Any]:
    """The fields of FORMAT, if it is of a workspace that this wsfs knows."""
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
    known = {"block_size": (BLOCK_SIZE,), "hash": ("blake2b-160",), "compression": ("zstd",), "cipher": (None, CIPHER)}
    for name, values in known.items():
        if v.get(name) not in values:
            raise FormatError(f"the workspace at {url} has {name} {v.get(name)!r}, which this wsfs does not know")
    return v | {"cipher": v.get("cipher")}


def _from_hex(v: dict[str, Any], name: str, url: str) -> bytes:
    try:
        return bytes.fromhex(json_field(v, name, str, f"FORMAT at {url}"))
    except ValueError as exc:
        raise FormatError(f"FORMAT at {url} has a field that is not hexadecimal") from exc


def _not_encrypted(url: str) -> EncryptionKeyError:
    return EncryptionKeyError(
        f"the workspace at {url} is not encrypted, and a key was given: leave the key away if you made it like that,"
        " else somebody has replaced it"
    )


def _get_format(store: Store) -> bytes:
    try:
        return store.get(FORMAT_KEY).data
    except NotFoundError as exc:
        remedy = "restore it from a copy, for it was written once, at init"
        raise no_workspace(store, FORMAT_KEY, HEAD_KEY, remedy) from exc


def read_format(store: Store) -> Format:
    """Raises NoWorkspaceError, ForeignWorkspaceError, FormatError or EncryptionKeyError."""
    data = _get_format(store)
    own = store.inner if isinstance(store, ForkedStore) else store
    return decode_format(data, store.url, own.cipher if isinstance(own, SealedStore) else None)


def read_base(store: Store) -> BaseRef | None:
    """What the workspace at a bare store was forked from; None if it is no fork. Needs no key. Raises
    NoWorkspaceError, ForeignWorkspaceError, FormatError."""
    return _base_in(_public(_get_format(store), store.url), store.url)


def read_id(store: Store) -> str:
    """The id of the workspace at a bare store. Needs no key. Raises as `read_base`."""
    return word(_public(_get_format(store), store.url), "workspace_id", f"FORMAT at {store.url}")


def unlock(store: Store, wrapper: Wrapper | None) -> Store:
    """The store through which the workspace can be read: `store` itself, without a request, if there is no wrapper.

    Raises what read_format does. Whoever gives a key does not get a workspace that is not encrypted.
    """
    if wrapper is None:
        return store
    v = _public(_get_format(store), store.url)
    if v["cipher"] is None:
        raise _not_encrypted(store.url)
    what = f"FORMAT at {store.url}"
    key = json_field(v, "key", dict, what)
    found = WrappedKey(json_field(key, "kind", str, what), _from_hex(key, "wrapped", store.url))
    return SealedStore(store, unwrap(found, wrapper, json_field(v, "workspace_id", str, what), store.url))


def initialise(
    store: Store,
    *,
    framework: str | None = None,
    labels: Mapping[str, str] | None = None,
    owner: tuple[int, int] = (0, 0),
    wrapper: Wrapper | None = None,
    clock: Callable[[], float] = time.time,
) -> Format:
    """Make a workspace: FORMAT, a reader, the first commit with the marker in it, HEAD. With a wrapper it is encrypted.

    Raises WorkspaceExistsError, and changes nothing, when there is one already; ForeignWorkspaceError when other
    objects lie at this URL; UnsafeStoreError when the store does not enforce conditional writes; EncryptionKeyError. An
    init that was interrupted before HEAD is completed by the next one.
    """
    _check_labels(framework, labels or {})
    begun = _is_begun(store)
    create_probe(store)
    check_conditional_writes(store, thorough=True)
    if not begun:
        fmt = Format(str(uuid.uuid4()), timestamp(clock()), framework, dict(labels or {}))
        store = write_format(store, fmt, wrapper)
    else:
        store = unlock(store, wrapper)
        fmt = read_format(store)
    put_reader(store)
    manifest, segment = first_commit(fmt, owner, clock)
    publish_first(store, manifest, manifest.base[0], segment)
    return fmt


def publish_first(store: Store, manifest: Manifest, ref: SegmentRef, segment: bytes) -> None:
    """Write the first commit of a workspace, with the one segment that is its own, and HEAD. Raises StoreError, and
    WorkspaceExistsError when somebody else was quicker."""
    store.put(ref.key, segment)
    encoded = encode_manifest(manifest)
    store.put(manifest.key, encoded, if_none_match=True)
    head = Head(
        workspace=manifest.workspace,
        epoch=manifest.epoch,
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
    except (PreconditionFailedError, TransientStoreError) as exc:
        # Both are ambiguous: it may be there. If it leads to our commit, nobody else has written it.
        try:
            found = read_head(store).head.commit
        except NoWorkspaceError:
            raise exc from None
        except FormatError:  # with another key, say
            found = ""
        if found != manifest.key:
            raise exists_already(store.url) from exc


def write_format(store: Store, fmt: Format, wrapper: Wrapper | None) -> Store:
    """Write FORMAT where there is none, and return the store through which the rest is written.

    Raises WorkspaceExistsError, EncryptionKeyError, StoreError.
    """
    key = None if wrapper is None else new_key(wrapper, fmt.workspace_id)
    cipher = None if wrapper is None or key is None else unwrap(key, wrapper, fmt.workspace_id, store.url)
    try:
        store.put(FORMAT_KEY, encode_format(fmt, key, cipher), if_none_match=True)
    except PreconditionFailedError as exc:
        raise exists_already(store.url) from exc
    return store if cipher is None else SealedStore(store, cipher)


def put_reader(store: Store) -> None:
    """The program that reads a copy of the workspace without wsfs, in clear: nobody is locked in. Raises StoreError."""
    program = Path(__file__).with_name("reader.py").read_bytes()
    with suppress(PreconditionFailedError):  # an earlier, interrupted init has written it
        store.put(READER_KEY, program, if_none_match=True)


def marker_rows(fmt: Format, clock: Callable[[], float]) -> list[Row]:
    """The marker's attributes and content, in the order of their keys."""
    now = int(clock() * 1_000_000_000)
    marker = Inode(MARKER_INO, stat.S_IFREG | 0o444, 0, 0, 1, 0, len(fmt.marker), now, now, now, ROOT_INO)
    return [
        (codec.attr_key(MARKER_INO), codec.encode_inode(marker)),
        (codec.block_key(MARKER_INO, 0), codec.encode_block(Inline(fmt.marker))),
    ]


def first_commit(fmt: Format, owner: tuple[int, int], clock: Callable[[], float]) -> tuple[Manifest, bytes]:
    """The commit that init makes: an empty root directory that holds the marker. Returns it and its one segment."""
    now = int(clock() * 1_000_000_000)
    uid, gid = owner
    root = Inode(ROOT_INO, stat.S_IFDIR | 0o755, uid, gid, 2, 0, 1, now, now, now, ROOT_INO)
    rows: list[Row] = sorted(
        [
            (codec.attr_key(ROOT_INO), codec.encode_inode(root)),
            (
                codec.dirent_key(ROOT_INO, MARKER_NAME),
                codec.encode_dirent(Dirent(MARKER_INO, stat.S_IFREG >> 12, MARKER_INO)),
            ),
            *marker_rows(fmt, clock),
        ],
        key=lambda row: row[0],
    )
    nonce = new_nonce()
    ref, segment = new_segment(f"{segment_key(_INIT_EPOCH, 0)}-{nonce}", rows)
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
        base=(ref,),
        deltas=(),
    )
    return manifest, segment


def _is_begun(store: Store) -> bool:
    """Whether an init stopped half-way here; False for an empty prefix, and raises when something else is there."""
    try:
        base = read_base(store)
    except NoWorkspaceError:
        for info in store.list(""):
            if not (info.key == "probe" or info.key.startswith("probe")):
                raise ForeignWorkspaceError(
                    f"there are other objects at {store.url} (for example '{info.key}'): choose an empty prefix"
                ) from None
        return False
    try:
        store.get(HEAD_KEY)
    except NotFoundError:
        ours = f"commits/0000000001-{_INIT_EPOCH:08x}-"
        later = [i.key for folder in ("packs/", "commits/") for i in store.list(folder) if not i.key.startswith(ours)]
        if base is not None:
            raise WorkspaceExistsError(
                f"a fork of {base.url} was begun at {store.url}: repeat 'wsfs fork', or choose another URL"
            ) from None
        if not later:
            return True
        raise FormatError(
            f"the workspace at {store.url} has lost its HEAD: do not initialise it, its commits are still there"
        ) from None
    raise exists_already(store.url)


def exists_already(url: str) -> WorkspaceExistsError:
    """The error for a URL that is taken."""
    return WorkspaceExistsError(f"there is a workspace at {url} already: mount it, or choose another URL")


def _check_labels(framework: str | None, labels: Mapping[str, str]) -> None:
    texts = [*labels, *labels.values(), *([framework] if framework is not None else [])]
    if any(len(text) > 256 or not text.isprintable() for text in texts) or len(labels) > 64:
        raise UsageError("a framework or label may have at most 256 printable characters, and there may be 64 labels")
    if len(dump_json([framework, dict(labels)])) > _TOLD_MAX:
        raise UsageError("the labels are too long: all of them together may have 28 KiB as JSON")
