"""What a request for a trace depends on, as far as it is known before its model is loaded."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import fxtrace
from fxtrace.models.sources import version_of

if TYPE_CHECKING:
    from fxtrace.ir.trace import TraceRequest
    from fxtrace.models import Registry


def options_of(request: TraceRequest) -> dict[str, Any]:
    """Everything of a request that its trace depends on, but the model, the configuration and the file of weights."""
    symbolic = {name: list(sizes) for name, sizes in request.symbolic.items() if any(sizes)}
    return {
        "inputs": {
            name: [given.dtype, given.shape, hashlib.sha256(given.data).hexdigest()]
            for name, given in request.inputs.items()
        },
        "input_shapes": dict(request.input_shapes),
        "rung": request.rung,
        "values": request.values,
        "training": request.training,
        "unfused": request.unfused,
        "seed": request.seed,
        "weightless": request.weightless,
        "symbolic": symbolic,
        "symbolic_timeout": request.symbolic_timeout if symbolic else None,
        "fxtrace": fxtrace.__version__,
    }


def request_digest(models: Registry, request: TraceRequest) -> tuple[str, str]:
    """Digests by which a request finds its trace again without its model.

    Returns:
        The request's digest, and the model's as `Registry.digest_unloaded` gives it; both empty where something that
        the trace depends on is not known.

    Raises:
        InputError: the file of the weights cannot be read.
    """
    model, torch = models.digest_unloaded(request.model), version_of("torch")
    if not (model and torch):
        return "", ""
    from fxtrace.models.weights import weights_digest

    parts = {
        **options_of(request),
        "model": [models.name_of(request.model), model],
        "configuration": dict(request.configuration),
        # With weights, weightless is refused later; it says so first where the file is not there, either.
        "state": [request.state, weights_digest(request.state)] if request.state and not request.weightless else "",
        "torch": torch,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest(), model
