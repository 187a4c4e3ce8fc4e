"""The protos as protoc reads them, with their comments, and the errors that those list."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from grpc_tools import protoc

PROTOS = Path(__file__).parent.parent.parent / "protos"
WELL_KNOWN = Path(protoc.__file__).parent / "_proto"

# Paths in a file's description are rows of field numbers and indices: see SourceCodeInfo in descriptor.proto.
ENUM, MESSAGE, SERVICE, SYNTAX = 5, 4, 6, 12
METHOD = 2  # of a service

_LISTED = re.compile(r"\b([A-Z]+(?:_[A-Z]+)*) \(([^()]*)\)")
_REASON = re.compile(r"\b[A-Z]{2,}(?:_[A-Z]+)*\b")


def compiled(root: Path = PROTOS, pattern: str = "**/*.proto") -> list[FileDescriptorProto]:
    """The protos of a folder, as protoc describes them.

    Raises:
        ValueError: protoc refuses one; it prints why.
    """
    with tempfile.NamedTemporaryFile() as out:
        files = [str(file.relative_to(root)) for file in sorted(root.glob(pattern))]
        options = [
            f"-I{root}",
            f"-I{WELL_KNOWN}",
            "--include_source_info",
            "--fatal_warnings",
            f"--descriptor_set_out={out.name}",
        ]
        if protoc.main(["protoc", *options, *files]):
            raise ValueError(f"protoc refuses a proto in {root}")
        return list(FileDescriptorSet.FromString(Path(out.name).read_bytes()).file)


def comments(file: FileDescriptorProto) -> dict[tuple[int, ...], str]:
    """The comment before each element, by the element's path; empty where there is none."""
    return {tuple(each.path): each.leading_comments.strip() for each in file.source_code_info.location}


@cache
def listed() -> Mapping[str, frozenset[tuple[str, str]]]:
    """The (status, reason) pairs that the comments list, by RPC; those of any RPC under an empty name."""
    said = {}
    for file in compiled():
        texts = comments(file)
        for i, service in enumerate(file.service):
            said[""] = texts[SERVICE, i]
            said |= {method.name: texts[SERVICE, i, METHOD, j] for j, method in enumerate(service.method)}
    said = {name: " ".join(text.partition("\n Errors")[2].split()) for name, text in said.items()}

    def errors(name: str) -> frozenset[tuple[str, str]]:
        return frozenset(_errors(said[name])).union(*map(errors, re.findall(r"\bthose of (\w+)", said[name])))

    return {name: errors(name) for name in said}


def _errors(text: str) -> Iterator[tuple[str, str]]:
    """What is said after "Errors": each status with its reasons in parentheses, perhaps with words on when."""
    for status, reasons in _LISTED.findall(text):
        for reason in _REASON.findall(reasons):
            yield status, reason
