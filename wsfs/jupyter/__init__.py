"""An extension of Jupyter: whether the workspace is saved, in the status bar, and a button that saves it now.

`handlers` is the part in the server, `labextension/` the part in the browser. Jupyter may live in another Python
environment than the daemon: nothing here imports more than the standard library and what jupyter_server brings.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jupyter_server.serverapp import ServerApp

LAB_EXTENSION = "wsfs"


def _jupyter_labextension_paths() -> list[dict[str, str]]:
    """What belongs into Jupyter's directory of extensions, for `jupyter labextension develop`."""
    return [{"src": "labextension", "dest": LAB_EXTENSION}]


def _jupyter_server_extension_points() -> list[dict[str, str]]:
    return [{"module": "wsfs.jupyter"}]


def _load_jupyter_server_extension(app: ServerApp) -> None:
    """Called by jupyter_server when it starts."""
    from wsfs.jupyter.handlers import add_handlers

    add_handlers(app.web_app, app.root_dir)
