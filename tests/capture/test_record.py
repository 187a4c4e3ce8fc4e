"""The record rung: any model is captured, its graph re-runs to the same output, and nothing is left behind."""

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._C import _len_torch_function_stack
from torch.nn.attention import SDPBackend, sdpa_kernel

from fxtrace.capture import Capture, capture
from fxtrace.errors import Cancelled, CaptureFailed
from fxtrace.graph import Graph, Ref
from fxtrace.ir.trace import Progress, Rung
from fxtrace.ops import KINDS
from fxtrace.shapes import leaves
from tests.capture.zoo import ZOO, Experts, Function, Made_

X = torch.arange(6.0).reshape(2, 3)


def made(name: str) -> tuple[nn.Module, dict[str, Any]]:
    torch.manual_seed(0)
    return ZOO[name]()


def recorded(function: Callable[..., Any], x: Tensor = X, **modules: nn.Module) -> Capture:
    return capture(Function(function, **modules), {"x": x}, rung="record")


def kinds(graph: Graph) -> list[str]:
    return [node.kind for node in graph.nodes]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", ZOO)
def test_every_model_is_recorded_and_its_graph_re_runs_to_the_same(name: str, training: bool) -> None:
    module, inputs = made(name)
    given = [t.clone() for _, t in leaves(inputs) if isinstance(t, Tensor)]
    state = {key: value.clone() for key, value in module.state_dict().items()}
    random_states = torch.get_rng_state(), str(np.random.get_state())
    captured = capture(module, inputs, rung="record", training=training)
    assert captured.output_equal, captured.rung_notes
    for node in captured.graph.nodes:
        assert node.kind in KINDS
        for tensor, spec in node.tensors:
            assert tuple(captured.values[tensor].shape) == spec.shape
        assert all(ref in captured.graph.by_name for ref in node.inputs)
    assert all(map(torch.equal, given, (t for _, t in leaves(inputs) if isinstance(t, Tensor))))
    assert all(torch.equal(value, state[key]) for key, value in module.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_states[0])
    assert str(np.random.get_state()) == random_states[1]
    assert module.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())
    assert _len_torch_function_stack() == 0


@pytest.mark.parametrize("name", ZOO)
def test_the_ladder_takes_every_model_and_says_why_it_went_on(name: str) -> None:
    module, inputs = made(name)
    captured = capture(module, inputs)
    assert captured.output_equal
    refusals = [note for note in captured.rung_notes if note.startswith("Not symbolic: ")]
    assert len(refusals) == (captured.rung == "record")


# Packed sequences and nn.Transformer with a mask read numbers in PyTorch's own code.
NEED_VALUES = {"experts", "loop_on_data", "branches_on_data", "packed_sequence", "tensors_made_inside", "transformer"}


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # fake tensors read it
@pytest.mark.parametrize("name", ZOO)
def test_without_values_the_shapes_are_the_same_or_values_are_asked_for(name: str) -> None:
    module, inputs = made(name)
    if name in NEED_VALUES:
        with pytest.raises(CaptureFailed, match=r"depends on the numbers in a tensor.* capture it with values"):
            capture(module, inputs, rung="record", values=False)
        return
    full, bare = (capture(module, inputs, rung="record", values=values) for values in (True, False))
    assert [node.values for node in bare.graph.nodes] == [node.values for node in full.graph.nodes]
    assert (bare.values, bare.output_equal) == ({}, None)
    for tensor, value in bare.known.items():
        assert torch.equal(value, full.values[tensor])


def test_values_are_those_of_the_moment_and_later_readers_read_the_change() -> None:
    def forward(x: Tensor) -> Tensor:
        y = x * 2
        y[0] = 7
        y.add_(1)
        return y.exp()

    captured = recorded(forward)
    nodes, values = captured.graph.by_name, captured.values
    assert torch.equal(values["mul"], X * 2)
    assert torch.equal(values["setitem"], torch.stack([torch.full((3,), 7.0), X[1] * 2]))
    assert torch.equal(values["add_"], values["setitem"] + 1)
    assert [nodes[name].inputs for name in ("setitem", "add_", "exp")] == [("mul",), ("setitem",), ("add_",)]


def test_a_tensor_written_through_its_views_is_read_as_it_then_is() -> None:
    def fill(x: Tensor) -> Tensor:
        whole = x.new_zeros(2, 6)
        early = whole[:, 1:]  # taken before, read after
        whole[:, :3].copy_(x)
        whole[:, 3:].copy_(-x)
        return whole.sum() + early.sum()

    captured = recorded(fill)
    assert captured.output_equal
    graph = captured.graph
    sums = [node for node in graph.nodes if node.target == "sum"]
    read = [graph.by_name[node.inputs[0]] for node in sums]
    assert [node.target.rpartition(".")[2] for node in read] == ["written", "written"]
    assert torch.equal(captured.values[read[0].name], torch.cat((X, -X), 1))
    assert torch.equal(captured.values[read[1].name], torch.cat((X, -X), 1)[:, 1:])
    writers = [graph.by_name[name].target for node in read for name in node.inputs[1:]]
    assert set(writers) == {"copy_"}
    assert len(writers) >= 3


def test_a_call_that_changes_nothing_is_no_node() -> None:
    def forward(x: Tensor) -> Tensor:
        y = F.dropout(x.contiguous().to(torch.float32), 0.5, training=False)
        return y.float() + 1

    assert [n.name for n in recorded(forward).graph.nodes] == ["x", "add", "output"]


def test_modules_sources_and_parameters() -> None:
    module, inputs = made("tied_weights")
    module.register_buffer("unused", torch.ones(3))
    graph = capture(module, inputs, rung="record").graph
    (weight,) = (node for node in graph.nodes if node.op == "get_attr")
    assert (weight.target, weight.parameters, weight.module) == (
        "embedding.weight",
        ("embedding.weight",),
        "embedding",
    )
    head = graph.node("linear")
    assert (head.kind, head.module, head.inputs[1]) == ("linear", "head", weight.name)
    assert head.source is not None
    assert (head.source.code, head.source.function) == ("return self.head(hidden)", "Tied.forward")
    products = [node.kind for node in graph.nodes if node.target == "matmul"]
    assert products == ["linear", "linear"]
    assert graph.node("embedding").kind == "embedding"


class Inner(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.exp()


class Places(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = Inner(), nn.ModuleList([Inner()])

    def forward(self, x: Tensor) -> Tensor:
        made_here = Inner()
        return made_here(self.two[0](self.one(x))) + self.one.forward(x).log()


def test_a_call_belongs_to_the_innermost_of_the_model_s_modules_that_is_being_called() -> None:
    graph = capture(Places(), {"x": X}, rung="record").graph
    found = [(n.target, n.module) for n in graph.nodes if n.op.startswith("call")]
    assert found == [("exp", "one"), ("exp", "two.0"), ("exp", ""), ("exp", ""), ("log", ""), ("add", "")]


def test_items_of_nests_are_taken_where_they_are_used() -> None:
    module, inputs = made("list_input")
    graph = capture(module, inputs, rung="record").graph
    assert [value.path for value in graph.node("images").values] == ["0", "1"]
    assert [n.args[1] for n in graph.nodes if n.target == "operator.getitem"] == [0, 1, "all", 0]
    split = recorded(lambda x: torch.split(x, 1)[1])
    assert [n.name for n in split.graph.nodes] == ["x", "split", "getitem", "output"]


@pytest.mark.parametrize("need_weights", ["attention_with_weights", "attention_without_weights"])
def test_attention_is_taken_apart(need_weights: str) -> None:
    module, inputs = made(need_weights)
    before = torch.backends.mha.get_fastpath_enabled()
    captured = capture(module, inputs)
    assert torch.backends.mha.get_fastpath_enabled() is before
    found = kinds(captured.graph)
    assert found.count("linear") == 3  # query, packed key and value, output
    core = ["softmax", "matmul"] if need_weights == "attention_with_weights" else ["attention"]
    assert all(kind in found for kind in core)
    assert captured.rung == "record"
    assert any("what happens inside would not be seen at tests/capture/zoo.py" in n for n in captured.rung_notes)


def test_recurrent_calls_stay_one_node() -> None:
    module, inputs = made("recurrent")
    found = kinds(capture(module, inputs, rung="record").graph)
    assert found.count("recurrent") == 2 + 3  # LSTM, GRU, and a cell at each of three steps


def test_functions_are_recorded_at_their_outermost() -> None:
    names = [n.target for n in recorded(lambda x: F.softmax(F.layer_norm(x, (3,)), -1)).graph.nodes]
    assert names == ["x", "torch.nn.functional.layer_norm", "torch.nn.functional.softmax", "output"]


def test_notes_say_what_is_fixed() -> None:
    module, inputs = made("branches_on_data")
    notes = capture(module, inputs).rung_notes
    assert any("Numbers were read out of tensors at tests/capture/zoo.py:" in note for note in notes)
    assert any("Not symbolic: symbolic tracing cannot follow this model at tests/capture/zoo.py:" in n for n in notes)
    hidden = torch.ones(3)
    notes = recorded(lambda x: x + hidden).rung_notes
    assert any("Tensors that no recorded call made at tests/capture/test_record.py:" in note for note in notes)


class Count(nn.Module):
    """Gives another output every time, whatever is put back."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        Count.calls += 1
        return x + Count.calls


class Drifting:
    """A function of PyTorch's kind that the recorder sees, and that does not give the same twice."""

    calls = 0

    @classmethod
    def drift(cls, x: Tensor) -> Tensor:
        def drift(x: Tensor) -> Tensor:
            if torch.overrides.has_torch_function((x,)):
                return torch.overrides.handle_torch_function(drift, (x,), x)
            cls.calls += 1
            return x + cls.calls // 3  # as eager, so recorded; another when re-run

        cls.calls = 1 if cls.calls > 2 else cls.calls
        return drift(x)


def test_what_cannot_be_replayed_is_said() -> None:
    captured = capture(Count(), {"x": X}, rung="record")
    assert captured.output_equal is False
    assert any("gives another output when it is run again" in note for note in captured.rung_notes)
    captured = recorded(lambda x: Drifting.drift(x * 2) + 1)
    assert captured.output_equal is False
    (note,) = (note for note in captured.rung_notes if "re-run" in note)
    assert note.startswith("The graph's re-run differs from the module's run, first in 'drift' at tests/capture/")


def test_a_user_s_hooks_still_run_and_may_change_what_they_see() -> None:
    linear = nn.Linear(3, 3)
    linear.register_forward_pre_hook(lambda _, args: (args[0] * 2,))
    linear.register_forward_hook(lambda _, args, output: output + 1)
    captured = capture(nn.Sequential(linear), {"input": X}, rung="record")
    assert captured.output_equal
    assert kinds(captured.graph) == ["input", "mul", "constant", "constant", "linear", "add", "output"]
    assert len(linear._forward_hooks) == len(linear._forward_pre_hooks) == 1


class Catching(nn.Module):
    """A part of it raises, and the rest goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.part, self.rest = nn.Linear(5, 5), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        try:
            return self.part(x)
        except RuntimeError:
            return self.rest(x) + 1


def test_modules_are_followed_past_an_exception() -> None:
    graph = capture(Catching(), {"x": X}, rung="record").graph
    assert [(n.kind, n.module) for n in graph.nodes if n.kind in ("linear", "add")] == [("linear", "rest"), ("add", "")]


def lazy() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.LazyLinear(2))


@pytest.mark.parametrize("rung", ["", "record"])
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Function(lambda x: x @ x), r"the model raised at tests/capture/test_record.py:\d+ .*RuntimeError"),
        (lazy, r"'1' \(LazyLinear\) has parameters without a shape yet: .* call the model once"),
    ],
)
def test_a_model_that_cannot_run_is_left_as_it_was(make: Callable[[], nn.Module], message: str, rung: Rung) -> None:
    module = make()
    hooks = [len(m._forward_pre_hooks) for m in module.modules()]
    inputs = {"input" if isinstance(module, nn.Sequential) else "x": X}
    with pytest.raises(CaptureFailed, match=message):
        capture(module, inputs, rung=rung)
    assert module.training
    assert [len(m._forward_pre_hooks) for m in module.modules()] == hooks


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_scripted_modules_are_refused() -> None:
    scripted = torch.jit.script(nn.Linear(3, 3))
    with pytest.raises(CaptureFailed, match=r"'0\.part' is a scripted module.*capture the module it was scripted from"):
        capture(nn.Sequential(OrderedModules(part=scripted)), {"input": X}, rung="record")


class OrderedModules(nn.Module):
    def __init__(self, **modules: nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        for module in self.children():
            x = module(x)
        return x


@pytest.mark.parametrize("output", [None, 3, "text", [1, 2], {"a": 1.5}, np.arange(3), object()])
def test_an_output_without_tensors_is_an_output(output: object) -> None:
    captured = recorded(lambda x: (x + 1, output)[1])
    assert captured.output_equal
    assert kinds(captured.graph) == ["input", "add", "output"]


def test_an_output_that_is_an_input_or_a_parameter() -> None:
    captured = recorded(lambda x, part: (x, part.weight), part=nn.Linear(2, 2))
    assert captured.graph.nodes[-1].args == ((Ref("x"), Ref("parts_part_weight")),)
    assert captured.output_equal


def test_progress_and_cancelling() -> None:
    seen: list[Progress] = []
    capture(Function(lambda x: (x + 1) * 2), {"x": X}, rung="record", progress=seen.append)
    assert [p for p in seen if p.stage == "record"] == [Progress("record", 2), Progress("record", 3)]

    def cancel(progress: Progress) -> None:
        if progress.stage == "record":
            raise Cancelled("enough")

    module = Made_()
    with pytest.raises(Cancelled):
        capture(module, {"x": torch.randn(3, 4)}, progress=cancel)
    assert not module.seen.any()
    assert not module._forward_hooks


def test_concurrent_captures_are_those_made_one_after_the_other() -> None:
    names = ["transformer", "experts", "mlp", "cnn", "noise", "tied_weights"]
    models = {name: made(name) for name in names}

    def run(name: str) -> Graph:
        module, inputs = models[name]
        return capture(module, inputs).graph

    # The last digits of a random number depend on the random state, which belongs to whoever captures first.
    alone = {name: run(name) for name in names}
    together: dict[str, Graph] = {}
    start = threading.Barrier(len(names))

    def work(name: str) -> None:
        start.wait()
        together[name] = run(name)

    threads = [threading.Thread(target=work, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == alone


def test_a_thread_that_does_not_capture_is_not_recorded() -> None:
    inside, outside = threading.Event(), threading.Event()
    other = Experts()

    def forward(x: Tensor) -> Tensor:
        inside.set()
        outside.wait(10)
        return x + 1

    def elsewhere() -> None:
        inside.wait(10)
        other(torch.randn(5, 4))
        outside.set()

    thread = threading.Thread(target=elsewhere)
    thread.start()
    graph = recorded(forward).graph
    thread.join()
    assert [n.name for n in graph.nodes] == ["x", "add", "output"]


FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": ("BertConfig", "BertModel", {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}),
    "gpt2": ("GPT2Config", "GPT2LMHeadModel", {"n_embd": 16, "n_head": 2, "n_layer": 1}),
    "gpt2 with a cache": (
        "GPT2Config",
        "GPT2LMHeadModel",
        {"n_embd": 16, "n_head": 2, "n_layer": 1, "use_cache": True},
    ),
    "llama": (
        "LlamaConfig",
        "LlamaForCausalLM",
        {"hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 1},
    ),
    "t5": ("T5Config", "T5ForConditionalGeneration", {"d_model": 16, "d_kv": 8, "num_heads": 2, "num_layers": 1}),
    "bart": (
        "BartConfig",
        "BartModel",
        {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2}
        | {"decoder_attention_heads": 2},
    ),
    "vit": (
        "ViTConfig",
        "ViTModel",
        {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "image_size": 16, "patch_size": 8},
    ),
    "whisper": (
        "WhisperConfig",
        "WhisperModel",
        {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "num_mel_bins": 8}
        | {"decoder_attention_heads": 2, "max_source_positions": 10, "decoder_start_token_id": 1},
    ),
}


@pytest.mark.filterwarnings("ignore")  # transformers' own
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", FAMILIES)
def test_hugging_face_models(family: str, attention: str) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config_name, model_name, sizes = FAMILIES[family]
    text = {} if family == "vit" else {"vocab_size": 60, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = getattr(transformers, config_name)(**{"use_cache": False, **text, **sizes})
    config._attn_implementation = attention
    try:
        module = getattr(transformers, model_name)(config)
    except ValueError as error:
        pytest.skip(str(error))
    ids = torch.randint(3, 60, (2, 5))
    inputs = {"pixel_values": torch.randn(2, 3, 16, 16)} if family == "vit" else {"input_ids": ids}
    if family == "whisper":
        inputs = {"input_features": torch.randn(2, 8, 20)}
    if config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids
    captured = capture(module, inputs)
    assert captured.output_equal, captured.rung_notes
    core = {"eager": "softmax", "sdpa": "attention"}[attention]
    layers = 3 if config.is_encoder_decoder else 1  # self, masked self and cross
    assert kinds(captured.graph).count(core) == layers
    assert all(node.source is not None for node in captured.graph.nodes if node.op.startswith("call"))
    bare = capture(module, inputs, values=False)
    assert [n.spec for n in bare.graph.nodes if n.kind == core] == [
        n.spec for n in captured.graph.nodes if n.kind == core
    ]


class ChoosesItsKernel(nn.Module):
    """Attention by the plain kernel in a block of its own; elsewhere by whichever PyTorch takes."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with sdpa_kernel(SDPBackend.MATH):
            plain = F.scaled_dot_product_attention(x, x, x)
        return plain, F.scaled_dot_product_attention(x, x, x)


def test_attention_is_run_again_by_the_kernel_it_was_run_by() -> None:
    x = torch.randn(2, 4, 64, 32, generator=torch.Generator().manual_seed(3))
    plain, other = ChoosesItsKernel()(x)
    assert not torch.equal(plain, other)  # else this test would show nothing
    assert capture(ChoosesItsKernel(), {"x": x}, rung="record").output_equal
