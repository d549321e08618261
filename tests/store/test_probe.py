"""The probe accepts stores that enforce conditional writes, and refuses each way of not doing so."""

from __future__ import annotations

from typing import Any

import pytest

from wsfs.errors import PreconditionFailedError, StoreError, TransientStoreError, UnsafeStoreError
from wsfs.store.base import Store
from wsfs.store.memory import MemoryStore
from wsfs.store.probe import PROBE_KEY, check_conditional_writes, create_probe
from wsfs.store.retry import RetryingStore


class Lax(MemoryStore):
    """Ignores the conditions that are named."""

    def __init__(self, *ignored: str) -> None:
        super().__init__()
        self.ignored = ignored

    def put(self, key: str, data: bytes, **conditions: Any) -> str:
        kept = {name: value for name, value in conditions.items() if name not in self.ignored}
        return super().put(key, data, **kept)


class Etags(MemoryStore):
    """Like S3Store, writes etags in one of two styles; the server takes those in `accepted`.

    What it does with an etag in another style: "refuse" it as one that does not match, "reject" the request as
    malformed, or "ignore" the condition.
    """

    def __init__(self, accepted: tuple[str, ...], otherwise: str = "refuse") -> None:
        super().__init__()
        self.etag_style = "bare"
        self.accepted = accepted
        self.otherwise = otherwise

    def put(self, key: str, data: bytes, *, if_match: str | None = None, if_none_match: bool = False) -> str:
        if if_match is not None and self.etag_style not in self.accepted:
            if self.otherwise == "refuse":
                raise PreconditionFailedError("412")
            if self.otherwise == "reject":
                raise StoreError("400")
            if_match = None
        return super().put(key, data, if_match=if_match, if_none_match=if_none_match)


def test_a_proper_store_passes(store: Store) -> None:
    create_probe(store)
    first = store.get(PROBE_KEY)
    create_probe(store)
    assert store.get(PROBE_KEY).data == first.data
    check_conditional_writes(store, thorough=True)
    thorough = store.get(PROBE_KEY)
    assert thorough.data != first.data, "the positive test must have written"
    for _ in range(2):
        check_conditional_writes(store)
    assert store.get(PROBE_KEY).data == thorough.data, "the check at a mount changes nothing"


@pytest.mark.parametrize("ignored", [("if_match",), ("if_none_match",), ("if_match", "if_none_match")])
@pytest.mark.parametrize("thorough", [True, False])
@pytest.mark.parametrize("exists", [True, False])
def test_a_store_that_ignores_conditions_is_refused(ignored: tuple[str, ...], thorough: bool, exists: bool) -> None:
    store = Lax(*ignored)
    if exists:
        create_probe(store)
    with pytest.raises(UnsafeStoreError, match=r"two writers could destroy each other's data"):
        check_conditional_writes(RetryingStore(store), thorough=thorough)


def test_a_missing_probe_is_made_again(store: Store) -> None:
    check_conditional_writes(store)
    store.get(PROBE_KEY)


@pytest.mark.parametrize("otherwise", ["refuse", "reject", "ignore"])
@pytest.mark.parametrize("accepted", [("bare",), ("quoted",)])
def test_the_etag_style_is_settled_and_remembered(accepted: tuple[str, ...], otherwise: str) -> None:
    store = Etags(accepted, otherwise)
    check_conditional_writes(RetryingStore(store), thorough=True)
    assert store.etag_style == accepted[0]
    store.etag_style = "bare"  # as in the process of the next mount
    check_conditional_writes(RetryingStore(store))
    assert store.etag_style == accepted[0]


def test_bare_is_preferred() -> None:
    store = Etags(("bare", "quoted"))
    check_conditional_writes(store, thorough=True)
    assert store.etag_style == "bare"


def test_a_store_that_never_accepts_if_match_is_refused() -> None:
    with pytest.raises(UnsafeStoreError, match="even with the right ETag"):
        check_conditional_writes(Etags(()), thorough=True)


def test_a_store_whose_etags_do_not_change_is_refused() -> None:
    class Constant(MemoryStore):
        def put(self, key: str, data: bytes, **conditions: Any) -> str:
            etag = super().put(key, data, **conditions)
            return etag if conditions.get("if_match") is None else conditions["if_match"]

    with pytest.raises(UnsafeStoreError, match="versions cannot be told apart"):
        check_conditional_writes(Constant(), thorough=True)


def test_lost_answers_are_not_mistaken(scripted_store: Any) -> None:
    lost = ("after", TransientStoreError("lost"))
    # create_probe's put, then get, then the compare-and-swap: each is done, and its answer lost.
    store = scripted_store(MemoryStore(), [lost, None, lost, None, lost])
    check_conditional_writes(RetryingStore(store, base_delay=0.001), thorough=True)


def test_a_store_that_is_down_is_not_called_unsafe(scripted_store: Any) -> None:
    for thorough in (True, False):
        store = scripted_store(MemoryStore(), [TransientStoreError("down")] * 50)
        with pytest.raises(TransientStoreError, match="down"):
            check_conditional_writes(RetryingStore(store, base_delay=0.001), thorough=thorough)


@pytest.mark.parametrize("content", [b"", b"\xff", b"[]", b"7", b'{"etag_style": "odd"}'])
def test_a_strange_probe_is_no_reason_to_fail(content: bytes) -> None:
    store = Etags(("bare",))
    store.put(PROBE_KEY, content)
    check_conditional_writes(store)
    assert store.etag_style == "bare"
