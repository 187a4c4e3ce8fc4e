import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fxtrace.dims import Formula
from fxtrace.errors import InvalidRequest

SIZES = {"d_model": 128, "n_heads": 4, "kernel[0]": 3, "text.width": 10}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7", 7),
        ("d_model", 128),
        ("d_model/n_heads", 32),
        ("2*(d_model/n_heads) - 1", 63),
        ("(d_model - kernel[0])//2 + 1", 63),
        ("text.width**2", 100),
        ("min(10, d_model)", 10),
        ("max(n_heads, kernel[0], 2)", 4),
        ("-n_heads + d_model", 124),
        ("d_model/kernel[0]", None),  # not whole
        ("d_model//(n_heads - 4)", None),
        ("d_ff", None),
    ],
)
def test_a_formula_has_a_value(text: str, value: int | None) -> None:
    assert Formula(text).value(SIZES) == value


def test_a_formula_knows_its_names() -> None:
    assert Formula("min(d_model, 3)*kernel[0] + text.width").names == {"d_model", "kernel[0]", "text.width"}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "d_model +",
        "d_model.__class__()",
        "[1]",
        "a if b else c",
        "1.5",
        "a[b]",
        "a**b",
        "2**99",
        "min()",
        "f(1)",
        "'a'",
    ],
)
def test_what_is_no_formula_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="formula is made of"):
        Formula(text)


@given(st.lists(st.tuples(st.integers(1, 64), st.integers(1, 8)), min_size=1, max_size=20))
def test_a_grid_at_once_is_each_one_by_one(pairs: list[tuple[int, int]]) -> None:
    columns = {"a": np.array([a * b for a, b in pairs]), "b": np.array([b for _, b in pairs])}
    for text in ("a/b", "a//b + 3", "min(a, 20)*max(b, 2)", "5", "a**2 - b"):
        formula = Formula(text)
        one_by_one = [formula.value({"a": a * b, "b": b}) for a, b in pairs]
        assert formula.values(columns, len(pairs)).tolist() == one_by_one
