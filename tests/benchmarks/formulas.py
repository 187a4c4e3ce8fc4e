"""Formulas of sizes: the reference on random configurations, its 43 snapshots, and families of transformers.

    python -m tests.benchmarks.formulas [--seconds 30] [--families bert,llama]
    python -m tests.benchmarks.formulas --weightless [--symbolic] [--seconds 120] [--families llama,t5]

prints Markdown. `--seconds` is how long each family is probed. A formula is wrong if, on a random other configuration
that the model accepts and that gives the same nodes, the size is another than the formula says. `--weightless` takes
families in their default sizes, without weights, and random configurations around these; with `--symbolic` the sizes of
`input_ids` and `attention_mask` are symbols, as far as they are inputs.
"""

from __future__ import annotations

import argparse
import json
import random
import time
import warnings
from collections.abc import Iterator, Mapping
from importlib.resources import files
from typing import Any

import torch

from fxtrace.capture import sketch
from fxtrace.dims import Formula, Formulas, integers, replaced
from fxtrace.errors import FxtraceError
from fxtrace.graph import Graph
from fxtrace.ir.trace import Rung, TraceRequest
from fxtrace.models import Model, Registry
from fxtrace.models.weightless import build_weightless
from fxtrace.probe import SECONDS, Prober
from fxtrace.service.engine import Engine
from fxtrace.trials import Seen, candidates

FAMILIES = (
    "bert,roberta,distilbert,albert,electra,deberta,gpt2,gpt_neo,gptj,opt,bloom,llama,mistral,qwen2,qwen3,gemma,phi,"
    "stablelm,t5,bart,vit,deit,whisper,clip_text_model,mamba,wav2vec2"
)
LARGE = "llama,qwen3,gpt_oss,mixtral,t5,bert"
Symbols = Mapping[str, tuple[str, ...]]
REFERENCE_CONFIGURATIONS, OTHER_CONFIGURATIONS, OTHER_WHOLES = 20, 5, 3


def graph_of(
    model: Model, fields: Mapping[str, Any], sizes: Mapping[str, int], rung: Rung, symbolic: Symbols | None = None
) -> Graph | None:
    """The graph of a configuration with these sizes; None where the model does not accept them as they are.

    By the rung `export` it is built without weights.
    """
    try:
        config = model.resolve(replaced(fields, sizes))
        if any(dict(integers(model.fields(config))).get(name) != size for name, size in sizes.items()):
            return None
        with torch.random.fork_rng(devices=()):
            module = build_weightless(lambda: model.build(config)) if rung == "export" else model.build(config)
            return sketch(module, model.example_inputs(config), rung=rung, symbolic=symbolic)
    except Exception:  # noqa: BLE001 - whatever a model raises at sizes it does not take
        return None


def others(
    model: Model,
    fields: Mapping[str, Any],
    found: Formulas,
    rung: Rung,
    count: int,
    chance: random.Random,
    symbolic: Symbols | None = None,
) -> Iterator[tuple[dict[str, int], Graph]]:
    """Random configurations with several fields changed, and their graphs, where these have the same nodes.

    Of large ones, half of the fields at once: each takes long.
    """
    base = dict(integers(fields))
    first = graph_of(model, fields, {}, rung, symbolic)
    assert first is not None
    changing = sorted(
        {name for each in found.tensors.values() for one in each for name in one.depends_on} & base.keys()
    )
    given = 0
    for _ in range(60 * count):
        if given == count or not changing:
            return
        most = max(3, len(changing) // 2) if rung == "export" else 3
        chosen = chance.sample(changing, k=chance.randint(most if rung == "export" else 1, min(most, len(changing))))
        sizes = {**base, **{name: _other(base[name], chance) for name in chosen}}
        sizes |= {name: sizes[other] for name, other in found.tied.items()}
        graph = graph_of(model, fields, sizes, rung, symbolic)
        if graph is not None and Seen.of(graph).nodes == Seen.of(first).nodes:
            given += 1
            yield sizes, graph


def _other(value: int, chance: random.Random) -> int:
    return chance.choice(
        (*candidates(value), *(value * times for times in range(2, 10)), value + chance.randint(1, 40))
    )


def wrong(found: Formulas, sizes: Mapping[str, int], graph: Graph) -> tuple[int, int]:
    """How many sizes of a graph are others than their formulas say, and how many have a formula."""
    checked = [
        (one.formula.value({**found.sizes, **sizes}), size)
        for name, spec in graph.tensors()
        for one, size in zip(found.tensors[name], spec.shape, strict=True)
        if one.formula is not None
    ]
    return sum(said != size for said, size in checked), len(checked)


def reference() -> Iterator[str]:
    """Rows on the reference."""
    model = Registry.installed().get("reference")
    config = model.resolve({})
    start = time.process_time()
    found = Prober(model, config, rung="symbolic").formulas()
    seconds = time.process_time() - start
    confirmed, total = found.confirmed
    chance, bad, checked = random.Random(20), 0, 0
    configurations: list[dict[str, int]] = []
    while len(configurations) < REFERENCE_CONFIGURATIONS:
        heads = chance.randrange(1, 9)
        sizes = {"n_heads": heads, "d_model": heads * chance.randrange(5, 33), "d_ff": chance.randrange(1, 300)}
        sizes |= {name: chance.randrange(2, 40) for name in ("src_len", "tgt_len")}
        sizes |= {name: chance.randrange(6, 90) for name in ("src_vocab", "tgt_vocab")}
        graph = graph_of(model, model.fields(config), sizes, "symbolic")
        assert graph is not None, sizes
        configurations.append({**found.sizes, **sizes})
        errors, count = wrong(found, sizes, graph)
        bad, checked = bad + errors, checked + count
    yield f"| reference: sizes with a confirmed formula | {confirmed} of {total} |"
    yield f"| … checked on {REFERENCE_CONFIGURATIONS} random configurations | {checked:,} sizes, {bad} wrong |"
    equal, of = snapshots(found, configurations)
    yield f"| the 43 snapshots' shapes, as functions of the fields | {equal} of {of} sizes equal |"
    yield f"| seconds of computing | {seconds:.1f} |"


def snapshots(found: Formulas, configurations: list[dict[str, int]]) -> tuple[int, int]:
    """How many of the snapshots' named dimensions the formulas agree with, on every one of these configurations."""
    table = json.loads(files("fxtrace.roles").joinpath("snapshots.json").read_text(encoding="utf-8"))
    dims = {each["number"]: tuple(each["dims"]) for each in table["snapshots"]}
    equal = total = 0
    with Engine.open() as engine:
        trace = engine.create_trace(TraceRequest("reference"))
        for snapshot in engine.list_snapshots(trace.id):
            for tensor in snapshot.tensors:
                for said, one in zip(dims[snapshot.number], found.tensors[tensor.tensor], strict=True):
                    total += 1
                    equal += one.formula is not None and all(
                        # The model makes a batch of one by itself; d_head is no field.
                        Formula(str(said)).value({**sizes, "batch": 1, "d_head": sizes["d_model"] // sizes["n_heads"]})
                        == one.formula.value(sizes)
                        for sizes in configurations
                    )
    return equal, total


def family(name: str, seconds: float) -> str:
    """The row of a family."""
    model = Registry().load(f"hf:{name}")
    config = model.resolve({})
    start = time.process_time()
    try:
        found = Prober(model, config, seconds=seconds).formulas()
    except FxtraceError as error:
        return f"| {name} | {error.message.splitlines()[0][:60]} | | | | |"
    took = time.process_time() - start
    confirmed, total = found.confirmed
    bad = checked = count = 0
    for sizes, graph in others(model, model.fields(config), found, "record", OTHER_CONFIGURATIONS, random.Random(5)):
        errors, of = wrong(found, sizes, graph)
        bad, checked, count = bad + errors, checked + of, count + 1
    share = f"{confirmed} of {total} ({confirmed / total:.1%})"
    return f"| {name} | {share} | {bad} of {checked:,} | {count} | {len(found.untried)} | {took:.1f} |"


def whole(name: str, seconds: float, *, symbolic: bool) -> str:
    """The row of a family in its default sizes, without weights."""
    model = Registry().load(f"hf:{name}")
    config = model.resolve({"preset": "default"})
    module = build_weightless(lambda: model.build(config))
    inputs = model.example_inputs(config)
    named: set[str] = {"input_ids", "attention_mask"} & inputs.keys() if symbolic else set()
    names = dict.fromkeys(named, ("batch", "sequence"))
    start = time.process_time()
    graph = sketch(module, inputs, rung="export", symbolic=names)
    export, start = time.process_time() - start, time.process_time()
    prober = Prober(model, config, rung="export", weightless=True, symbolic=names, seconds=seconds)
    found = prober.formulas(graph)
    took = time.process_time() - start
    confirmed, total = found.confirmed
    bad = checked = count = 0
    for sizes, other in others(model, model.fields(config), found, "export", OTHER_WHOLES, random.Random(5), names):
        errors, of = wrong(found, sizes, other)
        bad, checked, count = bad + errors, checked + of, count + 1
    size = f"{graph.parameter_count / 1e9:.1f} billion | {len(graph.nodes):,}"
    share = f"{confirmed:,} of {total:,} ({confirmed / total:.1%})"
    return f"| {name} | {size} | {share} | {bad} of {checked:,} | {count} | {export:.1f} | {took:.0f} |"


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--families")
    parser.add_argument("--weightless", action="store_true")
    parser.add_argument("--symbolic", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    families = (options.families or (LARGE if options.weightless else FAMILIES)).split(",")
    if options.weightless:
        columns = ("family", "parameters", "nodes", "sizes with a confirmed formula", "wrong", "other configurations")
        print(f"| {' | '.join(columns)} | seconds of an export | seconds of the formulas |")
        print("| --- " * (len(columns) + 2) + "|", flush=True)
        for name in families:
            print(whole(name, options.seconds or SECONDS, symbolic=options.symbolic), flush=True)
        return
    print("| reference | |\n| --- | --- |", *reference(), sep="\n", flush=True)
    print("\n| family | sizes with a confirmed formula | wrong | other configurations | fields not tried | seconds |")
    print("| --- | --- | --- | --- | --- | --- |", flush=True)
    for name in families:
        print(family(name, options.seconds or 30.0), flush=True)


if __name__ == "__main__":
    main()
