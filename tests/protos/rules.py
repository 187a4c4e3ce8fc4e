"""Buf's lint rules of the categories STANDARD and COMMENTS, over descriptors: nothing needs to be installed for them.

The names and what they mean are those of https://buf.build/docs/lint/rules (buf 1.75). Two are not here: IMPORT_USED is
a warning of protoc, which `compiled` makes an error, and PROTOVALIDATE is about options that no proto here uses. Where
buf is installed, test_lint.py holds these rules to what it says.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, TypeAlias

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
)

from tests.protos.compiled import ENUM, MESSAGE, METHOD, SERVICE, SYNTAX, comments

File: TypeAlias = FileDescriptorProto
Files: TypeAlias = Sequence[File]
Path: TypeAlias = tuple[int, ...]

_PASCAL = re.compile(r"([A-Z][a-z0-9]*)+").fullmatch
_SNAKE = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*").fullmatch
_UPPER_SNAKE = re.compile(r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)*").fullmatch
_VERSION = re.compile(r"v[1-9]\d*(test\w*|(p[1-9]\d*)?(alpha|beta)[1-9]\d*)?").fullmatch
_OPTIONS = (
    *("csharp_namespace", "go_package", "java_multiple_files", "java_package", "php_namespace", "ruby_package"),
    "swift_prefix",
)


def problems(files: Files) -> set[tuple[str, str]]:
    """(rule, name of a file or an element) for everything that is wrong."""
    return {(rule, name) for rule, find in RULES.items() for name in find(files)}


# --------------------------------------------------------------------------------------------------- what there is


def _messages(files: Files) -> Iterator[tuple[DescriptorProto, Path]]:
    """Every message, also inside others, and its path; not the entries that maps are made of."""

    def within(message: DescriptorProto, path: Path) -> Iterator[tuple[DescriptorProto, Path]]:
        if not message.options.map_entry:
            yield message, path
            for i, inner in enumerate(message.nested_type):
                yield from within(inner, (*path, 3, i))

    return (each for f in files for i, m in enumerate(f.message_type) for each in within(m, (MESSAGE, i)))


def _elements(file: File) -> Iterator[tuple[str, Any, Path]]:
    """(kind, description, path) of everything in a file that can have a comment; numbers are descriptor.proto's."""
    enums: list[tuple[EnumDescriptorProto, Path]] = [(enum, (ENUM, i)) for i, enum in enumerate(file.enum_type)]
    for message, path in _messages([file]):
        yield "MESSAGE", message, path
        protocs = {field.oneof_index for field in message.field if field.proto3_optional}
        yield from (("FIELD", field, (*path, 2, i)) for i, field in enumerate(message.field))
        yield from (("ONEOF", o, (*path, 8, i)) for i, o in enumerate(message.oneof_decl) if i not in protocs)
        enums += [(enum, (*path, 4, i)) for i, enum in enumerate(message.enum_type)]
    for enum, path in enums:
        yield "ENUM", enum, path
        yield from (("ENUM_VALUE", value, (*path, 2, i)) for i, value in enumerate(enum.value))
    for i, service in enumerate(file.service):
        yield "SERVICE", service, (SERVICE, i)
        yield from (("RPC", rpc, (SERVICE, i, METHOD, j)) for j, rpc in enumerate(service.method))


# -------------------------------------------------------------------------------------------------- kinds of rules


def _elements_that(kind: str, wrong: Callable[[Any], object], files: Files) -> Iterator[str]:
    return (each.name for file in files for k, each, _ in _elements(file) if k == kind and wrong(each))


def _misnamed(kind: str, form: Callable[[str], object], files: Files) -> Iterator[str]:
    return _elements_that(kind, lambda each: not form(each.name), files)


def _uncommented(kind: str, files: Files) -> Iterator[str]:
    texts = {file.name: comments(file) for file in files}
    return (e.name for f in files for k, e, path in _elements(f) if k == kind and not texts[f.name].get(path))


def _files_that(wrong: Callable[[File], object], files: Files) -> Iterator[str]:
    return (file.name for file in files if wrong(file))


def _differing(group: Callable[[File], str], value: Callable[[File], object], files: Files) -> Iterator[str]:
    """The files of each group that do not all have the same value."""
    groups: dict[str, list[File]] = defaultdict(list)
    for file in files:
        groups[group(file)].append(file)
    return (file.name for members in groups.values() if len(set(map(value, members))) > 1 for file in members)


def _folder(file: File) -> str:
    return file.name.rpartition("/")[0]


def _package(file: File) -> str:
    return file.package


def _option(name: str) -> Callable[[File], object]:
    return lambda file: getattr(file.options, name)


# --------------------------------------------------------------------------------------------- rules of their own


def _in_import_cycle(files: Files) -> Iterator[str]:
    packages = {file.name: file.package for file in files}
    imports: dict[str, set[str]] = {file.package: set() for file in files}
    for file in files:
        imports[file.package] |= {packages[name] for name in file.dependency if name in packages} - {file.package}
    for _ in packages:  # more steps than that lead nowhere new
        for reached in imports.values():
            reached.update(*(imports[each] for each in tuple(reached)))
    return (file.name for file in files if file.package in imports[file.package])


def _values_that(wrong: Callable[[str, Any], object], files: Files) -> Iterator[str]:
    """Values of enums, by the enum's name in upper snake case and the value."""
    for file in files:
        for kind, enum, _ in _elements(file):
            if kind == "ENUM":
                name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", enum.name).upper()
                yield from (value.name for value in enum.value if wrong(name, value))


def _messages_misnamed(suffix: str, message: Callable[[Any], str], files: Files) -> Iterator[str]:
    for service in (service for file in files for service in file.service):
        for rpc in service.method:
            name = "".join(word[:1].upper() + word[1:] for word in rpc.name.split("_")) + suffix
            if message(rpc).rpartition(".")[2] not in {name, service.name + name}:
                yield rpc.name


def _messages_shared(files: Files) -> Iterator[str]:
    users: dict[str, list[str]] = defaultdict(list)
    for rpc in (rpc for file in files for service in file.service for rpc in service.method):
        users[rpc.input_type].append(rpc.name)
        users[rpc.output_type].append(rpc.name)
    return (name for names in users.values() if len(names) > 1 for name in names)


RULES: dict[str, Callable[[Files], Iterable[str]]] = {
    "DIRECTORY_SAME_PACKAGE": partial(_differing, _folder, _package),
    "PACKAGE_DEFINED": partial(_files_that, lambda file: not file.package),
    "PACKAGE_DIRECTORY_MATCH": partial(
        _files_that, lambda file: file.package and _folder(file) != file.package.replace(".", "/")
    ),
    "PACKAGE_NO_IMPORT_CYCLE": _in_import_cycle,
    "PACKAGE_SAME_DIRECTORY": lambda files: _differing(_package, _folder, [file for file in files if file.package]),
    "PACKAGE_LOWER_SNAKE_CASE": partial(
        _files_that, lambda file: file.package and not all(map(_SNAKE, file.package.split(".")))
    ),
    "PACKAGE_VERSION_SUFFIX": partial(
        _files_that, lambda file: file.package and not _VERSION(file.package.rpartition(".")[2])
    ),
    **{f"PACKAGE_SAME_{option.upper()}": partial(_differing, _package, _option(option)) for option in _OPTIONS},
    "FILE_LOWER_SNAKE_CASE": partial(
        _files_that, lambda file: not _SNAKE(file.name.rpartition("/")[2].removesuffix(".proto"))
    ),
    "SYNTAX_SPECIFIED": partial(_files_that, lambda file: (SYNTAX,) not in comments(file)),
    "IMPORT_NO_PUBLIC": partial(_files_that, lambda file: file.public_dependency),
    "MESSAGE_PASCAL_CASE": partial(_misnamed, "MESSAGE", _PASCAL),
    "FIELD_LOWER_SNAKE_CASE": partial(_misnamed, "FIELD", _SNAKE),
    "FIELD_NOT_REQUIRED": partial(
        _elements_that, "FIELD", lambda field: field.label == FieldDescriptorProto.LABEL_REQUIRED
    ),
    "ONEOF_LOWER_SNAKE_CASE": partial(_misnamed, "ONEOF", _SNAKE),
    "ENUM_PASCAL_CASE": partial(_misnamed, "ENUM", _PASCAL),
    "ENUM_FIRST_VALUE_ZERO": partial(_elements_that, "ENUM", lambda enum: enum.value[0].number),
    "ENUM_NO_ALLOW_ALIAS": partial(_elements_that, "ENUM", lambda enum: enum.options.allow_alias),
    "ENUM_VALUE_UPPER_SNAKE_CASE": partial(_misnamed, "ENUM_VALUE", _UPPER_SNAKE),
    "ENUM_VALUE_PREFIX": partial(_values_that, lambda enum, value: not value.name.startswith(f"{enum}_")),
    "ENUM_ZERO_VALUE_SUFFIX": partial(
        _values_that, lambda _, value: not (value.number or value.name.endswith("_UNSPECIFIED"))
    ),
    "SERVICE_PASCAL_CASE": partial(_misnamed, "SERVICE", _PASCAL),
    "SERVICE_SUFFIX": partial(_elements_that, "SERVICE", lambda service: not service.name.endswith("Service")),
    "RPC_PASCAL_CASE": partial(_misnamed, "RPC", _PASCAL),
    "RPC_REQUEST_STANDARD_NAME": partial(_messages_misnamed, "Request", lambda rpc: rpc.input_type),
    "RPC_RESPONSE_STANDARD_NAME": partial(_messages_misnamed, "Response", lambda rpc: rpc.output_type),
    "RPC_REQUEST_RESPONSE_UNIQUE": _messages_shared,
    **{
        f"COMMENT_{kind}": partial(_uncommented, kind)
        for kind in ("ENUM", "ENUM_VALUE", "FIELD", "MESSAGE", "ONEOF", "RPC", "SERVICE")
    },
}
"""What each rule finds: the names of files or elements."""
