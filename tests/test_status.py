from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest
from google.protobuf.any_pb2 import Any
from google.rpc import code_pb2
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from hypothesis import given
from hypothesis import strategies as st

from fxtrace import errors
from fxtrace.errors import ConfigurationError, FxtraceError, InternalError, InvalidRequest, TensorNotFound
from fxtrace.status import CODES, from_status, to_status, unexpected


def family(kind: type[FxtraceError]) -> Iterator[type[FxtraceError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from family(child)


KINDS = [kind for kind in family(FxtraceError) if kind.__module__ == errors.__name__ and kind is not FxtraceError]


def test_reasons_tell_the_classes_apart() -> None:
    assert len({kind.reason for kind in KINDS}) == len(KINDS) > 20


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_arrives_as_what_it_was(kind: type[FxtraceError]) -> None:
    error = kind("expected a, got b: ×", field="configuration.d_model", model="reference", size=7)
    status = Status.FromString(to_status(error).SerializeToString())
    back = from_status(status)
    assert type(back) is kind
    assert (back.message, back.field, back.metadata) == (
        error.message,
        error.field,
        {"model": "reference", "size": "7"},
    )
    assert str(back) == str(error)


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (errors.SliceInvalid, grpc.StatusCode.INVALID_ARGUMENT),
        (errors.TraceNotFound, grpc.StatusCode.NOT_FOUND),
        (errors.ValuesAbsent, grpc.StatusCode.FAILED_PRECONDITION),
        (errors.TooLarge, grpc.StatusCode.RESOURCE_EXHAUSTED),
        (errors.StoreDamaged, grpc.StatusCode.DATA_LOSS),
        (errors.InternalError, grpc.StatusCode.INTERNAL),
        (errors.WorkerCrashed, grpc.StatusCode.FAILED_PRECONDITION),
        (errors.TimeLimit, grpc.StatusCode.DEADLINE_EXCEEDED),
        (errors.MemoryLimit, grpc.StatusCode.RESOURCE_EXHAUSTED),
        (errors.Busy, grpc.StatusCode.RESOURCE_EXHAUSTED),
    ],
)
def test_codes_are_grpc_s(kind: type[FxtraceError], code: grpc.StatusCode) -> None:
    assert to_status(kind("x")).code == code.value[0]


def test_other_languages_find_reason_domain_and_field() -> None:
    status = to_status(ConfigurationError("no", field="configuration.n_heads", given=3))
    info, bad = ErrorInfo(), BadRequest()
    assert status.details[0].Unpack(info)
    assert status.details[1].Unpack(bad)
    assert (info.reason, info.domain, dict(info.metadata)) == ("CONFIGURATION_INVALID", "fxtrace", {"given": "3"})
    assert [violation.field for violation in bad.field_violations] == ["configuration.n_heads"]


def test_when_to_come_again_is_told_in_every_language() -> None:
    status = to_status(errors.Busy.until("full", 2.5, waiting=3))
    retry = RetryInfo()
    assert status.details[-1].Unpack(retry)
    assert retry.retry_delay.ToMilliseconds() == 2500
    back = from_status(status)
    assert isinstance(back, errors.Busy)
    assert (back.retry_after, back.metadata) == (2.5, {"retry_after": "2.5", "waiting": "3"})


@pytest.mark.parametrize("code", sorted(CODES.values()))
def test_an_unknown_reason_gives_the_base_of_its_code(code: int) -> None:
    detail = Any()
    detail.Pack(ErrorInfo(reason="OF_A_NEWER_SERVER", domain="fxtrace"))
    error = from_status(Status(code=code, message="later", details=[detail]))
    assert CODES[type(error)] == code
    assert error.message == "later"


@pytest.mark.parametrize("code", [code_pb2.UNKNOWN, code_pb2.UNIMPLEMENTED, 99])
def test_an_unknown_code_gives_an_internal_error(code: int) -> None:
    assert type(from_status(Status(code=code, message="what"))) is InternalError


def test_a_reason_does_not_outweigh_its_code() -> None:
    """A proxy that turns a status into another code means the code."""
    status = to_status(TensorNotFound("gone"))
    status.code = code_pb2.INVALID_ARGUMENT
    assert type(from_status(status)) is InvalidRequest


@given(st.text(min_size=1000, max_size=3000), st.text("×\U0001f642", min_size=300))
def test_long_texts_are_cut_to_what_trailers_hold(message: str, value: str) -> None:
    error = TensorNotFound(message, field=value, **{f"key{i}": value for i in range(20)})
    assert len(to_status(error).SerializeToString()) < 3300
    assert from_status(to_status(error)).message[:300] == message[:300].encode(errors="replace").decode()


def test_a_defect_shows_its_request_and_nothing_else() -> None:
    error = unexpected("c0ffee")
    assert error.metadata == {"request_id": "c0ffee"}
    assert "c0ffee" in error.message
