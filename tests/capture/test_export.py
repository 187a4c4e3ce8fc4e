"""The export rung: ATen graphs with shapes, kinds, modules and source lines, with weights and without."""

import re
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from fxtrace import wire
from fxtrace.capture import Capture, capture
from fxtrace.capture.quiet import quiet
from fxtrace.errors import Cancelled, CaptureFailed, FxtraceError, OptionInvalid
from fxtrace.graph import Graph, Node
from fxtrace.ir.trace import Progress
from fxtrace.roles import label
from tests.capture.zoo import ZOO, Function

LOOKS_AT_NUMBERS = {"transformer", "loop_on_data", "branches_on_data"}
SIZES_FROM_NUMBERS = {"experts"}
OTHERWISE_REFUSED = {
    "packed_sequence": "zeros()",
    "dataclass_input": "Unsupported input type",
    "dataclass_output": "not a known type",
    "object_output": "not a known type",
    "own_grad_and_autocast": "fake tensor",
}


def exported(module: nn.Module, **inputs: Any) -> Capture:
    return capture(module, inputs, rung="export")


def of_kind(captured: Capture, kind: str) -> list[Node]:
    return [node for node in captured.graph.nodes if node.kind == kind]


@pytest.mark.parametrize("name", sorted(ZOO.keys() - LOOKS_AT_NUMBERS - SIZES_FROM_NUMBERS - OTHERWISE_REFUSED.keys()))
def test_shapes_are_those_of_a_real_run(name: str) -> None:
    torch.manual_seed(0)
    module, inputs = ZOO[name]()
    before = {key: tensor.clone() for key, tensor in module.state_dict().items()}
    captured = capture(module, inputs, rung="export")
    assert (captured.rung, captured.output_equal, dict(captured.values)) == ("export", None, {})
    assert all(torch.equal(tensor, before[key]) for key, tensor in module.state_dict().items())

    real = list(output_shapes(module(**inputs)))
    graph = captured.graph
    returned = [graph.by_name[name].values[0] for name in graph.nodes[-1].inputs]
    assert [value.spec.shape for value in returned if value.spec] == real or name == "cached"


def output_shapes(value: Any) -> Iterator[tuple[int, ...]]:
    if isinstance(value, Tensor):
        yield tuple(value.shape)
    elif isinstance(value, dict):
        yield from output_shapes(tuple(value.values()))
    elif isinstance(value, tuple | list):
        for item in value:
            yield from output_shapes(item)


@pytest.mark.parametrize("name", sorted(LOOKS_AT_NUMBERS))
def test_a_path_that_depends_on_numbers_is_followed_in_part(name: str) -> None:
    torch.manual_seed(0)
    module, inputs = ZOO[name]()
    captured = exported(module, **inputs)
    note = next(note for note in captured.rung_notes if note.startswith("Partial, by torch.export.draft_export"))
    assert re.search(r"depends on the numbers in a tensor( at tests/capture/zoo\.py:\d+ .*)?, and", note)
    graph = captured.graph
    returned = [graph.by_name[name].values[0] for name in graph.nodes[-1].inputs]
    assert [value.spec.shape for value in returned if value.spec] == list(output_shapes(module(**inputs)))


@pytest.mark.parametrize("name", sorted(SIZES_FROM_NUMBERS))
def test_a_path_that_depends_on_sizes_from_numbers_is_refused(name: str) -> None:
    module, inputs = ZOO[name]()
    with pytest.raises(CaptureFailed, match=r"depends on the numbers in a tensor.*capture it with values"):
        capture(module, inputs, rung="export")


@pytest.mark.parametrize("absent", ["meta", "fake"])
def test_without_weights_a_path_that_depends_on_numbers_is_refused(absent: str) -> None:
    with torch.device("meta") if absent == "meta" else FakeTensorMode():
        module, inputs = Branching(), {"x": torch.zeros(2, 4)}
    with pytest.raises(CaptureFailed, match=r"depends on the numbers in a tensor.*capture it with values"):
        capture(module, inputs)


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        return y + 1 if y.sum() > 0 else y - 1


@pytest.mark.parametrize("name", OTHERWISE_REFUSED)
def test_what_export_cannot_follow_is_refused_with_the_users_line(name: str) -> None:
    module, inputs = ZOO[name]()
    with pytest.raises(
        CaptureFailed, match=r"torch.export cannot follow this model at tests/capture/zoo\.py"
    ) as failed:
        capture(module, inputs, rung="export")
    assert OTHERWISE_REFUSED[name] in failed.value.message


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(8, 24)
        self.norm = nn.LayerNorm(8)
        self.table = nn.Parameter(torch.randn(9, 4))
        self.index: Tensor
        self.register_buffer("index", torch.arange(9).reshape(3, 3))
        self.tied = self.project

    def forward(self, x: Tensor, drop: float = 0.5) -> dict[str, Any]:
        q, k, v = self.project(self.norm(x)).chunk(3, dim=-1)
        fused = F.scaled_dot_product_attention(q, k, v)
        mask = torch.ones(3, 3, dtype=torch.bool).tril()
        weights = (q @ k.mT).masked_fill(~mask, -1e9).softmax(-1)
        weights = F.dropout(weights, drop, self.training).to(torch.float32)
        bias = self.table[self.index]
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            both = self.tied(x)
        return {"y": weights @ v + fused, "rest": [bias, both]}


def test_nodes_know_kind_module_parameters_and_source() -> None:
    module = Block().eval()
    captured = exported(module, x=torch.randn(2, 3, 8))
    nodes = captured.graph.by_name
    linear, tied = of_kind(captured, "linear")
    assert (linear.target, linear.op, linear.module) == ("aten.linear", "call_function", "project")
    assert linear.spec is not None
    assert linear.spec.shape == (2, 3, 24)
    assert linear.source is not None
    assert (linear.source.file, linear.source.function) == ("tests/capture/test_export.py", "Block.forward")
    assert linear.source.code == "q, k, v = self.project(self.norm(x)).chunk(3, dim=-1)"
    weight = nodes[linear.inputs[1]]
    assert (weight.op, weight.kind, weight.parameters) == ("get_attr", "constant", ("project.weight",))
    assert tied.spec is not None
    assert tied.spec.dtype == "bfloat16"  # the block's autocast is seen
    assert weight.name in tied.inputs
    assert [of_kind(captured, kind)[0].target for kind in ("norm", "attention", "softmax", "embedding", "mask")] == [
        "aten.layer_norm",
        "aten.scaled_dot_product_attention",
        "aten.softmax",
        "aten.index",
        "aten.masked_fill",
    ]
    assert of_kind(captured, "other") == of_kind(captured, "dropout") == of_kind(captured, "cast") == []
    output = captured.graph.nodes[-1].args[0]
    assert isinstance(output, dict)
    assert list(output) == ["y", "rest"]
    assert isinstance(output["rest"], tuple)


def test_inputs_and_masks_are_what_can_be_known() -> None:
    captured = exported(Block().eval(), x=torch.randn(2, 3, 8))
    assert [node.name for node in of_kind(captured, "input")] == ["x"]
    mask = captured.graph.by_name[of_kind(captured, "mask")[0].inputs[1]]
    assert torch.equal(captured.known[mask.name], ~torch.ones(3, 3, dtype=torch.bool).tril())
    assert not any("linear" in name for name in captured.known)


def test_what_weights_are_written_into_is_not_known() -> None:
    class Writes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            table = torch.zeros(2, 3)
            before = table + x
            table[0].copy_(self.weight)
            return before, table + 1, x + 1

    captured = exported(Writes(), x=torch.ones(2, 3))
    before, after, aside = captured.graph.nodes[-1].inputs
    assert torch.equal(captured.known[before], torch.ones(2, 3))
    assert torch.equal(captured.known[aside], torch.full((2, 3), 2.0))
    assert after not in captured.known


@pytest.mark.parametrize("rung", ["", "export"])
@pytest.mark.parametrize("inputs_on", ["meta", "cpu"])
def test_a_module_without_weights_gives_the_same_graph(rung: Any, inputs_on: str) -> None:
    with torch.device("meta"):
        module = Block().eval()
    x = torch.randn(2, 3, 8, device=inputs_on)
    captured = capture(module, {"x": x}, rung=rung)
    assert captured.rung == "export"
    assert captured.graph.nodes == exported(Block().eval(), x=torch.randn(2, 3, 8)).graph.nodes
    assert all(tensor.is_meta for tensor in (*module.parameters(), *module.buffers()))
    assert module.tied is module.project


def test_a_module_of_fake_tensors_is_exported() -> None:
    with FakeTensorMode():
        module = Block().eval()
        x = torch.randn(2, 3, 8)
    captured = exported(module, x=x)
    assert captured.graph.nodes == exported(Block().eval(), x=torch.randn(2, 3, 8)).graph.nodes


def test_a_size_that_depends_on_numbers_is_refused() -> None:
    with pytest.raises(CaptureFailed, match=r"size depends on the numbers.*self.function\(x\)"):
        exported(Function(lambda x: x.nonzero()), x=torch.ones(3))


def test_training_keeps_dropout() -> None:
    captured = capture(Block(), {"x": torch.randn(2, 3, 8)}, rung="export", training=True)
    assert [node.target for node in of_kind(captured, "dropout")] == ["aten.dropout"]


@pytest.mark.parametrize("family", ["llama", "bert"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_transformers_models_without_weights_are_labelled_as_recorded_ones(family: str, attention: str) -> None:
    transformers = pytest.importorskip("transformers")
    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "vocab_size": 30,
        "attn_implementation": attention,
    }
    config = transformers.AutoConfig.for_model(family, use_cache=False, **sizes)
    make = transformers.AutoModelForCausalLM if family == "llama" else transformers.AutoModel
    with torch.device("meta"):
        absent = make.from_config(config)
    ids = torch.zeros(2, 5, dtype=torch.long)
    captured = capture(absent, {"input_ids": ids})
    recorded = capture(make.from_config(config), {"input_ids": ids}, rung="record", values=False)
    labelled, _ = label(captured.graph, captured.known)
    reference, _ = label(recorded.graph, recorded.known)
    found, expected = ({str(role) for node in graph.nodes for role in node.roles} for graph in (labelled, reference))
    # A recording sees that a mask hides nothing, and leaves it out; export cannot.
    assert expected <= found
    assert {role.rpartition(".")[2] for role in found - expected} <= {"mask", "masked_scores"}
    assert expected
    assert len(of_kind(captured, "linear")) == len(of_kind(recorded, "linear"))
    assert len(of_kind(captured, "softmax" if attention == "eager" else "attention")) == 2
    assert of_kind(captured, "embedding")[0].spec == of_kind(recorded, "embedding")[0].spec


def test_symbolic_sizes_are_named() -> None:
    names = {"x": ("batch", "", "")}
    captured = capture(Block().eval(), {"x": torch.randn(2, 3, 8)}, symbolic=names)
    assert captured.rung == "export"
    specs = dict(captured.graph.tensors())
    linear, _ = of_kind(captured, "linear")
    assert (specs["x"].shape, specs["x"].symbolic) == ((2, 3, 8), ("batch", "3", "8"))
    assert (specs[linear.name].shape, specs[linear.name].symbolic) == ((2, 3, 24), ("batch", "3", "24"))
    assert [value.text for node in of_kind(captured, "size") for value in node.values] in ([], ["batch"])
    mask = of_kind(captured, "mask")[0]
    assert specs[mask.inputs[1]].symbolic == ()
    assert not any("no symbol" in note for note in captured.rung_notes)
    assert symbols(captured.graph) == {"batch"}
    static = exported(Block().eval(), x=torch.randn(2, 3, 8)).graph
    shapes = {name: (spec.shape, spec.stride, spec.nbytes) for name, spec in static.tensors()}
    assert {name: (spec.shape, spec.stride, spec.nbytes) for name, spec in specs.items()} == shapes


def symbols(graph: Graph) -> set[str]:
    return {size for _, spec in graph.tensors() for size in spec.symbolic if not size.isdigit()}


def test_sizes_are_expressions_of_the_named_ones_in_what_follows() -> None:
    module = Function(lambda x: torch.arange(x.shape[1]) + torch.cat([x, x], 0).flatten().sum())
    captured = capture(module, {"x": torch.randn(3, 5)}, symbolic={"x": ("batch", "sequence")})
    assert symbols(captured.graph) == {"batch", "sequence", "2*batch", "2*batch*sequence"}
    arange = next(node for node in captured.graph.nodes if node.target == "aten.arange")
    assert arange.spec is not None
    assert arange.spec.symbolic == ("sequence",)
    assert torch.equal(captured.known[arange.name], torch.arange(5))  # as it is in the example
    assert wire.decode_graph([wire.encode_graph(captured.graph)]) == captured.graph


@pytest.mark.parametrize(
    ("module", "shape", "fixed"),
    [
        (
            Function(lambda x: x + torch.ones(2, 1)),
            (2, 3),
            "'batch' of 'x' is no symbol: the model fixes this size at 2.",
        ),
        (
            nn.LSTM(4, 5, batch_first=True),
            (2, 3, 4),
            "'length' of 'input' is no symbol: the model fixes this size at 3.",
        ),
        (Function(lambda x: x @ x), (3, 3), "'length' of 'x' is written batch: the model ties the two."),
    ],
)
def test_a_size_that_is_no_symbol_of_its_own_is_told(module: nn.Module, shape: tuple[int, ...], fixed: str) -> None:
    name = "input" if isinstance(module, nn.LSTM) else "x"
    symbolic = {name: ("batch", "length", "")[: len(shape)]}
    captured = capture(module, {name: torch.randn(shape)}, symbolic=symbolic)
    assert fixed in captured.rung_notes


def test_sizes_of_one_name_are_one_symbol_whatever_the_inputs_name() -> None:
    class Two(nn.Module):
        def forward(self, input: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:  # noqa: A002
            half = input.shape[1] // 2
            return input[:, :half] * 2, mask.expand(2, -1).reshape(-1)

    names = {"input": ("batch", "length"), "mask": ("length",)}
    captured = capture(Two(), {"input": torch.randn(3, 6), "mask": torch.ones(6)}, symbolic=names)
    first, second = (captured.graph.node(name).spec for name in captured.graph.nodes[-1].inputs)
    assert first is not None
    assert second is not None
    assert (first.symbolic, second.symbolic) == (("batch", "length//2"), ("2*length",))
    assert "Symbols: batch, length; other sizes are numbers as this input has them." in captured.rung_notes


def test_symbols_that_cannot_be_followed_become_numbers() -> None:
    class Reads(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * (2 if x.sum() > 0 else 3)

    captured = capture(Reads(), {"x": torch.ones(2, 3)}, symbolic={"x": ("batch", "")})
    assert symbols(captured.graph) == set()
    notes = "\n".join(captured.rung_notes)
    assert "The sizes that were to be symbols are numbers: the model's path depends on the numbers" in notes
    assert "Partial, by torch.export.draft_export" in notes
    assert "'batch' of 'x' is no symbol" not in notes


def test_sizes_of_other_inputs_follow_the_named_ones() -> None:
    class Masked(nn.Module):
        def forward(self, x: Tensor, mask: Tensor, other: Tensor) -> Tensor:
            return x.masked_fill(mask.bool(), 0) + other.sum()

    inputs = {"x": torch.randn(3, 5), "mask": torch.ones(3, 5), "other": torch.ones(5, 7)}
    captured = capture(Masked(), inputs, symbolic={"x": ("batch", "length")})
    specs = dict(captured.graph.tensors())
    assert specs["mask"].symbolic == ("batch", "length")
    assert specs["other"].symbolic == ("other_0", "7")  # as long in the example, and nothing ties the two
    assert "Symbols: batch, length, other_0; other sizes are numbers as this input has them." in captured.rung_notes


def test_symbols_are_followed_for_a_limited_time() -> None:
    module, x = Block().eval(), torch.randn(2, 3, 8)
    captured = capture(module, {"x": x}, symbolic={"x": ("batch", "", "")}, symbolic_timeout=1e-9)
    assert captured.graph == exported(module, x=x).graph
    assert any("numbers: following them took more than 1e-09 s of computing" in note for note in captured.rung_notes)


def test_an_export_is_stopped_by_its_caller() -> None:
    def stop(progress: Progress) -> None:
        if progress.stage == "export" and progress.done == 3:
            raise Cancelled("enough")

    with pytest.raises(Cancelled, match="enough"):
        capture(Block().eval(), {"x": torch.randn(2, 3, 8)}, rung="export", progress=stop)


def test_only_the_exporting_thread_is_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    heard: list[str] = []

    def other() -> None:
        print("other", file=sys.stderr)  # noqa: T201
        with pytest.raises(UserWarning, match="other"):
            warnings.warn("other", UserWarning, stacklevel=1)
        heard.append("other")

    with quiet():
        print("own", file=sys.stderr)  # noqa: T201
        warnings.warn("own", UserWarning, stacklevel=1)
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert heard == ["other"]
    assert capsys.readouterr().err == "other\n"
    with pytest.raises(UserWarning, match="own"):
        warnings.warn("own", UserWarning, stacklevel=1)


@pytest.mark.parametrize(
    ("symbolic", "rung", "message"),
    [
        ({"x": ("batch",)}, "", r"'x' is of shape \(2, 1\): expected 2 names.*got 1 \(batch\)"),
        ({"xs": ("batch", "")}, "", "no tensor among the inputs named 'xs'; did you mean 'x'"),
        ({"x": ("", "one")}, "", "'one' of 'x' is 1: .* example of 2 or more"),
        ({"x": ("2*n", "")}, "", "'2\\*n' is no name for a size of 'x'"),
        ({"x": ("n", ""), "y": ("n",)}, "", "'n' is 2 in 'x' and 3 in 'y'"),
        ({"x": ("batch", "")}, "record", "need the rung 'export'"),
    ],
)
def test_names_that_do_not_fit_are_refused(symbolic: Any, rung: Any, message: str) -> None:
    with pytest.raises(FxtraceError, match=message):
        capture(Plus(), {"x": torch.ones(2, 1), "y": torch.ones(3)}, rung=rung, symbolic=symbolic)


class Plus(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan")])
def test_a_timeout_is_above_zero(seconds: float) -> None:
    with pytest.raises(OptionInvalid, match="symbolic_timeout: expected seconds above 0"):
        capture(nn.Linear(2, 2), {"input": torch.ones(2, 2)}, symbolic_timeout=seconds)


class InParts(nn.Module):
    """A tensor is made empty and written in two parts, through views of views."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 3), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        whole = x.new_empty(x.shape[0], 1, 8)
        rows = whole[:, 0]
        rows[:, :3] = self.first(x)
        whole[..., 3:] = self.second(x)[:, None]
        return whole.transpose(1, 2) + rows.sum()


def test_what_is_written_through_views_is_read_as_written() -> None:
    graph = capture(InParts(), {"x": torch.randn(2, 4)}, rung="export", values=False).graph
    transposed = next(node for node in graph.nodes if node.target == "aten.transpose")
    behind, todo = set[str](), [transposed.name]
    while todo:
        node = graph.by_name[todo.pop()]
        behind.add(node.name)
        todo += [name for name in node.inputs if name not in behind]
    assert sum(graph.by_name[name].kind == "linear" for name in behind) == 2
    assert graph.by_name[transposed.inputs[0]].kind == "join"
    assert graph.by_name[transposed.inputs[0]].spec == next(n for n in graph.nodes if n.target == "aten.new_empty").spec
