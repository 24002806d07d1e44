"""From texts to requests for vectors and scores, and to the answers to many of them at once.

The server and the Python interface share it. A text is data here: control tokens that it spells stay text. Token
ids are taken as they are.
"""

from __future__ import annotations

import math
import secrets
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import NoReturn, Unpack

import numpy as np
import numpy.typing as npt

from armillary.core.admission import check_request
from armillary.core.config import SchedulerConfig
from armillary.core.request import FinishReason, Request
from armillary.core.step import Event
from armillary.errors import ArmillaryError, Code
from armillary.models.pooling import Mode, PoolingSpec
from armillary.models.tokenizer import Tokenizer
from armillary.runtime.pooling import PoolingParams
from armillary.runtime.prepare import Place
from armillary.runtime.worker import EngineWorker

Matrix = npt.NDArray[np.float32]

RETRY_SECONDS = 0.02
"""Pause before offering again what a full queue refused."""


@dataclass(frozen=True, slots=True)
class Embedder:
    """Makes requests for vectors and scores, for one model in one engine.

    Attributes:
        tokenizer: the model's.
        config: the limits of the engine's scheduler.
        vocab_size: rows of the model's embedding; every token id in a request must be below it.
        pooling: what vectors the model gives.
    """

    tokenizer: Tokenizer
    config: SchedulerConfig
    vocab_size: int
    pooling: PoolingSpec

    @property
    def scores(self) -> bool:
        """Whether the model scores pairs of texts, and gives no vectors."""
        return self.pooling.kind == "scorer"

    def wish(
        self, mode: Mode | None = None, normalize: bool | None = None, dimensions: int | None = None
    ) -> PoolingParams:
        """How vectors are wanted; what is None is as the model's folder says.

        Raises:
            ArmillaryError: INVALID_REQUEST where the model gives no such vectors.
        """
        spec = self.pooling
        if self.scores:
            _refuse("model must give vectors, given one that scores pairs of texts (use /v1/rerank)", "model")
        if mode is not None and mode not in spec.modes:
            _refuse(f"pooling must be one of {', '.join(spec.modes)} for this model, given {mode}", "pooling")
        if dimensions is not None:
            if not 1 <= dimensions <= spec.size:
                _refuse(f"dimensions must be from 1 to {spec.size}, the model's own, given {dimensions}", "dimensions")
            if spec.dimensions is not None and dimensions != spec.size and dimensions not in spec.dimensions:
                known = ", ".join(map(str, spec.dimensions))
                _refuse(
                    f"dimensions must be {spec.size} or one that the model was trained to be cut to ({known}), given "
                    f"{dimensions}",
                    "dimensions",
                )
        chosen = spec.normalize if normalize is None else normalize
        return PoolingParams(mode or spec.mode, chosen, dimensions)

    def text(
        self,
        text: str | Sequence[int],
        wish: PoolingParams,
        *,
        request_id: str | None = None,
        param: str = "input",
        **place: Unpack[Place],
    ) -> Request:
        """The request for the vector of a text or of token ids.

        Raises:
            ArmillaryError: INVALID_REQUEST, CONTEXT_LENGTH, CANNOT_FIT; `param` names what is wrong.
        """
        if not len(text):
            _refuse(f"{param} must not be empty", param)
        if isinstance(text, str):
            ids = self._tokenised(lambda: self.tokenizer.encode(text), param)
        else:
            ids = list(text)
            for token in ids:
                if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < self.vocab_size:
                    _refuse(f"{param} must hold token ids from 0 to {self.vocab_size - 1}, given {token!r:.40}", param)
        if not ids:
            _refuse(f"{param} must have at least one token, given a text without any", param)
        return self._request(ids, wish, request_id, param, place)

    def pair(
        self,
        query: str,
        document: str,
        *,
        request_id: str | None = None,
        param: str = "documents",
        **place: Unpack[Place],
    ) -> Request:
        """The request for the score of a document before a query, from a model that scores pairs.

        Raises:
            ArmillaryError: as `text`.
        """
        found: list[int | None] = []

        def encode() -> list[int]:
            ids, second = self.tokenizer.encode_pair(query, document)
            found.append(second)
            return ids

        ids = self._tokenised(encode, param)
        return self._request(ids, PoolingParams("score", second=found[0]), request_id, param, place)

    # ---------------------------------------------------------------- inside

    def _tokenised(self, encode: Callable[[], list[int]], param: str) -> list[int]:
        try:
            return encode()
        except ArmillaryError as error:
            raise ArmillaryError(error.code, f"{param}: {error.message}", param) from None

    def _request(
        self, ids: list[int], wish: PoolingParams, request_id: str | None, param: str, place: Place
    ) -> Request:
        request = Request(
            id=request_id if request_id is not None else f"req-{secrets.token_hex(12)}",
            prompt=tuple(ids),
            max_tokens=0,
            reuse_prefix=wish.reuses_prefix,
            sampling=wish,
            **place,
        )
        try:
            check_request(request, self.config)
        except ArmillaryError as error:
            named = param if error.param in ("prompt", "max_tokens") else error.param
            raise ArmillaryError(error.code, error.message, named) from None
        return request


def failure_of(event: Event, stopped: bool) -> ArmillaryError:
    """Why a request ended without its vector.

    Args:
        stopped: whether the engine was told to stop.
    """
    if event.finish is FinishReason.DEADLINE:
        return too_late()
    if event.finish is FinishReason.STOP:
        return ArmillaryError(Code.ENGINE_FAILED, "the engine ended this request and found nothing about it")
    if event.finish is FinishReason.ERROR and not stopped:
        return ArmillaryError(Code.ENGINE_FAILED, f"the engine failed on this request: {event.error}")
    return ArmillaryError(Code.UNAVAILABLE, "the engine was stopped and ended this request before it was complete")


def too_late() -> ArmillaryError:
    """The request's time was over first."""
    return ArmillaryError(Code.DEADLINE, "the time that this request was given is over, and it was not complete")


def probability(score: float) -> float:
    """The logistic function: a score without bounds -> 0 to 1."""
    if score >= 0:
        return 1.0 / (1.0 + math.exp(-score))
    return math.exp(score) / (1.0 + math.exp(score))


def stacked(vectors: Sequence[object], size: int) -> Matrix:
    """Vectors as rows, float32 [vectors, size]."""
    rows = [vector for vector in vectors if isinstance(vector, np.ndarray)]
    return np.stack(rows) if rows else np.zeros((0, size), dtype=np.float32)


def run_all(worker: EngineWorker, requests: Sequence[Request]) -> list[object]:
    """Run requests for vectors and scores to their end; answers in their order. Blocks.

    Never more are in flight than may wait, and a full queue is waited for. The first failure cancels the others.

    Raises:
        ArmillaryError: what the engine refuses, or why it failed.
    """
    found: dict[str, object] = {}
    failures: list[ArmillaryError] = []
    flying: set[str] = set()
    waiting = deque(requests)
    changed = threading.Condition()
    full = False

    def heard(events: list[Event]) -> None:
        with changed:
            for event in events:
                flying.discard(event.request_id)
                if event.finish is FinishReason.STOP and event.prompt_detail is not None:
                    found[event.request_id] = event.prompt_detail
                else:
                    failures.append(failure_of(event, stopped=not worker.alive and worker.failure is None))
            changed.notify_all()

    def answered(request: Request, future: Future[None]) -> None:
        nonlocal full
        error = future.exception()
        if error is None:
            return
        with changed:
            flying.discard(request.id)
            if isinstance(error, ArmillaryError) and error.code is Code.QUEUE_FULL:
                waiting.appendleft(request)
                full = True
            elif isinstance(error, ArmillaryError):
                failures.append(error)
            else:
                failures.append(ArmillaryError(Code.ENGINE_FAILED, f"the request could not be accepted: {error}"))
            changed.notify_all()

    try:
        while True:
            with changed:
                if failures:
                    raise failures[0]
                if len(found) == len(requests):
                    return [found[request.id] for request in requests]
                room = 0 if full else min(len(waiting), worker.max_waiting - len(flying))
                batch = [waiting.popleft() for _ in range(room)]
                flying.update(request.id for request in batch)
                if not batch:
                    changed.wait(RETRY_SECONDS if full else None)
                    full = False
            for request in batch:
                worker.submit_soon(request, heard).add_done_callback(partial(answered, request))
    finally:
        with changed:
            left = list(flying)
        for request_id in left:
            worker.cancel(request_id)


def _refuse(message: str, param: str) -> NoReturn:
    raise ArmillaryError(Code.INVALID_REQUEST, message, param)
