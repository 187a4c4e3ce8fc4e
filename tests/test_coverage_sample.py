"""A small part of the coverage table, on every run: traced, every tensor with a shape, no attention mistaken."""

import pytest

from fxtrace.capture import capture
from fxtrace.roles import label
from tests.benchmarks.coverage.page import full
from tests.benchmarks.coverage.parts import PARTS, true_parts
from tests.benchmarks.coverage.row import Row, attempt, measure, subject
from tests.benchmarks.coverage.score import MIXTURE, Score, score_attentions, score_mixtures, score_parts
from tests.benchmarks.coverage.truth import KINDS, true_attentions

# (case, attention, attention blocks of each kind)
SAMPLE = (
    ("hf:bert", "eager", (2, 0, 0)),
    ("hf:bert", "sdpa", (2, 0, 0)),
    ("hf:llama", "eager", (0, 2, 0)),
    ("hf:bart", "eager", (2, 2, 2)),
    ("hf:t5", "eager", (2, 2, 2)),
    ("hf:qwen2_moe", "eager", (0, 2, 0)),
    ("hf:vit", "sdpa", (2, 0, 0)),
    ("zoo:nn_transformer", "", (2, 2, 2)),
    ("zoo:mixture_of_experts", "", (0, 0, 0)),
    ("zoo:list_inputs", "", (0, 0, 0)),
    ("zoo:data_dependent_loop", "", (0, 0, 0)),
)


@pytest.mark.parametrize(("case", "attention", "expected"), SAMPLE)
def test_a_model_is_traced_and_nothing_in_it_is_mistaken(
    case: str, attention: str, expected: tuple[int, int, int]
) -> None:
    if case.startswith("hf:"):
        pytest.importorskip("transformers")
    row = measure(case, attention, timed=False)
    assert row.nodes > 5
    assert row.with_shape == 1
    assert row.output_equal is True, row.notes
    assert tuple(row.scores[kind].expected for kind in KINDS) == expected
    assert not row.differs  # the configuration says the same
    for kind, found in row.scores.items():
        assert found.wrong == 0, kind
        assert found.right == found.found, kind
        assert found.refused == max(0, found.expected - found.found), kind


def test_a_mistake_is_seen() -> None:
    pytest.importorskip("transformers")
    it = subject("hf:bart", "eager")
    captured = capture(it.module, it.inputs)
    graph, _ = label(captured.graph, captured.known)
    right = score_attentions(graph, captured.values, it)
    assert right["cross_attention"] == Score(2, 2, 2, 0)
    # The same graph, its values disturbed: what was right is nobody's now.
    node = graph.by_role["decoder.0.cross_attention.weights"].name
    disturbed = {**captured.values, node: captured.values[node].flip(-1)}
    assert score_attentions(graph, disturbed, it)["cross_attention"] == Score(2, 2, 1, 1)
    for part, role in (
        ("feed_forward", "encoder.0.feed_forward.output"),
        ("norm", "encoder.0.feed_forward.norm_output"),
        ("residual", "decoder.1.cross_attention.residual_sum"),
    ):
        before = score_parts(graph, captured.values, it)[part]
        assert before.right == before.found > 3
        node = graph.by_role[role].name
        disturbed = {**captured.values, node: captured.values[node].flip(-1)}
        after = score_parts(graph, disturbed, it)[part]
        assert (after.wrong, after.refused, after.expected) == (1, 1, before.expected)


@pytest.mark.parametrize("part", ["logits", "chosen", "weights", "output"])
def test_a_mistake_about_experts_is_seen(part: str) -> None:
    pytest.importorskip("transformers")
    it = subject("hf:qwen2_moe", "eager")
    captured = capture(it.module, it.inputs)
    graph, _ = label(captured.graph, captured.known, it.module.state_dict())
    assert score_mixtures(graph, captured.values, it) == {MIXTURE: Score(2, 2, 2, 0)}
    node = graph.by_role[f"decoder.1.{MIXTURE}.{part}"].name
    disturbed = {**captured.values, node: captured.values[node].flip(0)}
    assert score_mixtures(graph, disturbed, it) == {MIXTURE: Score(2, 2, 1, 1)}


def test_the_truth_is_the_models_own() -> None:
    pytest.importorskip("transformers")
    it = subject("hf:bart", "eager")
    assert [(each.kind, each.where) for each in it.truth] == [
        *[("masked_self_attention", "decoder_attentions")] * 2,
        *[("cross_attention", "cross_attentions")] * 2,
        *[("self_attention", "encoder_attentions")] * 2,
    ]
    assert not true_attentions(subject("zoo:cnn", "").module, subject("zoo:cnn", "").inputs)


@pytest.mark.parametrize(
    ("case", "counts"),
    [
        ("hf:bert", (2, 4, 4)),  # norms after the sums
        ("hf:llama", (2, 4, 4)),  # norms before the blocks, gates
        ("hf:cohere", (2, 2, 2)),  # both blocks side by side, in one sum
        ("hf:bart", (4, 10, 10)),
        ("hf:t5", (4, 10, 10)),
        ("hf:granite", (2, 4, 4)),  # what a block gives is scaled
        ("hf:vit", (2, 4, 4)),
        ("zoo:mixture_of_experts", (0, 0, 0)),
        ("zoo:resnet", (0, 0, 0)),
        ("zoo:lstm", (0, 0, 0)),
    ],
)
def test_what_a_model_has_is_told_by_its_modules(case: str, counts: tuple[int, int, int]) -> None:
    if case.startswith("hf:"):
        pytest.importorskip("transformers")
    it = subject(case, "eager")
    assert tuple(len(it.parts[part]) for part in PARTS) == counts
    assert list(true_parts(it.module, it.inputs)) == list(PARTS)


def test_the_page_has_every_row() -> None:
    rows = [("encoder", Row("hf:bert", "eager", "record", 9, 1.0, True, eager=1.0, capture=9.0, error=""))]
    rows[0][1].scores = {kind: Score() for kind in (*KINDS, MIXTURE, *PARTS)}
    rows[0][1].scores["self_attention"] = Score(2, 1, 1, 0, refused=1)
    rows[0][1].refusals = (("block at 'x_1'", "no product leads to 'x_1'"),)
    rows.append(("decoder", Row("hf:odd", "eager", error="ended | with 1")))
    text = "\n".join(full(rows))
    assert "| encoder | hf:bert | eager | record | 9 | 100% | equal | 9.0 |  |  |  |" in text
    assert "| encoder | hf:bert | eager | 2 / 1 / 1 / 1 / 0 |  |  |  |  |  |  |" in text
    assert "| decoder | hf:odd | eager | ended \\| with 1 |" in text
    assert "| 1 | no product leads to … | hf:bert |" in text


def test_a_model_that_fails_has_a_row() -> None:
    pytest.importorskip("transformers")
    assert attempt("hf:nowhere", "eager").error.startswith("ModelNotFound: no architecture of transformers")
    assert "has no attn_implementation 'sdpa'" in attempt("hf:rwkv", "sdpa").skipped
