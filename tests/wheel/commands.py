"""Every command, and every use from Python, with the extras that it needs."""

from __future__ import annotations

from dataclasses import dataclass

from fxtrace.extras import EXTRAS


@dataclass(frozen=True)
class Use:
    """A command line, or lines of Python.

    In both, `{a}` and `{b}` are the ids of two stored traces of the reference model (`{a}` has formulas), `{server}` is
    the address of a server that has them, too, and `{out}` is an empty folder.
    """

    text: str
    needs: tuple[str, ...] = ()

    def absent(self, extras: frozenset[str]) -> list[str]:
        """The extras that it needs, and that are not among those."""
        return [need for need in self.needs if need not in extras]


MINE = """
from dataclasses import dataclass
import torch

@dataclass
class Config:
    width: int = 8

def build(config):
    return torch.nn.Linear(config.width, 2)

def example_inputs(config):
    return {"input": torch.ones(3, config.width)}
"""
"""The model file `{out}/mine.py`."""

_SMALL = "--set d_model=32 --set n_heads=2"
_GRID = "sweep reference --grid d_model=64,128"

# In this order: `check` reads what `lock` wrote.
COMMANDS = (
    Use("--version"),
    Use("--help"),
    Use("models"),
    Use("models reference", ("torch",)),
    Use("models hf:llama", ("hf",)),
    Use("traces"),
    Use("traces --json"),
    Use("snapshots {a}"),
    Use("explain 34 --trace {a}"),
    Use("explain d_model --trace {a}"),
    Use("graph {a}"),
    Use("graph {a} --role decoder.0.cross_attention --json"),
    Use("query --path src_ids decoder.0.cross_attention.weights --trace {a}"),
    Use("query --pattern 'matmul .* softmax' --trace {a}"),
    Use("""query 'kind == "matmul"' --trace {a}""", ("query",)),
    Use("tensor decoder.0.cross_attention.weights --slice 0,0 --trace {a}"),
    Use("tensor decoder.0.cross_attention.weights --trace {a} -o {out}/weights.npy"),
    Use("formulas {a}"),
    Use("formulas {b}", ("torch",)),
    Use("export {out}/a.graphml --trace {a}"),
    Use("export {out}/a.model-explorer.json --trace {a}"),
    Use("export {out}/a.npy --tensor decoder.0.cross_attention.weights --trace {a}"),
    Use("export {out}/a.parquet --trace {a}", ("tables",)),
    Use("render {a} -o {out}/a.dot"),
    Use("render {a} -o {out}/a.svg", ("images",)),
    Use("render {a} -o {out}/a.png", ("images",)),
    Use("diff {a} {a}"),
    Use("diff reference reference", ("torch",)),
    Use(f"trace reference {_SMALL}", ("torch",)),
    Use("trace {out}/mine.py", ("torch",)),
    Use("trace hf:llama --set num_hidden_layers=1", ("hf",)),
    Use(_GRID, ("torch",)),
    Use(f"{_GRID} -o {{out}}/sweep.csv", ("torch",)),
    Use(f"{_GRID} -o {{out}}/sweep.parquet", ("torch", "tables")),
    Use(f"{_GRID} -o {{out}}/sweep.svg", ("torch", "plots")),
    Use("lock {out}/mine.py -o {out}/shapes.lock", ("torch",)),
    Use("check {out}/shapes.lock", ("torch",)),
    Use("diff {a} {a} -o {out}/diff.svg", ("images",)),
    Use("delete {b}"),
    Use("doctor"),
    Use("doctor --server {server}"),
    Use("keys new someone --scope read --keys {out}/keys.json"),
    Use("keys ls --keys {out}/keys.json"),
    Use("store ls"),
    Use("store verify"),
    Use("serve --help"),
    Use("traces --server {server}"),
    Use(f"trace reference {_SMALL} --server {{server}}"),
    Use("explain 34 --trace {a} --server {server}"),
    Use("tensor decoder.0.cross_attention.weights --trace {a} --server {server}"),
    Use("""query 'kind == "matmul"' --trace {a} --server {server}"""),
    Use("render {a} -o {out}/b.svg --server {server}"),
    Use("diff {a} {b} --server {server}"),
    Use(f"{_GRID} --server {{server}}"),
)

# What ends only when it is stopped, or begins a server of its own.
DEMO = Use("demo --out {out}/demo", ("server", "images"))
SERVE = (
    Use("serve --port 0 --json", ("server",)),
    Use("serve --port 0 --json --metrics-port 0", ("server", "metrics")),
    Use("serve --port 0 --json --spans", ("server", "otel")),
)

# Nothing answers at these places: where the extra is there, that is what the error says.
ELSEWHERE = (
    Use("traces --store 'postgresql://nobody@127.0.0.1:1/none#{out}/files'", ("postgres",)),
    Use("traces --store 'sqlite:///{out}/i.db#s3://nothing/here?endpoint=http://127.0.0.1:1'", ("s3",)),
)

_REQUEST = 'fxtrace.TraceRequest("reference", {{"d_model": 32, "n_heads": 2}})'
_HERE = "with fxtrace.Engine.open() as engine: "
_THERE = 'with fxtrace.Client("{server}") as client: '

# Every name that `fxtrace` exports can be asked for; what it needs may be absent.
EVERY_NAME = """
for name in fxtrace.__all__:
    try:
        getattr(fxtrace, name)
    except fxtrace.DependencyMissing:
        pass
"""
EVERY_MODULE = """
import importlib, pkgutil
for module in pkgutil.walk_packages(fxtrace.__path__, "fxtrace.", onerror=lambda name: None):
    if module.name != "fxtrace.__main__" and not module.name.startswith("fxtrace.reference"):
        try:
            importlib.import_module(module.name)
        except fxtrace.DependencyMissing:
            pass
"""

PYTHON = (
    Use(_HERE + "print(len(list(engine.list_traces())))"),
    Use(_HERE + 'engine.read_tensor("{a}", "decoder.0.cross_attention.weights")'),
    Use(_HERE + 'engine.explain("{a}", "d_model")'),
    Use(_HERE + 'engine.diff_traces("{a}", "{a}")'),
    Use(_HERE + f"engine.create_trace({_REQUEST})", ("torch",)),
    Use(_HERE + 'engine.trace("reference", d_model=32, n_heads=2)', ("torch",)),
    Use(_HERE + 'engine.trace("hf:llama", num_hidden_layers=1)', ("hf",)),
    Use(_HERE + 'engine.query_nodes("{a}", fxtrace.NodeQuery(pattern="matmul softmax"))'),
    Use(_HERE + """engine.query_nodes("{a}", fxtrace.NodeQuery('kind == "matmul"'))""", ("query",)),
    Use(_HERE + 'engine.render_graph("{a}", "dot")'),
    Use(_HERE + 'engine.render_graph("{a}", "png")', ("images",)),
    Use('fxtrace.trace("reference", d_model=32, n_heads=2)', ("torch",)),
    Use('fxtrace.trace("{out}/mine.py", width=4)', ("torch",)),
    Use('fxtrace.trace("reference", d_model=16, n_heads=2).graph_module', ("torch",)),
    Use('t = fxtrace.load("{a}"); print(t, t["decoder.0.cross_attention.weights"], t.explain("d_model"))'),
    Use('fxtrace.load("{a}").draw("{out}/t.dot")'),
    Use('fxtrace.load("{a}").draw("{out}/t.svg")', ("images",)),
    Use('fxtrace.load("{a}").to_networkx()'),
    Use('fxtrace.check_lock("{out}/shapes.lock").ensure()', ("torch",)),
    Use('fxtrace.parse_grid(["d_model=64,128"])'),
    Use("from fxtrace.capture import capture", ("torch",)),
    Use("from fxtrace.roles import label", ("torch",)),
    Use("from fxtrace.lock import make_lock", ("torch",)),
    Use("from fxtrace.service.server import serving", ("server",)),
    Use("from fxtrace.service.settings import Settings", ("server",)),
    Use(_THERE + "client.list_models()"),
    Use(_THERE + f"client.create_trace({_REQUEST})"),
    Use(_THERE + 'print(client.trace("reference", d_model=32, n_heads=2)["decoder.0.cross_attention.weights"])'),
    Use(_THERE + """client.query_nodes("{a}", fxtrace.NodeQuery('kind == "matmul"'))"""),
    Use(_THERE + 'client.render_graph("{a}", "png")'),
    Use('fxtrace.Client("{server}", arrays="torch").close()', ("torch",)),
    Use(EVERY_NAME),
    Use(EVERY_MODULE),
)


def is_one_line(said: str, absent: list[str]) -> bool:
    """Whether that is the one line that names an extra that is absent."""
    return len(said.strip().splitlines()) == 1 and any(f"pip install 'fxtrace[{name}]'" in said for name in absent)


assert {need for use in (*COMMANDS, DEMO, *SERVE, *ELSEWHERE, *PYTHON) for need in use.needs} == {*EXTRAS}
