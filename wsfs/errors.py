"""The error tree: what went wrong, in one sentence with the remedy, and the exit code that scripts can rely on.

Every class has a stable `exit_code` (commands) and `errno` (system calls on the mount), and a `remedy` for the log:
what helps in general. `errno_of` is the one place where an exception becomes an errno.
"""

from __future__ import annotations

import errno as _errno


class WsfsError(Exception):
    """Something went wrong in wsfs."""

    exit_code = 1
    errno = _errno.EIO
    remedy = ""


class UsageError(WsfsError):
    """The command line, an option or the configuration is wrong."""

    exit_code = 2
    errno = _errno.EINVAL
    remedy = "read 'wsfs COMMAND --help'"


# --- object store -------------------------------------------------------------------------------------------------


class StoreError(WsfsError):
    """The object store could not do what was asked."""

    exit_code = 10
    remedy = "'wsfs doctor URL' looks at the store"


class TransientStoreError(StoreError):
    """The object store is unreachable, overloaded or answered with a server error: trying again may help."""

    exit_code = 11
    remedy = "make the store reachable: 'wsfs doctor URL' looks at it"


class AccessDeniedError(StoreError):
    """The object store refused the credentials, or they lack a permission."""

    exit_code = 12
    remedy = "renew the credentials, or give them the permission: 'wsfs doctor URL' looks at them"


class UnsafeStoreError(StoreError):
    """The object store accepts conditional writes without enforcing them, so two writers could destroy each other."""

    exit_code = 13
    remedy = "use a store that enforces conditional writes"


class NotFoundError(StoreError):
    """There is no such object."""

    exit_code = 14
    errno = _errno.EIO
    remedy = "'wsfs fsck URL' says what is missing"


class BaseGoneError(StoreError):
    """The workspace that a fork shares its objects with is not there."""

    exit_code = 28
    remedy = "bring the workspace back that this one was forked from"


class PreconditionFailedError(StoreError):
    """A conditional write lost: the object exists already, or is not the version that was named."""

    exit_code = 15
    remedy = "see whether somebody else writes to the workspace: 'wsfs status URL'"


class StoreFullError(StoreError):
    """The object store is out of space or over its quota."""

    exit_code = 16
    remedy = "make room in the store, or raise its quota"


# --- workspace ----------------------------------------------------------------------------------------------------


class NoWorkspaceError(WsfsError):
    """There is no workspace at this URL."""

    exit_code = 20
    remedy = "look whether the URL is right"


class WorkspaceExistsError(WsfsError):
    """There is a workspace at this URL already."""

    exit_code = 21
    remedy = "choose another URL"


class FormatError(WsfsError):
    """Bytes in the bucket or in the cache are not what the format says."""

    exit_code = 22
    remedy = "'wsfs fsck URL --data' says what is damaged, and 'wsfs fsck URL --data --repair' mends it"


class ForeignWorkspaceError(WsfsError):
    """What lies at this URL, or in this cache, is not this workspace."""

    exit_code = 23
    remedy = "look whether the URL and the cache directory are right"


class MarkerError(WsfsError):
    """`.workspace.initialized` is missing or not the one that was written at init."""

    exit_code = 24
    remedy = "'wsfs fsck URL --repair' writes it again"


class DamagedError(WsfsError):
    """Something in the bucket is damaged: a check has found it."""

    exit_code = 25
    remedy = "'wsfs fsck URL --repair' mends what can be mended"


class EncryptionKeyError(WsfsError):
    """The key of an encrypted workspace is missing or not the right one; or one was given that is not needed."""

    exit_code = 26
    errno = _errno.EACCES
    remedy = "give the right key with key_file= or kms_key="


class NoSavePointError(WsfsError):
    """There is no such save point."""

    exit_code = 27
    errno = _errno.ENOENT
    remedy = "'wsfs log' lists all"


# --- lease --------------------------------------------------------------------------------------------------------


class LeaseHeldError(WsfsError):
    """Another mount holds this workspace."""

    exit_code = 30
    errno = _errno.EBUSY
    remedy = "unmount it there, or cut it off with -o takeover"


class FencedError(WsfsError):
    """Another mount took this workspace over: this one may not write any more."""

    exit_code = 31
    errno = _errno.EROFS
    remedy = "'wsfs export --unsaved' copies what is not saved; then mount again"


# --- mount --------------------------------------------------------------------------------------------------------


class MountError(WsfsError):
    """The file system could not be mounted."""

    exit_code = 40
    remedy = "'wsfs doctor' looks at what a mount needs"


class MountBusyError(WsfsError):
    """The mount is in use and cannot be unmounted."""

    exit_code = 41
    errno = _errno.EBUSY
    remedy = "'fuser -vm MOUNTPOINT' names the programs: end them"


class NotMountedError(WsfsError):
    """There is no wsfs mount here."""

    exit_code = 42
    remedy = "'wsfs status' lists all mounts"


class SyncFailedError(WsfsError):
    """Not everything could be pushed: it is kept on the local disk."""

    exit_code = 50
    remedy = "make the store reachable, and save again"


class DeadlineError(SyncFailedError):
    """A stop ran out of time: what is not saved stays on the local disk."""

    exit_code = 3
    remedy = "mount again with this cache: that saves it"


# --- local disk ---------------------------------------------------------------------------------------------------


class CacheError(WsfsError):
    """The cache directory cannot be used."""

    exit_code = 60
    remedy = "'wsfs doctor' looks at the cache disk"


class CacheFullError(CacheError):
    """The cache disk is full."""

    exit_code = 61
    errno = _errno.ENOSPC
    remedy = "free the cache disk"

    def __init__(self, text: str = "the cache disk is full: free some space, or wait until more is saved") -> None:
        super().__init__(text)


def errno_of(exc: BaseException) -> int:
    """The errno that a program sees for `exc`: ours from the class, an OSError's own, and EIO for anything else."""
    if isinstance(exc, WsfsError):
        return exc.errno
    if isinstance(exc, OSError) and exc.errno:
        return exc.errno
    return _errno.EIO
