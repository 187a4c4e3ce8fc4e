"""What runs in a worker process: an engine of its own, which does one call after another.

The front sends a method's name and its arguments, pickled. The worker answers in frames, a letter and bytes: nothing
that comes out of a worker is unpickled. A call that gives much gives it in PARTs. It ends with a VALUE, an ERROR,
EXHAUSTED or a DEFECT.
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from fxtrace import wire
from fxtrace.diff import GraphDiff
from fxtrace.errors import FxtraceError
from fxtrace.ir.trace import ImageFormat, Progress, RenderOptions, TraceRequest
from fxtrace.models import Registry
from fxtrace.service.engine import Engine
from fxtrace.status import with_stack
from fxtrace.store import Store
from fxtrace.sweep import SweepRequest
from fxtrace.sweep.messages import SWEEP_BATCH
from fxtrace.v1 import trace_service_pb2 as rpc

READY = b"R"
BEGUN = b"B"  # the call arrived
PROGRESS = b"P"  # a Progress message
CLAIM = b"C"  # the id of the trace that is about to be made; the front answers whether to
PART = b"T"  # a part of what the method gives, serialised
VALUE = b"V"  # what the method gave, serialised
ERROR = b"E"  # a google.rpc.Status
EXHAUSTED = b"X"  # memory ran out
DEFECT = b"D"  # the stack of an exception that is none of fxtrace's

_REPORT_SECONDS = 0.05
_DEATH_SIGNAL = 1  # prctl's PR_SET_PDEATHSIG


@dataclass(frozen=True)
class Plan:
    """What a worker is to be.

    Attributes:
        place: the store's.
        quota_bytes: the store's.
        models: what is on offer.
        captures: whether PyTorch is imported before the first call.
        threads: that PyTorch may use.
        memory_bytes: that one call may take.
    """

    place: str
    quota_bytes: int | None
    models: Registry
    captures: bool
    threads: int
    memory_bytes: int


class _Joined(Exception):
    """The trace is being made already."""


class _Caller:
    """The front, as a call sees it."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._stage, self._next = "", 0.0

    def report(self, progress: Progress) -> None:
        """Passes progress on: each stage's beginning and end, and now and then what is between."""
        now = time.monotonic()
        if progress.stage != self._stage or now >= self._next or progress.done == progress.total:
            self._stage, self._next = progress.stage, now + _REPORT_SECONDS
            self._connection.send_bytes(PROGRESS + wire.PROGRESS.encode(progress).SerializeToString())

    def part(self, part: bytes) -> None:
        """Passes on a part of what the call gives."""
        self._connection.send_bytes(PART + part)

    def claim(self, trace_id: str) -> None:
        """Asks whether this trace is to be made here."""
        self._connection.send_bytes(CLAIM + trace_id.encode())
        if not self._connection.recv():
            raise _Joined


def create_trace(engine: Engine, caller: _Caller, request: TraceRequest) -> bytes:
    """A CreateTraceResponse message; nothing where another worker makes that trace."""
    try:
        trace = engine.create_trace(request, progress=caller.report, begin=caller.claim)
    except _Joined:
        return b""
    return rpc.CreateTraceResponse(trace=wire.TRACE.encode(trace), reused=trace.reused).SerializeToString()


def get_model(engine: Engine, _: _Caller, name: str) -> bytes:
    """A Model message."""
    return wire.MODEL.encode(engine.get_model(name)).SerializeToString()


def render_graph(
    engine: Engine, caller: _Caller, trace_id: str, image_format: ImageFormat, options: RenderOptions | None
) -> bytes:
    """The picture."""
    return engine.render_graph(trace_id, image_format, options, progress=caller.report)


def diff_traces(engine: Engine, caller: _Caller, before: str, after: str) -> bytes:
    """A GraphDiff message."""
    return wire.GRAPH_DIFF.encode(engine.diff_traces(before, after, progress=caller.report)).SerializeToString()


def draw_diff(
    engine: Engine,
    caller: _Caller,
    before: str,
    after: str,
    image_format: ImageFormat,
    options: RenderOptions | None,
    diff: GraphDiff,
) -> bytes:
    """The picture."""
    return engine.draw_diff(before, after, image_format, options, diff=diff, progress=caller.report)


def find_formulas(engine: Engine, caller: _Caller, trace_id: str) -> bytes:
    """A Formulas message."""
    return wire.encode_formulas(engine.find_formulas(trace_id, progress=caller.report)).SerializeToString()


def sweep_shapes(engine: Engine, caller: _Caller, request: SweepRequest) -> bytes:
    """Nothing; SweepBatch messages are its parts."""
    for batch in engine.sweep_shapes(request, progress=caller.report):
        caller.part(SWEEP_BATCH.encode(batch).SerializeToString())
    return b""


_METHODS: Mapping[str, Callable[..., bytes]] = {
    "create_trace": create_trace,
    "diff_traces": diff_traces,
    "draw_diff": draw_diff,
    "find_formulas": find_formulas,
    "get_model": get_model,
    "render_graph": render_graph,
    "sweep_shapes": sweep_shapes,
}


def main(descriptor: int, front: int) -> None:
    """Works until the front hangs up.

    Args:
        descriptor: of the pipe to the front.
        front: the front's process id.
    """
    _end_with(front)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the front
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    faulthandler.enable()
    connection = Connection(descriptor)
    os.set_inheritable(descriptor, False)
    plan, temporary = connection.recv()
    os.environ["TMPDIR"] = tempfile.tempdir = str(temporary)
    try:
        engine = Engine(Store(plan.place, quota_bytes=plan.quota_bytes), plan.models, render_seconds=None).restricted()
        if plan.captures:
            import torch

            import fxtrace.service.tracing  # noqa: F401 - all that a capture needs, before the first one

            torch.set_num_threads(plan.threads)
    except FxtraceError as error:
        connection.send_bytes(_failure(error))
        return
    connection.send_bytes(READY)
    while True:
        try:
            method, args = connection.recv()
        except EOFError:
            return
        connection.send_bytes(BEGUN)
        with _Allowance(plan.memory_bytes):
            answer = _answer(engine, _Caller(connection), method, args)
        connection.send_bytes(answer)


def _answer(engine: Engine, caller: _Caller, method: str, args: tuple[object, ...]) -> bytes:
    try:
        value: bytes = _METHODS[method](engine, caller, *args)
        return VALUE + value
    except SystemExit as error:
        os._exit(error.code if isinstance(error.code, int) else error.code is not None)
    except BaseException as error:  # noqa: BLE001 - whatever it is, the front is told
        if not _is_out_of_memory(error):
            if isinstance(error, FxtraceError):
                return _failure(error)
            return DEFECT + "".join(traceback.format_exception(error)).encode(errors="replace")
    return EXHAUSTED  # said when the exception, and the memory that it held on to, is gone


def _failure(error: FxtraceError) -> bytes:
    status: bytes = with_stack(error).SerializeToString()
    return ERROR + status


def _end_with(front: int) -> None:
    """Has this process killed when the front dies, where the system can do that."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != front:  # it died before
        os._exit(1)


class _Allowance:
    """Within the block, this process gets this much memory beyond what it has: an allocation beyond it fails.

    RLIMIT_DATA counts what is private and writable, so neither libraries, nor files that are mapped, nor the address
    space that a GPU's driver sets aside: see setrlimit(2). What it misses (shared memory), the front watches.
    """

    def __init__(self, nbytes: int) -> None:
        self._nbytes = nbytes

    def __enter__(self) -> None:
        self._before = _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        if size := memory().get("VmData"):
            soft = size + self._nbytes
            resource.setrlimit(
                resource.RLIMIT_DATA, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard)
            )

    def __exit__(self, *_: object) -> None:
        resource.setrlimit(resource.RLIMIT_DATA, self._before)


def memory(process: int | str = "self") -> dict[str, int]:
    """Bytes of memory of a process, by the names of proc(5)'s status file; empty where there is no such process."""
    try:
        lines = Path(f"/proc/{process}/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return {}
    return {name: int(size.split()[0]) << 10 for name, _, size in (x.partition(":") for x in lines) if " kB" in size}


def _is_out_of_memory(error: BaseException | None) -> bool:
    """Whether the error, or one that it came from, is that memory ran out."""
    seen = set()
    while error is not None and id(error) not in seen:
        # PyTorch raises a RuntimeError for the CPU's memory.
        if isinstance(error, MemoryError) or "can't allocate memory" in str(error) or "bad_alloc" in str(error):
            return True
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return False
