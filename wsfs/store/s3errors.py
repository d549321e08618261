"""What an S3 error answer means to wsfs: from HTTP status and error code to one of our errors, with the
remedy.

Pure data and text; `s3.py` takes botocore's exceptions apart and asks here. The sentences never carry
anything that the server or botocore wrote except the error code: neither can then leak a credential into a
log.
"""

from __future__ import annotations

from dataclasses import dataclass

from wsfs.errors import (
    AccessDeniedError,
    NotFoundError,
    PreconditionFailedError,
    StoreError,
    StoreFullError,
    TransientStoreError,
    UnsafeStoreError,
)


@dataclass(frozen=True, slots=True)
class Call:
    """The request that failed, as the sentences name it."""

    url: str
    bucket: str
    operation: str
    key: str
    conditional: bool = False

    @property
    def what(self) -> str:
        """The beginning of every sentence."""
        return f"{self.url}: cannot {self.operation} {self.key}".rstrip()


_FULL = frozenset({"QuotaExceeded", "InsufficientStorage", "InsufficientCapacity", "XMinioStorageFull", "StorageFull"})
_TRANSIENT = frozenset(
    {
        "BadDigest",  # the body was damaged on its way
        "BandwidthLimitExceeded",
        "ConcurrentModification",
        # a 409 that decides nothing: AWS asks to read the etag again and to repeat
        "ConditionalRequestConflict",
        "IncompleteBody",
        "InternalError",
        "OperationAborted",
        "PriorRequestNotComplete",
        "RequestLimitExceeded",
        "RequestTimeout",  # a 400
        "RequestTimeoutException",
        "ServiceUnavailable",
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "TooManyRequests",
        "XAmzContentSHA256Mismatch",
    }
)
_KEY_WRONG = frozenset({"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidSecurity"})
_KEY_EXPIRED = frozenset(
    {"ExpiredToken", "InvalidToken", "TokenRefreshRequired", "RequestExpired", "ExpiredTokenException"}
)
_RENEWABLE = _KEY_EXPIRED | {"InvalidAccessKeyId"}
_CLOCK_WRONG = frozenset({"RequestTimeTooSkewed"})
_DENIED = frozenset({"AccessDenied", "AllAccessDisabled", "AccountProblem", "NotSignedUp", "InvalidObjectState"})
_ELSEWHERE = frozenset(
    {
        "AuthorizationHeaderMalformed",
        "AuthorizationQueryParametersError",
        "BucketRegionError",
        "IllegalLocationConstraintException",
        "PermanentRedirect",
        "Redirect",
        "TemporaryRedirect",
    }
)


def error_for(call: Call, status: int, code: str) -> StoreError:
    """Our error for an answer with this HTTP status (0 if unknown) and S3 error code (may be empty).

    The code decides where it is known, because gateways disagree about the status: Ceph says QuotaExceeded
    with 403, AWS says RequestTimeout with 400.
    """
    answer = f"the store answered {status or ''} {code if code != str(status) else ''}".rstrip()
    why = f"{call.what}: {answer}"
    if code in _FULL or status == 507:
        return StoreFullError(f"{why}; free space in bucket {call.bucket} or raise its quota")
    if code in _TRANSIENT:
        return TransientStoreError(f"{why}; it is overloaded or busy, so try again later")
    if code == "NoSuchBucket":
        return StoreError(
            f"{why}: there is no bucket {call.bucket}; create it, or correct the URL, the endpoint or the "
            f"region (AWS_DEFAULT_REGION)"
        )
    if code == "PreconditionFailed" or status == 412:
        return PreconditionFailedError(f"{why}: it exists already or was replaced by somebody else")
    if status == 404 or code in ("NoSuchKey", "NotFound"):
        if call.conditional:  # If-Match on an object that is gone: AWS says 404, others 412
            return PreconditionFailedError(f"{why}: there is no such object to replace")
        return NotFoundError(f"{call.url}: there is no object {call.key}")
    if code in _ELSEWHERE or status in (301, 302, 307, 308):
        return StoreError(
            f"{why}: bucket {call.bucket} lies in another region; set AWS_DEFAULT_REGION or the endpoint to it"
        )
    if denied := _denied(code, status):
        return AccessDeniedError(f"{why}; {denied.format(bucket=call.bucket)}")
    if status == 501 or code == "NotImplemented":
        if call.conditional:
            return UnsafeStoreError(
                f"{why}: it does not implement conditional writes, so two writers could destroy each other's "
                f"data; use a store that enforces If-Match and If-None-Match"
            )
        return StoreError(f"{why}; this store lacks an operation that wsfs needs")
    if status >= 500 or status in (408, 409, 425, 429):
        return TransientStoreError(f"{why}; it is overloaded or failing, so try again later")
    return StoreError(f"{why}; check the URL, the endpoint and the addressing style")


def may_be_renewed(code: str) -> bool:
    """Whether credentials that are read again may do better: they have expired, or were replaced and deleted."""
    return code in _RENEWABLE


def _denied(code: str, status: int) -> str | None:
    """The remedy, if the answer is a refusal of the credentials or of the permission."""
    if code in _KEY_WRONG:
        return "the access key or its secret is wrong: check AWS_ACCESS_KEY_ID, its secret, or the profile"
    if code in _KEY_EXPIRED:
        return "the credentials have expired: renew them"
    if code in _CLOCK_WRONG:
        return "the clock of this machine is wrong: set it"
    if code in _DENIED or status in (401, 403):
        return (
            "the credentials need s3:GetObject, s3:PutObject, s3:DeleteObject and s3:ListBucket on bucket "
            "{bucket} (without the last, a missing object is answered like this, too)"
        )
    return None
