"""The thread that owns an engine, and the messages that reach it.

The engine is single-threaded. Here its one thread lives: it takes messages between steps, runs steps while
there is work, sleeps while there is none, and hands every request its own events. What was accepted ends:
with its last token, with a cancellation, or, when the engine stops or dies, with an error event.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from armillary.core.admission import check_room
from armillary.core.engine import Engine
from armillary.core.load import QueueLoad, Share, seconds_to_work_off
from armillary.core.request import FinishReason, Request
from armillary.core.stats import SchedulerStats
from armillary.core.step import Event
from armillary.errors import ArmillaryError, Code, Refused
from armillary.runtime.inbox import Call, OnEvents, OpenRequest, Submission

T = TypeVar("T")

logger = logging.getLogger(__name__)

_STALL_SECONDS = 0.05
"""Pause before asking again an engine that has work and yet offered no step."""


@dataclass(frozen=True, slots=True)
class WorkerStats:
    """The state of an engine at one moment. Counters are of the whole life, the rest are gauges."""

    counters: SchedulerStats
    running: int
    waiting: int
    open_requests: int
    kv_blocks: int
    kv_blocks_used: int
    """Blocks held by sequences. Those that only keep a prefix for later count as free."""


_workers: weakref.WeakSet[EngineWorker] = weakref.WeakSet()


def _after_fork() -> None:
    for worker in _workers:
        worker.left_in_parent()


os.register_at_fork(after_in_child=_after_fork)


class EngineWorker:
    """Runs an engine in a thread of its own. Every method may be called from any thread.

    Takes over `engine.sink`. What the engine raises ends the thread, so its journal must raise nothing
    (`armillary.runtime.load.lines_to`). The thread starts at once and is a daemon: a process may exit although an
    executor hangs.
    """

    def __init__(self, engine: Engine, name: str = "engine") -> None:
        self._engine = engine
        engine.sink = self._route
        self._wake = threading.Condition()
        """Guards everything below. Never held while the engine or a callback runs."""
        self._inbox: deque[Submission | Call | Callable[[], None]] = deque()
        self._open: dict[str, OpenRequest] = {}
        self._posted = QueueLoad()  # submissions in the inbox
        self._accepting = True
        self._stopping = False
        self._failure: str | None = None
        self._busy_since: float | None = None
        self._deaf: list[str] = []  # requests whose listener raised; touched by the engine's thread only
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        _workers.add(self)
        self._thread.start()

    # ---------------------------------------------------------------- requests

    def submit(self, request: Request, on_events: OnEvents) -> None:
        """Hand a request to the engine and wait until it is accepted: as long as the step in progress takes.

        Not from the engine's own thread, and not from an event loop: there, await `submit_soon`.

        Raises:
            ArmillaryError: as of `Engine.submit`; UNAVAILABLE while draining or stopped; ENGINE_FAILED.
        """
        if threading.current_thread() is self._thread:
            raise RuntimeError("submit would wait for its own thread; use submit_soon from a callback")
        self.submit_soon(request, on_events).result()

    def submit_soon(self, request: Request, on_events: OnEvents) -> Future[None]:
        """Hand a request to the engine; the future ends when it is accepted, or with the `ArmillaryError`.

        A full queue is refused at once, without waiting for the step in progress. Who stops waiting for the
        future calls `cancel`: the request may still be accepted.

        Args:
            on_events: called in the engine's thread with each step's news about this request, in order, one
                finish per choice. It must be quick, and must not wait for the engine; `cancel` is fine.
                If it raises, its request is cancelled and it is not called again. The first events may come
                before the future ends.
        """
        future: Future[None] = Future()
        future.set_running_or_notify_cancel()
        with self._wake:
            refusal = self._refusal(request)
            if refusal is None:
                self._posted.enter(request.owner, request.n, len(request.prompt))
                self._post(Submission(request, on_events, future))
        if refusal is not None:
            future.set_exception(refusal)
        return future

    def cancel(self, request_id: str, index: int | None = None, reason: FinishReason = FinishReason.CANCELLED) -> None:
        """End a request, or one of its choices, before the next step. Returns at once; unknown ids are ignored.

        `reason` STOP is for a stop string that the text layer found.
        """
        with self._wake:
            if self._gone() is None:  # what is gone has ended everything already
                self._post(partial(self._engine.cancel, request_id, index, reason))

    def call(self, function: Callable[[Engine], T]) -> Future[T]:
        """Run a function on the engine, in its thread, between two steps."""
        future: Future[T] = Future()
        future.set_running_or_notify_cancel()

        def run() -> None:
            try:
                future.set_result(function(self._engine))
            except Exception as error:
                future.set_exception(error)

        with self._wake:
            refusal = self._gone()
            if refusal is None:
                self._post(Call(run, future))
        if refusal is not None:
            future.set_exception(refusal)
        return future

    # ---------------------------------------------------------------- state

    @property
    def alive(self) -> bool:
        """Whether the thread runs. False after `stop`, and after a failure."""
        return self._thread.is_alive() and not self._stopping and self._failure is None

    @property
    def left_behind(self) -> bool:
        """Whether `stop` gave up on a step that did not end."""
        return self._stopping and self._thread.is_alive()

    @property
    def failure(self) -> str | None:
        """Why the engine's thread died; None if it did not."""
        return self._failure

    @property
    def accepting(self) -> bool:
        """Whether requests are accepted: alive and not draining."""
        return self._accepting and self.alive

    @property
    def progress(self) -> float:
        """Seconds since the last completed step (or the arrival of work), while work is pending; 0.0 when idle.

        What an observer compares with a limit to tell a slow engine from one that hangs.
        """
        since = self._busy_since
        return 0.0 if since is None else max(0.0, time.monotonic() - since)

    @property
    def max_waiting(self) -> int:
        """Requests that may wait before another is refused."""
        return self._engine.scheduler.config.max_waiting

    def stats(self) -> WorkerStats:
        """Counters and gauges, without waiting for the engine. Taken during a step they may be a step apart."""
        scheduler = self._engine.scheduler
        return WorkerStats(
            counters=replace(scheduler.stats, finished=dict(scheduler.stats.finished)),
            running=scheduler.running_count,
            waiting=scheduler.waiting_count,
            open_requests=len(self._open),
            kv_blocks=scheduler.pool.num_blocks,
            kv_blocks_used=scheduler.pool.used_count,
        )

    def waiting(self, owner: str | None = None) -> Share:
        """What waits in the queue or on its way there, of one owner or of all; preempted sequences included."""
        queue, posted = self._engine.scheduler.waiting.load, self._posted
        return queue.total + posted.total if owner is None else queue.of(owner) + posted.of(owner)

    def full(self) -> Refused | None:
        """Why not even the shortest request would be let in now; None where it would."""
        return self._no_room(1)

    def seconds_to_work_off(self) -> float | None:
        """How long the queue of now would take at the present pace; None before there is one."""
        scheduler = self._engine.scheduler
        return seconds_to_work_off(self.waiting(), scheduler.stats, scheduler.pace)

    # ---------------------------------------------------------------- the end

    def drain(self, timeout: float | None = None) -> bool:
        """Refuse new requests and wait until the accepted ones have ended; False if time ran out first."""
        with self._wake:
            self._accepting = False
            return self._wake.wait_for(lambda: not self._open and not self._posted.total.requests, timeout)

    def stop(self, timeout: float = 10.0) -> None:
        """End the thread after the step in progress, and everything pending with an error event.

        Where the step does not end within `timeout` seconds, pending requests get their error all the same;
        the thread is left behind. Idempotent.
        """
        with self._wake:
            self._accepting = False
            self._stopping = True
            self._wake.notify_all()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout)
        self._fail_pending(Code.UNAVAILABLE, "the engine was stopped before the request ended", release=False)

    def left_in_parent(self) -> None:
        """In a forked process: the thread, which may have held the lock, is not here. Only the parent hears more."""
        self._wake = threading.Condition()
        self._inbox, self._open, self._posted, self._busy_since = deque(), {}, QueueLoad(), None
        self._failure = "its thread stayed in the process that forked this one; make an engine in this process"

    # ---------------------------------------------------------------- inside

    def _refusal(self, request: Request) -> ArmillaryError | None:
        """Why a submission is refused without asking the engine."""
        if (gone := self._gone()) is not None:
            return gone
        if not self._accepting:
            return ArmillaryError(Code.UNAVAILABLE, "the engine is shutting down and accepts no new request")
        return self._no_room(len(request.prompt))

    def _no_room(self, tokens: int) -> Refused | None:
        try:
            check_room(tokens, self._engine.scheduler.config, self.waiting())
        except Refused as full:
            full.retry_s = self.seconds_to_work_off()
            return full
        return None

    def _gone(self) -> ArmillaryError | None:
        if self._failure is not None:
            return ArmillaryError(Code.ENGINE_FAILED, f"the engine has failed: {self._failure}")
        if self._stopping:
            return ArmillaryError(Code.UNAVAILABLE, "the engine is stopped")
        return None

    def _post(self, message: Submission | Call | Callable[[], None]) -> None:
        """Put a message in the inbox. The lock is held."""
        self._inbox.append(message)
        self._wake.notify_all()

    def _run(self) -> None:
        """The thread."""
        try:
            while self._take_messages():
                self._step()
        except BaseException as error:
            with self._wake:
                self._failure = f"{type(error).__name__}: {error}"
                self._accepting = False
            logger.exception("the engine's thread died")
            self._fail_pending(Code.ENGINE_FAILED, f"the engine has failed: {self._failure}", release=False)
            return
        self._fail_pending(Code.UNAVAILABLE, "the engine was stopped before the request ended", release=True)

    def _take_messages(self) -> bool:
        """Wait for work, obey the inbox; False when it is time to end."""
        while self._deaf:
            self._engine.cancel(self._deaf.pop())
        with self._wake:
            if not self._inbox and self._engine.idle:
                self._busy_since = None
                while not self._inbox and not self._stopping:
                    self._wake.wait()
            if self._busy_since is None:
                self._busy_since = time.monotonic()
            arrived = len(self._inbox)  # what arrives meanwhile waits a step: no flood may hold up the steps
        for _ in range(arrived):
            with self._wake:
                if self._stopping:
                    return False
                message = self._inbox.popleft()
            if isinstance(message, Submission):
                self._accept(message)
            else:
                message()
        return not self._stopping

    def _accept(self, message: Submission) -> None:
        request = message.request
        error: ArmillaryError | None = None
        try:
            self._engine.submit(request)
        except ArmillaryError as refusal:
            error = refusal
        except Exception as failure:  # refused like any other: the engine has not taken it
            logger.exception("request %s could not be submitted", request.id)
            error = ArmillaryError(Code.ENGINE_FAILED, f"the request could not be accepted: {failure}")
        with self._wake:
            if self._posted.total.requests:  # else everything pending has been failed meanwhile
                self._posted.leave(request.owner, request.n, len(request.prompt))
            if error is None:
                self._open[request.id] = OpenRequest(request, message.on_events)
        if error is None:
            message.future.set_result(None)
        else:
            message.future.set_exception(error)

    def _step(self) -> None:
        """Run one step, or sleep a moment if the engine has work and offers none."""
        if self._engine.step():
            self._busy_since = time.monotonic()
        elif not self._engine.idle:
            with self._wake:
                if not self._inbox and not self._stopping:
                    self._wake.wait(_STALL_SECONDS)

    def _route(self, events: list[Event]) -> None:
        """The engine's sink: every request gets its own."""
        by_request: dict[str, list[Event]] = {}
        for event in events:
            by_request.setdefault(event.request_id, []).append(event)
        for request_id, own in by_request.items():
            with self._wake:
                listener = self._note(request_id, own)
            if listener is None:
                continue
            try:
                listener(own)
            except Exception:
                logger.exception("the listener of request %s raised; the request is cancelled", request_id)
                with self._wake:
                    if (entry := self._open.get(request_id)) is not None:
                        entry.on_events = None
                self._deaf.append(request_id)

    def _note(self, request_id: str, own: list[Event]) -> OnEvents | None:
        """Record which choices ended; who is to hear of it. The lock is held."""
        entry = self._open.get(request_id)
        if entry is None:
            return None
        entry.ended.update(event.index for event in own if event.finish is not None)
        if len(entry.ended) == entry.request.n:
            del self._open[request_id]
            self._wake.notify_all()
        return entry.on_events

    def _fail_pending(self, code: Code, reason: str, release: bool) -> None:
        """End everything that is pending with an error.

        Args:
            release: free the blocks in the engine too; only in its thread, and only while it is sound.
        """
        with self._wake:
            entries, self._open = list(self._open.values()), {}
            messages, self._inbox = list(self._inbox), deque()
            self._posted = QueueLoad()
            self._busy_since = None
            self._wake.notify_all()
        for message in messages:
            if isinstance(message, (Submission, Call)):
                message.future.set_exception(ArmillaryError(code, reason))
        for entry in entries:
            if release:
                try:  # nobody is listed any more, so nothing is delivered twice
                    self._engine.cancel(entry.request.id)
                except Exception:
                    logger.exception("request %s could not be cancelled at the end", entry.request.id)
            if entry.on_events is None:
                continue
            events = [
                Event(entry.request.id, index, None, FinishReason.ERROR, error=reason)
                for index in range(entry.request.n)
                if index not in entry.ended
            ]
            try:
                entry.on_events(events)
            except Exception:
                logger.exception("the listener of request %s raised at the end", entry.request.id)
