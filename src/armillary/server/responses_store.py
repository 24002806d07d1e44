"""Responses that are kept, so that a later one can go on from them. In memory, bounded, gone with the process."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic_core import to_json

from armillary.errors import ArmillaryError, Code
from armillary.server.responses_body import ITEMS, Item


@dataclass(frozen=True, slots=True)
class Kept:
    """One response, as JSON.

    Attributes:
        response: the body.
        items: its conversation: what it went on from, its own input, its output.
    """

    response: bytes
    items: bytes

    @property
    def size(self) -> int:
        return len(self.response) + len(self.items)


class ResponseStore:
    """Keeps the latest responses of all clients. Safe to use from many threads.

    Args:
        max_bytes: of all that is kept. What was not used for longest goes first.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self._kept: OrderedDict[tuple[str, str], Kept] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def keep(self, owner: str, response: dict[str, Any], items: Sequence[Item]) -> bool:
        """Keep a response with its conversation before it; its output is added here. Returns whether it is kept.

        Args:
            owner: who alone may read it.
        """
        conversation = [*items, *ITEMS.validate_python(response["output"])]
        kept = Kept(to_json(response), ITEMS.dump_json(conversation))
        if kept.size > self.max_bytes:
            return False
        with self._lock:
            self._kept[owner, response["id"]] = kept
            self.bytes += kept.size
            while self.bytes > self.max_bytes:
                _, oldest = self._kept.popitem(last=False)
                self.bytes -= oldest.size
        return True

    def read(self, owner: str, response_id: str) -> bytes:
        """The body of a response.

        Raises:
            ArmillaryError: NOT_FOUND.
        """
        return self._find(owner, response_id).response

    def conversation(self, owner: str, response_id: str) -> list[Item]:
        """All items of a response's conversation, its output included.

        Raises:
            ArmillaryError: INVALID_REQUEST.
        """
        try:
            kept = self._find(owner, response_id)
        except ArmillaryError as error:
            raise ArmillaryError(Code.INVALID_REQUEST, error.message, "previous_response_id") from None
        return ITEMS.validate_json(kept.items)

    def drop(self, owner: str, response_id: str) -> None:
        """Forget a response. What went on from it keeps its conversation.

        Raises:
            ArmillaryError: NOT_FOUND.
        """
        with self._lock:
            self.bytes -= self._found(owner, response_id).size
            del self._kept[owner, response_id]

    def _find(self, owner: str, response_id: str) -> Kept:
        with self._lock:
            return self._found(owner, response_id)

    def _found(self, owner: str, response_id: str) -> Kept:
        kept = self._kept.get((owner, response_id))
        if kept is None:
            raise ArmillaryError(
                Code.NOT_FOUND,
                f"the response {response_id[:80]!r} is not kept here: it never was, it was deleted, or newer ones took "
                "its place",
                "response_id",
            )
        self._kept.move_to_end((owner, response_id))
        return kept
