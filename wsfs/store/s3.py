"""S3Store: objects in an S3 bucket, or in anything that speaks its protocol (AWS, OVHcloud, Ceph RGW, MinIO).

Beside `kms` the only module that knows the SDK, botocore. Of boto3, which is built on it, nothing is needed here, and
it takes time at each start. The SDK's retries are off: which requests may be repeated is ours to decide
(`wsfs.store.retry`), a compare-and-swap among them may not. Credentials come from the SDK's standard chain only.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final, Literal, TypeVar
from urllib.parse import urlsplit

import botocore.credentials
import botocore.exceptions
import botocore.loaders
import botocore.parsers
import botocore.session
import urllib3.exceptions
from botocore.config import Config

from wsfs import __version__
from wsfs.errors import AccessDeniedError, StoreError, TransientStoreError, UsageError
from wsfs.store.attempt import Attempt, NotYetError
from wsfs.store.base import Blob, ObjectInfo
from wsfs.store.deadline import Deadlines, Limit, TooSlowError
from wsfs.store.keys import check_key, check_prefix, check_range, is_key
from wsfs.store.s3errors import Call, error_for, may_be_renewed

T = TypeVar("T")

EtagStyle = Literal["bare", "quoted"]

SLOWEST: Final = 32 << 10
"""Bytes in a second: a body that moves more slowly is given up."""

_SERVICES: Final = ["s3", "sts", "sso", "sso-oidc", "signin"]
"""S3, and those that credentials may come from: of a role, of a single sign-on."""

_CREDENTIALS_SECONDS: Final = 5.0
"""A request waits at least so long for credentials: to make the SDK's client takes a while."""

_STILL_VALID: Final = 60.0
"""Credentials that are valid for so much longer are used while others are fetched."""

_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(?:\d+|\*)")
_NO_CREDENTIALS = (
    botocore.exceptions.NoCredentialsError,
    botocore.exceptions.PartialCredentialsError,
    botocore.exceptions.CredentialRetrievalError,
    botocore.exceptions.NoAuthTokenError,
    botocore.exceptions.TokenRetrievalError,
    botocore.exceptions.UnauthorizedSSOTokenError,
    botocore.exceptions.SSOTokenLoadError,
    botocore.exceptions.ProfileNotFound,
)
_TOO_SLOW = "no answer in time; check the network, then try again"
_NETWORK: tuple[tuple[type[Exception], str], ...] = (  # the first that fits names the reason
    (botocore.exceptions.ConnectTimeoutError, "no connection in time; check the network and the endpoint"),
    (botocore.exceptions.ReadTimeoutError, _TOO_SLOW),
    (botocore.exceptions.SSLError, "TLS failed; check the endpoint and the certificates (AWS_CA_BUNDLE)"),
    (botocore.exceptions.ProxyConnectionError, "the proxy does not answer; check HTTPS_PROXY and HTTP_PROXY"),
    (botocore.exceptions.EndpointConnectionError, "cannot connect; check the network and the endpoint"),
    (botocore.exceptions.ConnectionClosedError, "the connection was closed before the answer; try again"),
    (botocore.exceptions.IncompleteReadError, "the answer was cut short; try again"),
    (botocore.exceptions.ResponseStreamingError, "the answer was cut short; try again"),
    (botocore.exceptions.ConnectionError, "the connection failed; check the network, then try again"),
    (botocore.exceptions.HTTPClientError, "the connection failed; check the network, then try again"),
    (
        botocore.parsers.ResponseParserError,
        "the answer is not S3's; check the endpoint, and proxies on the way",
    ),
    (urllib3.exceptions.HTTPError, "the connection failed; check the network, then try again"),
    (TooSlowError, _TOO_SLOW),
    (OSError, "the connection failed; check the network, then try again"),
)
_SDK_ERRORS = (botocore.exceptions.BotoCoreError, *(kind for kind, _ in _NETWORK))


class S3Store:
    """A store in a bucket, under a prefix. Safe from any thread; calls block on the network.

    No request waits longer than `connect_timeout` for a connection, or for the server to take the next bytes of a
    body (urllib3 uses the same limit for both), and `read_timeout` for the next byte of an answer. A whole request,
    with its answer, may take the first and twice the second, and what its bodies take at SLOWEST. Before that it may
    wait `credentials_timeout` for credentials, by default as long. More threads than `max_connections` work, but then
    connections are not kept. `etag_style` is how If-Match names a version: bare is what AWS takes and the only thing
    Ceph RGW and OVHcloud do; `wsfs.store.probe` sets it to quoted where only that works.
    """

    def __init__(
        self,
        bucket: str,
        prefix: str = "",
        *,
        endpoint_url: str | None = None,
        addressing_style: str = "auto",
        max_connections: int = 16,
        connect_timeout: float = 20.0,
        read_timeout: float = 30.0,
        credentials_timeout: float | None = None,
    ) -> None:
        if addressing_style not in ("auto", "path", "virtual"):
            raise UsageError(f"the addressing style {addressing_style!r} is none of auto, path and virtual")
        _check_endpoint(endpoint_url)
        self._bucket = bucket
        self._prefix = prefix.strip("/") + "/" if prefix.strip("/") else ""
        self.url = f"s3://{bucket}/{self._prefix}".rstrip("/")
        self.etag_style: EtagStyle = "bare"
        self._endpoint_url = endpoint_url
        self._config = Config(
            connect_timeout=connect_timeout,
            read_timeout=read_timeout,
            max_pool_connections=max_connections,
            tcp_keepalive=True,
            retries={"total_max_attempts": 1, "mode": "standard"},
            s3={"addressing_style": addressing_style},
            # Trailing checksums, the SDK's default, are unknown to older Ceph; the body is covered by the
            # signature.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            user_agent_extra=f"wsfs/{__version__}",
        )
        self._patience = connect_timeout + 2 * read_timeout
        self._deadlines = Deadlines()
        self._mutex = threading.Lock()  # guards the three below
        self._lazy_client: Any = None
        self._renewing: _Renewing | None = None
        self._closed = False
        self._for_credentials = credentials_timeout or max(self._patience, _CREDENTIALS_SECONDS)
        self._asking: Attempt[Any] = Attempt("wsfs-credentials")
        self._making: Attempt[Any] = Attempt("wsfs-credentials")

    def get(self, key: str, start: int | None = None, length: int | None = None) -> Blob:
        """See `base.Store.get`. A body that is cut short is a TransientStoreError, never short data."""
        check_key(key)
        window = check_range(start, length)
        where: dict[str, str] = {"Bucket": self._bucket, "Key": self._prefix + key}
        with self._mapped("get", key) as limit:
            if window is None:
                return self._get(key, where, limit)
            first, count = window
            if count == 0:
                return self._head(key, where)  # HTTP has no empty range
            where["Range"] = f"bytes={first}-" if count is None else f"bytes={first}-{first + count - 1}"
            try:
                return self._get(key, where, limit, first, count)
            except botocore.exceptions.ClientError as exc:
                status, code = _status_and_code(exc)
                if status != 416 and code != "InvalidRange":
                    raise
            del where["Range"]  # it begins past the end: no bytes, but the etag is still to be told
            return self._head(key, where)

    def put(self, key: str, data: bytes, *, if_match: str | None = None, if_none_match: bool = False) -> str:
        """See `base.Store.put`. One request, sent once."""
        check_key(key)
        conditions: dict[str, str] = {}
        if if_match is not None:
            conditions["IfMatch"] = f'"{if_match}"' if self.etag_style == "quoted" else if_match
        if if_none_match:
            conditions["IfNoneMatch"] = "*"
        with self._mapped("put", key, conditional=bool(conditions)) as limit:
            limit.extend(len(data) / SLOWEST)
            where = {"Bucket": self._bucket, "Key": self._prefix + key}
            answer = self._send(lambda client: client.put_object(**where, Body=data, **conditions))
            return self._etag(answer, "put", key)

    def delete(self, key: str) -> None:
        """See `base.Store.delete`."""
        check_key(key)
        with self._mapped("delete", key):
            try:
                where = {"Bucket": self._bucket, "Key": self._prefix + key}
                self._send(lambda client: client.delete_object(**where))
            except botocore.exceptions.ClientError as exc:
                if _status_and_code(exc) not in ((404, "NoSuchKey"), (404, "404")):
                    raise

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """See `base.Store.list`. One request for 1,000 objects, made as they are asked for."""
        check_prefix(prefix)
        self._check_open()
        return self._pages(prefix)

    def close(self) -> None:
        """See `base.Store.close`. Requests under way in other threads fail or finish."""
        with self._mutex:
            client, self._lazy_client, self._closed = self._lazy_client, None, True
        if client is not None:
            client.close()
        self._deadlines.close()

    def prepare(self) -> None:
        """See `base.Prepares.prepare`."""
        with self._mapped("get", "credentials"):
            self._client()

    def credentials_source(self) -> str | None:
        """See `base.Describes.credentials_source`: the SDK's name for it, such as env or iam-role."""
        with self._mapped("get", "credentials"):
            found = self._asking.result(lambda: _session().get_credentials(), self._for_credentials)
        return None if found is None else str(found.method)

    def clock_ahead(self) -> float | None:
        """See `base.Describes.clock_ahead`."""
        with self._mapped("list", ""):
            try:
                answer = self._client().head_bucket(Bucket=self._bucket)
            except botocore.exceptions.ClientError as exc:  # a refusal has a date as well
                answer = exc.response
        there = _date(answer)
        return None if there is None else (datetime.now(UTC) - there).total_seconds()

    # --- requests -------------------------------------------------------------------------------------------

    def _get(self, key: str, where: dict[str, str], limit: Limit, first: int = 0, count: int | None = None) -> Blob:
        answer = self._send(lambda client: client.get_object(**where))
        fields = answer["ResponseMetadata"]["HTTPHeaders"]
        if "content-length" not in fields and "transfer-encoding" not in fields:
            # Its end would be the connection's, whoever ended that; a head that was cut off looks like this.
            raise TransientStoreError(f"{self.url}: cannot get {key}: the answer was cut short; try again")
        limit.extend(answer.get("ContentLength", 0) / SLOWEST)
        with closing(answer["Body"]) as body:
            data: bytes = body.read()  # checks the length against Content-Length
        if "Range" in where:
            data = self._cut(key, answer, data, first, count)
        return Blob(data, self._etag(answer, "get", key), _age(answer))

    def _cut(self, key: str, answer: dict[str, Any], data: bytes, first: int, count: int | None) -> bytes:
        """What of `data` was asked for: all of a partial answer, a slice if the store ignored the range."""
        content_range = answer.get("ContentRange")
        if content_range is None:
            return data[first:] if count is None else data[first : first + count]
        match = _CONTENT_RANGE.fullmatch(content_range)
        sent = (int(match[1]), int(match[2]) - int(match[1]) + 1) if match else None
        if sent != (first, len(data)) or (count is not None and len(data) > count):
            raise TransientStoreError(f"{self.url}: cannot get {key}: the store sent another range than was asked for")
        return data

    def _head(self, key: str, where: dict[str, str]) -> Blob:
        answer = self._send(lambda client: client.head_object(**where))
        return Blob(b"", self._etag(answer, "get", key), _age(answer))

    def _pages(self, prefix: str) -> Iterator[ObjectInfo]:
        with self._mapped("list", prefix):
            paginator = self._client().get_paginator("list_objects_v2")
            pages = iter(paginator.paginate(Bucket=self._bucket, Prefix=self._prefix + prefix))
        while True:
            with self._mapped("list", prefix):  # each page is a request, and what the caller does meanwhile is not
                page = next(pages, None)
            if page is None:
                return
            now = _date(page)
            for row in page.get("Contents", ()):
                key = row["Key"].removeprefix(self._prefix)
                if not is_key(key):
                    continue  # a "folder" that a console made, or somebody else's object
                # Without the store's clock everything is new: what asks for ages deletes what is old.
                age = 0.0 if now is None else max(0.0, (now - row["LastModified"]).total_seconds())
                yield ObjectInfo(key, row["Size"], age, row["LastModified"].timestamp())

    def _etag(self, answer: dict[str, Any], operation: str, key: str) -> str:
        quoted = str(answer.get("ETag", "")).removeprefix("W/")
        etag = quoted.strip('"')
        if not etag or quoted.startswith('"') != quoted.endswith('"'):
            raise TransientStoreError(
                f"{self.url}: cannot {operation} {key}: the answer carries no whole ETag; check for proxies on the way"
            )
        return etag

    def _send(self, call: Callable[[Any], T]) -> T:
        """`call(client)`; once more, with the credentials read anew, if the store says that they have expired.

        What the store refuses for its credentials it has not done, so a compare-and-swap may be sent again, too.
        """
        client = self._client()
        try:
            return call(client)
        except botocore.exceptions.ClientError as exc:
            if not may_be_renewed(_status_and_code(exc)[1]):
                raise
        with self._mutex:
            # The SDK renews what it knows to expire. Keys that somebody else puts into a file it reads only once.
            if self._lazy_client is client:
                self._lazy_client = None
        return call(self._client())

    def _client(self) -> Any:
        """The SDK's client, made on first use: that takes some 100 ms and reads credentials, for which it may run a
        program that hangs. Raises NotYetError then."""
        with self._mutex:
            self._check_open()
            if self._lazy_client is not None:
                return self._lazy_client
        return self._making.result(self._make, self._for_credentials)

    def _make(self) -> Any:
        session = _session()
        provider = _Provider(session.get_component("credential_provider"), self._for_credentials)
        session.register_component("credential_provider", provider)
        client = session.create_client("s3", endpoint_url=self._endpoint_url, config=self._config)
        # The SDK lets nobody say which connections it makes; without this a request has no end.
        self._deadlines.install(client._endpoint.http_session._pool_classes_by_scheme)
        with self._mutex:
            if self._closed:
                client.close()
            self._check_open()
            # Here, for whoever has asked for it may not wait any more.
            self._lazy_client, self._renewing = client, provider.renewing
        return client

    def _have_credentials(self) -> None:
        """Wait for what a request needs before it can be sent, so that this does not count as the store's time."""
        self._client()
        renewing = self._renewing
        if renewing is not None:
            renewing.get_frozen_credentials()

    def _check_open(self) -> None:
        if self._closed:
            raise StoreError(f"{self.url}: the store is closed")

    @contextmanager
    def _mapped(self, operation: str, key: str, *, conditional: bool = False) -> Iterator[Limit]:
        """One request: it ends in time, and everything that the SDK and the network raise becomes one of our errors."""
        call = Call(self.url, self._bucket, operation, key, conditional)
        try:
            self._have_credentials()
            with self._deadlines.limit(self._patience) as limit:
                yield limit
        except botocore.exceptions.ClientError as exc:
            raise error_for(call, *_status_and_code(exc)) from exc
        except NotYetError as exc:
            raise _hangs(call) from exc
        except _NO_CREDENTIALS as exc:
            raise AccessDeniedError(
                f"{call.what}: there are no usable credentials; set AWS_ACCESS_KEY_ID and "
                f"AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or give this machine a role"
            ) from exc
        except _SDK_ERRORS as exc:
            if isinstance(exc.__cause__, NotYetError):
                raise _hangs(call) from exc
            for kind, reason in _NETWORK:
                if isinstance(exc, kind):
                    raise TransientStoreError(f"{call.what}: {reason}") from exc
            raise StoreError(
                f"{call.what}: {type(exc).__name__}; check the URL, the endpoint, AWS_DEFAULT_REGION and the "
                f"AWS profile"
            ) from exc
        except ValueError as exc:  # how the SDK answers an endpoint or a bucket name that it cannot use
            raise StoreError(f"{call.what}: the SDK cannot use this endpoint or bucket name; check both") from exc


class _Renewing:
    """Credentials that the SDK renews before they expire. It does so wherever they are asked for, however long that
    takes; here nobody waits for it while the old ones are valid, and later for so many seconds.
    """

    def __init__(self, credentials: botocore.credentials.RefreshableCredentials, seconds: float) -> None:
        self._credentials = credentials
        self._seconds = seconds
        self._attempt: Attempt[None] = Attempt("wsfs-credentials")
        self._frozen: Any = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._credentials, name)

    def get_frozen_credentials(self) -> Any:
        """What requests are signed with. Raises NotYetError."""
        if self._frozen is None or self._credentials.refresh_needed():
            valid = self._frozen is not None and not self._credentials.refresh_needed(_STILL_VALID)
            try:
                self._attempt.result(self._renew, 0 if valid else self._seconds)
            except NotYetError:
                if not valid:
                    raise
        return self._frozen

    def _renew(self) -> None:
        self._frozen = self._credentials.get_frozen_credentials()


class _Provider:
    """What a session of the SDK gets its credentials from, with a limit for their renewal."""

    def __init__(self, provider: Any, seconds: float) -> None:
        self._provider = provider
        self._seconds = seconds
        self.renewing: _Renewing | None = None

    def load_credentials(self) -> Any:
        found = self._provider.load_credentials()
        if isinstance(found, botocore.credentials.RefreshableCredentials):
            self.renewing = found = _Renewing(found, self._seconds)
        return found


def _hangs(call: Call) -> TransientStoreError:
    return TransientStoreError(
        f"{call.what}: there are no credentials yet, what gives them does not answer; check credential_process, the"
        " role or the single sign-on of the AWS profile"
    )


def _session() -> Any:
    """A session of the SDK that is not shared: it is not safe to use from several threads.

    It knows few services. The SDK would look through the directories of some four hundred to learn that there is S3,
    which takes longer than the first requests of a mount.
    """
    session = botocore.session.get_session()
    loader = botocore.loaders.create_loader(session.get_config_variable("data_path"))
    loader.list_available_services = lambda _type_name: _SERVICES
    session.register_component("data_loader", loader)
    return session


def _check_endpoint(endpoint_url: str | None) -> None:
    """Raise UsageError unless it is None or a plain http(s) URL; a URL with credentials is not repeated."""
    if endpoint_url is None:
        return
    parts = urlsplit(endpoint_url)
    if "@" in parts.netloc:
        raise UsageError("the endpoint URL must not contain credentials: set AWS_ACCESS_KEY_ID or use a profile")
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise UsageError(f"the endpoint {endpoint_url!r} is not a URL like https://s3.example.org")


def _status_and_code(exc: botocore.exceptions.ClientError) -> tuple[int, str]:
    response: dict[str, Any] = exc.response
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return int(status), str(response.get("Error", {}).get("Code", ""))


def _date(answer: dict[str, Any]) -> datetime | None:
    """The store's clock when it answered."""
    try:
        date = parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])
    except (KeyError, ValueError):
        return None
    return date if date.tzinfo is not None else date.replace(tzinfo=UTC)


def _age(answer: dict[str, Any]) -> float | None:
    """Seconds between Last-Modified and Date, both by the store's clock and in whole seconds."""
    now, written = _date(answer), answer.get("LastModified")
    if now is None or not isinstance(written, datetime):
        return None
    return max(0.0, (now - written).total_seconds())
