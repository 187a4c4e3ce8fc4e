"""What a shell offers to complete a word with: models, traces and roles. Quick, and silent where anything is wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxtrace.cli.common import connect, numpy_without_threads

if TYPE_CHECKING:
    import typer

    from fxtrace.cli.common import Api

_MOST = 100


def complete(offered: Callable[[Api, Any], Iterator[str]], context: typer.Context, incomplete: str) -> list[str]:
    """What is offered that begins so; nothing where the store or the server cannot be asked.

    Args:
        offered: gives what there is, from the engine or the client, and the values of the command's parameters.
        context: the command's.
        incomplete: the beginning.
    """
    from fxtrace.cli.connection import choose

    try:
        choose(context)
        if context.params.get("server") is None and offered is not models and not _has_store(context):
            return []  # opening it would make one
        with numpy_without_threads(), connect(context.params.get("server"), context.params.get("store")) as api:
            values = {**context.params, "incomplete": incomplete}
            return list(islice((name for name in offered(api, values) if name.startswith(incomplete)), _MOST))
    except Exception:  # noqa: BLE001 - whatever it is, the command itself will say it
        return []


def _has_store(context: typer.Context) -> bool:
    from fxtrace.store.place import default_place, folder_of, is_store

    folder = folder_of(context.params.get("store") or default_place())
    return folder is None or is_store(folder)


def traces(api: Api, _: Any) -> Iterator[str]:
    """`latest`, and the ids of traces, the newest first."""
    yield "latest"
    yield from (trace.id for trace in api.list_traces())


def roles(api: Api, values: Any) -> Iterator[str]:
    """The roles of the trace that the command names, the blocks and stacks that they are in, and the nodes."""
    trace = api.get_trace(values.get("named_trace") or values.get("trace") or "latest")
    graph = api.get_graph(trace.id)
    blocks = (".".join(role.split(".")[:length]) for role in graph.by_role for length in range(1, role.count(".") + 1))
    yield from dict.fromkeys((*graph.by_role, *blocks, *(node.name for node in graph.nodes)))


def models(api: Api, values: Any) -> Iterator[str]:
    """The models on offer, the architectures of transformers once one is begun, and model files."""
    from fxtrace.models.references import HUGGING_FACE

    begun: str = values["incomplete"]
    if begun.startswith(HUGGING_FACE):
        from fxtrace.models.hf_names import architectures

        yield from (f"{HUGGING_FACE}{name}" for name in architectures())
        return
    offered = getattr(api, "models", None)
    yield from offered.names() if offered is not None else (model.name for model in api.list_models())
    yield HUGGING_FACE
    if values.get("server") is None:
        folder = begun.rpartition("/")[0]
        for path in sorted(Path(folder or ".").iterdir()):
            name = f"{folder}/{path.name}" if "/" in begun else path.name
            if path.is_dir() and not path.name.startswith("."):
                yield f"{name}/"
            elif path.suffix == ".py":
                yield name
