"""What links mean, read off the dataflow: residual connections, what crosses between stacks, what is widely shared."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from itertools import accumulate

from fxtrace.render.view import Box, Link, View, home, prefixes, within

# A residual connection goes around something that computes; x + x³ is no residual sum.
_COMPUTING = frozenset({"linear", "matmul", "convolution", "recurrent", "attention", "module"})

_SCORES = ("scores", "masked_scores")

_SHARED = 3  # modules; what more than these read is drawn anew in each, or the links pull them all side by side


def share(view: View) -> View:
    """The view with a note of its own, in each module after the first, for a value that many modules read."""
    frames = view.clusters()
    homes = {key: home(box, frames) for key, box in view.boxes.items()}
    readers: dict[str, dict[str, None]] = {}
    for link in view.links:
        if _is_shared_by(link, view, homes):
            readers.setdefault(link.tail, {})[homes[link.head]] = None
    copied = {tail: list(each)[1:] for tail, each in readers.items() if len(each) > _SHARED}
    notes: dict[str, Box] = {}
    links: list[Link] = []
    for link in view.links:
        frame = homes[link.head]
        if _is_shared_by(link, view, homes) and frame in copied.get(link.tail, ()):
            key = f"{link.tail}@{frame}"
            notes.setdefault(key, Box(key, "note", view.boxes[link.tail].nodes, frame))
            links.append(replace(link, tail=key))
        else:
            links.append(link)
    return replace(view, boxes={**notes, **view.boxes}, links=tuple(dict.fromkeys(links)))


def _is_shared_by(link: Link, view: View, homes: Mapping[str, str]) -> bool:
    ours, theirs = homes[link.tail], homes[link.head]
    return (
        link.kind != "residual" and view.boxes[link.tail].form != "note" and bool(theirs) and not within(ours, theirs)
    )


def alone(view: View) -> set[Link]:
    """The links within a frame that nothing else runs beside, residual connections aside.

    What runs beside is told by the order of execution: a link lies beside all that runs between its two ends, and one
    from outside beside all that its frame runs before its head.
    """
    frames = view.clusters()
    homes = {key: home(box, frames) for key, box in view.boxes.items()}
    place = {key: index for index, key in enumerate(view.boxes)}
    ends: dict[str, tuple[int, int]] = {}
    for key, box in view.boxes.items():
        if box.form != "note":
            first, _ = ends.get(homes[key], (place[key], 0))
            ends[homes[key]] = (first, place[key])
    # How many links lie over each place of a frame, as the sum of steps up and down.
    steps = {frame: [0] * (last - first + 2) for frame, (first, last) in ends.items()}
    spans: dict[Link, tuple[str, int, int]] = {}
    for link in view.links:
        if link.kind == "residual" or view.boxes[link.tail].form == "note":
            continue
        ours, theirs = homes[link.tail], homes[link.head]
        start = place[link.tail] - ends[ours][0]
        stop = place[link.head] - ends[theirs][0]
        if ours == theirs:
            start, stop = sorted((start, stop))
            spans[link] = (ours, start, stop)
            steps[ours][start] += 1
            steps[ours][stop] -= 1
        else:
            steps[ours][start] += 1
            steps[ours][-1] -= 1
            steps[theirs][0] += 1
            steps[theirs][stop] -= 1
    over = {frame: list(accumulate(accumulate(each), initial=0)) for frame, each in steps.items()}
    return {
        link for link, (frame, start, stop) in spans.items() if over[frame][stop] - over[frame][start] == stop - start
    }


def mark(view: View) -> View:
    """The view with its residual sums and connections, and the links between stacks, marked as such."""
    return _mark_crossings(_mark_residuals(view))


def _mark_residuals(view: View) -> View:
    incoming = view.incoming()
    place = {key: index for index, key in enumerate(view.boxes)}
    boxes = dict(view.boxes)
    skips: set[Link] = set()
    for key, box in view.boxes.items():
        if box.form != "pill" or box.node.kind != "add" or box.parameters:
            continue
        operands = [link for link in incoming[key] if view.boxes[link.tail].form != "note"]
        # Both sides of a residual sum have its shape. A mask is none, though it leads to a later layer's scores.
        if len(operands) != 2 or len({link.spec.shape for link in operands if link.spec}) > 1:
            continue
        named = any(role.part == "residual_sum" for role in box.node.roles)
        if not named and any(role.block.endswith("attention") and role.part in _SCORES for role in box.node.roles):
            continue
        skip = _skip(operands[0], operands[1], view, incoming, place, strict=not named)
        if named or skip:
            boxes[key] = replace(box, form="plus")
        if skip:
            skips.add(skip)
    links = (replace(link, kind="residual") if link in skips else link for link in view.links)
    return replace(view, boxes=boxes, links=tuple(links))


def _skip(
    a: Link, b: Link, view: View, incoming: Mapping[str, list[Link]], place: Mapping[str, int], *, strict: bool
) -> Link | None:
    """Of the two operands of a sum, the one that the other is computed from."""
    early, late = sorted((a, b), key=lambda link: place[link.tail])
    seen, todo, computes, reached = {early.tail}, [late.tail], False, False
    if early.tail == late.tail:
        return None
    while todo:
        key = todo.pop()
        reached |= key == early.tail
        if key in seen or place[key] < place[early.tail]:
            continue
        seen.add(key)
        computes |= view.boxes[key].node.kind in _COMPUTING or bool(view.boxes[key].parameters)
        todo += (link.tail for link in incoming[key])
    return early if reached and (computes or not strict) else None


def _mark_crossings(view: View) -> View:
    """Marks a link from one stack into another that has a stream of its own: the encoder's output into the decoder.

    The stacks are those of the two boxes' roles, or else the sibling modules they are in, if the one entered has
    numbered layers. The link crosses when it brings an input that the stack's first box did not have.
    """
    reach: dict[str, frozenset[str]] = {}
    incoming = view.incoming()
    for key, box in view.boxes.items():
        own = frozenset({key}) if box.form == "port" and not key.startswith("out:") else frozenset()
        reach[key] = own.union(*(reach.get(link.tail, frozenset()) for link in incoming[key]))
    begins: dict[str, frozenset[str]] = {}
    for key, box in view.boxes.items():
        if box.form not in ("port", "note"):
            for name in _stack_names(box):
                begins.setdefault(name, reach[key])

    layered = {
        path.rpartition(".")[0]
        for module in view.graph.modules
        for path in prefixes(module.path)
        if path.rpartition(".")[2].isdigit()
    }

    def crosses(link: Link) -> bool:
        tail, head = view.boxes[link.tail], view.boxes[link.head]
        if tail.form == "note" or head.form == "port":
            return False
        if tail.form == "port" and not tail.key.startswith("in:"):
            return False
        stack = _entered_stack(tail, head, layered)
        return bool(stack) and not reach[link.tail] <= begins.get(stack, reach[link.tail])

    return replace(view, links=tuple(replace(link, kind="crossing") if crosses(link) else link for link in view.links))


def _stack_names(box: Box) -> list[str]:
    return [*prefixes(box.module), *(f"role {role.stack}" for role in box.node.roles[:1])]


def _entered_stack(tail: Box, head: Box, layered: Collection[str]) -> str:
    """The stack that a link enters by leaving another; empty where it stays, or where they are not side by side."""
    if tail.node.roles and head.node.roles:
        ours, theirs = tail.node.roles[0].stack, head.node.roles[0].stack
        return "" if theirs == ours else f"role {theirs}"
    a, b = list(prefixes(tail.node.module)), list(prefixes(head.node.module))
    entered = next((theirs for ours, theirs in zip(a, b, strict=False) if ours != theirs), "")
    return entered if any(within(path, entered) for path in layered) else ""
