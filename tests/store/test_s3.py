"""What S3Store sends, and what it makes of answers that no well-behaved server gives."""

from __future__ import annotations

import gc
import os
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import wsfs
from wsfs.errors import (
    AccessDeniedError,
    NotFoundError,
    PreconditionFailedError,
    StoreError,
    StoreFullError,
    TransientStoreError,
    UnsafeStoreError,
    UsageError,
)
from wsfs.store.s3 import S3Store, _session
from wsfs.store.s3errors import Call, error_for

DATE = b"Date: Fri, 01 Jan 2021 00:01:40 GMT\r\n"
VERSION = b'ETag: "e1"\r\nLast-Modified: Fri, 01 Jan 2021 00:00:00 GMT\r\n' + DATE


def answer(status: str, body: bytes = b"", fields: bytes = b"", length: int | None = None) -> bytes:
    length = len(body) if length is None else length
    return b"HTTP/1.1 %s\r\nConnection: close\r\nContent-Length: %d\r\n%s\r\n%s" % (
        status.encode(),
        length,
        fields,
        body,
    )


def error(status: str, code: str) -> bytes:
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>key testing-key-id</Message></Error>"
    return answer(status, body.encode(), b"Content-Type: application/xml\r\n")


@pytest.fixture
def s3(scripted_server: Any) -> Iterator[S3Store]:
    store = S3Store("bkt", "pre", endpoint_url=scripted_server.endpoint, connect_timeout=0.5, read_timeout=0.3)
    yield store
    store.close()
    with warnings.catch_warnings():
        # Where the server has cut an answer off, the SDK drops it without closing it. No later test is to blame.
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


# --- what is sent -----------------------------------------------------------------------------------------------


def test_if_match_is_sent_bare_and_without_trailing_checksums(s3: S3Store, scripted_server: Any) -> None:
    scripted_server.answers = [answer("200 OK", fields=b'ETag: "e2"\r\n')] * 2
    assert s3.put("HEAD", b"data", if_match="e1") == "e2"
    s3.etag_style = "quoted"
    s3.put("HEAD", b"data", if_match="e1")
    bare, quoted = scripted_server.requests
    assert bare.startswith(b"PUT /bkt/pre/HEAD HTTP/1.1\r\n")
    assert b"\r\nIf-Match: e1\r\n" in bare
    assert b'\r\nIf-Match: "e1"\r\n' in quoted
    assert b"x-amz-checksum" not in bare.lower()
    assert b"x-amz-trailer" not in bare.lower()
    assert f"wsfs/{wsfs.__version__}".encode() in bare
    assert b"x-amz-content-sha256: 3a6eb0790f39ac87c94f3856b2dd2c5d110e6811602261a9a923d3bb23adc8b7" in (
        bare.lower()
    ), "the body is covered by the signature"


def test_if_none_match_is_sent(s3: S3Store, scripted_server: Any) -> None:
    scripted_server.answers = [answer("200 OK", fields=b'ETag: "e2"\r\n')]
    s3.put("FORMAT", b"", if_none_match=True)
    assert b"\r\nIf-None-Match: *\r\n" in scripted_server.requests[0]


@pytest.mark.parametrize("prefix", ["", "/", "a", "a/b/"])
def test_prefixes(scripted_server: Any, prefix: str) -> None:
    scripted_server.answers = [answer("200 OK", b"x", VERSION)]
    store = S3Store("bkt", prefix, endpoint_url=scripted_server.endpoint, addressing_style="path")
    store.get("key")
    store.close()
    path = "/".join(part for part in ("/bkt", prefix.strip("/"), "key") if part)
    assert scripted_server.requests[0].startswith(f"GET {path} HTTP".encode())
    assert store.url == f"s3://bkt/{prefix.strip('/')}".rstrip("/")


def test_listing_pages_and_leaves_out_what_is_not_ours(s3: S3Store, scripted_server: Any) -> None:
    def page(keys: list[str], more: str) -> bytes:
        rows = "".join(
            f"<Contents><Key>pre/{key}</Key><Size>3</Size>"
            f"<LastModified>2021-01-01T00:00:00.000Z</LastModified></Contents>"
            for key in keys
        )
        body = f"<?xml version='1.0'?><ListBucketResult>{more}{rows}</ListBucketResult>"
        return answer("200 OK", body.encode(), DATE)

    more = "<IsTruncated>true</IsTruncated><NextContinuationToken>next</NextContinuationToken>"
    scripted_server.answers = [
        page(["packs/", "packs/1", "packs/.hidden"], more),
        page(["packs/2", "packs/with space"], "<IsTruncated>false</IsTruncated>"),
    ]
    assert [(info.key, info.size, info.age) for info in s3.list("packs/")] == [
        ("packs/1", 3, 100.0),
        ("packs/2", 3, 100.0),
    ]
    assert b"continuation-token=next" in scripted_server.requests[1]
    assert b"prefix=pre%2Fpacks%2F" in scripted_server.requests[1]


# --- what is made of answers ------------------------------------------------------------------------------------


def test_age_is_by_the_clock_of_the_store(s3: S3Store, scripted_server: Any) -> None:
    scripted_server.answers = [answer("200 OK", b"abc", VERSION), answer("200 OK", b"abc", b'ETag: "e1"\r\n')]
    assert s3.get("key").age == 100.0
    assert s3.get("key").age is None


def test_a_store_that_ignores_ranges_is_cut(s3: S3Store, scripted_server: Any) -> None:
    scripted_server.answers = [answer("200 OK", b"0123456789", VERSION)]
    assert s3.get("key", 3, 4).data == b"3456"


@pytest.mark.parametrize("content_range", [b"bytes 0-3/10", b"bytes 3-7/10", b"nonsense"])
def test_another_range_than_asked_for_is_not_taken(s3: S3Store, scripted_server: Any, content_range: bytes) -> None:
    fields = VERSION + b"Content-Range: " + content_range + b"\r\n"
    scripted_server.answers = [answer("206 Partial Content", b"3456", fields)]
    with pytest.raises(TransientStoreError, match="another range"):
        s3.get("key", 3, 4)


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        ("403 Forbidden", "AccessDenied", AccessDeniedError),
        ("401 Unauthorized", "Unauthorized", AccessDeniedError),
        ("403 Forbidden", "InvalidAccessKeyId", AccessDeniedError),
        ("403 Forbidden", "SignatureDoesNotMatch", AccessDeniedError),
        ("400 Bad Request", "ExpiredToken", AccessDeniedError),
        ("403 Forbidden", "RequestTimeTooSkewed", AccessDeniedError),
        ("403 Forbidden", "QuotaExceeded", StoreFullError),
        ("507 Insufficient Storage", "InsufficientStorage", StoreFullError),
        ("500 Internal Server Error", "InternalError", TransientStoreError),
        ("502 Bad Gateway", "", TransientStoreError),
        ("503 Slow Down", "SlowDown", TransientStoreError),
        ("429 Too Many Requests", "TooManyRequests", TransientStoreError),
        ("400 Bad Request", "RequestTimeout", TransientStoreError),
        ("409 Conflict", "ConditionalRequestConflict", TransientStoreError),
        ("412 Precondition Failed", "PreconditionFailed", PreconditionFailedError),
        ("404 Not Found", "NoSuchKey", PreconditionFailedError),
        ("404 Not Found", "NoSuchBucket", StoreError),
        ("400 Bad Request", "AuthorizationHeaderMalformed", StoreError),
        ("400 Bad Request", "InvalidArgument", StoreError),
        ("501 Not Implemented", "NotImplemented", UnsafeStoreError),
    ],
)
def test_error_answers(s3: S3Store, scripted_server: Any, status: str, code: str, kind: type[StoreError]) -> None:
    asked = 2 if code in ("ExpiredToken", "InvalidAccessKeyId") else 1  # once more, with credentials read anew
    scripted_server.answers = [error(status, code)] * asked
    with pytest.raises(StoreError) as caught:
        s3.put("HEAD", b"x", if_match="e1")
    assert type(caught.value) is kind
    sentence = str(caught.value)
    assert sentence.startswith("s3://bkt/pre: cannot put HEAD: ")
    assert status[:3] in sentence
    assert code in sentence
    assert "testing-key-id" not in sentence
    assert "testing-secret" not in sentence
    assert len(scripted_server.requests) == asked, "the SDK must not retry"


def test_the_remedies_name_what_to_change() -> None:
    call = Call("s3://bkt/pre", "bkt", "get", "key")
    assert "bucket bkt" in str(error_for(call, 404, "NoSuchBucket"))
    assert "s3:GetObject" in str(error_for(call, 403, "AccessDenied"))
    assert "AWS_DEFAULT_REGION" in str(error_for(call, 301, "PermanentRedirect"))
    assert "clock" in str(error_for(call, 403, "RequestTimeTooSkewed"))
    assert type(error_for(call, 404, "404")) is NotFoundError
    assert type(error_for(call, 501, "NotImplemented")) is StoreError


def test_a_missing_object_is_not_found(s3: S3Store, scripted_server: Any) -> None:
    scripted_server.answers = [error("404 Not Found", "NoSuchKey")] * 2 + [answer("404 Not Found")]
    with pytest.raises(NotFoundError):
        s3.get("key")
    s3.delete("key")
    with pytest.raises(NotFoundError):
        s3.get("key", 0, 0)


# --- what the network does --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "sentence"),
    [
        (answer("200 OK", b"0123", VERSION, length=10), "cut short"),
        (("reset", answer("200 OK", b"0123", VERSION, length=10)), "cut short"),
        (("stall", answer("200 OK", b"0123", VERSION, length=10)), "no answer in time"),
        (("stall", b""), "no answer in time"),
        (b"", "closed before the answer"),
        (("reset", b""), "closed before the answer"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "closed before the answer"),
        (answer("200 OK", b"a portal", DATE), "no whole ETag"),
        (b"HTTP/1.1 200 OK\r\n" + VERSION, "cut short"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n" + DATE + b'ETag: "e', "no whole ETag"),
    ],
)
def test_broken_answers_are_transient(s3: S3Store, scripted_server: Any, reply: Any, sentence: str) -> None:
    scripted_server.answers = [reply]
    with pytest.raises(TransientStoreError, match=sentence) as caught:
        s3.get("key")
    assert str(caught.value).startswith("s3://bkt/pre: cannot get key: ")
    assert len(scripted_server.requests) == 1


@pytest.mark.parametrize(
    ("call", "manner"), [("get", "dribble body"), *((call, "dribble") for call in ("get", "put", "list", "delete"))]
)
def test_an_answer_that_dribbles_ends(s3: S3Store, scripted_server: Any, call: str, manner: str) -> None:
    """Each byte comes in time, and all of them never would: the thread is free again when the deadline is over."""
    scripted_server.answers = [(manner, answer("200 OK", bytes(1000), VERSION))]
    requests = {
        "get": lambda: s3.get("key"),
        "put": lambda: s3.put("key", b"x" * 1000),
        "list": lambda: list(s3.list("")),
        "delete": lambda: s3.delete("key"),
    }
    began = time.monotonic()
    with pytest.raises(TransientStoreError, match="no answer in time"):
        requests[call]()
    assert time.monotonic() - began < 20, "1.1 s, and what a busy machine needs; all of it would take 50"
    scripted_server.answers = [answer("200 OK", b"x", VERSION)]
    assert s3.get("key").data == b"x", "the next request is not concerned"


def test_a_body_that_is_taken_slowly_arrives(scripted_server: Any) -> None:
    """Over a slow line a pack takes longer than the timeout: that is for a piece of it."""
    scripted_server.pause = 0.01
    scripted_server.answers = [answer("200 OK", fields=VERSION)]
    store = S3Store("bkt", "pre", endpoint_url=scripted_server.endpoint, connect_timeout=0.5, read_timeout=20)
    assert store.put("key", bytes(16 << 20)) == "e1"
    store.close()


def test_a_body_of_unknown_length_that_ends_early_is_transient(s3: S3Store, scripted_server: Any) -> None:
    scripted_server.answers = [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n" + VERSION + b"\r\n4\r\n0123\r\n"]
    with pytest.raises(TransientStoreError, match="cut short"):
        s3.get("key")


def test_a_listing_that_is_not_s3s_is_transient(s3: S3Store, scripted_server: Any) -> None:
    scripted_server.answers = [answer("200 OK", b"<html><p>Log in to the network", DATE)]
    with pytest.raises(TransientStoreError, match="cannot list: "):
        list(s3.list(""))


def test_nobody_listens(aws_environment: None) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    store = S3Store("bkt", endpoint_url=f"http://127.0.0.1:{port}")
    with pytest.raises(TransientStoreError, match="cannot connect"):
        store.get("key")
    store.close()


def test_tls_to_a_server_without_it(scripted_server: Any) -> None:
    scripted_server.answers = [b""]
    store = S3Store(
        "bkt", endpoint_url=scripted_server.endpoint.replace("http:", "https:"), connect_timeout=0.3, read_timeout=0.3
    )
    with pytest.raises(TransientStoreError):
        store.get("key")
    store.close()


def test_no_credentials(aws_environment: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    store = S3Store("bkt", endpoint_url="http://127.0.0.1:9")
    with pytest.raises(AccessDeniedError, match="AWS_PROFILE"):
        store.get("key")
    monkeypatch.setenv("AWS_PROFILE", "missing")
    with pytest.raises(AccessDeniedError, match="AWS_PROFILE"):
        store.get("key")
    store.close()


def test_credentials_of_a_role(
    scripted_server: Any, aws_environment: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """They come from another service, as in Kubernetes (a token in a file) and for users of AWS_PROFILE."""
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    (tmp_path / "token").write_text("token")
    for name, value in {
        "AWS_ROLE_ARN": "arn:aws:iam::123456789012:role/notebook",
        "AWS_WEB_IDENTITY_TOKEN_FILE": str(tmp_path / "token"),
        "AWS_ENDPOINT_URL_STS": scripted_server.endpoint,
    }.items():
        monkeypatch.setenv(name, value)
    role = (
        "<AssumeRoleWithWebIdentityResponse><AssumeRoleWithWebIdentityResult><Credentials>"
        "<AccessKeyId>of-the-role</AccessKeyId><SecretAccessKey>secret</SecretAccessKey>"
        "<SessionToken>session</SessionToken><Expiration>2999-01-01T00:00:00Z</Expiration>"
        "</Credentials></AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>"
    )
    scripted_server.answers = [answer("200 OK", role.encode()), answer("200 OK", b"x", VERSION)]
    store = S3Store("bkt", endpoint_url=scripted_server.endpoint)
    assert store.get("key").data == b"x"
    store.close()
    assert b"Credential=of-the-role/" in scripted_server.requests[1]


@pytest.mark.parametrize("service", ["sts", "sso", "sso-oidc", "signin"])
def test_whoever_gives_credentials_is_known(service: str) -> None:
    """Roles, the command 'aws sso login', and 'aws login'."""
    _session().create_client(service, region_name="eu-west-1")


# --- construction -----------------------------------------------------------------------------------------------


def test_nothing_is_asked_of_the_network_or_the_sdk_before_the_first_call() -> None:
    S3Store("bkt", endpoint_url="http://192.0.2.1").close()


@pytest.mark.parametrize(
    "make",
    [
        lambda: S3Store("bkt", addressing_style="vhost"),
        lambda: S3Store("bkt", endpoint_url="s3.example.org"),
        lambda: S3Store("bkt", endpoint_url="ftp://example.org"),
        lambda: S3Store("bkt", endpoint_url="https://example.org?x=1"),
        lambda: S3Store("bkt", endpoint_url="https://me:hunter2@example.org"),
    ],
)
def test_bad_options(make: Callable[[], S3Store]) -> None:
    with pytest.raises(UsageError) as caught:
        make()
    assert "hunter2" not in str(caught.value)


def test_a_client_needs_no_more_of_the_sdk_than_s3() -> None:
    """Every mount waits for that: boto3 is not imported, and no other service is looked for."""
    code = (
        "import os, sys; from wsfs.store.s3 import S3Store; looked = []; list_them = os.listdir; "
        "os.listdir = lambda path='.': looked.append(path) or list_them(path); S3Store('bkt')._client(); "
        "sys.exit(f'{looked}' if 'boto3' in sys.modules or any('/data/ec2' in str(path) for path in looked) else 0)"
    )
    keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "eu-west-1"}
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, **keys})


def test_a_directory_store_does_not_load_the_sdk(tmp_path: Path) -> None:
    root = Path(wsfs.__file__).parents[1]
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from wsfs.store.url import open_store; "
        "open_store('file://' + sys.argv[2]).put('key', b'x'); "
        "sys.exit(any(name.startswith(('boto', 'urllib3')) for name in sys.modules))"
    )
    subprocess.run([sys.executable, "-c", code, str(root), str(tmp_path)], check=True)
