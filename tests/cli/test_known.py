from __future__ import annotations

import math
from dataclasses import replace
from decimal import Decimal

import numpy as np
import pytest

from fxtrace.cli.known import Comparison, agrees, compare, load_known
from fxtrace.graph import Check, Snapshot, SnapshotTensor
from tests.conftest import Served


@pytest.mark.parametrize(
    ("value", "printed", "expected"),
    [
        (0.1235, "0.1235", True),
        (0.12355, "0.1235", True),  # as a double a little below
        (0.123551, "0.1235", False),
        (0.12345, "0.1235", True),
        (0.123449, "0.1235", False),
        (-0.12354, "-0.1235", True),
        (0.1235, "-0.1235", False),
        (0.1674, "0.167", True),
        (0.16751, "0.167", False),
        (0.16751, "0.1670", False),
        (0.16704, "0.1670", True),
        (-0.0959731, "-0.095973", True),
        (-0.0959736, "-0.095973", False),
        (3.4, "3", True),
        (3.6, "3", False),
        (1240.0, "1.2E+3", True),
        (1260.0, "1.2E+3", False),
        (math.nan, "0.1", False),
        (math.inf, "0.1", False),
    ],
)
def test_half_a_unit_of_the_last_printed_digit(value: float, printed: str, expected: bool) -> None:
    assert agrees(value, Decimal(printed)) is expected


def test_the_known_values_are_as_printed() -> None:
    known = load_known()
    assert [each.number for each in known.snapshots] == list(range(1, 44))
    assert known.settings["d_model"] == 128
    by_number = {each.number: each for each in known.snapshots}
    assert by_number[5].numbers["0,0,:3"] == (Decimal("0.5011"), Decimal("0.99553"), Decimal("1.0061"))
    assert by_number[25].dims == ("batch", "1", "tgt_len", "tgt_len")
    assert by_number[26].rules == ("rows sum to 1", "exactly 0 above the diagonal")


@pytest.fixture(scope="module")
def snapshots(served: Served) -> dict[int, Snapshot]:
    return {each.number: each for each in served.engine.list_snapshots(served.reference.id)}


KNOWN = {each.number: each for each in load_known().snapshots}


def comparison(served: Served, number: int, found: Snapshot) -> Comparison:
    return compare(
        KNOWN[number], found, lambda tensor, part: served.engine.read_tensor(served.reference.id, tensor, part)
    )


@pytest.mark.parametrize("number", KNOWN)
def test_the_reference_agrees(served: Served, snapshots: dict[int, Snapshot], number: int) -> None:
    result = comparison(served, number, snapshots[number])
    assert result.problems == ()
    assert result.passed
    count = sum(map(len, KNOWN[number].numbers.values()))
    assert result.agreed == ("shape", *([f"{count} numbers"] if count else []), *KNOWN[number].rules)


def test_what_does_not_agree_is_told(served: Served, snapshots: dict[int, Snapshot]) -> None:
    queries, keys = snapshots[7], snapshots[8]
    tensor = keys.tensors[0]
    result = comparison(served, 7, replace(queries, tensors=keys.tensors))
    assert not result.passed
    assert result.problems[0].startswith("[0,0,:5]: expected 0.48121, got 0.92224")
    wrong = (
        (replace(queries, tensors=(), reason="no such softmax"), "not found: no such softmax"),
        (replace(queries, dims=("batch", "src_len")), "dims: expected batch, src_len, d_model, got batch, src_len"),
        (replace(queries, variables=("q",)), "variables: expected enc_traces[0].q, got q"),
        (
            replace(queries, tensors=(replace(queries.tensors[0], shape=(1, 6, 64)),)),
            "enc_traces[0].q: expected shape 1×6×128, got 1×6×64",
        ),
        (replace(queries, checks=(Check("linear", "q = x·Wᵀ", False, "off by 2"),)), "q = x·Wᵀ: off by 2"),
    )
    for found, problem in wrong:
        assert comparison(served, 7, found).problems == (problem,)
    heads = snapshots[12]
    assert comparison(served, 12, replace(heads, tensors=heads.tensors[:2])).problems == ("expected 3 tensors, got 2",)
    assert isinstance(tensor, SnapshotTensor)


UNIFORM = np.full((1, 4, 5, 5), 0.2, np.float32)
CAUSAL = np.tril(np.ones((5, 5), np.float32)) / np.arange(1, 6, dtype=np.float32)[:, None]
MASK = np.triu(np.full((1, 1, 5, 5), -np.inf, np.float32), 1)


@pytest.mark.parametrize(
    ("number", "values", "problems"),
    [
        (34, np.full((1, 4, 5, 6), 1 / 6, np.float32), ()),
        (34, np.full((1, 4, 5, 6), 0.1667, np.float32), ("not so: rows sum to 1",)),
        (26, np.broadcast_to(CAUSAL, (1, 4, 5, 5)), ()),
        (26, UNIFORM, ("not so: exactly 0 above the diagonal",)),
        (26, np.zeros((1, 4, 5, 5), np.float32), ("not so: rows sum to 1",)),
        (25, MASK, ()),
        (25, MASK.swapaxes(-1, -2), ("not so: 0 on and below the diagonal, -inf above it",)),
        (25, np.nan_to_num(MASK), ("not so: 0 on and below the diagonal, -inf above it",)),
    ],
)
def test_rules(snapshots: dict[int, Snapshot], number: int, values: np.ndarray, problems: tuple[str, ...]) -> None:
    result = compare(KNOWN[number], snapshots[number], lambda _, __: values)
    assert result.problems == problems
