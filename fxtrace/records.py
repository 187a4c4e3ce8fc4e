"""Dataclasses and protobuf messages that have the same fields, converted by their own descriptions.

A `Record` pairs a dataclass with a message and works out, once, how each field travels: numbers and text as they are,
`tuple[X, ...]` as a repeated field, `X | None` as an optional one, a nested dataclass as the field's message, a
`Literal` as the field's enum. What needs more (a JSON object, a timestamp, a resource name) is a `Codec`, given for a
message type or for one field. A field that the message lacks is an error when the record is made, not when it is used.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Any, Generic, Literal, TypeVar, cast, get_args, get_origin, get_type_hints

from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from fxtrace.errors import OptionInvalid, unknown

D = TypeVar("D")
M = TypeVar("M", bound=Message)


@dataclasses.dataclass(frozen=True, slots=True)
class Codec:
    """How one field's value travels. `whole`: a repeated field is converted as a whole, not item by item."""

    encode: Callable[[Any], Any]
    decode: Callable[[Any], Any]
    whole: bool = False


class Record(Generic[D, M]):
    """A dataclass and the message of the same fields.

    Args:
        data: the dataclass.
        message: the message class; fields that the dataclass lacks are left alone. It has every field of the
            dataclass but those that are apart, see `fxtrace.ir.trace.APART`.
        by_type: codecs by the full name of a message type, used here and in nested records.
        path: put before field names in errors.
        own: codecs by the dataclass's field name, with the name of the message's field.
    """

    def __init__(
        self,
        data: type[D],
        message: type[M],
        by_type: Mapping[str, Codec],
        path: str = "",
        **own: tuple[str, Codec],
    ) -> None:
        self._data, self._message, self._path = data, message, path
        hints = get_type_hints(data)
        self._fields: list[tuple[str, str, Callable[[Any], Any], Callable[[Any], Any]]] = []
        for f in dataclasses.fields(data):  # type: ignore[arg-type]  # a dataclass, as the docstring asks
            if f.metadata.get("apart"):
                continue
            name, codec = own.get(f.name, (f.name, None))
            descriptor = cast(FieldDescriptor, message.DESCRIPTOR.fields_by_name[name])
            if codec is None:
                codec = _codec(hints[f.name], descriptor, by_type, f.default, path)
            self._fields.append((f.name, name, *_accessors(codec, hints[f.name], descriptor)))

    def encode(self, value: D) -> M:
        """The message.

        Raises:
            OptionInvalid: a field's value does not fit the message, such as an integer of too many bits.
        """
        fields = {name: encode(getattr(value, attribute)) for attribute, name, encode, _ in self._fields}
        try:
            return self._message(**fields)
        except (TypeError, ValueError) as error:
            raise self._misfit(fields, error) from None

    def decode(self, message: M) -> D:
        """The dataclass again."""
        return self._data(**{attribute: decode(message) for attribute, _, _, decode in self._fields})

    def _misfit(self, fields: Mapping[str, Any], error: Exception) -> OptionInvalid:
        for name, value in fields.items():
            try:
                self._message(**{name: value})
            except (TypeError, ValueError) as blamed:
                return OptionInvalid(f"{self._path}{name}: {blamed}", field=f"{self._path}{name}")
        return OptionInvalid(f"{self._message.DESCRIPTOR.name}: {error}")


def enum_codec(enum: EnumDescriptor, texts: Sequence[str], default: str, field: str) -> Codec:
    """An enum as a literal text: IMAGE_FORMAT_SVG as `svg`. UNSPECIFIED is the default, and an empty text.

    `field` is blamed for a text or a number that the enum does not have.
    """
    prefix = enum.values[0].name.removesuffix("UNSPECIFIED")
    numbers = {text: enum.values_by_name[prefix + text.upper()].number for text in texts if text}
    known = {number: text for text, number in numbers.items()} | {0: default}

    def encode(text: str) -> int:
        if text and text not in numbers:
            raise OptionInvalid(unknown(field, text, numbers), field=field, value=text)
        return numbers.get(text, 0)

    def decode(number: int) -> str:
        if number not in known:
            raise OptionInvalid(
                f"{field}: expected one of {', '.join(numbers)}; got the unknown enum value {number}",
                field=field,
                value=number,
            )
        return known[number]

    return Codec(encode, decode)


_PLAIN = Codec(lambda value: value, lambda value: value)


def _codec(hint: Any, field: FieldDescriptor, by_type: Mapping[str, Codec], default: object, path: str) -> Codec:
    """How one value of the field travels: of a repeated field, one item."""
    if field.message_type is not None:
        special = by_type.get(field.message_type.full_name)
        if special is not None:
            return special
        nested: Any = next(kind for kind in (hint, *get_args(hint)) if dataclasses.is_dataclass(kind))
        record = Record(nested, GetMessageClass(field.message_type), by_type, f"{path}{field.name}.")
        return Codec(record.encode, record.decode)
    if field.enum_type is not None:
        assert get_origin(hint) is Literal
        texts = get_args(hint)
        return enum_codec(
            field.enum_type, texts, default if isinstance(default, str) else texts[0], f"{path}{field.name}"
        )
    return _PLAIN


def _accessors(codec: Codec, hint: Any, field: FieldDescriptor) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    """(the dataclass's value → what the message takes, the message → the dataclass's value)."""
    name, encode, decode = field.name, codec.encode, codec.decode
    if field.is_repeated and not codec.whole:
        if codec is _PLAIN:
            return encode, lambda message: tuple(getattr(message, name))
        return lambda items: map(encode, items), lambda message: tuple(map(decode, getattr(message, name)))
    if type(None) in get_args(hint) and field.has_presence and not codec.whole:
        return (
            lambda value: None if value is None else encode(value),
            lambda message: decode(getattr(message, name)) if message.HasField(name) else None,
        )
    if codec is _PLAIN:
        return encode, attrgetter(name)
    return encode, lambda message: decode(getattr(message, name))
