"""The errors that the protos' comments list are those that the service gives.

What a server answered in any other test is held against the comments, too: see `errors_are_listed` in conftest.py.
"""

from __future__ import annotations

import pytest
from google.rpc import code_pb2

from fxtrace.errors import FxtraceError, InvalidRequest, NotFound, TlsFailed
from fxtrace.service.servicer import SERVICE
from fxtrace.status import to_status
from tests.protos.compiled import listed
from tests.test_status import KINDS

STATUSES = {kind.reason: code_pb2.Code.Name(to_status(kind("")).code) for kind in KINDS}
NEVER_SENT: set[type[FxtraceError]] = {InvalidRequest, NotFound, TlsFailed}  # only bases; and what a client finds out


@pytest.mark.parametrize("method", [method.name for method in SERVICE.methods])
def test_what_an_rpc_lists_is_true(method: str) -> None:
    errors = listed()[method]
    assert errors <= {(status, reason) for reason, status in STATUSES.items()}
    assert not errors & listed()[""], "said for every RPC already"
    assert errors or method == "GetServer"


def test_every_reason_is_listed() -> None:
    reasons = {reason for errors in listed().values() for _, reason in errors}
    assert set(STATUSES) - reasons <= {kind.reason for kind in NEVER_SENT}


def test_what_any_rpc_may_end_with_is_true() -> None:
    assert listed()[""] <= {(status, reason) for reason, status in STATUSES.items()}
    assert {"UNAUTHENTICATED", "SHUTTING_DOWN", "INTERNAL"} <= {reason for _, reason in listed()[""]}
