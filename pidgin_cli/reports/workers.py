"""The same computation for many items, on all processors: each in a process of its own.

The processes are plain interpreters that are handed work through their standard input and say what came of it through
their standard output. They load nothing but what the work needs, never the program that started them; no key press
reaches them; and when that program is gone, however it went, their input ends and they leave.
"""

import os
import pickle
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import IO, Any, TypeVar

__all__ = ["processors", "serve", "workers"]

T = TypeVar("T")
R = TypeVar("R")

MOST = 8
"""Processes; each takes some 80 MB."""
AHEAD = 2
"""Items for each process that are made ready before it asks."""

_COMMAND = f"import sys; sys.path[:] = sys.argv[1:]; from {__name__} import serve; serve()"


def processors() -> int:
    """How many this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not everywhere
        return os.cpu_count() or 1


class _Died(Exception):
    """The process is gone without an answer."""


class _Worker:
    """One process, started when there is work for it."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(  # noqa: S603  ourselves
            [sys.executable, "-P", "-c", _COMMAND, *sys.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            process_group=0,  # Ctrl-C in the terminal is for the program that is in front
        )

    def ask(self, work: bytes) -> Any:
        """What came of a pickled call and its item. Raises _Died when the process ends over it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(work)
            self._process.stdin.flush()
            return pickle.load(self._process.stdout)  # noqa: S301  from ourselves
        except (EOFError, OSError, pickle.UnpicklingError) as error:
            raise _Died from error

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """Once nobody asks any more."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):  # there may be something in it still
                    pipe.close()


class Workers:
    """Computes in processes that `workers` starts and ends."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._all: list[_Worker] = []
        self._mine = threading.local()
        self._threads = ThreadPoolExecutor(number) if number > 1 else None
        self._ended = False
        self._lock = threading.Lock()

    def map(self, call: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """`call` of each item, in their order.

        Args:
            call: a function of a module; what cannot be pickled is computed here.
            items: taken as they are needed.
        """
        if self._threads is None:
            yield from map(call, items)
            return
        asked: deque[Future[R]] = deque()
        for item in items:
            asked.append(self._threads.submit(self._compute, call, item))
            if len(asked) > AHEAD * self._number:
                yield asked.popleft().result()
        while asked:
            yield asked.popleft().result()

    def _compute(self, call: Callable[[T], R], item: T) -> R:
        worker: _Worker | None = getattr(self._mine, "worker", None)
        try:
            work = pickle.dumps((call, item), pickle.HIGHEST_PROTOCOL)
        except (pickle.PicklingError, AttributeError, TypeError):
            return call(item)
        try:
            if worker is None:
                worker = self._mine.worker = self._start()
            answer: R = worker.ask(work)
        except (_Died, OSError):
            if self._ended:
                raise
            self._mine.worker = None
            return call(item)  # here, where a fault in it comes to light
        return answer

    def _start(self) -> _Worker:
        with self._lock:
            if self._ended:
                raise _Died
            worker = _Worker()
            self._all.append(worker)
        return worker

    def end(self) -> None:
        """Let go of everything, done or not."""
        with self._lock:
            self._ended = True
        for worker in self._all:
            worker.kill()
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)
        for worker in self._all:
            worker.close()


@contextmanager
def workers(number: int | None = None) -> Iterator[Workers]:
    """Processes to compute in, started as they are needed; at the end there are none left.

    Args:
        number: how many; 1: this one does it all; None: as many as there are processors, up to 8.
    """
    found = Workers(min(processors(), MOST) if number is None else number)
    try:
        yield found
    finally:
        found.end()


def serve() -> None:
    """What a process does: answer until its input ends or something goes wrong, which the other side will tell."""
    asked: IO[bytes] = sys.stdin.buffer
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever else is printed must not come between the answers
    while True:
        try:
            call, item = pickle.load(asked)  # noqa: S301  from ourselves
        except EOFError:
            return
        try:
            answer = pickle.dumps(call(item), pickle.HIGHEST_PROTOCOL)
            answers.write(answer)
            answers.flush()
        except Exception:
            os._exit(1)
