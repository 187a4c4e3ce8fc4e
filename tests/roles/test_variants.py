"""The finder on the same transformer written in many ways: every label right, and the rest refused with a reason."""

import re

import pytest
import torch

from fxtrace.capture import capture
from fxtrace.roles import label
from tests.roles.variants import Variant, make

FUSED = r"fused kernel"
SCORES = (10, 11, 24, 26, 33, 34)

# Each variant with the snapshots that must be refused, and a pattern for why.
VARIANTS: dict[str, tuple[Variant, dict[int, str]]] = {
    "plain": (Variant(), {}),
    "torch.softmax": (Variant(softmax="torch"), {}),
    "F.softmax": (Variant(softmax="functional"), {}),
    "nn.Softmax": (Variant(softmax="module"), {}),
    "scale by mul": (Variant(scale="after_mul"), {}),
    "scale before product": (Variant(scale="before"), {}),
    "scale by buffer": (Variant(scale="buffer"), {}),
    "no scale": (Variant(scale="none"), {}),
    "einsum": (Variant(product="einsum"), {}),
    "bmm, heads in batch": (Variant(product="bmm", batch=2), {}),
    "key permuted at once": (
        Variant(product="permuted"),
        dict.fromkeys((12, 27), r"key_heads: '\w+' lays the keys out transposed"),
    ),
    "masked_fill": (Variant(mask="fill"), {}),
    "where": (Variant(mask="where"), {}),
    "mask made inside": (Variant(mask="inline"), {}),
    "pre-norm": (Variant(norm="pre"), {}),
    "functional norm": (Variant(norm_op="functional"), {}),
    "gelu": (Variant(activation="gelu"), {}),
    "activation module": (Variant(activation="module"), {}),
    "gated feed-forward": (Variant(feed_forward="gated"), dict.fromkeys((17, 38), "meet in a gate")),
    "dropout": (Variant(dropout=True), {}),
    "F.linear": (Variant(projections="functional"), {}),
    "matmul with a parameter": (Variant(projections="matrix"), {}),
    "fused QKV": (Variant(projections="chunked"), {}),
    "fused QKV, split late": (
        Variant(projections="split_late"),
        dict.fromkeys((7, 8, 9, 21, 22, 23), "no tensor holds it alone"),
    ),
    "fused kernel": (Variant(kernel="fused"), dict.fromkeys(SCORES, FUSED)),
    "fused kernel, causal flag": (
        Variant(kernel="fused_flag"),
        dict.fromkeys(SCORES, FUSED) | {25: "causal mask is a flag, not a tensor"},
    ),
    "pre-norm, fused QKV and kernel": (
        Variant(norm="pre", projections="chunked", kernel="fused"),
        dict.fromkeys(SCORES, FUSED),
    ),
    "shared key heads": (Variant(shared=2), {}),
    "rotary": (Variant(rotary=True), {}),
    "rotary, shared key heads, written norms, pre-norm": (
        Variant(rotary=True, shared=2, norm="pre", norm_op="written"),
        {},
    ),
    "written norms": (Variant(norm_op="written"), {}),
    "capped scores": (Variant(cap=5.0), {}),
    "a bias and a mask": (Variant(biased=True), {25: "2 masks or biases are applied"}),
    "sandwich norms": (Variant(norm="sandwich"), {}),
    "scaled branches": (Variant(scaled_branch=True, norm="pre"), {}),
    "parallel blocks": (Variant(norm="parallel"), {15: "no single norm reads the residual sum"}),
    "deep and wide": (Variant(layers=(5, 3), width=60, heads=5, inner=77, batch=3), {}),
    "one head": (Variant(heads=1), {}),
    "one layer": (Variant(layers=(1, 1)), {}),
    "equal lengths": (Variant(lengths=(5, 5)), {}),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_labels_are_right_or_refused(name: str) -> None:
    variant, refused = VARIANTS[name]
    model, inputs = make(variant)
    truth = model.learn_truth(*inputs.values())
    captured = capture(model, inputs)
    graph, snapshots = label(captured.graph, captured.values, model.state_dict())

    assert captured.output_equal
    wrong = [
        role
        for role, node in graph.by_role.items()
        if role in truth and not torch.equal(truth[role], captured.values[node.name])
    ]
    assert wrong == []
    # Nothing that is there may be missed, but for what the variant refuses.
    missing = {role for role in truth if role not in graph.by_role}
    explained = {str(refusal.role) for refusal in graph.refusals}
    assert missing <= explained
    assert {s.number for s in snapshots if not s.found} == set(refused)
    for snapshot in snapshots:
        if snapshot.found:
            assert all(check.held is not False for check in snapshot.checks), snapshot
        else:
            assert re.search(refused[snapshot.number], snapshot.reason), snapshot.reason


@pytest.mark.parametrize("name", VARIANTS)
def test_shapes_alone_give_the_same_labels(name: str) -> None:
    variant, _ = VARIANTS[name]
    model, inputs = make(variant)
    full, bare = capture(model, inputs), capture(model, inputs, values=False)
    with_values, _ = label(full.graph, full.known, model.state_dict())
    without, snapshots = label(bare.graph, bare.known, model.state_dict())
    here = {role: node.name for role, node in without.by_role.items()}
    there = {role: node.name for role, node in with_values.by_role.items()}
    assert here.items() <= there.items()
    # A learned bias could be a mask for all that shapes tell.
    assert here == there or variant.biased
    untried = [check for s in snapshots for check in s.checks if check.name == "softmax"]
    assert all(check.held is None for check in untried)


@pytest.mark.parametrize("name", [name for name in VARIANTS if "kernel" in name])
def test_a_fused_kernel_taken_apart_hides_nothing(name: str) -> None:
    model, inputs = make(VARIANTS[name][0])
    truth = model.learn_truth(*inputs.values())
    captured = capture(model, inputs, unfused=True)
    graph, snapshots = label(captured.graph, captured.values, model.state_dict())
    assert captured.output_equal
    assert [snapshot.number for snapshot in snapshots if not snapshot.found] == []
    assert len(snapshots) == 43
    for role, tensor in truth.items():  # learned from the fused run
        torch.testing.assert_close(captured.values[graph.by_role[role].name], tensor)
