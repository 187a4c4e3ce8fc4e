"""Conditions on nodes, in CEL, the Common Expression Language (https://cel.dev): `kind == "matmul" && rank == 4`.

What an expression may name is the table `FIELDS`; besides, each of the graph's named sizes (`batch`, `d_model`), and
`dims`, the map of them all, for a size whose name is a field's. `shape[-1]` counts from the end. Where sizes were
traced as symbols, `shape` has the example's and `symbolic` the symbols: `symbolic[0] == "batch"`.

A node with several roles or several tensors matches where the condition holds for one of its roles together with one
of its tensors. A condition on something a node does not have (the layer of a node without a role, `shape[3]` of a
matrix) does not hold, and neither does its negation.

CEL, because it is made for conditions that others send: no side effects, no access to the process, types checked
before anything runs. Its loops (`all`, `exists`, `map`, `filter`) are left out, so that one evaluation takes time
linear in the expression; `matches` is RE2, which does not backtrack.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any, NamedTuple

from fxtrace.errors import QueryInvalid, TooLarge, unknown
from fxtrace.extras import needed_for
from fxtrace.graph import Graph, Node, Role, TensorSpec
from fxtrace.ops import KINDS

MAX_EXPRESSION = 2000
"""Characters of an expression."""

MAX_SECONDS = 5.0
"""Time for an expression on a whole graph."""

_FIELD = "query.expression"


class Row(NamedTuple):
    """What a condition is tried on: a node, and one of its tensors and one of its roles where it has any."""

    graph: Graph
    node: Node
    spec: TensorSpec | None
    role: Role | None


@dataclass(frozen=True, slots=True)
class Field:
    """A name that an expression may use: its type in CEL, what it is, and how it is found (None: not there)."""

    type: str
    what: str
    of: Callable[[Row], Any]


FIELDS: Mapping[str, Field] = {
    "name": Field("string", "the node's name", lambda row: row.node.name),
    "op": Field("string", "torch.fx's opcode: call_function, placeholder …", lambda row: row.node.op),
    "kind": Field("string", "what the op does: matmul, softmax, view …", lambda row: row.node.kind),
    "target": Field("string", "what is called: torch.matmul, softmax, layers.0.norm", lambda row: row.node.target),
    "module": Field("string", "path of the innermost module it ran in", lambda row: row.node.module),
    "module_type": Field("string", "that module's class", lambda row: _module_type(row)),
    "file": Field("string", "file of the line that made it", lambda row: row.node.source and row.node.source.file),
    "line": Field("int", "number of that line", lambda row: row.node.source and row.node.source.line),
    "code": Field("string", "text of that line", lambda row: row.node.source and row.node.source.code),
    "inputs": Field("list<string>", "names of the nodes it reads", lambda row: row.node.inputs),
    "users": Field("list<string>", "names of the nodes that read it", lambda row: row.graph.users[row.node.name]),
    "parameters": Field("list<string>", "parameters and buffers it reads", lambda row: row.node.parameters),
    "parameter_count": Field("int", "elements of the parameters it reads", lambda row: _parameter_count(row)),
    "role": Field("string", "decoder.0.cross_attention.scores", lambda row: str(row.role) if row.role else ""),
    "stack": Field("string", "of the role", lambda row: row.role.stack if row.role else ""),
    "layer": Field("int", "of the role, from 0", lambda row: row.role.layer if row.role else None),
    "block": Field("string", "of the role", lambda row: row.role.block if row.role else ""),
    "part": Field("string", "of the role", lambda row: row.role.part if row.role else ""),
    "shape": Field("list<int>", "the tensor's sizes", lambda row: row.spec and row.spec.shape),
    "symbolic": Field(
        "list<string>",
        "its sizes as text, symbols by their names: batch, 2*sequence, 64",
        lambda row: row.spec and (row.spec.symbolic or tuple(map(str, row.spec.shape))),
    ),
    "rank": Field("int", "how many sizes it has", lambda row: row.spec and len(row.spec.shape)),
    "numel": Field("int", "how many elements", lambda row: row.spec and prod(row.spec.shape)),
    "nbytes": Field("int", "how many bytes", lambda row: row.spec and row.spec.nbytes),
    "dtype": Field("string", "float32, int64 …", lambda row: row.spec and row.spec.dtype),
    "device": Field("string", "cpu, cuda:0, meta", lambda row: row.spec and row.spec.device),
    "contiguous": Field("bool", "whether it lies in order", lambda row: row.spec and row.spec.contiguous),
}

# A text in an expression, which is left as it is.
_TEXT = r"""(?:"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')"""

# CEL's lists have no negative indices, its maps may: shape[-1] is read as _back[-1], of the same length, so that the
# places in error messages stay right.
_BACK = {"shape": "_back", "symbolic": "_symback"}
_NEGATIVE_INDEX = re.compile(rf"({_TEXT})|(?<![\w.])({'|'.join(_BACK)})(?=\s*\[\s*-)")
_ALL_FIELDS = {
    **FIELDS,
    **{
        back: Field(
            FIELDS[name].type.replace("list<", "map<int, "), f"{FIELDS[name].what}, from the end", FIELDS[name].of
        )
        for name, back in _BACK.items()
    },
}

# A misspelt kind would quietly match nothing.
_KIND = re.compile(rf"""{_TEXT}|\bkind\s*[!=]=\s*["'](?P<kind>\w+)["']""")

_LOOPS = ("all", "exists", "exists_one", "filter", "map")
_FUNCTIONS = ("contains", "endsWith", "matches", "size", "startsWith")
_CONFIG = f"stdlib:\n  exclude_macros: [{', '.join(_LOOPS)}]\n"
_PROBLEM = re.compile(r"^(?:[A-Z_]+: )?ERROR: <input>:(\d+):(\d+): (.*)$", re.MULTILINE)
_REGEX_PROBLEM = "invalid regular expression"
_HINTS = {
    "token recognition error at: '=": "equality is written ==",
    "input 'and'": "and is written &&",
    "input 'or'": "or is written ||",
    "input 'not'": "not is written !",
}


def matching(graph: Graph, expression: str) -> Iterator[Node]:
    """The nodes on which an expression holds, in execution order; see this module's docstring.

    Raises:
        QueryInvalid: the expression cannot be understood, with the place; of an unknown name, the nearest is suggested.
        TooLarge: it took more than `MAX_SECONDS`.
        DependencyMissing: CEL is not installed.
    """
    condition = _Condition(graph, expression)
    for node in graph.nodes:
        specs: list[TensorSpec | None] = [spec for _, spec in node.tensors]
        rows = (Row(graph, node, *pair) for pair in product(specs or [None], node.roles or [None]))
        if any(map(condition.holds, rows)):
            yield node


class _Condition:
    """An expression, compiled for a graph; what it was tried on already is remembered."""

    def __init__(self, graph: Graph, expression: str) -> None:
        if len(expression) > MAX_EXPRESSION:
            raise QueryInvalid(
                f"expression: expected at most {MAX_EXPRESSION} characters; got {len(expression)}", field=_FIELD
            )
        dims = {dim.name: dim.size for dim in graph.dims}
        self._program = _compile(expression, dims)
        words = set(re.findall(r"\w+", expression))
        words |= {back for name, back in _BACK.items() if name in words}
        self._fields = {name: field.of for name, field in _ALL_FIELDS.items() if name in words}
        named: dict[str, Any] = {**dims, "dims": dims}
        self._constants = {name: value for name, value in named.items() if name in words and name not in FIELDS}
        self._known: dict[tuple[Any, ...], bool] = {}
        self._deadline = time.monotonic() + MAX_SECONDS

    def holds(self, row: Row) -> bool:
        key = tuple(of(row) for of in self._fields.values())
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = self._evaluate(key)
        return known

    def _evaluate(self, values: tuple[Any, ...]) -> bool:
        if time.monotonic() > self._deadline:
            raise TooLarge(
                f"the expression takes more than {MAX_SECONDS:g} s on this graph; ask for less", field=_FIELD
            )
        data = self._constants | {
            name: _cel_value(name, value) for name, value in zip(self._fields, values, strict=True) if value is not None
        }
        # What cannot be evaluated (an index beyond the end, a name without a value) gives the reason, as text.
        value = self._program.eval(data=data).value()
        if isinstance(value, str) and _REGEX_PROBLEM in value:
            raise QueryInvalid(f"expression: {value[value.index(_REGEX_PROBLEM) :]}", field=_FIELD)
        return value is True


def _compile(expression: str, dims: Mapping[str, int]) -> Any:
    """The expression as cel-expr-python has it: Google's own cel-cpp behind a thin binding.

    Of three implementations it is the one that checks names and types, with places, before anything runs, and that
    needs no other package. An evaluation takes 4 µs (cel-python, in pure Python: 205; common-expression-language, in
    Rust: 4, without the checks). It is large (16 MB to fetch, 50 MB installed), hence an extra.
    """
    with needed_for("conditions in queries"):
        from cel_expr_python import cel
    types = dict.fromkeys(dims, "int") | {name: field.type for name, field in _ALL_FIELDS.items()}
    types["dims"] = "map<string, int>"
    environment = cel.NewEnv(
        config=cel.NewEnvConfigFromYaml(_CONFIG), variables={name: cel.Type(kind) for name, kind in types.items()}
    )
    for match in _KIND.finditer(expression):
        if match["kind"] and match["kind"] not in KINDS:
            problem = unknown("kind", match["kind"], KINDS, limit=len(KINDS))
            raise QueryInvalid.at(_FIELD, expression, match.start("kind"), problem)
    source = _NEGATIVE_INDEX.sub(lambda match: match[1] or _BACK[match[2]], expression)
    try:
        program = environment.compile(source)
    except (RuntimeError, TypeError) as error:  # the latter for text that is no UTF-8
        raise _invalid(expression, str(error), [*FIELDS, "dims", *dims]) from None
    if (result := program.return_type().name()) not in ("bool", "BOOL"):
        raise QueryInvalid(
            f"expression: expected a condition, which is true or false; got one of type {result}", field=_FIELD
        )
    return program


def _invalid(expression: str, error: str, names: list[str]) -> QueryInvalid:
    """The error that says where and why an expression was not understood."""
    problems = [(int(line), int(column), text) for line, column, text in _PROBLEM.findall(error)]
    if not problems:
        nested = "recursion limit" in error
        problem = "expected at most 32 levels of nesting; got more" if nested else "expected a CEL expression in UTF-8"
        return QueryInvalid(f"expression: {problem}", field=_FIELD)
    unknowns = [re.match("undeclared reference to '(.*?)'", text) for _, _, text in problems]
    # A loop's own variable is unknown too, and said first.
    chosen = next((i for i, match in enumerate(unknowns) if match and match[1] in _LOOPS), 0)
    line, column, text = problems[chosen]
    lines = expression.split("\n")
    position = sum(len(each) + 1 for each in lines[: line - 1]) + column - 1
    if match := unknowns[chosen]:
        name = match[1]
        if name in _LOOPS:
            text = f"expected an expression without loops; got '{name}'"
        elif lines[line - 1][column - 1 :].startswith("("):
            text = unknown("function", name, _FUNCTIONS)
        else:
            text = unknown("name", name, names, limit=len(FIELDS) + 20)
    else:
        hint = next((f"; {hint}" for sign, hint in _HINTS.items() if sign in text), "")
        text = re.sub(r"(?<=overload for ')[^']*", lambda match: re.sub("[_@]", "", match[0]), text) + hint
    return QueryInvalid.at(_FIELD, expression, position, text)


def _cel_value(name: str, value: Any) -> Any:
    if name in _BACK.values():
        return {i - len(value): size for i, size in enumerate(value)}
    return list(value) if isinstance(value, tuple) else value


def _module_type(row: Row) -> str | None:
    module = row.graph.modules_by_path.get(row.node.module)
    return module.type if module else None


def _parameter_count(row: Row) -> int:
    read = (row.graph.parameters.get(name) for name in row.node.parameters)
    return sum(prod(parameter.shape) for parameter in read if parameter is not None and not parameter.buffer)
