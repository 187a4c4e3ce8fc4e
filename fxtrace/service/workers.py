"""Worker processes: a call that crashes, hangs or eats memory ends its own process, and nothing else.

Each worker has a pipe of its own and a thread in the front that keeps it: starts it, hands it calls, and when it dies
starts another. Progress comes over the same pipe. No lock is shared with a worker, so it may be killed at any moment;
killing it is how a call is stopped. A watch ends calls that take too long or too much memory.

Written here, since the pools that there are lose more than the one call: in pebble 5.2 a worker that dies idle breaks
the whole pool, a call that ends in `os._exit(0)` never ends, and all workers share two locks;
concurrent.futures gives up every call when one worker dies.
"""

from __future__ import annotations

import atexit
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass

from google.rpc.status_pb2 import Status

from fxtrace import wire
from fxtrace.errors import Busy, Cancelled, FxtraceError, MemoryLimit, ServerUnavailable, TimeLimit, WorkerCrashed
from fxtrace.service import worker
from fxtrace.service.jobs import Job, Outcome, WorkerDefect
from fxtrace.service.temporary import TemporaryFolder
from fxtrace.service.worker import Plan
from fxtrace.status import from_status
from fxtrace.v1 import trace_service_pb2 as rpc

_WATCH_SECONDS = 0.1
_START_SECONDS = 300.0  # that a worker may take to import PyTorch
_DYING_SECONDS = 1.0  # that a worker may take to exit once its pipe is closed
_LONGEST_REST_SECONDS = 30.0  # between two attempts to start a worker

# Not multiprocessing's own start, which would import the front's main module, and with it the command line or a script.
_PROGRAM = """
import sys
sys.path[:] = sys.argv[3:]
from fxtrace.service.worker import main
main(int(sys.argv[1]), int(sys.argv[2]))
"""
_NAMES = {each.value: each.name for each in signal.Signals}
_log = logging.getLogger("fxtrace.service")


@dataclass
class _Run:
    """A job in a worker."""

    job: Job
    started: float
    memory: int
    verdict: FxtraceError | None = None


class _Worker:
    """A worker process."""

    def __init__(self, plan: Plan) -> None:
        self.run: _Run | None = None
        self.born = time.monotonic()
        self._cause = ""
        self._temporary = TemporaryFolder()
        self._plan = (plan, self._temporary.path)
        try:
            self.connection, theirs = multiprocessing.Pipe()
        except OSError:
            self._temporary.remove()
            raise
        try:
            # Linux ends it with the thread that starts it: the one that keeps it.
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-c", _PROGRAM, str(theirs.fileno()), str(os.getpid()), *sys.path],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=2,  # the front's stdout is not for what models print
                start_new_session=True,
            )
        except BaseException:
            self.connection.close()
            self._temporary.remove()
            raise
        finally:
            theirs.close()

    def settle(self) -> bytes:
        """Tells the process what to be, and waits for its answer; nothing where it died."""
        try:
            self.connection.send(self._plan)
            return self.receive()
        except (EOFError, OSError):
            return b""

    def receive(self) -> bytes:
        """The next frame.

        Raises:
            EOFError, OSError: there is none: it died. A process that it started may still hold the pipe open.
        """
        while not self.connection.poll(_WATCH_SECONDS):
            if self.dead and not self.connection.poll():
                raise EOFError
        return self.connection.recv_bytes()

    @property
    def dead(self) -> bool:
        """Whether the process has ended."""
        return self.process.poll() is not None

    def memory(self) -> int:
        """Bytes that it holds and that are not a file's."""
        sizes = worker.memory(self.process.pid)
        return sizes.get("RssAnon", 0) + sizes.get("RssShmem", 0)

    def kill(self) -> None:
        """Ends the process and those that it started."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def bury(self) -> str:
        """Waits for the end, removes its temporary files, and says what it died of.

        What it left half-written in the store is removed when the next worker opens that.
        """
        if self._cause:
            return self._cause
        give_up = time.monotonic() + _DYING_SECONDS
        while not self.dead and time.monotonic() < give_up:
            time.sleep(0.005)
        alive = not self.dead
        self.kill()
        code = self.process.wait()
        self.connection.close()
        self._temporary.remove()
        if alive:
            self._cause = "it hung up"
        else:
            self._cause = f"exit code {code}" if code >= 0 else f"signal {-code} ({_NAMES.get(-code, 'real-time')})"
        return self._cause


class Workers:
    """A pool of worker processes.

    Args:
        plan: what each is.
        count: how many calls run at once.
        spare: how many more workers are kept, for light calls and to take over at once from one that died.
        queue: how many calls may wait.
        calls: a worker is replaced after so many.
        memory_hint: what to do where memory does not suffice.
    """

    def __init__(self, plan: Plan, *, count: int, spare: int, queue: int, calls: int, memory_hint: str) -> None:
        self._plan = plan
        self._count, self._queue, self._calls, self._memory_hint = count, queue, calls, memory_hint
        self._changed = threading.Condition()
        self._waiting: deque[Job] = deque()
        self._busy: set[_Worker] = set()
        self._up = 0  # workers that are ready, or at work
        self._seconds = 1.0  # that a call took lately
        self._closing = threading.Event()
        self._starting = threading.Lock()  # one after another: the first is ready the sooner
        self._threads = [threading.Thread(target=self._watch, name="fxtrace-watch", daemon=True)]
        self._threads += [
            threading.Thread(target=self._keep, name="fxtrace-keeper", daemon=True) for _ in range(count + spare)
        ]

    def start(self) -> None:
        """Starts the workers, in the background."""
        atexit.register(self.close)
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Stops the workers, and what they do."""
        atexit.unregister(self.close)
        self._closing.set()
        with self._changed:
            for each in self._busy:
                self._stop(each, _stopping())
            self._changed.notify_all()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()
        with self._changed:
            self._refuse(_stopping())

    @property
    def waiting(self) -> int:
        """How many calls wait."""
        with self._changed:
            return len(self._waiting)

    @property
    def alive(self) -> int:
        """How many workers are ready, or at work."""
        with self._changed:
            return self._up

    def submit(self, job: Job) -> None:
        """Puts a job into the queue.

        Raises:
            Busy: the queue is full.
        """
        with self._changed:
            before = sum(not each.light for each in self._waiting) + self._heavy()
            if before >= self._count + self._queue and not job.light:
                seconds = max(1, round(self._seconds * (before + 1 - self._count) / self._count))
                raise Busy.until(
                    f"{before} such calls run or wait, as many as may; try again in about {seconds} s", seconds
                )
            if self._closing.is_set():
                raise _stopping()
            self._waiting.append(job)
            self._changed.notify_all()

    def cancel(self, job: Job) -> None:
        """Ends a job that nobody waits for: at once, also where it is being done."""
        error = Cancelled("the caller gave up")
        with self._changed:
            with suppress(ValueError):
                self._waiting.remove(job)
                job.end(error)
            for each in self._busy:
                if each.run is not None and each.run.job is job:
                    self._stop(each, error)

    # ------------------------------------------------------------------------------------------ a keeper's thread

    def _keep(self) -> None:
        rest = 0.5
        while not self._closing.is_set():
            started = self._start()
            if started is None:
                self._closing.wait(rest)
                rest = min(2 * rest, _LONGEST_REST_SECONDS)
                continue
            rest = 0.5
            for _ in range(self._calls):
                job = self._next(started)
                if job is None or not self._do(started, job):
                    break
            started.kill()
            started.bury()
            with self._changed:
                self._up -= 1

    def _start(self) -> _Worker | None:
        """A worker that is ready; None where none can be started: where there is no other, those who wait are told."""
        problem: FxtraceError
        with self._starting:
            if self._closing.is_set():
                return None
            try:
                started = _Worker(self._plan)
                if self._is_ready(started):
                    return started
                cause = started.bury()
                problem = WorkerCrashed(f"no worker can be started: it ended with {cause}", cause=cause)
            except OSError as error:
                problem = WorkerCrashed(f"no worker can be started: {error.strerror}")
            except FxtraceError as error:
                started.bury()
                problem = error
        if not self._closing.is_set():
            _log.error("worker cannot start: %(problem)s", {"problem": problem.message})
            with self._changed:
                if not self._up:
                    self._refuse(problem)
        return None

    def _is_ready(self, started: _Worker) -> bool:
        """Waits until a worker is ready, or has died of it; raises why it cannot be, where it says so."""
        with self._changed:
            self._busy.add(started)  # so that closing ends it
            if self._closing.is_set():
                started.kill()
        answer = started.settle()
        with self._changed:
            self._busy.discard(started)
            self._up += answer == worker.READY
        if answer[:1] == worker.ERROR:
            raise from_status(Status.FromString(answer[1:]))
        return answer == worker.READY

    def _refuse(self, error: FxtraceError) -> None:
        """Ends all that waits; with `_changed` held."""
        while self._waiting:
            self._waiting.popleft().end(error)

    def _heavy(self) -> int:
        """How many jobs run that are not light; with `_changed` held."""
        return sum(each.run is not None and not each.run.job.light for each in self._busy)

    def _next(self, free: _Worker) -> Job | None:
        """The next job for a worker, which is then its own; None where it died, or the pool closes."""
        with self._changed:
            while not self._closing.is_set() and not free.dead:
                for job in self._waiting:
                    if job.light or self._heavy() < self._count:
                        self._waiting.remove(job)
                        free.run = _Run(job, time.monotonic(), free.memory())
                        self._busy.add(free)
                        return job
                self._changed.wait(1)  # now and then it is seen whether the worker lives
        return None

    def _do(self, doing: _Worker, job: Job) -> bool:
        """Has a worker do a job, and ends the job. Returns whether the worker can do another."""
        assert doing.run is not None
        run, begun, cause = doing.run, False, ""
        outcome: Outcome | None = None
        try:
            doing.connection.send((job.method, job.args))
            begun = doing.receive() == worker.BEGUN
            outcome = self._listen(doing, job)
        except Exception:  # noqa: BLE001 - whatever it is, the worker is lost, and its keeper must go on
            cause = doing.bury()
        with self._changed:
            doing.run = None
            self._busy.discard(doing)
            if not job.light:
                self._seconds += (time.monotonic() - run.started - self._seconds) / 4
            again = outcome is None and run.verdict is None and not (begun or job.lost)
            if again:  # the worker had died before
                job.lost = True
                self._waiting.appendleft(job)
            self._changed.notify_all()
        if outcome is None and not again:
            outcome = run.verdict or WorkerCrashed(
                f"{job.what} ended the process that did it: {cause}; nothing else was harmed", cause=cause
            )
            level = logging.INFO if isinstance(outcome, Cancelled | ServerUnavailable) else logging.WARNING
            values = {"pid": doing.process.pid, "cause": cause, "problem": outcome.message}
            _log.log(level, "worker pid=%(pid)s ended cause=%(cause)s: %(problem)s", values)
        if outcome is not None:
            job.end(outcome)
        return not cause and run.verdict is None  # with a verdict, it was killed in its last moment

    def _listen(self, doing: _Worker, job: Job) -> Outcome:
        """What a worker says about its job, up to how it ended."""
        while True:
            frame = doing.receive()
            kind, body = frame[:1], frame[1:]
            match kind:
                case worker.PROGRESS:
                    job.tell(wire.PROGRESS.decode(rpc.Progress.FromString(body)))
                case worker.PART:
                    job.add(body)
                case worker.CLAIM:
                    doing.connection.send(job.claim(body.decode()))
                case worker.VALUE:
                    return body
                case worker.ERROR:
                    return Status.FromString(body)
                case worker.EXHAUSTED:
                    return self._memory_limit(job)
                case worker.DEFECT:
                    return WorkerDefect(body.decode(errors="replace"))
                case _:
                    raise ValueError(f"a worker said {kind!r}")

    # ----------------------------------------------------------------------------------------- the watch's thread

    def _watch(self) -> None:
        while not self._closing.wait(_WATCH_SECONDS):
            with self._changed:
                for each in self._busy:
                    run = each.run
                    if run is None:  # it starts
                        if time.monotonic() - each.born > _START_SECONDS:
                            each.kill()
                    elif each.dead:
                        each.kill()  # what it started may live, and hold the pipe open
                    elif time.monotonic() - run.started > run.job.seconds:
                        seconds = run.job.seconds
                        message = f"{run.job.what} took longer than {seconds:g} s, which is as long as a call may"
                        self._stop(each, TimeLimit(message, seconds=f"{seconds:g}"))
                    elif each.memory() - run.memory > self._plan.memory_bytes:
                        self._stop(each, self._memory_limit(run.job))

    def _stop(self, each: _Worker, verdict: FxtraceError) -> None:
        """Kills a worker for a reason; with `_changed` held."""
        if each.run is not None and each.run.verdict is None:
            each.run.verdict = verdict
            each.run.job.end(verdict)  # nor does its keeper wait any more for somebody to take a part
        each.kill()

    def _memory_limit(self, job: Job) -> MemoryLimit:
        limit = self._plan.memory_bytes
        return MemoryLimit(
            f"{job.what} took more than {limit >> 20:,} MiB of memory, which is as much as a call may; "
            f"{self._memory_hint}",
            memory_bytes=limit,
        )


def _stopping() -> ServerUnavailable:
    return ServerUnavailable("the server is stopping; ask again when it is back")
