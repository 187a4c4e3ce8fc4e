"""Fused attention, step by step."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fxtrace.capture import capture
from fxtrace.capture.attention import attention
from fxtrace.ir.trace import Rung

Q, K, V = torch.randn(2, 4, 5, 8), torch.randn(2, 4, 7, 8), torch.randn(2, 4, 7, 6)


@pytest.mark.parametrize(
    ("tensors", "options"),
    [
        ((Q, K, V), {}),
        ((Q, K, V), {"scale": 0.5}),
        ((Q, K, V), {"is_causal": True}),
        ((Q, K, V), {"attn_mask": torch.randn(5, 7)}),
        ((Q, K, V), {"attn_mask": torch.rand(2, 1, 5, 7) > 0.3}),
        ((Q, K[:, :2], V[:, :2]), {"enable_gqa": True}),
        ((Q[0], K[0], V[0]), {}),
    ],
)
def test_the_steps_are_what_the_kernel_computes(
    tensors: tuple[Tensor, Tensor, Tensor], options: dict[str, Any]
) -> None:
    torch.testing.assert_close(
        attention(*tensors, **options), functional.scaled_dot_product_attention(*tensors, **options)
    )


def test_dropout_drops_as_many_weights() -> None:
    identity = torch.eye(200).expand(1, 1, 200, 200)
    weights = attention(torch.zeros(1, 1, 300, 4), torch.zeros(1, 1, 200, 4), identity, dropout_p=0.25)
    assert (weights == 0).float().mean().item() == pytest.approx(0.25, abs=0.01)
    assert weights.max().item() == pytest.approx(1 / 200 / 0.75)


class Fused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return functional.scaled_dot_product_attention(self.q(x), self.k(x), x, is_causal=True)


@pytest.mark.parametrize(
    ("rung", "values"),
    [("symbolic", True), ("symbolic", False), ("record", True), ("record", False), ("export", False), ("", True)],
)
def test_every_rung_shows_the_scores(rung: Rung, values: bool) -> None:
    model, inputs = Fused(), {"x": torch.randn(3, 6, 8)}
    fused = capture(model, inputs, rung=rung, values=values)
    shown = capture(model, inputs, rung=rung, values=values, unfused=True)
    assert [node.kind for node in fused.graph.nodes].count("attention") == 1
    kinds = [node.kind for node in shown.graph.nodes]
    assert "attention" not in kinds
    assert kinds.count("softmax") == 1
    softmax = next(node for node in shown.graph.nodes if node.kind == "softmax")
    assert softmax.spec is not None
    assert softmax.spec.shape == (3, 6, 6)
    assert softmax.source is not None
    assert "scaled_dot_product_attention" in softmax.source.code
    assert any("Fused attention was computed step by step" in note for note in shown.rung_notes)
    if values:
        assert shown.output_equal is True
        assert any("differs from theirs by at most" in note for note in shown.rung_notes)
        torch.testing.assert_close(shown.values[softmax.name].sum(-1), torch.ones(3, 6))
