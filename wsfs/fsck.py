"""Checks a workspace in its bucket, from FORMAT down to the last frame, and says what is wrong with which file."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from wsfs.errors import ForeignWorkspaceError, FormatError, NotFoundError, NoWorkspaceError
from wsfs.model import MARKER_INO, MARKER_NAME, pack_key
from wsfs.repo.fork import base_of, fork_mark, forked
from wsfs.repo.head import HEAD_KEY, HeadVersion, read_head
from wsfs.repo.manifest import Manifest, decode_manifest
from wsfs.repo.workspace import Format, read_format
from wsfs.store.base import Store
from wsfs.sync.frames import FrameUse
from wsfs.sync.load import read_manifest
from wsfs.sync.pins import pinned
from wsfs.sync.survey import Listing, list_objects, marked, newest_epoch, pack_id, pack_sizes
from wsfs.sync.verify import Census, judge, read_frames, table_damage, take_census, totals
from wsfs.text import printable

_PATHS_SHOWN: Final = 20

REMEDIES: Final = {
    "attributes": "gives it new attributes and puts it into /lost+found",
    "cookie": "gives it another place",
    "dangling": "removes the name",
    "directory-names": "keeps one of them",
    "entries": "corrects the count",
    "kind": "corrects the name",
    "marker": "writes it anew",
    "nlink": "corrects the count",
    "parent": "corrects it",
    "root": "makes it anew, and puts what has no directory into /lost+found",
    "target": "corrects its length, or makes it an empty file if there is no target",
    "unreachable": "puts it into /lost+found",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong: its kind, one sentence, what helps, and the files that it hits."""

    kind: str
    what: str
    remedy: str
    paths: tuple[str, ...] = ()

    def __str__(self) -> str:
        shown = ", ".join(self.paths[:_PATHS_SHOWN])
        more = len(self.paths) - _PATHS_SHOWN
        files = f" Files: {shown}{f' and {more} more' if more > 0 else ''}." if self.paths else ""
        return f"{self.what}.{files} {self.remedy}."


@dataclass(slots=True)
class Checked:
    """The outcome of a check. The parts are None as far as the bucket could not be read."""

    findings: list[Finding] = field(default_factory=list)
    format: Format | None = None
    head: HeadVersion | None = None
    manifest: Manifest | None = None
    census: Census | None = None
    listing: Listing | None = None
    frames: int = 0
    """How many blocks were read and verified."""
    older: int = 0
    """How many older commits were checked."""
    notes: list[str] = field(default_factory=list)
    """What is good to know, and no damage."""

    def add(self, kind: str, what: str, remedy: str, paths: Iterable[str] = ()) -> None:
        self.findings.append(Finding(kind, what, remedy, tuple(paths)))


def check(store: Store, *, data: bool = False, every_commit: bool = False, sample: float | None = None) -> Checked:
    """Read everything that HEAD leads to and judge it; changes nothing, and may run beside a mount.

    `data` reads every frame, `sample` only that share of them, and `every_commit` checks the older commits as well.
    Raises StoreError when the store cannot be read, NoWorkspaceError when there is nothing at all.
    """
    checked = Checked()
    _check_format(store, checked)
    # Listed after HEAD was read: what HEAD leads to was there before it.
    _check_head(store, checked)
    checked.listing = list_objects(store)
    if checked.head is None:
        return checked
    _check_epochs(store, checked)
    _check_base(store, checked)
    if checked.format is not None and checked.head.head.workspace != checked.format.workspace_id:
        checked.add("foreign", "HEAD and FORMAT belong to different workspaces", "Restore the one that was replaced")
    try:
        checked.manifest = read_manifest(store, checked.head.head)
    except FormatError as exc:
        remedy = _repair("goes back to the newest commit that is whole")
        checked.add("manifest", str(exc), remedy)
        return checked
    checked.census = _check_commit(store, checked, checked.manifest, data=data, sample=sample)
    _check_counters(checked)
    check_marker(checked)
    if every_commit:
        _check_older(store, checked, data=data)
    return checked


def _check_format(store: Store, checked: Checked) -> None:
    try:
        checked.format = read_format(store)
    except NoWorkspaceError:
        try:
            store.get(HEAD_KEY)
        except NotFoundError:
            raise NoWorkspaceError(f"there is no workspace at {store.url}: check the URL") from None
        checked.add("format", "the object FORMAT is missing", "Restore it from a copy: it was written once, at init")
    except (FormatError, ForeignWorkspaceError) as exc:
        checked.add("format", str(exc), "Restore FORMAT from a copy: it was written once, at init")


def _check_head(store: Store, checked: Checked) -> None:
    try:
        checked.head = read_head(store)
    except NoWorkspaceError:
        checked.add("head", "the object HEAD is missing", _repair("makes it anew from the newest commit"))
    except FormatError as exc:
        checked.add("head", f"HEAD is damaged: {exc}", _repair("makes it anew from the newest commit"))


def _check_epochs(store: Store, checked: Checked) -> None:
    """Nothing in the bucket may be of an epoch that HEAD has not come to yet: its names would be used again."""
    assert checked.listing is not None
    assert checked.head is not None
    newest = newest_epoch(checked.listing)
    # A mount may have taken the workspace since HEAD was read.
    if newest > checked.head.head.epoch and newest > (epoch := read_head(store).head.epoch):
        what = f"there are objects of epoch {newest}, and HEAD is at {epoch}: an older HEAD has come back"
        remedy = _repair("raises HEAD's epoch, and keeps the newest commit pinned")
        checked.add("epoch", what, remedy)


def _check_base(store: Store, checked: Checked) -> None:
    """Whether the base of a fork still keeps the forked commit. Raises BaseGoneError when there is no base any more."""
    ref = checked.format.base if checked.format is not None else None
    base = None if ref is None else base_of(store)
    if base is None or ref is None or checked.format is None:
        return
    mark = fork_mark(ref.commit, checked.format.workspace_id)
    if not any(base.store.list(mark)):
        what = f"the base {ref.url} does not keep the commit '{ref.commit}' for this fork any more"
        remedy = f"'wsfs fork {ref.url} {store.url} --keep' keeps it again; what is missing by then is lost to the fork"
        checked.add("base", what, remedy)


def _check_commit(store: Store, checked: Checked, manifest: Manifest, *, data: bool, sample: float | None) -> Census:
    assert checked.listing is not None
    sizes = pack_sizes(store, checked.listing)
    census = take_census(store, manifest, sizes, frames=data or sample is not None)
    if data or sample is not None:
        checked.frames += _check_frames(store, census, sample)
        if data:
            _check_tables(store, checked, census, sizes)
    tell(checked, census, f"in commit #{manifest.seq} " if manifest is not checked.manifest else "")
    return census


def _check_frames(store: Store, census: Census, sample: float | None) -> int:
    """Read frames, and note in the census which are damaged. Returns how many were read."""
    uses: list[FrameUse] = [use for use in census.frames if use.block not in census.lost.get(use.ino, ())]
    if sample is not None:
        count = min(len(uses), max(1, round(len(uses) * sample))) if uses else 0
        uses = random.SystemRandom().sample(uses, count)
    for use, wrong in read_frames(store, uses):
        if wrong is not None:
            census.lose(use.ino, use.block, wrong)
    return len(uses)


def _check_tables(store: Store, checked: Checked, census: Census, sizes: Mapping[int, int]) -> None:
    """The tables of contents of the packs in use. Nothing that is read needs them, so a damaged one is only noted."""
    in_use = {(use.loc.epoch, use.loc.pack) for use in census.frames}
    for epoch, number in sorted(in_use):
        key = pack_key(epoch, number)
        why = table_damage(store, key, sizes.get(pack_id(epoch, number), 0))
        if why is not None:
            checked.notes.append(f"In the pack '{key}' no file is hit, but {why}: it could not be salvaged on its own.")


def _repair(what: str, options: str = "") -> str:
    """The remedy for what a repair mends."""
    return f"'wsfs fsck {options}--repair' {what}"


def tell(checked: Checked, census: Census, where: str) -> None:
    """Add a finding for everything that a census found wrong. `where`: in which commit, if it is not the newest."""

    def repair(what: str, options: str = "") -> str:
        if where:
            return "Only the newest commit can be repaired: restore what is missing from a copy, if you have one"
        return _repair(what, options)

    for ref, why in census.bad_segments:
        remedy = repair("goes back to the newest commit whose metadata is whole, and keeps this one pinned")
        checked.add("segment", f"{where}{why}, so names and attributes are missing ({ref.rows} rows)", remedy)
    by_reason: dict[str, set[int]] = {}
    for ino, blocks in census.lost.items():
        for why in blocks.values():
            by_reason.setdefault(why, set()).add(ino)
    for why, inos in sorted(by_reason.items()):
        count = sum(why == one for ino in inos for one in census.lost[ino].values())
        fix = repair("renames these files to *.damaged, with zeros where bytes are lost", "--data ")
        remedy = fix if where else f"Restore the object if you have a copy, else {fix}"
        what = f"{where}{why}: {count} {'block is' if count == 1 else 'blocks are'} lost"
        checked.add("data", what, remedy, sorted(text(census, ino) for ino in inos))
    for key, why in census.bad_rows:
        path = text(census, int.from_bytes(key[:8], "big"))
        checked.add("row", f"{where}{path}: {why}", repair("removes this row"), [path])
    for ino, index, _ in census.resident:
        path = text(census, ino)
        what = f"{where}{path}: the row of block {index} speaks of a cache"
        checked.add("row", what, repair("corrects this row"), [path])
    for problem in judge(census):
        path = text(census, problem.ino)
        remedy = repair(REMEDIES[problem.kind])
        checked.add(problem.kind, f"{where}{path}: {problem.text}", remedy, [path])


def text(census: Census, ino: int) -> str:
    """A path for people, on one line."""
    return printable(census.path(ino))


def _check_counters(checked: Checked) -> None:
    assert checked.head is not None
    assert checked.manifest is not None
    assert checked.census is not None
    manifest, head, census = checked.manifest, checked.head.head, checked.census
    if census.bad_segments:
        return  # the counters may well be right
    files, total = totals(census)
    remedy = _repair("corrects it")
    if (manifest.files, manifest.bytes) != (files, total):
        what = f"the commit counts {manifest.files} files with {manifest.bytes} bytes, and has {files} with {total}"
        checked.add("counters", what, remedy)
    if (head.files, head.bytes) != (manifest.files, manifest.bytes):
        checked.add("counters", "HEAD counts other files and bytes than its commit", remedy)
    if manifest.next_id <= census.highest:
        what = f"the next free number is {manifest.next_id}, but {census.highest} is in use"
        checked.add("counters", what, remedy)
    if head.epoch < manifest.epoch:
        checked.add("head", f"HEAD's epoch {head.epoch} is older than its commit's", remedy)


def check_marker(checked: Checked, where: str = "") -> None:
    """Add a finding if the marker has other bytes than FORMAT says."""
    census, fmt = checked.census, checked.format
    if census is None or fmt is None or MARKER_INO not in census.inodes:
        return
    if census.marker != fmt.marker or census.inodes[MARKER_INO].size != len(fmt.marker):
        what = f"{where}/{MARKER_NAME.decode()} does not have the bytes that init wrote"
        checked.add("marker", what, _repair(REMEDIES["marker"]), [f"/{MARKER_NAME.decode()}"])


def _check_older(store: Store, checked: Checked, *, data: bool) -> None:
    """The commits before HEAD's, as far as they are there, and the pinned ones."""
    assert checked.listing is not None
    assert checked.manifest is not None
    seen = {checked.manifest.key}
    listing = checked.listing
    others = (*map(marked, listing.marks), *map(pinned, listing.pins), *map(forked, listing.forks))
    for key in (checked.manifest.parent, *others):
        while key in checked.listing.commits and key not in seen:
            seen.add(key)
            try:
                manifest = decode_manifest(store.get(key).data)
            except (FormatError, NotFoundError) as exc:
                checked.add("manifest", f"the older commit '{key}' is damaged: {exc}", "It cannot be gone back to")
                break
            _check_commit(store, checked, manifest, data=data, sample=None)
            checked.older += 1
            key = manifest.parent
