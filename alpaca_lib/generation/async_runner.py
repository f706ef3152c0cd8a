"""Runs a coroutine from ordinary code, in a notebook too, and stops it gracefully."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


def run_async(
    make: Callable[[threading.Event], Coroutine[Any, Any, T]],
    events: queue.SimpleQueue[Any] | None = None,
    on_event: Callable[[Any], None] = lambda event: None,
    say: Callable[[str], None] = print,
) -> T:
    """Runs the coroutine ``make(stop)`` in a thread of its own and returns its result.

    A notebook's own thread has a running event loop already. What the coroutine puts into
    ``events`` is given to on_event in the caller's thread. An interrupt (Ctrl-C, or the
    notebook's stop button) sets ``stop`` and waits for the coroutine; a second one cancels it.
    Either way KeyboardInterrupt is raised afterwards.
    """
    stop, waiting, done = threading.Event(), events or queue.SimpleQueue(), object()
    result: Future[T] = Future()
    cancel: Callable[[], object] = stop.set  # until there is a task to cancel

    async def main() -> T:
        nonlocal cancel
        loop, task = asyncio.get_running_loop(), asyncio.current_task()

        def cancel_task() -> None:
            if task is not None and not loop.is_closed():
                loop.call_soon_threadsafe(task.cancel)

        cancel = cancel_task
        return await make(stop)

    def work() -> None:
        try:
            result.set_result(asyncio.run(main()))
        except BaseException as error:
            result.set_exception(error)
        finally:
            waiting.put(done)

    thread = threading.Thread(target=work, name="generation", daemon=True)
    thread.start()
    interrupted: BaseException | None = None
    while True:
        try:
            while (event := waiting.get()) is not done:
                if interrupted is None:
                    on_event(event)
            thread.join()
            break
        except BaseException as error:  # an interrupt, or an error of on_event
            if interrupted is None and isinstance(error, KeyboardInterrupt):
                say("waiting for the open requests; interrupt again to cancel them")
                stop.set()
            else:
                if interrupted is not None:
                    say("cancelling the open requests; what has arrived is kept")
                cancel()
            interrupted = interrupted or error
    if interrupted is not None:
        raise interrupted
    return result.result()
