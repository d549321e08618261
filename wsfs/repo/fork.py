"""Forks: a workspace that begins as a commit of another one, and shares the objects of that commit with it.

The first commit of a fork names the segments of the forked commit, and adds a delta with a marker of its own. FORMAT
says where the base is. An object `forks/...` in the base keeps the forked commit for as long as the fork is there.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from wsfs.errors import (
    BaseGoneError,
    ForeignWorkspaceError,
    FormatError,
    NoSavePointError,
    NotFoundError,
    NoWorkspaceError,
    UsageError,
    WorkspaceExistsError,
)
from wsfs.model import segment_key
from wsfs.repo.encryption import Wrapper
from wsfs.repo.frame import dump_json, load_json
from wsfs.repo.head import HEAD_KEY, read_head
from wsfs.repo.manifest import Manifest, new_segment
from wsfs.repo.workspace import (
    BaseRef,
    Format,
    exists_already,
    marker_rows,
    new_nonce,
    publish_first,
    put_reader,
    read_base,
    read_format,
    read_id,
    timestamp,
    unlock,
    write_format,
)
from wsfs.store.base import Store
from wsfs.store.forked import Base, ForkedStore
from wsfs.store.probe import check_conditional_writes, create_probe

DEEPEST: Final = 8
"""So many workspaces may stand on each other."""

FORKS: Final = "forks/"
_COMMITS: Final = "commits/"

Open = Callable[[str], Store]
"""Opens the bare store at a URL, with retries."""


def open_whole(raw: Store, wrapper: Wrapper | None, open_base: Open, depth: int = 1) -> Store:
    """The store through which a workspace can be read, with its key, and with what it shares with its base.

    Makes no request more than `unlock` does. Raises what that raises.
    """
    return ForkedStore(unlock(raw, wrapper), lambda: _find(raw, wrapper, open_base, depth))


def _find(raw: Store, wrapper: Wrapper | None, open_base: Open, depth: int) -> Base | None:
    ref = read_base(raw)
    if ref is None:
        return None
    if _scheme(ref.url) != _scheme(raw.url):
        raise FormatError(f"FORMAT at {raw.url} names a base in a store of another kind, {ref.url}: restore it")
    if depth > DEEPEST:
        raise FormatError(f"the workspace at {raw.url} stands on more than {DEEPEST} others: restore FORMAT")
    gone = f"the workspace at {raw.url} is a fork of {ref.url}, and that is not there any more"
    store = open_base(ref.url)
    try:
        whole = open_whole(store, wrapper, open_base, depth + 1)
        found = read_format(whole).workspace_id
    except (NoWorkspaceError, ForeignWorkspaceError) as exc:
        store.close()
        raise BaseGoneError(f"{gone}: put its objects back") from exc
    except BaseException:
        store.close()
        raise
    if found != ref.workspace:
        store.close()
        raise BaseGoneError(f"{gone}, for another workspace is in its place: put its objects back")
    return Base(whole, ref.epoch)


def _scheme(url: str) -> str:
    return url.partition("://")[0]


def base_of(store: Store) -> Base | None:
    """The base of the workspace at a store that `open_whole` has opened. Raises what reading it raises."""
    return store.base if isinstance(store, ForkedStore) else None


# --- making one -----------------------------------------------------------------------------------------------------


def fork(
    base: Store,
    url: str,
    manifest: Manifest,
    raw: Store,
    *,
    wrapper: Wrapper | None = None,
    clock: Callable[[], float] = time.time,
) -> Format:
    """Make a workspace at `raw` that begins as the commit `manifest` of the one at `base`, which is at `url`.

    Takes the same few requests whatever the size. One that was interrupted is completed by the same call. Raises
    WorkspaceExistsError, ForeignWorkspaceError, UnsafeStoreError, NoSavePointError, StoreError.
    """
    if _scheme(url) != _scheme(raw.url):
        raise UsageError(
            f"a fork shares objects with {url}, so it must be in a store of the same kind: for a copy elsewhere use"
            " 'wsfs export' and 'wsfs import'"
        )
    _check_depth(base)
    origin = read_format(base)
    ref = BaseRef(url, origin.workspace_id, manifest.epoch, manifest.key)
    begun = _begun(raw, ref)
    create_probe(raw)
    check_conditional_writes(raw, thorough=True)
    if begun:
        store = unlock(raw, wrapper)
        fmt = read_format(store)
    else:
        fmt = replace(origin, workspace_id=str(uuid.uuid4()), created=timestamp(clock()), base=ref)
        store = write_format(raw, fmt, wrapper)
    put_reader(store)
    # What is shared stays from here on. Only then may anything lead to it.
    mark = mark_fork(base, manifest.key, fmt.workspace_id, raw.url)
    try:
        base.get(manifest.key)
    except NotFoundError:
        base.delete(mark)
        raise NoSavePointError(
            f"the save point #{manifest.seq} is not kept any more: it was deleted just now"
        ) from None
    _first_commit(store, fmt, origin, manifest, clock)
    return fmt


def _first_commit(store: Store, fmt: Format, origin: Format, of: Manifest, clock: Callable[[], float]) -> None:
    nonce, epoch = new_nonce(), of.epoch + 1
    ref, segment = new_segment(f"{segment_key(epoch, 0)}-{nonce}", marker_rows(fmt, clock))
    manifest = replace(
        of,
        workspace=fmt.workspace_id,
        seq=of.seq + 1,
        epoch=epoch,
        nonce=nonce,
        parent="",
        created=timestamp(clock()),
        bytes=of.bytes - len(origin.marker) + len(fmt.marker),
        deltas=(*of.deltas, ref),
    )
    publish_first(store, manifest, ref, segment)


def _begun(raw: Store, ref: BaseRef) -> bool:
    """Whether this very fork was begun here; False for an empty prefix, and raises when something else is there."""
    try:
        found = read_base(raw)
    except NoWorkspaceError:
        for info in raw.list(""):
            if not info.key.startswith("probe"):
                raise ForeignWorkspaceError(
                    f"there are other objects at {raw.url} (for example '{info.key}'): choose an empty prefix"
                ) from None
        return False
    try:
        raw.get(HEAD_KEY)
    except NotFoundError:
        if found == ref:
            return True
        raise WorkspaceExistsError(
            f"a workspace was begun at {raw.url} and not completed: repeat what began it, or choose another URL"
        ) from None
    raise exists_already(raw.url)


def _check_depth(store: Store) -> None:
    depth = 1
    while (below := base_of(store)) is not None:
        depth += 1
        store = below.store
    if depth >= DEEPEST:
        raise UsageError(
            f"{DEEPEST} workspaces stand on each other here already: copy the files of the last"
            " one into a new one, and fork that"
        )


# --- what keeps the forked commit -----------------------------------------------------------------------------------


def fork_mark(commit: str, fork: str) -> str:
    """The name of the object that keeps a commit for the fork with this id."""
    return f"{FORKS}{commit.removeprefix(_COMMITS)}/{fork}"


def mark_fork(base: Store, commit: str, fork: str, url: str) -> str:
    """Keep a commit for the fork with this id, for ever. Returns the object's name. Raises StoreError."""
    key = fork_mark(commit, fork)
    base.put(key, dump_json({"commit": commit, "url": url}))
    return key


def forked(mark: str) -> str:
    """The commit that a mark keeps."""
    return _COMMITS + mark.removeprefix(FORKS).rpartition("/")[0]


def url_in(data: bytes) -> str:
    """Where the fork is that a mark is for. Raises FormatError."""
    return str(load_json(data, "the mark of a fork").get("url", "?"))


def keep(base: Store, raw: Store) -> None:
    """Mark the commit that the fork at `raw` needs once more. Raises UsageError if it is no fork of this one."""
    ref, origin = read_base(raw), read_format(base)
    if ref is None or ref.workspace != origin.workspace_id:
        raise UsageError(f"the workspace at {raw.url} is no fork of the one at {base.url}")
    mark_fork(base, ref.commit, read_id(raw), raw.url)


def release(base: Store, raw: Store) -> int:
    """Let go of what was kept for the fork at `raw`, which is not there any more. Returns how many marks went.

    Raises WorkspaceExistsError while it is there, StoreError.
    """
    try:
        read_head(raw)
        present = True
    except NoWorkspaceError:
        # A HEAD that is not found once is not enough: what is let go of here is deleted.
        present = next(iter(raw.list("commits/")), None) is not None
    except FormatError:
        present = True  # encrypted, or damaged
    if present:
        raise WorkspaceExistsError(
            f"the workspace at {raw.url} is still there, and needs what is kept for it: delete its objects first"
        )
    marks = [info.key for info in base.list(FORKS) if url_in(base.get(info.key).data) == raw.url]
    for key in marks:
        base.delete(key)
    return len(marks)
