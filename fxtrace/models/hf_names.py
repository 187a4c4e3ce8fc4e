"""The names of the architectures that the installed transformers has, without importing it: that takes seconds."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path


def architectures() -> list[str]:
    """Returns the architectures' names, sorted; none where transformers is not installed, or keeps them elsewhere."""
    spec = find_spec("transformers")
    if spec is None or spec.origin is None:
        return []
    names = set()
    folder = Path(spec.origin).parent / "models" / "auto"
    for file in filter(Path.is_file, (folder / "configuration_auto.py", folder / "auto_mappings.py")):
        for node in ast.walk(ast.parse(file.read_bytes())):
            target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
            if isinstance(target, ast.Name) and target.id == "CONFIG_MAPPING_NAMES":
                names |= {text.value for text in _firsts(node) if isinstance(text.value, str)}
    return sorted(names)


def _firsts(node: ast.AST) -> Iterator[ast.Constant]:
    """The keys of the dict, or of the pairs, that are written in an assignment."""
    for each in ast.walk(node):
        keys = each.keys if isinstance(each, ast.Dict) else each.elts[:1] if isinstance(each, ast.Tuple) else []
        yield from (key for key in keys if isinstance(key, ast.Constant))
