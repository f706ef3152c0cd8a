"""Running a coroutine from ordinary code, in a notebook too, and stopping it politely."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class Stop:
    """A request to stop that crosses threads."""

    def __init__(self) -> None:
        self.asked = False

    def ask(self) -> None:
        """Stop after what is under way."""
        self.asked = True


def run_async(
    make: Callable[[Stop], Coroutine[Any, Any, T]],
    events: queue.SimpleQueue[Any] | None = None,
    on_event: Callable[[Any], None] = lambda event: None,
    say: Callable[[str], None] = print,
) -> T:
    """The result of a coroutine, run in a thread of its own, since a notebook's thread has a
    running event loop.

    What the coroutine puts into ``events`` is given to on_event in the caller's thread.
    An interrupt (Ctrl-C, or the notebook's stop button) asks it to stop and waits for it;
    a second one cancels it. Either way KeyboardInterrupt is raised afterwards.
    """
    stop, waiting = Stop(), events or queue.SimpleQueue()
    result: list[T] = []
    errors: list[BaseException] = []
    cancel: list[Callable[[], None]] = []
    done = object()

    def work() -> None:
        async def main() -> T:
            loop, task = asyncio.get_running_loop(), asyncio.current_task()

            def cancel_it() -> None:
                if task is not None and not loop.is_closed():
                    loop.call_soon_threadsafe(task.cancel)

            cancel.append(cancel_it)
            return await make(stop)

        try:
            result.append(asyncio.run(main()))
        except BaseException as error:
            errors.append(error)
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
                say("waiting for the replies on their way; interrupt again to leave them")
                stop.ask()
            else:
                for call in cancel:
                    call()
            interrupted = interrupted or error
    if interrupted is not None:
        raise interrupted
    if errors:
        raise errors[0]
    return result[0]
