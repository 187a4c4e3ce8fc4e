"""The kind of an op, from PyTorch's own names: modules by class, functions and methods by the name they share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import nn

from fxtrace.graph import Arg, Node, Ref

_MODULES: tuple[tuple[tuple[type[nn.Module], ...], str], ...] = (
    ((nn.Linear, nn.Bilinear), "linear"),
    ((nn.Embedding, nn.EmbeddingBag), "embedding"),
    ((nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.LocalResponseNorm, nn.modules.batchnorm._NormBase), "norm"),
    ((nn.Softmax,), "softmax"),
    ((nn.MultiheadAttention,), "attention"),
    ((nn.RNNBase, nn.RNNCellBase), "recurrent"),
    ((nn.modules.conv._ConvNd,), "convolution"),
    ((nn.modules.dropout._DropoutNd,), "dropout"),
    ((nn.Flatten, nn.Unflatten, nn.Identity, nn.PixelShuffle), "view"),
)

_FUNCTIONS: dict[str, str] = {
    name: kind
    for kind, names in {
        "linear": "linear bilinear",
        "embedding": "embedding embedding_bag",
        "recurrent": "lstm gru rnn_tanh rnn_relu lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell",
        "convolution": "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution",
        "matmul": "matmul bmm mm baddbmm addmm addbmm einsum tensordot mv dot grouped_mm grouped_mm_fallback",
        "attention": "scaled_dot_product_attention multi_head_attention_forward scaled_dot_product_flash_attention "
        "scaled_dot_product_flash_attention_for_cpu scaled_dot_product_efficient_attention "
        "scaled_dot_product_cudnn_attention",
        "softmax": "softmax",
        "norm": "layer_norm rms_norm group_norm batch_norm instance_norm normalize native_layer_norm fused_rms_norm "
        "native_group_norm native_batch_norm native_batch_norm_legit "
        "native_batch_norm_legit_no_training cudnn_batch_norm",
        "activation": "relu relu6 gelu silu mish elu selu celu leaky_relu prelu glu sigmoid tanh hardswish hardtanh "
        "hardsigmoid softplus softsign logsigmoid",
        "dropout": "dropout dropout1d dropout2d dropout3d alpha_dropout feature_dropout native_dropout",
        "add": "add iadd",
        "sub": "sub subtract isub rsub",
        "mul": "mul multiply imul",
        "div": "div divide truediv itruediv true_divide",
        "mask": "masked_fill masked_scatter where setitem index_put index_add index_copy scatter scatter_add",
        "view": "view view_as reshape reshape_as transpose swapaxes swapdims permute movedim t mT adjoint flatten "
        "unflatten squeeze unsqueeze contiguous expand expand_as repeat repeat_interleave tile broadcast_to clone "
        "detach copy roll flip alias identity unsafe_view reshape_alias lift_fresh "
        "lift_fresh_copy numpy_T matrix_H mH",
        "join": "cat concat concatenate stack hstack vstack dstack written",
        "select": "getitem select narrow slice chunk split tensor_split unbind gather index_select take_along_dim "
        "diagonal masked_select index split_with_sizes unsafe_split unsafe_split_with_sizes unsafe_chunk",
        "reduce": "sum mean max min amax amin topk prod var std norm logsumexp argmax argmin all any",
        "create": "arange zeros ones full empty rand randn eye linspace tensor zeros_like ones_like full_like "
        "empty_like new_zeros new_ones new_full new_empty tril triu rand_like randn_like randint randperm "
        "scalar_tensor as_tensor new_tensor",
        "cast": "to to_copy type type_as float half bfloat16 double long int bool cpu cuda",
        "elementwise": "abs neg exp log sqrt rsqrt pow sin cos erf clamp clip reciprocal square sign round floor ceil "
        "minimum maximum eq ne lt le gt ge logical_and logical_or logical_not logical_xor and or xor invert "
        "bitwise_and bitwise_or bitwise_not bitwise_xor addcmul addcdiv lerp floor_divide floordiv remainder mod "
        "polar view_as_complex view_as_real",
    }.items()
    for name in names.split()
}


def module_kind(module: nn.Module) -> str:
    """The kind of a module that was not traced into."""
    for classes, kind in _MODULES:
        if isinstance(module, classes):
            return kind
    if type(module).__module__ == "torch.nn.modules.activation":
        return "activation"
    return "module"


def function_kind(target: str, args: tuple[Arg, ...], inputs: Iterable[Node], before: Mapping[str, Node]) -> str:
    """The kind of a function or method call, given the nodes among its arguments and all those before it.

    In-place spellings (`add_`), operators (`__add__`) and functions of any namespace share one name. A matrix product
    with a parameter is a `linear`, a parameter's rows chosen by a tensor of ids are an `embedding`.
    """
    if target == "getattr":
        attribute = str(args[1]) if len(args) > 1 else ""
        return _FUNCTIONS.get(attribute, "view" if attribute in ("T", "H", "mH") else "other")
    name = target.rpartition(".")[2]
    kind = _FUNCTIONS.get(name) or _FUNCTIONS.get(name.strip("_"), "other")
    if kind == "matmul":
        tensors = [each for each in inputs if each.kind != "size"]
        factors = tensors[1:] if name in ("addmm", "baddbmm", "addbmm") else tensors  # the first is what is added
        return "linear" if any(_is_parameter(each, before) for each in factors) else kind
    if name in ("getitem", "index") and len(args) > 1:
        index = args[1]
        if name == "index" and isinstance(index, tuple) and len(index) == 1:  # ATen's spelling
            index = index[0]
        by_ids = isinstance(index, Ref) and before[index.node].kind != "size"
        first = next((each for each in inputs if each.kind != "size"), None)
        if by_ids and first is not None and _is_parameter(first, before):
            return "embedding"
    return kind


def _is_parameter(node: Node, before: Mapping[str, Node]) -> bool:
    """Whether a node is a parameter, seen through transposes, casts and the like."""
    while node.kind in ("view", "cast") and node.inputs:
        node = before[node.inputs[0]]
    return node.kind == "constant"
