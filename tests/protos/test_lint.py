"""The protos keep Buf's rules: by buf itself where it is installed, and everywhere by the same rules in Python."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.protos.compiled import PROTOS, compiled
from tests.protos.rules import RULES, problems

GOOD = """// A file.
syntax = "proto3";

package a.b.v1;

// Numbers.
enum TwoWords {
  // Zero.
  TWO_WORDS_UNSPECIFIED = 0;
}

// A message.
message OneRequest {
  // A choice.
  oneof choice {
    // One.
    int32 one = 1;
    // Two.
    TwoWords two = 2;
  }
  // Maybe.
  optional int32 maybe = 3;
  // A map.
  map<string, int32> by_name = 4;
}

// An answer.
message OneResponse {}

// A service.
service ThingService {
  // An RPC.
  rpc One(OneRequest) returns (OneResponse);
}
"""
OTHER = """// Another.
syntax = "proto3";

package a.b.v1;
"""
OLD = OTHER.replace("proto3", "proto2")
ALIASES = """
// An enum.
enum E {
  option allow_alias = true;
  // Zero.
  E_UNSPECIFIED = 0;
  // One.
  E_A = 1;
  // The same.
  E_B = 1;
}
"""
FILE, OTHER_FILE = "a/b/v1/one.proto", "a/b/v1/two.proto"


def message(name: str, field: str = "", imported: str = "") -> str:
    """A file with one message, perhaps with a field of another one's type."""
    package, _, short = name.rpartition(".")
    head = OTHER.replace("a.b.v1", package) + (f'import "{imported}";\n' if imported else "")
    return (
        head + f"// A message.\nmessage {short} {{\n" + (f"  // A field.\n  {field} a = 1;\n" if field else "") + "}\n"
    )


# What is put in place of what in the good file, or which files there are besides; and the rules that this breaks.
SPOILT: list[tuple[dict[str, str] | tuple[str, str], set[str]]] = [
    (("package a.b.v1;", ""), {"PACKAGE_DEFINED"}),
    (("a.b.v1", "a.c.v1"), {"PACKAGE_DIRECTORY_MATCH"}),
    (("a.b.v1", "a.B.v1"), {"PACKAGE_DIRECTORY_MATCH", "PACKAGE_LOWER_SNAKE_CASE"}),
    (("a.b.v1", "a.b"), {"PACKAGE_DIRECTORY_MATCH", "PACKAGE_VERSION_SUFFIX"}),
    (("a.b.v1", "a.b.v0"), {"PACKAGE_DIRECTORY_MATCH", "PACKAGE_VERSION_SUFFIX"}),
    (("a.b.v1", "a.b.v1beta2"), {"PACKAGE_DIRECTORY_MATCH"}),
    (("TwoWords", "two_words"), {"ENUM_PASCAL_CASE"}),
    (("TWO_WORDS_UNSPECIFIED", "two_WORDS_UNSPECIFIED"), {"ENUM_VALUE_UPPER_SNAKE_CASE", "ENUM_VALUE_PREFIX"}),
    (("TWO_WORDS_UNSPECIFIED", "TWO_UNSPECIFIED"), {"ENUM_VALUE_PREFIX"}),
    (("TWO_WORDS_UNSPECIFIED", "TWO_WORDS_NONE"), {"ENUM_ZERO_VALUE_SUFFIX"}),
    (("OneRequest", "one_request"), {"MESSAGE_PASCAL_CASE", "RPC_REQUEST_STANDARD_NAME"}),
    (("maybe", "mayBe"), {"FIELD_LOWER_SNAKE_CASE"}),
    (("oneof choice", "oneof Choice"), {"ONEOF_LOWER_SNAKE_CASE"}),
    (("service ThingService", "service Things"), {"SERVICE_SUFFIX"}),
    (("service ThingService", "service thing_Service"), {"SERVICE_PASCAL_CASE"}),
    (("rpc One(", "rpc one("), {"RPC_PASCAL_CASE"}),
    (("returns (OneResponse)", "returns (OneRequest)"), {"RPC_RESPONSE_STANDARD_NAME", "RPC_REQUEST_RESPONSE_UNIQUE"}),
    (("// A message.\n", ""), {"COMMENT_MESSAGE"}),
    (("    // One.\n", ""), {"COMMENT_FIELD"}),
    (("  // A choice.\n", ""), {"COMMENT_ONEOF"}),
    (("// Numbers.\n", ""), {"COMMENT_ENUM"}),
    (("  // Zero.\n", ""), {"COMMENT_ENUM_VALUE"}),
    (("// A service.\n", ""), {"COMMENT_SERVICE"}),
    (("  // An RPC.\n", ""), {"COMMENT_RPC"}),
    ({"a/b/v1/twoWords.proto": OTHER}, {"FILE_LOWER_SNAKE_CASE"}),
    ({OTHER_FILE: OTHER + 'import public "a/b/v1/one.proto";\n'}, {"IMPORT_NO_PUBLIC"}),
    ({OTHER_FILE: OTHER.replace("a.b.v1", "a.c.v1")}, {"PACKAGE_DIRECTORY_MATCH", "DIRECTORY_SAME_PACKAGE"}),
    ({"a/c/v1/two.proto": OTHER}, {"PACKAGE_DIRECTORY_MATCH", "PACKAGE_SAME_DIRECTORY"}),
    ({OTHER_FILE: OTHER + 'option go_package = "x";\n'}, {"PACKAGE_SAME_GO_PACKAGE"}),
    ({OTHER_FILE: OTHER + "option java_multiple_files = true;\n"}, {"PACKAGE_SAME_JAVA_MULTIPLE_FILES"}),
    ({OTHER_FILE: "// Old.\npackage a.b.v1;\n"}, {"SYNTAX_SPECIFIED"}),
    ({OTHER_FILE: OLD + "// M.\nmessage M {\n  // A.\n  required int32 a = 1;\n}\n"}, {"FIELD_NOT_REQUIRED"}),
    ({OTHER_FILE: OLD + "// E.\nenum E {\n  // A.\n  E_A = 1;\n}\n"}, {"ENUM_FIRST_VALUE_ZERO"}),
    ({OTHER_FILE: OTHER + ALIASES}, {"ENUM_NO_ALLOW_ALIAS"}),
    (
        {
            "a/c/v1/x.proto": message("a.c.v1.X", "a.d.v1.Y", "a/d/v1/y.proto"),
            "a/d/v1/y.proto": message("a.d.v1.Y"),
            "a/d/v1/z.proto": message("a.d.v1.Z", "a.c.v1.X", "a/c/v1/x.proto"),
        },
        {"PACKAGE_NO_IMPORT_CYCLE"},
    ),
]


def write(root: Path, change: dict[str, str] | tuple[str, str]) -> None:
    files = {FILE: GOOD}
    if isinstance(change, tuple):
        assert change[0] in GOOD
        files = {FILE: GOOD.replace(*change)}
    else:
        files |= change
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def test_our_protos() -> None:
    assert problems(compiled()) == set()


@pytest.mark.parametrize(("change", "broken"), SPOILT, ids=[min(broken) for _, broken in SPOILT])
def test_each_rule_finds_what_breaks_it(
    tmp_path: Path, change: dict[str, str] | tuple[str, str], broken: set[str]
) -> None:
    write(tmp_path, change)
    assert {rule for rule, _ in problems(compiled(tmp_path))} == broken


def test_every_rule_is_tried() -> None:
    tried = set().union(*(broken for _, broken in SPOILT))
    alike = {rule for rule in RULES if re.fullmatch("PACKAGE_SAME_[A-Z_]+", rule)}  # one piece of code
    assert set(RULES) - tried <= alike


def test_an_unused_import_is_an_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, {OTHER_FILE: OTHER + 'import "a/b/v1/one.proto";\n'})
    with pytest.raises(ValueError, match="protoc refuses"):
        compiled(tmp_path)
    assert "Import a/b/v1/one.proto is unused" in capfd.readouterr().err


def buf(root: Path) -> set[str]:
    """The rules that buf finds broken, with the configuration of our protos."""
    program = shutil.which("buf", path=Path(sys.prefix) / "buf/node_modules/.bin") or shutil.which("buf")
    if program is None:
        pytest.skip("buf is not installed; `make test` installs it where there is npm")
    command = [program, "lint", str(root), "--config", str(PROTOS / "buf.yaml"), "--error-format=json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert not done.stderr
    return {json.loads(line)["type"] for line in done.stdout.splitlines()}


def test_buf_agrees(tmp_path: Path) -> None:
    assert buf(PROTOS) == set()
    for i, (change, broken) in enumerate(SPOILT):
        root = tmp_path / str(i)
        write(root, change)
        assert buf(root) == broken, change
