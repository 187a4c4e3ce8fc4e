"""The text of a lockfile."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fxtrace.errors import InvalidRequest
from fxtrace.ir.trace import Json
from fxtrace.lock import Lock, Locked, dumps, loads
from fxtrace.lock.lockfile import SECTIONS

NAMES = st.text("abzAZ09._[]:%# \tü×", min_size=1, max_size=8)
NUMBERS = st.integers(0, 10**9)
SIZES = st.one_of(
    NUMBERS.map(str),
    NUMBERS.map(lambda n: f"{n}?"),
    st.sampled_from(["d_model/n_heads", "min(10, tgt_vocab)", "(length - kernel[0])//stride + 1", "a.b*2"]),
)
VALUES: st.SearchStrategy[Json] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner, max_size=2), max_leaves=4
)
LOCKS = st.builds(
    Lock,
    model=st.sampled_from(["reference", "hf:bert", "models/my model.py", "pkg.mod:make"]),
    settings=st.dictionaries(NAMES, VALUES, max_size=3),
    configuration=st.dictionaries(NAMES, VALUES, max_size=3),
    sizes=st.dictionaries(NAMES, NUMBERS, max_size=2),
    trials=st.lists(st.dictionaries(NAMES, NUMBERS, min_size=1, max_size=3), max_size=2).map(tuple),
    tensors=st.dictionaries(
        st.tuples(st.sampled_from(SECTIONS), NAMES),
        st.builds(Locked, st.sampled_from(["float32", "bfloat16"]), st.lists(SIZES, max_size=3).map(tuple)),
        max_size=5,
    ),
)


@given(LOCKS)
def test_round_trip(lock: Lock) -> None:
    text = dumps(lock)
    assert loads(text) == lock
    assert dumps(loads(text)) == text
    assert loads("\n".join(f"\n# a remark\n  {line}  " for line in text.splitlines())) == lock


GOOD = """fxtrace-lock 1
model tiny
[configuration]
width = 4
[trials]
width=6
[roles]
a.b  float32  (3, width)
[end]
"""


@pytest.mark.parametrize(
    ("old", "new", "line", "told"),
    [
        ("[end]\n", "", 8, "the file ends before its [end]: it was cut off"),
        ("width)\n[end]\n", "wid", 8, "expected 'name  dtype  (size, size)', got 'a.b  float32  (3, wid'"),
        ("[end]", "[end]\nc  int64  (3)", 10, "expected nothing after [end], got 'c  int64  (3)'"),
        ("fxtrace-lock 1", f"fxtrace-lock {'9' * 5000}", 1, "expected the number of a format"),
        ("width=6", f"width={'9' * 5000}", 6, "expected sizes as in"),
        (GOOD, "", 1, "expected 'fxtrace-lock …', got ''; `fxtrace lock MODEL -o FILE` writes a lockfile"),
        ("fxtrace-lock 1", "{", 1, "expected 'fxtrace-lock …', got '{'"),
        ("fxtrace-lock 1", "fxtrace-lock 2", 1, "format 2 is newer than 1, which this fxtrace reads; update fxtrace"),
        ("fxtrace-lock 1", "fxtrace-lock one", 1, "expected the number of a format"),
        ("model tiny", "modle tiny", 2, "expected 'model …', got 'modle tiny'"),
        ("[configuration]", "width", 3, "expected a section such as [roles], got 'width'"),
        ("width = 4", "width = four", 4, "expected 'name = value' with a value in JSON, got 'width = four'"),
        ("width = 4", "width", 4, "expected 'name = value'"),
        ("width = 4", "width = 4\nwidth = 5", 5, "'width' is there twice"),
        ("[trials]\nwidth=6", "[sizes]\nbatch = true", 6, "expected a size as in 'batch = 1'"),
        ("width=6", "width=", 6, "expected sizes as in"),
        ("[roles]", "[rolse]", 7, "no section 'rolse'; did you mean 'roles'?"),
        ("(3, width)", "3, width", 8, "expected 'name  dtype  (size, size)'"),
        ("(3, width)", "(3, width**)", 8, "a size's formula is made of"),
        ("(3, width)", "(3, import os)", 8, "a size's formula is made of"),
        ("(3, width)", "(3)\na.b  int64  (3)", 9, "'a.b' is there twice"),
    ],
)
def test_a_corrupt_or_newer_file_is_one_error_with_its_line(old: str, new: str, line: int, told: str) -> None:
    assert loads(GOOD).tensors == {("roles", "a.b"): Locked("float32", ("3", "width"))}
    with pytest.raises(InvalidRequest) as e:
        loads(GOOD.replace(old, new), "my.lock")
    assert e.value.message.startswith(f"my.lock, line {line}: ")
    assert told in e.value.message
    assert e.value.metadata["line"] == str(line)


@given(st.text(max_size=200) | st.text("[]()=# \nfxtrace-lock 1model roles,", max_size=200))
def test_any_text_is_read_or_refused(text: str) -> None:
    for whole in (text, f"fxtrace-lock 1\nmodel m\n{text}"):
        with suppress(InvalidRequest):
            loads(whole)
