import math
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fxtrace.errors import OptionInvalid, TooLarge
from fxtrace.ir.trace import Json
from fxtrace.sweep import Axis, Grid, parse_grid

VALUES: st.SearchStrategy[Json] = (
    st.integers(-(10**6), 10**6) | st.booleans() | st.none() | st.text("abc é", min_size=1, max_size=4).map(str.strip)
)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("d=64,128,256", (64, 128, 256)),
        ("d=1..4", range(1, 5)),
        ("d=1..64:8", range(1, 65, 8)),
        ("d=-2..2:2", range(-2, 3, 2)),
        ("d=1..3,8, 16", (1, 2, 3, 8, 16)),
        ("d=eager,sdpa", ("eager", "sdpa")),
        ("d=true,false,null", (True, False, None)),
        ("d=0.1,1e-3", (0.1, 1e-3)),
        ("d=[1,2],[3]", ([1, 2], [3])),
        ('d="1..2","a,b"', ("1..2", "a,b")),
        ("d=a=b", ("a=b",)),
    ],
)
def test_values_and_ranges_are_read(text: str, values: object) -> None:
    (axis,) = parse_grid([text]).axes
    assert axis == Axis("d", values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("texts", "problem"),
    [
        ([], "got nothing"),
        (["d_model"], "expected FIELD=VALUE.*got 'd_model'"),
        (["=3"], "expected FIELD=VALUE"),
        (["d="], "'d': expected at least one value, got none"),
        (["d=1,,2"], "'d': expected a value, got none"),
        (["d=4..1"], r"4\.\.1 is empty"),
        (["d=1..4:0"], "the step of 1..4:0 must be at least 1"),
        (["d=1...4"], r"'1\.\.\.4' is no range"),
        (["d=a..b"], "is no range"),
        (["d=1..4:x"], "is no range"),
        (["d=1,2", "d=3"], "'d': the field is given twice"),
        (["d=1,2,1"], "the value 1 is given twice"),
        (["d=1..2.5"], r"'1\.\.2\.5' is no range; .* of integers"),
        (["d=0.5..3"], r"'0\.5\.\.3' is no range; .* of integers"),
        (["d=1..9:0.5"], r"'1\.\.9:0\.5' is no range; .* of integers"),
        (["d=1,NaN"], "values that JSON has, got nan"),
        (["d=1e400"], "values that JSON has, got inf"),
    ],
)
def test_what_is_no_grid_is_told(texts: list[str], problem: str) -> None:
    with pytest.raises(OptionInvalid, match=problem):
        parse_grid(texts)


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ((), "at least one value, got none"),
        (range(4, 1), "at least one value, got a range from 4 to before 1"),
        (range(4, 1, -1), "a step of at least 1, got -1"),
        ((object(),), "values that JSON has, got <object"),
        ((1, 1), "the value 1 is given twice"),
    ],
)
def test_what_is_no_axis_is_told(values: Any, problem: str) -> None:
    with pytest.raises(OptionInvalid, match=f"grid: field 'd': .*{problem}"):
        Grid((Axis("d", values),))


def test_a_grid_of_any_size_is_counted_and_refused_with_its_count() -> None:
    grid = parse_grid(["d_model=1..1000000000", "n_heads=1..1000000000", "d_ff=1..1000000000"])
    assert grid.size == 10**27
    assert grid[10**27 - 1] == {"d_model": 10**9, "n_heads": 10**9, "d_ff": 10**9}
    with pytest.raises(TooLarge, match=re.escape(f"{10**27:,} configurations (1,000,000,000 of d_model × ")):
        grid.require_at_most(100)
    parse_grid(["d=1..100"]).require_at_most(100)
    with pytest.raises(TooLarge, match=re.escape(f"grid: {10**30:,} configurations")):
        Grid((Axis("d", range(10**30)),)).require_at_most(100)


@given(st.lists(st.lists(VALUES, min_size=1, max_size=4, unique_by=repr), min_size=1, max_size=3))
def test_every_combination_is_there_once(columns: list[list[Json]]) -> None:
    axes = tuple(Axis(f"f{i}", tuple(values)) for i, values in enumerate(columns))
    grid = Grid(axes)
    each = [grid[i] for i in range(grid.size)]
    assert grid.size == math.prod(map(len, columns))
    assert len({repr(one) for one in each}) == grid.size
    assert all(one[axis.field] in axis.values for one in each for axis in axes)
    with pytest.raises(IndexError):
        grid[grid.size]


@given(st.integers(-999, 999), st.integers(0, 500), st.integers(1, 50))
def test_a_range_includes_its_ends(first: int, length: int, step: int) -> None:
    (axis,) = parse_grid([f"x={first}..{first + length}:{step}"]).axes
    assert list(axis.values) == [n for n in range(first, first + length + 1) if (n - first) % step == 0]
