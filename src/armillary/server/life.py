"""A server's life: listen, load, serve, drain, leave.

It listens first, so that a taken port costs no loading and probes get honest answers meanwhile. SIGTERM makes
readiness false, lets what runs finish up to a limit, and ends with status 0; a second signal cuts the wait
short. An engine that dies ends the process with an error, once the requests of other models have ended, so that
whatever supervises it starts a new one.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import logging
import signal
import socket
import sys
import threading
from collections.abc import Awaitable, Callable, Generator

import uvicorn

from armillary.errors import ArmillaryError, Code
from armillary.server.app import serving_app
from armillary.server.service import Phase, Service
from armillary.server.wire import guarded_protocol, most_connections

log = logging.getLogger("armillary.server")

LOOK_S = 0.1
"""Seconds between looks at the engine."""
LAST_WORDS_S = 2.0
"""Seconds that clients of a dead or stopped engine get to receive their errors."""


class _Uvicorn(uvicorn.Server):
    """Signals are handled here, not by uvicorn, which would stop listening before readiness could tell."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


class Life:
    """Runs one service on one socket until it is told to stop.

    Args:
        start: makes the models ready, in the event loop's thread but without holding it up.
        on_ready: called once all models are ready.
    """

    def __init__(
        self,
        service: Service,
        listener: socket.socket,
        start: Callable[[], Awaitable[object]],
        on_ready: Callable[[], None] = lambda: None,
    ) -> None:
        self._service = service
        self._listener = listener
        self._start = start
        self._on_ready = on_ready
        self._config = uvicorn.Config(
            serving_app(service),
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="off",
            ws="none",
            http=guarded_protocol(
                service.settings.header_timeout_s, most_connections(service.settings.max_connections), service.metrics
            ),
            timeout_keep_alive=75,  # longer than common proxies keep theirs, so that they close first
            timeout_graceful_shutdown=2,
        )
        self._server = _Uvicorn(self._config)
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()

    def run(self) -> None:
        """Serve until a signal.

        Raises:
            ArmillaryError: loading failed, or the engine died (ENGINE_FAILED).
        """
        with asyncio.Runner(loop_factory=self._config.get_loop_factory()) as runner:
            runner.run(self._run())

    def stop(self) -> None:
        """Begin to drain; again: do not wait any longer. In the loop's thread."""
        if self._stop.is_set():
            self._hurry.set()
        self._stop.set()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, self.stop)
            if self._service.keys.file is not None:
                loop.add_signal_handler(signal.SIGHUP, self._service.keys.reload)
        serving = asyncio.ensure_future(self._server.serve([self._listener]))
        starting = asyncio.ensure_future(self._start())
        watching = asyncio.ensure_future(self._watch())  # those that are ready serve while others are loading
        try:
            await asyncio.wait((starting, watching, serving), return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()
                self._service.accept()
                self._on_ready()
                await watching
        finally:
            watching.cancel()
            starting.cancel()
            await self._drain()
            self._server.should_exit = True
            await serving
        failure = self._service.shelf.failure
        if failure is not None:
            raise ArmillaryError(Code.ENGINE_FAILED, f"the engine died: {failure}")
        if any(served.worker.left_behind for served in self._service.shelf.served):
            raise ArmillaryError(Code.ENGINE_FAILED, "the engine hangs in a step and was left behind")

    async def _watch(self) -> None:
        """Return when it is time to leave: told so, or an engine is dead. Says when one stalls."""
        service = self._service
        before: str | None = None
        while not self._stop.is_set() and service.shelf.failure is None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._stop.wait()
            stalled = service.stalled()
            if stalled is not None and before is None:
                log.error("%s; /health answers 503; where it is:", stalled)
                with contextlib.suppress(Exception):  # stderr may be no file
                    faulthandler.dump_traceback(sys.stderr)
            elif stalled is None and before is not None:
                log.warning("the engine makes progress again")
            before = stalled

    async def _drain(self) -> None:
        """Let what runs finish, up to a limit; then end the engines and what is left with them."""
        service = self._service
        died = service.shelf.failure is not None
        service.phase = Phase.FAILED if died else Phase.DRAINING
        alive = [served.worker for served in service.shelf.served if served.worker.failure is None]
        if alive:
            log.info("draining: %d requests in flight, at most %g s", service.in_flight, service.settings.drain_s)
            await self._until_quiet(service.settings.drain_s)
            if service.in_flight:
                log.warning("%d requests did not finish in time", service.in_flight)
            await asyncio.gather(*(asyncio.to_thread(worker.stop, LAST_WORDS_S) for worker in alive))
        if service.shelf.served:
            self._hurry.clear()
            await self._until_quiet(LAST_WORDS_S)

    async def _until_quiet(self, limit_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                while self._service.in_flight and not self._hurry.is_set():
                    await asyncio.sleep(0.02)
