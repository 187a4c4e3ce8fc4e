"""Prints for each way of writing the transformer the labels kept, refused and wrong: python -m tests.roles."""

import torch

from fxtrace.capture import capture
from fxtrace.roles import label
from tests.roles.test_variants import VARIANTS
from tests.roles.variants import make

print("| variant | labels | checked against its own truth | wrong | snapshots | refused, and why |")
print("| --- | --- | --- | --- | --- | --- |")
for name, (variant, _) in VARIANTS.items():
    model, inputs = make(variant)
    truth = model.learn_truth(*inputs.values())
    captured = capture(model, inputs)
    graph, snapshots = label(captured.graph, captured.values, model.state_dict())
    checked = {role: node for role, node in graph.by_role.items() if role in truth}
    wrong = [role for role, node in checked.items() if not torch.equal(truth[role], captured.values[node.name])]
    reasons: dict[str, list[int]] = {}
    for snapshot in snapshots:
        if not snapshot.found:
            reasons.setdefault(snapshot.reason.split("; ")[0].partition(": ")[2], []).append(snapshot.number)
    refused = "; ".join(f"{', '.join(map(str, numbers))}: {reason}" for reason, numbers in reasons.items())
    found = sum(snapshot.found for snapshot in snapshots)
    print(f"| {name} | {len(graph.by_role)} | {len(checked)} | {len(wrong)} | {found}/43 | {refused} |")
