"""Data keys that AWS's key management service wraps, or anything that speaks its protocol.

Region, endpoint (AWS_ENDPOINT_URL_KMS) and credentials come from the SDK's standard chain.
"""

from __future__ import annotations

from typing import Any, Final

import botocore.config
import botocore.exceptions
import botocore.session

from wsfs.errors import EncryptionKeyError, TransientStoreError
from wsfs.store.attempt import Attempt, NotYetError

PATIENCE: Final = 60.0
"""Seconds for one key, with finding credentials, for which the SDK may run a program or ask the network."""

_CONFIG: Final = botocore.config.Config(
    connect_timeout=10, read_timeout=15, retries={"mode": "standard", "total_max_attempts": 3}
)


class KmsKey:
    """Wraps with the KMS key of this id, ARN or alias; see `repo.encryption.Wrapper`. Also raises
    TransientStoreError."""

    kind: Final = "aws-kms"

    def __init__(self, key_id: str) -> None:
        self._key_id = key_id

    def wrap(self, key: bytes, workspace: str) -> bytes:
        """See `Wrapper.wrap`. The workspace's id is the encryption context."""
        return bytes(self._call("encrypt", Plaintext=key, EncryptionContext=_about(workspace))["CiphertextBlob"])

    def unwrap(self, wrapped: bytes, workspace: str) -> bytes:
        """See `Wrapper.unwrap`. Only with the key that the user names: FORMAT could name somebody else's."""
        return bytes(self._call("decrypt", CiphertextBlob=wrapped, EncryptionContext=_about(workspace))["Plaintext"])

    def _call(self, operation: str, **arguments: Any) -> dict[str, Any]:
        attempt: Attempt[dict[str, Any]] = Attempt("wsfs-kms")
        try:
            return attempt.result(lambda: self._ask(operation, **arguments), PATIENCE)
        except NotYetError as exc:
            raise TransientStoreError(
                f"the key management service did not answer within {PATIENCE:.0f} s: check the network, and what gives"
                " the AWS credentials"
            ) from exc
        except botocore.exceptions.ClientError as exc:
            code = exc.response.get("Error", {}).get("Code", "")
            remedy = {
                "InvalidCiphertextException": "it is not the key that this workspace was made with",
                "IncorrectKeyException": "it is not the key that this workspace was made with",
                "NotFoundException": "there is no such key: check its id and the region (AWS_DEFAULT_REGION)",
            }.get(code, f"check that it is enabled, and that the credentials may use kms:{operation.title()}")
            raise EncryptionKeyError(f"the KMS key {self._key_id} refused ({code}): {remedy}") from exc
        except botocore.exceptions.NoRegionError as exc:
            raise EncryptionKeyError(
                "the KMS key has no region: set AWS_DEFAULT_REGION, or name it by its ARN"
            ) from exc
        except (botocore.exceptions.HTTPClientError, botocore.exceptions.ConnectionError) as exc:
            raise TransientStoreError("the key management service cannot be reached: check the network") from exc
        except botocore.exceptions.BotoCoreError as exc:
            raise EncryptionKeyError(
                f"the KMS key {self._key_id} cannot be used ({type(exc).__name__}): check the AWS credentials"
            ) from exc

    def _ask(self, operation: str, **arguments: Any) -> dict[str, Any]:
        # A region must be set, and an ARN has one.
        parts = self._key_id.split(":")
        region = parts[3] if len(parts) > 5 and parts[3] else None
        client = botocore.session.get_session().create_client("kms", region_name=region, config=_CONFIG)
        try:
            answer: dict[str, Any] = getattr(client, operation)(KeyId=self._key_id, **arguments)
        finally:
            client.close()
        return answer


def _about(workspace: str) -> dict[str, str]:
    return {"wsfs-workspace": workspace}
