"""Sweeps on a model whose modules refuse what its configuration does not; every number is held against a real build."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from fxtrace.capture import capture
from fxtrace.errors import Cancelled, ConfigurationError, OptionInvalid, TensorNotFound, TooLarge
from fxtrace.ir.trace import Progress
from fxtrace.models import Registry
from fxtrace.service.sweeping import Sweeping
from fxtrace.sweep import Costs, SweepBatch, SweepRequest, SweepRow, parse_grid
from tests.conftest import MODELS


@pytest.fixture(scope="module")
def model() -> Any:
    return Registry().add_file(MODELS / "swept.py")


def sweep(model: Any, *grid: str, **asked: Any) -> tuple[list[SweepRow], list[SweepBatch]]:
    request = SweepRequest("swept", parse_grid(grid), **asked)
    batches = list(Sweeping(model, request).batches())
    rows = sorted((row for batch in batches for row in batch.rows), key=lambda row: row.index)
    assert [row.index for row in rows] == list(range(request.grid.size))
    assert [row.configuration for row in rows] == [request.grid[row.index] for row in rows]
    return rows, batches


def check(model: Any, rows: list[SweepRow], **configuration: Any) -> None:
    """Holds rows against the model really built and captured."""
    for row in rows:
        config = model.resolve({**configuration, **row.configuration})
        if row.reason:
            with pytest.raises(RuntimeError, match="do not divide"):
                model.build(config)
            continue
        taken = capture(model.build(config), model.example_inputs(config))
        cost = Costs(taken.graph, taken.bases).cost()
        for name in ("parameters", "activation_bytes", "peak_activation_bytes", "flops"):
            assert getattr(row, name) == getattr(cost, name), (name, row.configuration)


def test_formulas_give_what_a_real_build_gives(model: Any) -> None:
    rows, batches = sweep(model, "width=8..64:4", "heads=2,4", "length=2,5", tensors=("last",), sample=8)
    assert {row.how for row in rows} == {"formula"}
    assert sum(batch.confirmed for batch in batches) == 8
    assert not any(batch.mismatches for batch in batches)
    check(model, rows[::7])
    for row in rows:
        width, heads, length = (int(str(row.configuration[name])) for name in ("width", "heads", "length"))
        assert row.shapes == {"last": (length, heads, width)}


def test_roles_are_found_in_graphs_that_formulas_are_confirmed_on() -> None:
    """transformers leaves out a mask of nothing but ones, where it can look at its numbers."""
    role, one = "encoder.0.self_attention.query", {"num_hidden_layers": 1}
    bert = Registry.installed().load("hf:bert")
    rows, batches = sweep(bert, "intermediate_size=64..328:8", configuration=one, tensors=(role,), sample=1)
    assert {row.how for row in rows} == {"formula"}
    assert not any(batch.mismatches for batch in batches)
    assert {tuple(row.shapes) for row in rows} == {(role,)}


def test_what_copies_nothing_where_a_size_is_1_has_formulas_of_its_own(model: Any) -> None:
    rows, batches = sweep(model, "width=8..40:4", "heads=1,2,4", "length=1,2,5", configuration={"copied": True})
    assert {row.how for row in rows} == {"formula"}
    assert not any(batch.mismatches for batch in batches)
    check(model, rows, copied=True)
    assert rows[0].activation_bytes < rows[4].activation_bytes


def test_what_modules_refuse_has_the_reason_of_a_real_build(model: Any) -> None:
    rows, _ = sweep(model, "width=4..40", "heads=1,3")
    refused = [row for row in rows if row.reason]
    assert [row.configuration["width"] for row in refused] == [n for n in range(4, 41) if n % 3]
    assert refused[0].reason == "RuntimeError: 3 heads do not divide 4"
    assert {row.how for row in rows if not row.reason} == {"formula"}


def test_fields_that_change_the_nodes_are_swept_value_by_value(model: Any) -> None:
    rows, batches = sweep(model, "layers=1..2", "width=4..80:2", "activation=relu,gelu", sample=6)
    assert Counter(row.how for row in rows) == {"formula": 2 * 39 * 2}
    assert sum(batch.confirmed for batch in batches) == 2 * 2 * 3  # of each group of like graphs at least three
    check(model, rows[::13])


def test_a_mismatch_is_told_and_its_like_are_propagated(model: Any) -> None:
    rows, batches = sweep(model, "width=8..74:2", configuration={"trap": True}, sample=34)
    mismatches = [told for batch in batches for told in batch.mismatches]
    assert mismatches
    assert all(int(told.split("width=")[1].split(":")[0]) % 11 == 0 for told in mismatches)
    assert "by formula" in mismatches[0]
    assert {row.how for row in rows} == {"propagation"}
    trapped = next(row for row in rows if row.configuration["width"] == 22)
    assert trapped.parameters == 22 * 22 + 22 + 11 * 23 + 23


def test_a_small_grid_is_propagated_as_it_is(model: Any) -> None:
    rows, batches = sweep(model, "width=8,9,600", "trap=true,false")
    assert [row.how for row in rows] == ["propagation"] * 2 + ["none"] * 4
    assert rows[2].reason == "RuntimeError: 2 heads do not divide 9"
    assert rows[4].reason == "model 'swept': width must be at most 500, got 600"
    assert not any(batch.confirmed for batch in batches)


def test_a_path_that_depends_on_numbers_is_run_and_said_to_be(model: Any) -> None:
    rows, batches = sweep(model, "width=4..80:2", configuration={"routed": True})
    assert {row.how for row in rows} == {"run"}
    check(model, rows[::13], routed=True)
    (note,) = (note for batch in batches for note in batch.notes)
    assert "Of 39 configurations the path depends on numbers" in note


def test_a_value_that_the_model_replaces_is_no_configuration(model: Any) -> None:
    rows, _ = sweep(model, "fixed=2..4")
    assert [row.reason for row in rows] == [
        "field 'fixed': the model puts 3 in the place of 2",
        "",
        "field 'fixed': the model puts 3 in the place of 4",
    ]


def test_numbers_beyond_62_bits_are_told(model: Any) -> None:
    rows, _ = sweep(model, "length=1..40,9007199254740992", configuration={"width": 496}, sample=0)
    assert rows[-1].reason == "too large: a number would take more than 62 bits"
    assert not any(row.reason for row in rows[:-1])


@pytest.mark.parametrize(
    ("asked", "error", "problem"),
    [
        ({"grid": "widht=1,2"}, ConfigurationError, "named 'widht'; did you mean 'width'"),
        ({"grid": "width=8", "configuration": {"laers": 1}}, ConfigurationError, "did you mean 'layers'"),
        ({"grid": "width=8", "configuration": {"width": 1}}, OptionInvalid, "'width' is in the grid and has a setting"),
        ({"grid": "width=1..1000000000"}, TooLarge, "1,000,000,000 configurations"),
        ({"grid": "width=8", "sample": -1}, OptionInvalid, "sample: expected 0 or more, got -1"),
        ({"grid": "width=8", "tensors": ("lats",)}, TensorNotFound, "named 'lats'; did you mean 'last'"),
    ],
)
def test_what_cannot_be_swept_is_told_before_the_work(model: Any, asked: Any, error: type, problem: str) -> None:
    with pytest.raises(error, match=problem):
        sweep(model, asked.pop("grid"), **asked)


def test_an_error_from_the_report_stops_the_work(model: Any) -> None:
    seen = []

    def report(progress: Progress) -> None:
        seen.append(progress.stage)
        if progress.stage == "probe":
            raise Cancelled("enough")

    request = SweepRequest("swept", parse_grid(["width=4..80:2"]))
    with pytest.raises(Cancelled, match="enough"):
        list(Sweeping(model, request, report).batches())
    assert set(seen) == {"resolve", "probe"}
