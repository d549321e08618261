"""wsfs clean: what it takes for a cache, that it changes nothing by itself, and that it stays inside."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.cli.conftest import Run

CACHES = {
    ".cache/pip/http/a": "pip",
    ".npm/_cacache/a": "npm",
    ".cache/huggingface/hub/model": "huggingface",
    ".conda/pkgs/a": "conda",
    "opt/conda/pkgs/numpy/b": "conda",
    "src/__pycache__/m.pyc": "python",
    "notes/.ipynb_checkpoints/n.ipynb": "jupyter",
    ".Trash-1000/files/x": "trash",
}
OTHER = ("opt/conda/conda-meta/history", ".cache/huggingface/token", "pkgs/mine", "__pycache__.txt", ".npm/x", "pip/x")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    top = tmp_path / "top"
    for number, name in enumerate((*CACHES, *OTHER)):
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_bytes(bytes(100 + number))
    return top


@pytest.fixture
def clean(wsfs: Run) -> Callable[..., dict[str, Any]]:
    return lambda *arguments, code=0: dict(json.loads(wsfs("clean", "--json", *arguments, code=code).stdout))


def names(top: Path) -> set[str]:
    return {str(path.relative_to(top)) for path in top.rglob("*") if not path.is_dir()}


def test_it_lists_caches_and_changes_nothing(home: Path, clean: Callable[..., dict[str, Any]], wsfs: Run) -> None:
    found = clean(home)
    kinds = {one["path"]: one["kind"] for one in found["caches"]}
    assert len(kinds) == len(CACHES)
    for name, kind in CACHES.items():
        assert [kinds[path] for path in kinds if name.startswith(path + "/")] == [kind]
    assert found["bytes"] == sum(range(100, 100 + len(CACHES)))
    assert names(home) == {*CACHES, *OTHER}
    assert "Nothing was removed: add --apply" in wsfs("clean", home).stdout
    assert names(home) == {*CACHES, *OTHER}


def test_apply_removes_them_and_nothing_else(home: Path, clean: Callable[..., dict[str, Any]], wsfs: Run) -> None:
    assert all(one["removed"] for one in clean(home, "--apply")["caches"])
    assert names(home) == set(OTHER)
    assert wsfs("clean", home).stdout == f"No caches in {home}.\n"


def test_links_are_not_followed(home: Path, tmp_path: Path, clean: Callable[..., dict[str, Any]]) -> None:
    outside = tmp_path / "outside"
    (outside / "__pycache__").mkdir(parents=True)
    (outside / "__pycache__" / "keep").write_text("x")
    (home / "link").symlink_to(outside)
    (home / "b").mkdir()
    (home / "b" / "__pycache__").symlink_to(outside / "__pycache__")
    (home / "src" / "__pycache__" / "out").symlink_to(outside)
    clean(home, "--apply")
    assert (outside / "__pycache__" / "keep").exists()
    assert (home / "b" / "__pycache__").is_symlink()
    assert not (home / "src" / "__pycache__").exists()


def test_what_has_another_name_outside_is_not_counted(home: Path, clean: Callable[..., dict[str, Any]]) -> None:
    before = clean(home)["bytes"]
    os.link(home / ".cache" / "pip" / "http" / "a", home / "mine")
    assert clean(home)["bytes"] == before - 100
    clean(home, "--apply")
    assert (home / "mine").stat().st_size == 100


def test_a_cache_with_a_marker_in_it_is_none(home: Path, clean: Callable[..., dict[str, Any]]) -> None:
    (home / "src" / "__pycache__" / ".workspace.initialized").write_text("{}")
    assert "src/__pycache__" not in {one["path"] for one in clean(home, "--apply")["caches"]}
    assert (home / "src" / "__pycache__" / "m.pyc").exists()


def test_a_directory_that_is_not_there(tmp_path: Path, wsfs: Run) -> None:
    assert "is not a directory" in wsfs("clean", tmp_path / "no", code=2).stderr
