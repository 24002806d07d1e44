"""Work that must not hold up the event loop, nor the end of the process."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def aside(function: Callable[[], T], name: str) -> asyncio.Future[T]:
    """Run a function in a thread of its own; the future ends with what it returns or raises.

    What is no `Exception`, such as a panic of a native library, ends it with a `RuntimeError` of the same words.
    The thread is a daemon, where those of `asyncio.to_thread` are waited for at the end of the loop. A future
    that was cancelled meanwhile stays so: the function runs to its end, and nobody hears of it.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(set_it: Callable[[], None]) -> None:
        if not future.done():
            set_it()

    def run() -> None:
        with contextlib.suppress(RuntimeError):  # the loop is gone: nobody waits any more
            try:
                result = function()
            except BaseException as error:
                # The name of an except clause ends with it.
                failure = error if isinstance(error, Exception) else RuntimeError(f"{type(error).__name__}: {error}")
                loop.call_soon_threadsafe(settle, lambda: future.set_exception(failure))
            else:
                loop.call_soon_threadsafe(settle, lambda: future.set_result(result))

    threading.Thread(target=run, name=name, daemon=True).start()
    return future
