"""The boundaries of a command, and a fault at one of them.

A boundary is a file operation below a folder, the start of a thread or the start of a process,
seen by Python's audit events (and `os.fsync`, which has none) before it happens. Each has a name
that does not depend on the order of threads: its process, event, path and count. `record` lists
those of a command; `Fault` raises an error at one of them, or kills the process there.

Commands run in children forked from the test, as another import of torch takes seconds. An audit
hook cannot be removed, which does not matter in a child.
"""

from __future__ import annotations

import errno
import gc
import logging
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import psutil

LIMIT = 30  # seconds, without those of waiting for a processor: an end in time
LONGEST = 900  # seconds of a machine that is busy with other things
FILES = {
    "os.rename": 2,  # paths among the arguments of the event
    "os.mkdir": 1,
    "os.remove": 1,
    "os.rmdir": 1,
    "os.listdir": 1,
    "os.scandir": 1,
    "os.truncate": 1,
    "os.link": 2,
    "os.symlink": 2,
}
STARTS = ("os.fork", "os.posix_spawn", "subprocess.Popen")
THREADS = ("_thread.start_new_thread", "_thread.start_joinable_thread")
_NUMBERS = (  # parts of names that differ between runs
    (re.compile(r"\.\d+(\.removed)?\.partial"), r".PID\1.partial"),
    (re.compile(r"events\.out\.tfevents.*"), "events.out.tfevents"),
    (re.compile(r"\.break\.\d+.*"), ".break"),
)
_TRACED = "BOUNDARY"


class Boundary(NamedTuple):
    """process: 0 is the command's own, 1 ... its children in the order of their start."""

    process: int
    event: str
    path: str
    count: int

    def __str__(self) -> str:
        where = f"worker {self.process}: " if self.process else ""
        return f"{where}{self.event} {self.path} #{self.count}".rstrip()

    @property
    def writes(self) -> bool:
        """Whether it changes the file system."""
        return self.event not in ("open r", "os.listdir", "os.scandir", *STARTS, *THREADS)


@dataclass(frozen=True)
class Fault:
    """A failure at a boundary: an errno of the file system, `bug` or `kill`."""

    at: Boundary
    kind: str | int

    def __str__(self) -> str:
        kind = self.kind if isinstance(self.kind, str) else errno.errorcode[self.kind]
        return f"{kind} at {self.at}"

    def happen(self, path: str) -> None:
        if self.kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.kind == "bug":
            raise ZeroDivisionError("injected")
        if self.at.event in THREADS:
            raise RuntimeError("can't start new thread")
        if self.at.event in STARTS:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        assert isinstance(self.kind, int)
        raise OSError(self.kind, os.strerror(self.kind), path)


@dataclass(frozen=True)
class Ended:
    """The end of a command. leftovers: processes that were alive, locks that were held."""

    code: int | None
    seconds: float
    output: str
    leftovers: tuple[str, ...]

    @property
    def sentences(self) -> list[str]:
        """The error messages of the command line."""
        return [line for line in self.output.splitlines() if line.startswith("latentddm: ")]


def run(
    command: Callable[[], int],
    folder: Path,
    log: Path,
    fault: Fault | None = None,
    record: bool = True,
) -> tuple[Ended, list[Boundary]]:
    """Run `command` in a child, with a fault or none; the boundaries below `folder` it passed.

    record: False where the child can write no files.
    """
    trace = log.with_suffix(".boundaries")
    trace.unlink(missing_ok=True)
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        _in_child(command, folder.resolve(), log, trace if record else Path(os.devnull), fault)
    code = _wait(child, started)
    seconds = time.monotonic() - started
    left = tuple(f"process {pid} is alive" for pid in _alive(child))
    output = log.read_text(errors="replace") if log.exists() else ""
    lines = trace.read_text().splitlines() if trace.exists() else []
    ended = Ended(code, seconds, output, left + tuple(_locked(folder)))
    return ended, [_parse(line) for line in lines]


def _in_child(
    command: Callable[[], int], folder: Path, log: Path, trace: Path, fault: Fault | None
) -> NoReturn:
    code = 97
    try:
        os.setsid()
        gc.freeze()  # a collection would touch, and so copy, all memory of the test
        _fresh_streams(log)
        os.environ |= {"ACCELERATE_USE_CPU": "true", "LATENTDDM_CACHE": str(folder / "cache")}
        _fresh_torch()
        descriptor = os.open(trace, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        hook = _Hook(folder, descriptor, fault)
        hook.install()
        code = command()
        hook.done = True
        gc.collect()
        if multiprocessing.active_children():
            print("worker processes are alive after the command")
            code = 96
        threading._shutdown()  # type: ignore[attr-defined]  # as at the exit of the interpreter
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _fresh_streams(log: Path) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", 1, closefd=False) for number in (1, 2))
    logging.root.handlers.clear()


def _fresh_torch() -> None:
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)  # OpenMP's threads are lost in a fork
    if "accelerate.state" in sys.modules:
        sys.modules["accelerate.state"].AcceleratorState._reset_state(reset_partial_state=True)


class _Hook:
    def __init__(self, folder: Path, descriptor: int, fault: Fault | None) -> None:
        self.root, self.descriptor, self.fault = f"{folder}/", descriptor, fault
        self.counts: Counter[tuple[str, str]] = Counter()
        self.process, self.forks, self.done = 0, 0, False
        self.busy = threading.local()
        self.lock = threading.Lock()

    def install(self) -> None:
        fsync = os.fsync

        def audited_fsync(descriptor: int) -> None:
            self("fsync", (os.readlink(f"/proc/self/fd/{int(descriptor)}"),))
            fsync(descriptor)

        os.fsync = audited_fsync
        os.register_at_fork(before=self._before_fork, after_in_child=self._enter_child)
        sys.addaudithook(self)

    def _before_fork(self) -> None:
        self.forks += 1

    def _enter_child(self) -> None:
        self.process, self.forks = 100 * self.process + self.forks, 0
        self.counts.clear()
        self.lock = threading.Lock()
        self.busy = threading.local()

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.done or getattr(self.busy, "on", False):
            return
        self.busy.on = True
        try:
            found = self._place(event, arguments)
            if found is None:
                return
            with self.lock:
                self.counts[found[:2]] += 1
                boundary = Boundary(self.process, *found[:2], self.counts[found[:2]])
            os.write(self.descriptor, ("\t".join(map(str, boundary)) + "\n").encode())
            if self.fault is not None and self.fault.at == boundary:
                os.write(self.descriptor, f"{_TRACED}\t{boundary}\n".encode())
                self.fault.happen(found[2])
        finally:
            self.busy.on = False

    def _place(self, event: str, arguments: tuple[Any, ...]) -> tuple[str, str, str] | None:
        """(event, normalised path, path) of a boundary; None for any other event."""
        if event in STARTS:
            return event, "", ""
        if event in THREADS:
            thread = getattr(arguments[0], "__self__", None)
            target = getattr(thread, "_target", None) or arguments[0]
            return event, getattr(target, "__qualname__", str(type(target).__name__)), ""
        if event == "open":
            flags = arguments[2] if isinstance(arguments[2], int) else 0
            wrote = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            return self._below("open w" if wrote else "open r", arguments[0])
        if event in FILES or event == "fsync":
            return self._below(event, arguments[FILES.get(event, 1) - 1])
        return None

    def _below(self, event: str, path: Any) -> tuple[str, str, str] | None:
        if not isinstance(path, str | bytes | os.PathLike):
            return None
        text = os.path.abspath(os.fsdecode(path))
        if not f"{text}/".startswith(self.root):
            return None
        shown = text[len(self.root) :]
        for pattern, replacement in _NUMBERS:
            shown = pattern.sub(replacement, shown)
        return event, shown, text


def happened(log: Path) -> bool:
    """Whether the fault of the last `run` with this log was reached."""
    return _TRACED in log.with_suffix(".boundaries").read_text()


def _parse(line: str) -> Boundary:
    if line.startswith(_TRACED):
        return Boundary(-1, _TRACED, "", 0)
    process, event, path, count = line.split("\t")
    return Boundary(int(process), event, path, int(count))


def _wait(child: int, started: float) -> int | None:
    """The exit code of a child; None, and its whole session is killed, if it is late."""
    waited, checked = 0.0, started
    while (now := time.monotonic()) < started + min(LIMIT + waited, LONGEST):
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        if now > checked + 5:
            waited, checked = max(waited, _seconds_in_queue(child)), now
        time.sleep(0.005)
    for pid in [child, *_session(child)]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def _seconds_in_queue(session: int) -> float:
    """The time that the threads of a session have waited for a processor; 0 where unknown."""
    total = 0.0
    for pid in [session, *_session(session)]:
        for path in Path(f"/proc/{pid}/task").glob("*/schedstat"):
            with suppress(OSError, ValueError, IndexError):
                total += int(path.read_text().split()[1]) / 1e9
    return total


def _alive(session: int, seconds: float = LIMIT) -> list[int]:
    """The processes of a session that are alive after some time to end, which are then killed."""
    end = time.monotonic() + seconds
    while found := _session(session):
        if time.monotonic() > end:
            for pid in found:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            break
        time.sleep(0.02)
    return found


def _session(leader: int) -> list[int]:
    found = []
    for pid in psutil.pids():
        with suppress(OSError, psutil.Error):
            in_session = pid != leader and os.getsid(pid) == leader
            if in_session and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                found.append(pid)
    return found


def _locked(folder: Path) -> list[str]:
    """The lock files that another process still holds."""
    import fcntl

    held = []
    for path in folder.rglob("*.lock"):
        with open(path) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                held.append(f"{path} is locked")
    return held


def kinds_at(boundaries: Sequence[Boundary], kinds: Sequence[str | int]) -> list[Fault]:
    """A fault at each boundary: for writes the kinds in turn, for reads EIO."""
    faults, turn = [], 0
    for boundary in boundaries:
        kind: str | int = errno.EIO
        if boundary.writes:
            kind, turn = kinds[turn % len(kinds)], turn + 1
        faults.append(Fault(boundary, kind))
    return faults
