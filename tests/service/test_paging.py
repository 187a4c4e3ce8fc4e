from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fxtrace.errors import PageInvalid
from fxtrace.service.paging import page_size, page_start, page_token

STARTS = st.integers(1, 2**40)


@pytest.mark.parametrize(("asked", "given_size"), [(0, 20), (1, 1), (50, 50)])
def test_sizes(asked: int, given_size: int) -> None:
    assert page_size(asked, default=20, maximum=50) == given_size


@pytest.mark.parametrize("asked", [-1, 51, 2**31 - 1])
def test_sizes_out_of_range_are_refused_not_clamped(asked: int) -> None:
    with pytest.raises(PageInvalid, match=rf"expected 0 \(for 20\) to 50; got {asked}") as e:
        page_size(asked, default=20, maximum=50)
    assert e.value.field == "page_size"


@given(STARTS, st.lists(st.text(), max_size=3))
def test_a_token_leads_where_it_was_made_for(start: int, query: list[str]) -> None:
    assert page_start(page_token(start, *query), *query) == start


def test_no_token_is_the_beginning() -> None:
    assert page_start("", "a") == 0


@given(STARTS, st.text(), st.text())
def test_a_token_of_another_query_is_refused(start: int, query: str, other: str) -> None:
    if query != other:
        with pytest.raises(PageInvalid, match="next_page_token of the page before"):
            page_start(page_token(start, query), other)


@given(STARTS, st.text(min_size=1))
def test_garbage_is_refused(start: int, garbage: str) -> None:
    for token in (garbage, page_token(start, "q") + garbage, page_token(start, "q")[:-1]):
        with pytest.raises(PageInvalid) as e:
            page_start(token, "q")
        assert e.value.field == "page_token"


def test_parts_of_a_query_do_not_run_together() -> None:
    assert page_token(1, "ab", "c") != page_token(1, "a", "bc")
