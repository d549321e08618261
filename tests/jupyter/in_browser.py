"""The status item as a user sees it: a real JupyterLab in a headless browser, over a real mount.

Called by scripts/jupyter-test: in_browser.py WSFS JUPYTER DIRECTORY [SCREENSHOT]
WSFS is the command, JUPYTER that of an environment with JupyterLab and the extension, DIRECTORY an empty one for all
that is written.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By

TOKEN = "for-the-test"
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1280,480",
]


def until(condition: Callable[[], Any], what: str, seconds: float = 120) -> Any:
    """What `condition` returns, once that is true."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > end:
            raise SystemExit(f"jupyter-test: this never came true: {what}")
        time.sleep(0.2)
    return value


def passed(what: str) -> None:
    print(f"ok: {what}", flush=True)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextlib.contextmanager
def jupyter(program: str, root: Path, environ: dict[str, str], log: Path) -> Iterator[str]:
    """A JupyterLab whose files are in `root`; its URL."""
    port = free_port()
    options = [
        "--no-browser",
        "--allow-root",
        "--ServerApp.ip=127.0.0.1",
        f"--ServerApp.port={port}",
        "--ServerApp.port_retries=0",
        "--ServerApp.base_url=/user/ada/",
        f"--IdentityProvider.token={TOKEN}",
        f"--ServerApp.root_dir={root}",
    ]
    with log.open("wb") as output:
        server = subprocess.Popen([program, "lab", *options], env=environ, stdout=output, stderr=output, cwd="/")
    url = f"http://127.0.0.1:{port}/user/ada"
    try:
        until(lambda: answers(f"{url}/api?token={TOKEN}") or server.poll() is not None, f"JupyterLab starts: {log}")
        yield url
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(60)


def answers(url: str) -> bool:
    try:
        return bool(urllib.request.urlopen(url, timeout=5).status == 200)
    except OSError:
        return False


@contextlib.contextmanager
def browser(profile: Path) -> Iterator[webdriver.Chrome]:
    options = Options()
    options.binary_location = "/usr/bin/chromium"
    for flag in [*FLAGS, f"--user-data-dir={profile}"]:
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=Service("/usr/bin/chromedriver"))
    try:
        yield driver
    finally:
        driver.quit()


class Item:
    """The status item in the page."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self._driver = driver

    @property
    def text(self) -> str:
        """What it says; empty while it is not there or not shown."""
        found = self._driver.find_elements(By.CSS_SELECTOR, ".wsfs-status .wsfs-label")
        return found[0].text if found else ""

    @property
    def button(self) -> Any:
        return self._driver.find_element(By.CSS_SELECTOR, ".wsfs-status button")

    def says(self, pattern: str, seconds: float = 120) -> str:
        return until(
            lambda: re.fullmatch(pattern, self.text) and self.text, f"{pattern}; it says {self.text!r}", seconds
        )


def main(wsfs: str, program: str, top: Path, screenshot: Path | None) -> None:
    work, store = top / "workspace", top / "store"
    work.mkdir()
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("WSFS_", "JUPYTER_"))} | {
        "WSFS_RUNTIME_DIR": str(top / "run"),
        "WSFS_CACHE_DIR": str(top / "cache"),
        "HOME": str(top),
    }

    def command(*arguments: object) -> str:
        words = [wsfs, *map(str, arguments)]
        return subprocess.run(words, env=environ, check=True, capture_output=True, text=True, timeout=300).stdout

    def state() -> dict[str, Any]:
        found: dict[str, Any] = json.loads(command("status", work, "--json"))
        return found

    config = top / ".jupyter" / "labconfig"
    config.mkdir(parents=True)
    news = "@jupyterlab/apputils-extension:announcements"  # asks on the network, and covers the picture
    (config / "page_config.json").write_text(json.dumps({"disabledExtensions": {news: True}}))

    command("init", f"file://{store}")
    # No background saves: whatever is saved has been saved by the button.
    command("mount", f"file://{store}", work, "--save-interval", "0")
    try:
        (work / "notebooks").mkdir()
        with (
            jupyter(program, work / "notebooks", environ, top / "jupyter.log") as url,
            browser(top / "profile") as driver,
        ):
            driver.get(f"{url}/lab?token={TOKEN}")
            item = Item(driver)
            item.says(r"\d+ files? unsaved|[\d.]+ k?B unsaved|saved .*")
            passed(f"the status bar says: {item.text}")

            (work / "notebooks" / "data.bin").write_bytes(os.urandom(12_000_000))
            os.sync()
            item.says(r"12(\.\d)? MB unsaved")
            passed(f"after a write: {item.text}")
            if screenshot:
                driver.save_screenshot(str(screenshot))

            before = state()["seq"]
            item.button.click()
            item.says(r"saved \d+ s ago")
            after = state()
            assert after["seq"] > before, (before, after)
            assert after["unsaved_bytes"] == 0, after
            passed(f"after the button: {item.text}, save point {after['seq']}")
            first = item.text
            until(lambda: item.text != first, "its age grows")

            (work / "notebooks" / "more").write_bytes(b"x" * 2000)
            store.rename(top / "away")
            store.touch()  # a file where the store's directory was: nothing can be written to it
            item.says(r"2.0 kB unsaved")
            item.button.click()
            until(
                lambda: driver.find_elements(By.CSS_SELECTOR, ".Toastify__toast, .jp-Notification-Toast"),
                "a message",
                300,
            )
            item.says(r"save failed, 2.0 kB unsaved")
            passed(f"without the store: {item.text}")
            store.unlink()
            (top / "away").rename(store)
            item.button.click()
            item.says(r"saved \d+ s ago")
            passed(f"with the store: {item.text}")

            problems = [entry["message"] for entry in driver.get_log("browser") if "wsfs" in entry["message"]]
            problems = [message for message in problems if "503" not in message]  # the save that was to fail
            assert not problems, problems
            passed("the browser's console has no complaint")
    finally:
        command("umount", work)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]) if len(sys.argv) > 4 else None)
