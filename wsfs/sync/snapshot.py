"""A save point as a tree of its own, read-only, beside the workspace that is mounted: with its own index, and the pack
cache of the mount."""

from __future__ import annotations

import shutil
from pathlib import Path
from uuid import UUID

from wsfs.data.files import Files
from wsfs.data.overlay import Overlay
from wsfs.data.packcache import PackCache
from wsfs.index.index import Index
from wsfs.repo.manifest import Manifest
from wsfs.store.base import Store
from wsfs.sync.lease import boot_id
from wsfs.sync.load import Loader
from wsfs.tree.namespace import Namespace


class Snapshot:
    """The tree of one commit; `directory` is new, and gone after `close`. Blocks while it is opened, on any thread;
    then it belongs to the owner. Raises StoreError, FormatError, CacheError."""

    def __init__(self, store: Store, manifest: Manifest, directory: Path, packs: PackCache) -> None:
        self._directory = directory
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(mode=0o700, parents=True)
        self._overlay = Overlay(directory)
        self._index = Index(directory, UUID(boot_id()).bytes)
        try:
            Loader(store, self._index).start_from(manifest)
        except BaseException:
            self.close()
            raise
        self.files = Files(self._index, self._overlay, packs)
        self.names = Namespace(self._index, self.files)

    def close(self) -> None:
        """Nothing of it is left on the disk."""
        self._index.close()
        self._overlay.close()
        shutil.rmtree(self._directory, ignore_errors=True)
