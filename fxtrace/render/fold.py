"""Folding: a run of identical layers into one marked ×N, and deep modules into one box each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from fxtrace.graph import Arg, Node, Ref, SliceArg, Symbol, TensorSpec
from fxtrace.render.view import Box, Link, View, calls_deep, prefixes, within

Key = tuple[object, ...]


def fold_layers(
    view: View, lit: frozenset[str] = frozenset(), marks: Mapping[str, Hashable] = MappingProxyType({})
) -> View:
    """Folds every run of identical layers into its first one.

    Layers are siblings of one class, each fed by the one before. Identical means the same ops with the same constants,
    shapes and parameters' shapes, wired alike: an outside input feeds all of them or none, and each takes from the one
    before what the first takes from outside. Boxes of `lit` nodes stay: a layer that has one is folded away only if
    the same box of the first layer is lit too. `marks`, by node name, must be equal, too.
    """
    members: dict[str, list[str]] = defaultdict(list)
    ops: dict[str, int] = defaultdict(int)
    for key, box in view.boxes.items():
        if box.form != "port":
            for path in prefixes(box.module, view.scope):
                members[path].append(key)
                ops[path] += box.form != "note"
    siblings: dict[tuple[str, str], list[str]] = defaultdict(list)
    for path in members:
        module = view.graph.modules_by_path.get(path)
        if ops[path] > 1:
            siblings[path.rpartition(".")[0], module.type if module else ""].append(path)
    for group in sorted(siblings.values(), key=lambda paths: -paths[0].count(".")):
        if len(group) > 1:
            view = _fold_siblings(view, {path: members[path] for path in group}, lit, marks)
    return view


def fold_depth(view: View, depth: int) -> View:
    """Folds every module nested deeper than `depth` into one box, if it holds more than one."""
    targets: dict[str, str] = {}
    held: dict[str, int] = defaultdict(int)
    for key, box in view.boxes.items():
        chain = calls_deep(box.module, view.graph, view.scope) if box.form != "port" else []
        if len(chain) > depth:
            targets[key] = chain[depth]
            held[chain[depth]] += box.form != "note"
    moved = {key: f"module:{path}" for key, path in targets.items() if held[path] > 1}
    boxes: dict[str, Box] = {}
    for key, box in view.boxes.items():
        into = moved.get(key)
        if into is None:
            boxes[key] = box
        elif into in boxes:
            before = boxes[into]
            boxes[into] = replace(
                before,
                nodes=(*before.nodes, *box.nodes),
                parameters=tuple(dict.fromkeys((*before.parameters, *box.parameters))),
            )
        else:
            boxes[into] = Box(into, "module", box.nodes, targets[key], box.parameters)
    links = (
        replace(
            link,
            tail=moved.get(link.tail, link.tail),
            head=moved.get(link.head, link.head),
            kind="flow" if link.kind == "residual" and link.head in moved else link.kind,
        )
        for link in view.links
    )
    return replace(view, boxes=boxes, links=tuple(dict.fromkeys(link for link in links if link.tail != link.head)))


@dataclass(frozen=True, slots=True)
class _Layer:
    """A layer's boxes, each one's place in it, and the links into and out of them."""

    path: str
    place: dict[str, int]
    boxes: tuple[Box, ...]
    into: tuple[Link, ...]
    out: tuple[Link, ...]


def _fold_siblings(
    view: View, members: dict[str, list[str]], lit: frozenset[str], marks: Mapping[str, Hashable]
) -> View:
    into = view.incoming()
    out: dict[str, list[Link]] = defaultdict(list)
    for link in view.links:
        out[link.tail].append(link)
    layers = []
    for path, keys in members.items():
        place = {key: index for index, key in enumerate(key for key in keys if key in view.boxes)}
        layers.append(
            _Layer(
                path,
                place,
                tuple(view.boxes[key] for key in place),
                tuple(link for key in place for link in into[key]),
                tuple(link for key in place for link in out[key] if link.head not in place),
            )
        )
    start = 0
    while start < len(layers) - 1:
        run = [layers[start]]
        carried: dict[str, int] = {}
        for layer in layers[start + 1 :]:
            if not _continues(view, run, layer, carried, lit, marks):
                break
            run.append(layer)
        if len(run) > 1 and _alike_outside(run):
            view = _replace_run(view, run)
        start += len(run)
    return view


def _continues(
    view: View,
    run: list[_Layer],
    layer: _Layer,
    carried: dict[str, int],
    lit: frozenset[str],
    marks: Mapping[str, Hashable],
) -> bool:
    """Whether a layer goes on a run; `carried` says which place of a layer takes the part of which outside input."""
    first, before = run[0], run[-1]
    if len(layer.boxes) != len(first.boxes) or len(layer.into) != len(first.into):
        return False
    for ours, theirs in zip(first.boxes, layer.boxes, strict=True):
        if _shape_of(view, ours, first.path) != _shape_of(view, theirs, layer.path):
            return False
        if not is_lit(ours, lit) and is_lit(theirs, lit):
            return False
        if [marks.get(node.name) for node in ours.nodes] != [marks.get(node.name) for node in theirs.nodes]:
            return False
    found = dict(carried)
    for a, b in zip(first.into, layer.into, strict=True):
        if first.place[a.head] != layer.place[b.head]:
            return False
        if _shape_of_link(view, a, first.path) != _shape_of_link(view, b, layer.path):
            return False
        if a.tail in first.place or b.tail in layer.place:
            if first.place.get(a.tail) != layer.place.get(b.tail):
                return False
        elif b.tail in before.place:
            if found.setdefault(a.tail, before.place[b.tail]) != before.place[b.tail]:
                return False
        elif a.tail != b.tail or a.tail in found:
            return False
    if not found:
        return False
    carried.update(found)
    return True


def _alike_outside(run: list[_Layer]) -> bool:
    """Whether all layers give the same to what reads them outside the run; the last one's reader goes on from it."""
    every = {head for layer in run for head in layer.place}
    outside = [{(layer.place[link.tail], link.head) for link in layer.out if link.head not in every} for layer in run]
    return all(given == outside[0] for given in outside[:-1]) and outside[0] <= outside[-1]


def _replace_run(view: View, run: list[_Layer]) -> View:
    first, last = run[0], run[-1]
    gone = {key for layer in run[1:] for key in layer.place}
    links = []
    for link in view.links:
        if link.head in gone:
            continue
        if link.tail in last.place:
            links.append(replace(link, tail=first.boxes[last.place[link.tail]].key))
        elif link.tail not in gone:
            links.append(link)
    boxes = {key: box for key, box in view.boxes.items() if key not in gone}
    repeats = {path: n for path, n in view.repeats.items() if not any(within(path, layer.path) for layer in run[1:])}
    return replace(view, boxes=boxes, links=tuple(dict.fromkeys(links)), repeats={**repeats, first.path: len(run)})


def is_lit(box: Box, lit: frozenset[str]) -> bool:
    """Whether a box stands for a highlighted node."""
    return any(node.name in lit for node in box.nodes)


def _shape_of(view: View, box: Box, layer: str) -> Key:
    """What must be equal for two layers' boxes to be the same."""
    return (
        box.form,
        _relative(box.module, layer),
        tuple(_shape_of_node(node, layer) for node in box.nodes),
        tuple((_relative(name, layer), view.graph.parameters[name].shape) for name in box.parameters),
        tuple((_relative(path, layer), n) for path, n in view.repeats.items() if within(path, layer)),
    )


def _shape_of_node(node: Node, layer: str) -> Key:
    return (
        node.kind,
        _relative(node.target, layer),
        tuple((value.path, _shape_of_spec(value.spec)) for value in node.values),
        _constants(node.args),
        _constants(node.kwargs),
    )


def _shape_of_link(view: View, link: Link, layer: str) -> Key:
    via = (view.graph.by_name[name] for name in link.via)
    inside = tuple((node.kind, _relative(node.target, layer)) for node in via if within(node.module, layer))
    return (link.kind, _shape_of_spec(link.spec), inside)


def _shape_of_spec(spec: TensorSpec | None) -> Key:
    return (spec.shape, spec.dtype) if spec else ()


def _relative(name: str, layer: str) -> str:
    return name.removeprefix(layer) if within(name, layer) else "/" + name


def _constants(arg: Arg) -> object:
    """An argument with its nodes left out."""
    match arg:
        case Ref():
            return Ref("")
        case tuple():
            return tuple(map(_constants, arg))
        case dict():
            return tuple((key, _constants(item)) for key, item in arg.items())
        case SliceArg(start, stop, step):
            return (SliceArg, _constants(start), _constants(stop), _constants(step))
        case Symbol():
            return arg
        case _:
            return (type(arg), arg)
