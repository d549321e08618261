"""The REST interface below /wsfs of a Jupyter server: the state of the workspace, and a save.

The workspace is the one in which the server's root directory lies. Who may ask is Jupyter's decision: its login, its
XSRF check, its authorizer. Whoever may read files may read the state, and whoever may write them may save.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

from jupyter_server.auth.decorator import authorized
from jupyter_server.base.handlers import APIHandler
from jupyter_server.utils import url_path_join
from tornado import web

from wsfs.cli import daemon, mounts
from wsfs.control import sentence
from wsfs.errors import NotMountedError, WsfsError

NAMESPACE = "wsfs"
UNAVAILABLE = 503


class Workspace:
    """The workspace that a directory is in, asked through the control socket of its mount.

    Threads do the asking, because a daemon takes its time; as many as are used here, and not Jupyter's own.
    """

    def __init__(self, directory: str) -> None:
        self._directory = os.path.realpath(directory)
        self._askers = ThreadPoolExecutor(2, thread_name_prefix="wsfs-status")
        self._savers = ThreadPoolExecutor(1, thread_name_prefix="wsfs-save")
        self._saving: asyncio.Future[dict[str, Any]] | None = None

    async def status(self) -> dict[str, Any]:
        """The fields of `wsfs status --json`, and "read_only"; only {"state": None} outside of a workspace."""
        return await asyncio.get_running_loop().run_in_executor(self._askers, self._status)

    async def save(self) -> dict[str, Any]:
        """Save everything now; returns the account when it is durable. Raises WsfsError.

        Whoever asks while a save is waited for gets the result of that one.
        """
        if self._saving is None or self._saving.done():
            self._saving = asyncio.get_running_loop().run_in_executor(self._savers, self._save)
        return await asyncio.shield(self._saving)

    def _status(self) -> dict[str, Any]:
        mount = mounts.containing(self._directory)
        if mount is None or not mount.is_wsfs:
            return {"state": None}
        return daemon.status(mount.mountpoint) | {"read_only": "ro" in mount.options}

    def _save(self) -> dict[str, Any]:
        mount = mounts.containing(self._directory)
        if mount is None or not mount.is_wsfs:
            raise NotMountedError(f"{self._directory} is in no workspace: 'wsfs status' lists those that are mounted")
        return daemon.sync(mount.mountpoint)


class _Handler(APIHandler):
    auth_resource: ClassVar[str] = "contents"

    async def reply(self, ask: Callable[[], Awaitable[dict[str, Any]]]) -> None:
        try:
            answer = await ask()
        except WsfsError as exc:
            self.set_status(UNAVAILABLE)
            answer = {"message": sentence(exc), "exit_code": exc.exit_code}
        self.finish(answer)

    @property
    def workspace(self) -> Workspace:
        found: Workspace = self.settings[NAMESPACE]
        return found


class StatusHandler(_Handler):
    """GET: the state of the workspace."""

    @web.authenticated
    @authorized
    async def get(self) -> None:
        await self.reply(self.workspace.status)


class SaveHandler(_Handler):
    """POST: save everything, and answer when it is durable."""

    @web.authenticated
    @authorized
    async def post(self) -> None:
        await self.reply(self.workspace.save)


def add_handlers(application: web.Application, root: str) -> None:
    """Serve the workspace that the directory `root` is in."""
    application.settings[NAMESPACE] = Workspace(root)
    base = application.settings["base_url"]
    handlers = {"status": StatusHandler, "save": SaveHandler}
    application.add_handlers(
        ".*$", [(url_path_join(base, NAMESPACE, name), handler) for name, handler in handlers.items()]
    )
