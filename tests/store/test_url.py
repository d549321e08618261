"""From URLs to stores."""

from __future__ import annotations

from pathlib import Path

import pytest

from wsfs.errors import UsageError
from wsfs.store.directory import DirectoryStore
from wsfs.store.s3 import S3Store
from wsfs.store.url import open_store, parse_s3_url


def test_file_urls(tmp_path: Path) -> None:
    for url in (f"file://{tmp_path}/a%20b", f"file://localhost{tmp_path}/a%20b/"):
        store = open_store(url)
        assert isinstance(store, DirectoryStore)
        store.put("key", b"x")
        assert (tmp_path / "a b" / "key").read_bytes() == b"x"


def test_a_directory_is_not_created_by_looking(tmp_path: Path) -> None:
    store = open_store(f"file://{tmp_path}/typo")
    assert list(store.list("")) == []
    store.delete("key")
    assert list(tmp_path.iterdir()) == []


def test_memory_urls_name_the_same_objects_until_the_process_ends() -> None:
    first = open_store("memory://test-url-one")
    first.put("key", b"x")
    first.close()
    assert open_store("memory://test-url-one").get("key").data == b"x"
    assert list(open_store("memory://test-url-two").list("")) == []


def test_s3_urls() -> None:
    store = open_store("s3://bucket//some//prefix/", endpoint_url="https://s3.example.org")
    assert isinstance(store, S3Store)
    assert store.url == "s3://bucket/some/prefix"
    assert parse_s3_url("s3://bucket") == ("bucket", "")
    assert parse_s3_url("s3://bucket/") == ("bucket", "")
    assert parse_s3_url("s3://my.bucket-1/a%20b/ü") == ("my.bucket-1", "a%20b/ü")


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("s3://", "no bucket"),
        ("s3:///prefix", "no bucket"),
        ("s3://key:hunter2@bucket/prefix", "credentials"),
        ("s3://bucket/prefix?region=x", "query"),
        ("s3://bucket/prefix?", "query"),
        ("s3://bucket/prefix#x", "fragment"),
        ("s3://bucket:9000/prefix", "bucket name"),
        ("s3://bucket/../x", "must not contain"),
        ("s3://bucket/a b", "control character"),
        ("s3://bucket/a\n", "control character"),
        ("file://", "absolute path"),
        ("file://relative/dir", "absolute path"),
        ("file:///", "no directory"),
        ("file:///a?b", "query"),
        ("gs://bucket", "gs://.*s3://, file://, memory://"),
        ("S3Q://bucket", "none of those"),
        ("/workspace", "no scheme"),
        ("key:hunter2@bucket", "no scheme"),
        ("", "no scheme"),
    ],
)
def test_bad_urls(url: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence) as caught:
        open_store(url)
    assert "hunter2" not in str(caught.value)
