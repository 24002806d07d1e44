"""A server's life: listen, load, serve, drain, leave.

It listens first, so that a taken port costs no loading and probes get honest answers meanwhile. SIGTERM makes
readiness false, lets what runs finish up to a limit, and ends with status 0; a second signal cuts the wait
short. An engine that dies ends the process with an error, so that whatever supervises it starts a new one.
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
from collections.abc import Callable, Generator

import uvicorn

from armillary.errors import ArmillaryError, Code
from armillary.server.app import create_app
from armillary.server.served import Served
from armillary.server.service import Phase, Service

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
        load: makes the model ready; runs in a thread of its own, and is handed the event loop.
        on_ready: called once requests are accepted.
    """

    def __init__(
        self,
        service: Service,
        listener: socket.socket,
        load: Callable[[asyncio.AbstractEventLoop], Served],
        on_ready: Callable[[], None] = lambda: None,
    ) -> None:
        self._service = service
        self._listener = listener
        self._load = load
        self._on_ready = on_ready
        self._config = uvicorn.Config(
            create_app(service),
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="off",
            ws="none",
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
        serving = asyncio.ensure_future(self._server.serve([self._listener]))
        loaded: asyncio.Future[Served] = loop.create_future()
        threading.Thread(target=self._load_and_tell, args=(loop, loaded), name="load", daemon=True).start()
        stopping = asyncio.ensure_future(self._stop.wait())
        try:
            await asyncio.wait((loaded, stopping, serving), return_when=asyncio.FIRST_COMPLETED)
            if loaded.done():
                self._service.open(loaded.result())
                self._on_ready()
                await self._watch(loaded.result())
        finally:
            stopping.cancel()
            await self._drain()
            self._server.should_exit = True
            await serving
        served = self._service.served
        if served is not None and served.worker.failure is not None:
            raise ArmillaryError(Code.ENGINE_FAILED, f"the engine died: {served.worker.failure}")

    def _load_and_tell(self, loop: asyncio.AbstractEventLoop, loaded: asyncio.Future[Served]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is gone: nobody waits for the model any more
            try:
                served = self._load(loop)
            except Exception as error:
                loop.call_soon_threadsafe(loaded.set_exception, error)
            else:
                loop.call_soon_threadsafe(loaded.set_result, served)

    async def _watch(self, served: Served) -> None:
        """Return when it is time to leave: told so, or the engine is dead. Says when the engine stalls."""
        service = self._service
        stalled = False
        while not self._stop.is_set() and served.worker.failure is None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._stop.wait()
            idle = service.stalled()
            if idle is not None and not stalled:
                log.error("the engine has finished no step for %.1f s; /health answers 503; where it is:", idle)
                with contextlib.suppress(Exception):  # stderr may be no file
                    faulthandler.dump_traceback(sys.stderr)
            elif idle is None and stalled:
                log.warning("the engine makes progress again")
            stalled = idle is not None

    async def _drain(self) -> None:
        """Let what runs finish, up to a limit; then end the engine and what is left with it."""
        service = self._service
        served = service.served
        if served is None:
            service.phase = Phase.DRAINING
            return
        if served.worker.failure is None:
            service.phase = Phase.DRAINING
            log.info("draining: %d requests in flight, at most %g s", service.in_flight, service.settings.drain_s)
            await self._until_quiet(service.settings.drain_s)
            if service.in_flight:
                log.warning("%d requests did not finish in time", service.in_flight)
            await asyncio.to_thread(served.worker.stop, LAST_WORDS_S)
        else:
            service.phase = Phase.FAILED
        self._hurry.clear()
        await self._until_quiet(LAST_WORDS_S)

    async def _until_quiet(self, limit_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                while self._service.in_flight and not self._hurry.is_set():
                    await asyncio.sleep(0.02)
