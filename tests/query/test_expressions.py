from __future__ import annotations

import operator
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fxtrace.errors import DependencyMissing, FxtraceError, QueryInvalid, TooLarge
from fxtrace.query import expressions
from fxtrace.query.expressions import FIELDS, MAX_EXPRESSION, matching
from tests.query.graphs import large, small

SMALL = small()


def names(expression: str) -> str:
    return " ".join(node.name for node in matching(SMALL, expression))


SQUARES = "scores scaled masked weights"

GOOD = [
    ('name == "scores"', "scores"),
    ('op == "placeholder"', "x"),
    ('kind == "matmul"', "scores"),
    ('kind in ["matmul", "softmax"]', "scores weights"),
    ('target.startsWith("torch.s")', "scores scaled sum size"),
    ('target.matches("^torch\\\\.(q|k)$")', "q k"),
    ('module == "attn.q" || module.endsWith(".k")', "q k"),
    ('module_type == "Linear"', "q k"),
    ('file == "model.py" && line == 7 && kind == "add"', "masked sum"),
    ("line > 0 && code.contains(\"shape[-1]\") && kind == 'add'", "masked sum"),
    ('"x" in inputs', "q k sum"),
    ("size(users) > 1", "x lstm"),
    ("users.size() == 0", "size output"),
    ('"attn.q.bias" in parameters', "q"),
    ("parameter_count == 72", "q k"),
    ('role == "decoder.0.self_attention.scores"', "scores"),
    ('stack == "decoder" && layer == 0', "q k scores weights"),
    # Of one role: the one without a layer is the decoder's, the one with layer 1 is not.
    ('stack == "decoder" && layer == 1', ""),
    ('layer == 1 && part == "extra"', "sum"),
    ('block == "output"', "sum"),
    ('role == ""', "x scaled masked lstm size output"),
    ("layer >= 0", "q k scores weights sum"),
    ("!(layer == 0)", "sum"),
    ("shape == [batch, n_heads, tgt_len, tgt_len]", SQUARES),
    ("shape[0] == batch && shape[-1] == d_model", "x"),
    ("shape [ -1 ] == 4", "q"),
    ("shape[ - 2] == 4", "k"),
    ("shape[3] == 5", f"k {SQUARES}"),
    ("shape[-4] == 1", f"q k {SQUARES}"),
    ("shape[3] != 5", "q"),
    ("shape[rank - 1] == 4", "q"),
    ("8 in shape", "x"),
    ('symbolic[0] == "length" && symbolic[-1] == "2*length"', "lstm"),
    ('"length" in symbolic && shape[0] == 5', "lstm"),
    ('symbolic == ["1", "5", "8"] && symbolic [ -1 ] == string(shape[-1])', "x"),
    ("rank == 3", "x"),
    ("rank == 4 && numel <= 50", f"q k {SQUARES}"),
    ("dims.rank == 77 && rank == 1", "lstm"),
    ('"n_heads" in dims && dims["n_heads"] == shape[1] && has(dims.batch) && rank == 4', f"q k {SQUARES}"),
    ("nbytes == 160", "x q k"),
    ('dtype == "int64"', "x"),
    ('device == "cpu" && !contiguous', "x"),
    # Of one tensor: the LSTM's first has two dimensions, its second is bfloat16.
    ('rank == 2 || dtype == "bfloat16"', "lstm"),
    ('rank == 2 && dtype == "bfloat16"', ""),
    ("numel % 2 == 1", "lstm"),
    ("1 / (rank - 4) == 1", ""),
    ("size(name) == 1", "x q k"),
    ("name < 'l'", "k"),
    ("1 == 1", " ".join(node.name for node in SMALL.nodes)),
    ("rank == 3 ? dtype == 'int64' : false", "x"),
    ("true // comment", " ".join(node.name for node in SMALL.nodes)),
    ("kind == 'matmul' &&\n  rank == 4", "scores"),
    ("name.contains('kind == \"x\"')", ""),
]


@pytest.mark.parametrize(("expression", "expected"), GOOD, ids=[expression for expression, _ in GOOD])
def test_what_holds(expression: str, expected: str) -> None:
    assert names(expression) == expected


# The expression, with ▸ before the place that is to be blamed, and what is said of it.
BAD = [
    ('▸kidn == "matmul"', "no name named 'kidn'; did you mean 'kind'?"),
    ("shape[-1] == ▸d_modl", "no name named 'd_modl'; did you mean 'd_model'?"),
    ("rank == 4 &&\n  ▸rnk == 2", "no name named 'rnk'; did you mean 'rank'?"),
    ('kind == "▸matmull"', "no kind named 'matmull'; did you mean 'matmul'?"),
    ("kind != '▸soft'", "no kind named 'soft'; did you mean 'softmax'?"),
    ('kind.startWith▸("mat")', "no function named 'startWith'; did you mean 'startsWith'?"),
    ('__import__▸("os").system("true")', "no function named '__import__'"),
    ('kind ▸= "matmul"', "equality is written =="),
    ("rank == 4 ▸and rank == 3", "and is written &&"),
    ("rank == 4 ▸or rank == 3", "or is written ||"),
    ("rank == ▸", "mismatched input '<EOF>'"),
    ("shape[0▸", "missing ']'"),
    ('shape[0] ▸== "a"', "found no matching overload for '==' applied to '(int, string)'"),
    ('shape[▸-"a"] == 1', "found no matching overload for '-' applied to '(string)'"),
    ('shape▸["a"] == 1', "found no matching overload for '[]'"),
    ("rank ▸> 1.5", "found no matching overload for '>' applied to '(int, double)'"),
    ("name ▸? true : false", "found no matching overload for '?:'"),
    ("'é' == ▸nme", "no name named 'nme'; did you mean 'name'?"),
    ("inputs.exists▸(i, i == 'x')", "expected an expression without loops; got 'exists'"),
    ("inputs.all▸(i, i == 'x')", "expected an expression without loops; got 'all'"),
    ("inputs.map▸(i, i)[0] == 'x'", "expected an expression without loops; got 'map'"),
    ("[1].filter(i, [1].all▸(j, true)) == [1]", "expected an expression without loops; got 'all'"),
]


@pytest.mark.parametrize(("marked", "said"), BAD)
def test_what_is_wrong_is_said_with_its_place(marked: str, said: str) -> None:
    place, expression = marked.index("▸"), marked.replace("▸", "")
    with pytest.raises(QueryInvalid) as e:
        names(expression)
    line = marked[:place].count("\n") + 1
    column = place - marked[:place].rfind("\n")
    assert said in e.value.message
    assert e.value.field == "query.expression"
    assert e.value.metadata == {"line": str(line), "column": str(column)}
    *_, excerpt, pointer = e.value.message.split("\n")
    assert excerpt.strip() == expression.split("\n")[line - 1].strip()
    assert excerpt[pointer.index("^") :] == expression[place:].split("\n")[0]


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("rank", "expected a condition, which is true or false; got one of type INT"),
        ("'a'", "got one of type STRING"),
        ("dyn(true)", "got one of type DYN"),
        ("1 == 1" + " " * MAX_EXPRESSION, f"expected at most {MAX_EXPRESSION} characters; got {MAX_EXPRESSION + 6}"),
        ("(" * 40 + "true" + ")" * 40, "expected at most 32 levels of nesting"),
        ("name == '\ud800'", "expected a CEL expression in UTF-8"),
        ("name.matches('(')", "invalid regular expression: missing ): ("),
        ("name.matches('a(?=b)')", "invalid regular expression: invalid perl operator: (?="),
    ],
)
def test_what_is_wrong_as_a_whole(expression: str, said: str) -> None:
    with pytest.raises(QueryInvalid, match=r"^expression: ") as e:
        names(expression)
    assert said in e.value.message
    assert e.value.field == "query.expression"


def test_a_long_line_is_shown_around_the_problem() -> None:
    with pytest.raises(QueryInvalid) as e:
        names("rank == 1 || " * 50 + "nme == ''" + " || rank == 1" * 50)
    _, excerpt, pointer = e.value.message.split("\n")
    assert len(excerpt) < 100
    assert excerpt[pointer.index("^") :].startswith("nme == ''")


WORDS = st.sampled_from(
    [
        *(*FIELDS, "dims", "d_model", "_back", "shape[-1]", "matches", "size(", "(", ")", "[", "]", "==", "!=", "<"),
        *("&&", "||", "!", "-", "+", "*", "/", "%", "?", ":", ".", ",", "in", "1", "-1", "0", "1.5", "'a'", '"kind"'),
        *("true", "r'\\'", '"""', "//", "\n", "\\", "{", "}", "null", "b'x'", "1u", "é", "\0"),
    ]
)


@given(st.one_of(st.text(max_size=40), st.lists(WORDS, max_size=12).map(" ".join)))
def test_any_text_is_answered_or_refused(text: str) -> None:
    with suppress(QueryInvalid):
        for node in matching(SMALL, text):
            assert node is SMALL.by_name[node.name]


COMPARE = {"==": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt}


@given(st.integers(-5, 4), st.sampled_from(sorted(COMPARE)), st.integers(0, 9))
def test_sizes_are_those_of_python(index: int, sign: str, number: int) -> None:
    def holds(shape: tuple[int, ...]) -> bool:
        return -len(shape) <= index < len(shape) and COMPARE[sign](shape[index], number)

    expected = [node for node in SMALL.nodes if any(holds(spec.shape) for _, spec in node.tensors)]
    assert list(matching(SMALL, f"shape[{index}] {sign} {number}")) == expected


@pytest.mark.parametrize(
    ("expression", "count"),
    [
        ('kind == "matmul" && shape[-1] == src_len', 2222),
        ("shape == [1, n_heads, src_len, src_len]", 4 * 2222),
        ('role == ""', 19_999 - 2222),
        ("layer < 10", 10),
        ('name.matches("^[qk]_[0-9]*7$")', 444),
        ('"sum_9" in inputs', 4),
    ],
)
def test_a_large_graph(expression: str, count: int) -> None:
    assert sum(1 for _ in matching(LARGE, expression)) == count


LARGE = large()


def test_what_takes_too_long_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expressions, "MAX_SECONDS", -1)
    with pytest.raises(TooLarge, match="takes more than"):
        names("rank == 4")


def test_one_evaluation_is_short_whatever_is_asked() -> None:
    # As many hard regular expressions as fit.
    heavy = " || ".join(['code.matches("(.*a){30}(b{30}){9}$")'] * (MAX_EXPRESSION // 45))
    assert names(heavy) == ""


def test_many_threads_may_ask() -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(names, [expression for expression, _ in GOOD] * 4))
    assert answers == [expected for _, expected in GOOD] * 4


def test_without_cel_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cel_expr_python", None)  # importing it fails, as where it is not installed
    with pytest.raises(DependencyMissing, match=r"pip install 'fxtrace\[query\]'") as e:
        names("rank == 4")
    assert isinstance(e.value, FxtraceError)
    assert e.value.metadata == {"package": "cel_expr_python"}
