"""The requests that wait for the device: a bounded queue, of which one thread takes one at a time.

A request whose client is gone leaves the queue, and its work stops where it pauses; see `flows.app.work`.  On the
CPU one thread computes while a trainer holds the lock of the CPU, since two pools of threads that spin on the same
cores cost both tenfold.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from threading import Event
from time import monotonic

import torch

from flows.app.work import Pause, Work
from flows.core.device import threads_each
from flows.core.documents import Document
from flows.process.locks import device_lock, holder_of

MOST_WAITING = 16
"""Requests that wait, besides the one that is worked on."""
LOOK_SECONDS = 1.0
"""How often a work looks whether a trainer has the CPU."""
Tell = Callable[[Document | Exception | None], None]
Begin = Callable[[Pause], Work]


class QueueIsFull(Exception):
    """As many requests wait as may."""


class GivenUp(Exception):
    """Nobody waits for the answer any more."""


class Queue:
    """The requests that wait for one device, in the order in which they came."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.thread = ThreadPoolExecutor(1, "device")
        self.turn = asyncio.Lock()
        self.work: Future[None] | None = None
        """What the thread does, or did last."""
        self.closing, self.closed = Event(), asyncio.Event()
        """For the thread, and for those who wait."""
        self.length = 0
        """How many requests wait or are worked on."""
        self.most_threads = threads_each(1)
        self.looked = -LOOK_SECONDS

    async def answers(self, begin: Begin) -> AsyncGenerator[Document | int]:
        """Yield how many requests are ahead, if any, and what the work yields.  Raises QueueIsFull, and what it raises.

        When the iterator is closed, the request leaves the queue, or its work stops at its next pause.
        """
        if self.length > MOST_WAITING:
            raise QueueIsFull
        ahead, self.length = self.length, self.length + 1
        try:
            if ahead:
                yield ahead
            await self.turn.acquire()
        except BaseException:
            self.length -= 1
            raise
        told: asyncio.Queue[Document | Exception | None] = asyncio.Queue()
        loop, given_up = asyncio.get_running_loop(), Event()

        def tell(answer: Document | Exception | None) -> None:
            loop.call_soon_threadsafe(told.put_nowait, answer)

        def end() -> None:
            with suppress(RuntimeError):  # the app has ended
                loop.call_soon_threadsafe(self.end_turn)

        try:
            self.work = self.thread.submit(self.carry_out, begin, tell, given_up, end)
        except RuntimeError:  # the app is being stopped
            self.end_turn()
            return
        try:
            while (found := await told.get()) is not None:
                if isinstance(found, Exception):
                    raise found
                yield found
        finally:
            given_up.set()

    def end_turn(self) -> None:
        """Let the next request begin."""
        self.length -= 1
        self.turn.release()

    def carry_out(self, begin: Begin, tell: Tell, given_up: Event, end: Callable[[], None]) -> None:
        """Do the work of a request, and tell what it yields or raises; None is the end."""

        def pause() -> None:
            if given_up.is_set() or self.closing.is_set():
                raise GivenUp
            self.choose_threads()

        try:
            pause()
            for answer in begin(pause):
                tell(answer)
                pause()
        except GivenUp:
            pass
        except Exception as error:
            tell(error)
        finally:
            end()
            tell(None)

    def choose_threads(self) -> None:
        """Compute with one thread while a trainer has the CPU, else with all."""
        if self.device.type != "cpu" or monotonic() - self.looked < LOOK_SECONDS:
            return
        self.looked = monotonic()
        threads = 1 if holder_of(device_lock(self.device)) else self.most_threads
        if threads != torch.get_num_threads():
            torch.set_num_threads(threads)

    def close(self) -> None:
        """Stop the work at its next pause, and take no more."""
        self.closing.set()
        self.closed.set()
        self.thread.shutdown(wait=False)

    def wait(self, seconds: float) -> None:
        """Wait so many seconds at most for the work to stop after `close`."""
        if self.work:
            wait([self.work], seconds)
