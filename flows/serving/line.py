"""The requests that wait for the device: a bounded line, of which one thread takes one at a time.

A request whose client is gone stops where its work yields; see `flows.serving.work`.  On the CPU one thread computes
while a trainer holds the lock of the CPU, since two pools of threads that spin on the same cores cost both tenfold.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Event, Lock
from time import monotonic

import torch

from flows.core.device import threads_each
from flows.core.documents import Document
from flows.process.locks import holder_of, lock_of
from flows.serving.work import Work

MOST_WAITING = 16
"""Requests that wait, besides the one that is worked on."""
LOOK_SECONDS = 1.0
"""How often a work looks whether a trainer has the CPU."""
Tell = Callable[[Document | Exception | None], None]


class LineIsFull(Exception):
    """As many requests wait as may."""


class Line:
    """The requests that wait for one device, in the order in which they came."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.thread = ThreadPoolExecutor(1, "device")
        self.closing = Event()
        self.length, self.changing = 0, Lock()
        """How many wait or are worked on."""
        self.most_threads = threads_each(1)
        self.looked = -LOOK_SECONDS

    async def answers(self, begin: Callable[[], Work]) -> AsyncGenerator[Document | int]:
        """Yield how many requests are ahead, if any, and what the work yields.  Raises LineIsFull, and what it raises.

        When the iterator is closed, the work stops at its next step.
        """
        with self.changing:
            if self.length > MOST_WAITING:
                raise LineIsFull
            ahead, self.length = self.length, self.length + 1
        told: asyncio.Queue[Document | Exception | None] = asyncio.Queue()
        loop, given_up = asyncio.get_running_loop(), Event()

        def tell(answer: Document | Exception | None) -> None:
            loop.call_soon_threadsafe(told.put_nowait, answer)

        self.thread.submit(self.carry_out, begin, tell, given_up)
        try:
            if ahead:
                yield ahead
            while (found := await told.get()) is not None:
                if isinstance(found, Exception):
                    raise found
                yield found
        finally:
            given_up.set()

    def carry_out(
        self, begin: Callable[[], Work], tell: Callable[[Document | Exception | None], None], given_up: Event
    ) -> None:
        """Do the work of a request, and tell what it yields or raises; None is the end."""
        try:
            if given_up.is_set() or self.closing.is_set():
                return
            self.choose_threads()
            for answer in begin():
                if given_up.is_set() or self.closing.is_set():
                    return
                if answer is not None:
                    tell(answer)
                self.choose_threads()
        except Exception as error:
            tell(error)
        finally:
            with self.changing:
                self.length -= 1
            tell(None)

    def choose_threads(self) -> None:
        """Compute with one thread while a trainer has the CPU, else with all."""
        if self.device.type != "cpu" or monotonic() - self.looked < LOOK_SECONDS:
            return
        self.looked = monotonic()
        threads = 1 if holder_of(lock_of(self.device)) else self.most_threads
        if threads != torch.get_num_threads():
            torch.set_num_threads(threads)

    def close(self) -> None:
        """Stop the work at its next step, and take no more."""
        self.closing.set()
        self.thread.shutdown(wait=False, cancel_futures=True)
