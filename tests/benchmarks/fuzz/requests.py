"""Requests as hypothesis draws them: messages made from the descriptors, and bytes that are no messages, or almost.

What an RPC or a field is called here is read off the server's descriptors, so that a new one is drawn without a change.
`Vocabulary` says which values make sense where; what it does not know is made of its other words, and of odd ones.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

DEADLINE_SECONDS = 30.0
"""What a call has that is to be answered: far more than any takes."""

WORK_SECONDS = 5.0
"""What long work has, which may not be done by then."""

_DEPTH = 4  # of messages in messages
_ODD_TEXTS = (
    *("", " ", "\0", "a\0b", "\x1b[31m\r\n", "\u202e", "e\u0301\u0327", "𝔘𝔫𝔦", "ﷺ", "\ufeff", "🧨" * 50),
    *("../../etc/passwd", "/etc/passwd", "file:///etc/passwd", "C:\\x", "~", "traces/..", "models/../reference"),
    *("traces/", "traces/" + "0" * 32, "traces/" + "F" * 32, "traces/" + "0" * 33, "models/", "models", "/"),
    *("__import__('os')", "'; DROP TABLE stored_traces; --", "%s%n", "{0.__class__}", "${x}", "<script>", "\\x00"),
    *("-1", "9" * 40, "9" * 5000, "1e999", "nan", "0x10", "True", "None", "a" * 20_000, "." * 300, "," * 300),
    *("(" * 1000, "[" * 1000, "((a|b)*)*" * 20, "a{1,999}" * 9, "!" * 500, "-" * 500, "a.b" * 500, "::::", "...,..."),
)
_INTEGERS = (0, 1, 2, 3, 5, 8, 43, 64, 1000, 4096, 5001, 1 << 20, (1 << 31) - 1, 1 << 31, (1 << 53) + 1, (1 << 63) - 1)
_VARINTS = (b"\xff" * 9 + b"\x01", b"\xff" * 10, b"\xff" * 30, b"\x80" * 20, b"\xff\xff\xff\xff\x07", b"\x80\x80\x01")
_MOSTLY, _EVENLY, _RARELY = (st.sampled_from([True] * yes + [False] * no) for yes, no in ((9, 1), (1, 1), (1, 29)))
_WELL_MADE = st.sampled_from([True, True, True, False])
_SELDOM = ("Watch", "List", "GetServer")  # there is little to them
_HEADERS = st.text([chr(code) for code in range(32, 127)], max_size=80)
_FEW = st.sampled_from([0, 1, 1, 2, 3])
_RANGES = {
    FieldDescriptor.CPPTYPE_INT32: (-(1 << 31), (1 << 31) - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(1 << 63), (1 << 63) - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, (1 << 32) - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, (1 << 64) - 1),
}


@dataclass(frozen=True)
class Vocabulary:
    """What makes sense in which field: by its name ("trace"), or by its message's and its own ("TensorData.dtype")."""

    known: Mapping[str, Sequence[str | int | float]]

    def of(self, field: FieldDescriptor) -> Sequence[str | int | float]:
        """Values for a field; none where nothing is known of it."""
        owner = field.containing_type.name if field.containing_type else ""
        return self.known.get(f"{owner}.{field.name}", self.known.get(field.name, ()))

    @property
    def words(self) -> list[str]:
        """Every text that makes sense somewhere."""
        return sorted({value for values in self.known.values() for value in values if isinstance(value, str)})


@dataclass(frozen=True, slots=True)
class Request:
    """A call to make.

    Attributes:
        method: as gRPC has it, "/fxtrace.v1.TraceService/GetGraph".
        payload: the request's bytes.
        metadata: what goes with it.
        deadline: seconds.
        cancel_after: seconds after which the caller gives up; None where it does not.
    """

    method: str
    payload: bytes
    metadata: tuple[tuple[str, str], ...]
    deadline: float
    cancel_after: float | None


def draw_requests(strategy: SearchStrategy[Request], count: int, number: int) -> list[Request]:
    """So many requests; the same ones for the same number."""
    made: list[Request] = []

    @seed(number)
    @settings(
        max_examples=count,
        phases=[Phase.generate],
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def collect(request: Request) -> None:
        made.append(request)

    collect()
    return made


def requests(methods: Sequence[MethodDescriptor], vocabulary: Vocabulary) -> SearchStrategy[Request]:
    """Calls of these RPCs."""
    # Work that reports progress costs a process's time, so that there is less of it.
    often = [each for each in methods for _ in range(1 if reports_progress(each) or each.name in _SELDOM else 5)]
    messages = _Messages(vocabulary)
    typed = {each.full_name: messages.strategy(each.input_type) for each in methods}
    wild = {name: _bytes_like(message) for name, message in typed.items()}

    @st.composite
    def request(draw: DrawFn) -> Request:
        method = draw(st.sampled_from(often))
        message = typed[method.full_name]
        payload = draw(message) if draw(_WELL_MADE) else draw(wild[method.full_name])
        mood = draw(st.integers(1, 20))  # its ends come more often than the rest: they are the usual
        return Request(
            f"/{method.containing_service.full_name}/{method.name}",
            payload,
            (("x-request-id", draw(_HEADERS)),) if mood == 5 else (),
            draw(st.floats(0.001, 0.2))
            if mood == 6
            else WORK_SECONDS
            if reports_progress(method)
            else DEADLINE_SECONDS,
            draw(st.floats(0, 0.2)) if mood == 7 else None,
        )

    return request()


def reports_progress(method: MethodDescriptor) -> bool:
    """Whether an RPC is long work, which says how far it is."""
    return "progress" in method.output_type.fields_by_name


class _Messages:
    """Serialised messages of any type."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        words = vocabulary.words
        self._odd = st.one_of(
            st.sampled_from(_ODD_TEXTS),
            st.text(max_size=30),
            st.sampled_from(words),
            _near(words),
        )
        self._odd_scalars: dict[str, SearchStrategy[Any]] = {}

    def strategy(self, descriptor: Descriptor) -> SearchStrategy[bytes]:
        """Bytes of messages of a type: half of them careful, such as a caller sends who knows what there is."""

        @st.composite
        def message(draw: DrawFn) -> bytes:
            data: bytes = self._message(draw, descriptor, draw(_EVENLY), 0).SerializeToString()
            return data

        return message()

    def _message(self, draw: DrawFn, descriptor: Descriptor, careful: bool, depth: int) -> Any:
        made = GetMessageClass(descriptor)()
        for field in descriptor.fields:
            often = careful and bool(self._vocabulary.of(field))
            if draw(_MOSTLY if often else _EVENLY) and (field.message_type is None or depth < _DEPTH):
                self._fill(draw, made, field, careful, depth)
        return made

    def _fill(self, draw: DrawFn, made: Any, field: FieldDescriptor, careful: bool, depth: int) -> None:
        inner = field.message_type

        def value(of: FieldDescriptor) -> Any:
            if of.message_type is None:
                return self._scalar(draw, of, careful)
            return self._message(draw, of.message_type, careful, depth + 1)

        if inner is not None and inner.GetOptions().map_entry:
            for _ in range(draw(_FEW)):
                key, content = value(inner.fields_by_name["key"]), value(inner.fields_by_name["value"])
                entries = getattr(made, field.name)
                if isinstance(content, Message):
                    entries[key].CopyFrom(content)
                else:
                    entries[key] = content
        elif field.is_repeated:
            items = [value(field) for _ in range(draw(_FEW))]
            getattr(made, field.name).extend(items * (100 if draw(_RARELY) else 1))
        elif inner is not None:
            getattr(made, field.name).CopyFrom(value(field))
        else:
            setattr(made, field.name, value(field))

    def _scalar(self, draw: DrawFn, field: FieldDescriptor, careful: bool) -> Any:
        known = self._vocabulary.of(field)
        use: bool = draw(_MOSTLY if careful else _EVENLY)
        if known and use:
            return draw(st.sampled_from(known))
        if field.full_name not in self._odd_scalars:
            self._odd_scalars[field.full_name] = self._odd_scalar(field, known)
        return draw(self._odd_scalars[field.full_name])

    def _odd_scalar(self, field: FieldDescriptor, known: Sequence[str | int | float]) -> SearchStrategy[Any]:
        match field.cpp_type:
            case FieldDescriptor.CPPTYPE_STRING if field.type == FieldDescriptor.TYPE_BYTES:
                return st.binary(max_size=80)
            case FieldDescriptor.CPPTYPE_STRING:
                texts = [each for each in known if isinstance(each, str)]
                return st.one_of(self._odd, _near(texts), _soup(texts)) if texts else self._odd
            case FieldDescriptor.CPPTYPE_BOOL:
                return st.booleans()
            case FieldDescriptor.CPPTYPE_FLOAT | FieldDescriptor.CPPTYPE_DOUBLE:
                return st.one_of(st.floats(), st.sampled_from([0.0, -1.0, 1.0, 3.0, 1e-300, 1e300]))
            case FieldDescriptor.CPPTYPE_ENUM:
                numbers = [each.number for each in field.enum_type.values] if field.enum_type else []
                return st.sampled_from([*numbers, *numbers, len(numbers), -1, 1 << 30])
            case _:
                low, high = _RANGES[field.cpp_type]
                usual = [
                    each for sign in (1, -1) for each in (sign * size for size in _INTEGERS) if low <= each <= high
                ]
                return st.one_of(st.sampled_from(usual), st.integers(low, high), st.integers(0, 10))


def _bytes_like(message: SearchStrategy[bytes]) -> SearchStrategy[bytes]:
    """Bytes that are no message, or almost one."""

    @st.composite
    def damaged(draw: DrawFn) -> bytes:
        data = draw(message)
        for _ in range(draw(st.integers(1, 3))):
            at = draw(st.integers(0, len(data)))
            data = draw(st.sampled_from(_DAMAGES))(data, at, draw(st.integers(0, 255)))
        return data

    @st.composite
    def fields(draw: DrawFn) -> bytes:
        """Fields of any number and any wire type."""
        parts = draw(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 7), _FIELD_BYTES), max_size=5))
        return b"".join(_varint(number << 3 | kind) + data for number, kind, data in parts)

    nested = st.builds(_nested, message, st.integers(1, 12), st.sampled_from([1, 5, 50, 99, 101, 2000]))
    return st.one_of(damaged(), fields(), st.binary(max_size=100), nested)


def _nested(data: bytes, number: int, depth: int) -> bytes:
    """Data in a field in a field in a field …"""
    for _ in range(depth):
        data = _varint(number << 3 | 2) + _varint(len(data)) + data
    return data


def _varint(value: int) -> bytes:
    data = bytearray()
    while value > 0x7F:
        data.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*data, value))


_FIELD_BYTES = st.one_of(
    st.binary(max_size=12).map(lambda data: _varint(len(data)) + data),
    st.binary(max_size=12),
    st.sampled_from(_VARINTS),
    st.integers(0, (1 << 64) - 1).map(_varint),
)
_DAMAGES: tuple[Callable[[bytes, int, int], bytes], ...] = (
    lambda data, at, _: data[:at],
    lambda data, at, _: data[at:],
    lambda data, at, byte: data[:at] + bytes([byte]) + data[at:],
    lambda data, at, byte: data[:at] + bytes([byte]) + data[at + 1 :],
    lambda data, at, byte: data[:at] + data[at + byte :],
    lambda data, at, byte: data[:at] + data[:byte] + data[at:],
    lambda data, at, byte: data[:at] + _VARINTS[byte % len(_VARINTS)] + data[at:],
    lambda data, at, byte: data + data,
)


def _near(texts: Sequence[str]) -> SearchStrategy[str]:
    """Texts like these, but for a letter or two."""
    return st.builds(
        lambda text, at, length, other: text[: at % (len(text) + 1)] + other + text[at % (len(text) + 1) + length :],
        st.sampled_from(texts),
        st.integers(0, 1000),
        st.integers(0, 2),
        st.text(max_size=2),
    )


def _soup(texts: Iterable[str]) -> SearchStrategy[str]:
    """What these texts are made of, in any order."""
    pieces = sorted({piece for text in texts for piece in re.findall(r"\w+|\W", text)})
    return st.lists(st.sampled_from(pieces or [""]), max_size=12).map("".join)
