"""Tasks in worker processes, with their results in order, and an end for every kind of failure.

Each worker has a pipe of its own and shares no lock, so the death of one, at any moment, neither
blocks this process nor another worker. torch's DataLoader shares locks and raises the death of a
worker inside unrelated code.
"""

from __future__ import annotations

import atexit
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable
from itertools import cycle
from multiprocessing import get_context
from multiprocessing.connection import Connection
from queue import Queue
from typing import Any, Generic, TypeVar

from latentddm.engine.errors import STOPPING, JobError, UserError, unexpected

TASKS_AHEAD = 3  # tasks of a worker at a time: one in work, one ready, one on its way
_ENDED = (EOFError, ConnectionError)

Task = TypeVar("Task")
Result = TypeVar("Result")


class WorkerTraceback(Exception):
    """The traceback of an error in a worker process; the cause of the error raised here."""


def map_in_workers(
    work: Callable[[Task], Result], tasks: Iterable[Task], workers: int
) -> Generator[Result, None, None]:
    """The results of `work` for each of `tasks`, in order, from `workers` processes.

    `tasks` may be endless. The processes end with the iterator, and at the latest with this
    process. An error of `work` is raised here: UserError and JobError as they are, any other as a
    JobError. JobError also for a process that ends.
    """
    pool = [_Worker(work) for _ in range(workers)]
    end = _end_of(pool)
    # Later than the import of multiprocessing, hence earlier at the exit: the exit of
    # multiprocessing waits for its processes without a limit.
    atexit.register(end)
    try:
        waiting: deque[_Worker[Task, Result]] = deque()
        for worker, task in zip(cycle(pool), tasks, strict=False):
            if len(waiting) == TASKS_AHEAD * workers:
                yield waiting.popleft().receive()
            worker.send(task)
            waiting.append(worker)
        while waiting:
            yield waiting.popleft().receive()
    finally:
        end()
        atexit.unregister(end)


class _Worker(Generic[Task, Result]):
    """A process and this side of its pipe, both made with its first task."""

    def __init__(self, work: Callable[[Task], Result]) -> None:
        self._work = work
        self._process: Any = None
        self._connection: Any = None

    def send(self, task: Task) -> None:
        if self._process is None:
            self._start()
        try:
            self._connection.send(task)
        except _ENDED:
            raise self._ended() from None

    def _start(self) -> None:
        # A fork is safe, since workers run no torch operation, and saves the import of torch.
        context: Any = get_context("fork" if sys.platform == "linux" else None)
        self._connection, other = context.Pipe()
        process = context.Process(target=_serve, args=(other, self._work, os.getpid()), daemon=True)
        self._process = process
        process.start()
        # No other process may hold this end: the end of the worker is then the end of the pipe.
        other.close()

    def receive(self) -> Result:
        """The result of the oldest task, or its error."""
        try:
            result, error, trace = pickle.loads(self._connection.recv_bytes())
        except _ENDED:
            raise self._ended() from None
        if error is not None:
            raise error from WorkerTraceback(f"\n{trace}")
        return result

    def end(self) -> None:
        """Kill: a worker holds nothing that another process could miss."""
        if self._process is not None and self._process.pid is not None:
            self._process.kill()
            self._process.join()

    def _ended(self) -> JobError:
        self._process.join(1)
        code = self._process.exitcode
        reason = f"exit code {code}"
        if code is not None and code < 0:
            reason = f"signal {signal.Signals(-code).name}"
        return JobError(
            f"A process that decodes images ended ({reason}), most often out of memory; run again "
            "with fewer workers."
        )


def _end_of(pool: list[_Worker[Any, Any]]) -> Callable[[], None]:
    """The end of all workers; without effect in a fork of this process, which does not own them."""
    owner = os.getpid()

    def end() -> None:
        if os.getpid() == owner:
            for worker in pool:
                worker.end()

    return end


def _serve(connection: Connection, work: Callable[[Any], Any], parent: int) -> None:
    """The loop of a worker process: a task in, its result or its error out.

    Schedulers and terminals signal the whole process group. The parent then saves and stops, and
    depends on its workers until that is done, so that they ignore these signals.
    """
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
    results: Queue[bytes] = Queue(1)
    for target, arguments in ((_end_with, (parent,)), (_send_all, (connection, results))):
        threading.Thread(target=target, args=arguments, daemon=True).start()
    try:
        while True:
            results.put(_attempt(work, connection.recv()))
    except _ENDED:
        os._exit(1)


def _end_with(parent: int) -> None:
    """End this process once the parent has died; a sibling may still hold the parent's pipe."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _send_all(connection: Connection, results: Queue[bytes]) -> None:
    try:
        while True:
            connection.send_bytes(results.get())
    except OSError:  # the parent has closed the pipe
        os._exit(1)


def _attempt(work: Callable[[Any], Any], task: Any) -> bytes:
    """(result, error, traceback) as bytes."""
    try:
        return pickle.dumps((work(task), None, ""), protocol=pickle.HIGHEST_PROTOCOL)
    except (UserError, JobError) as error:
        return pickle.dumps((None, error, traceback.format_exc()))
    except MemoryError:
        failure = JobError(
            "A process that decodes images ran out of memory; run again with fewer workers."
        )
        return pickle.dumps((None, failure, ""))
    except Exception as error:
        failure = unexpected(error, "A process that decodes images failed")
        return pickle.dumps((None, failure, traceback.format_exc()))
