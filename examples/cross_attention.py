"""Reads a tensor by what it is, not by where it is: the weights of cross-attention, through the Python client.

fxtrace serve --port 50051 &
python examples/cross_attention.py 127.0.0.1:50051
"""

import sys

import numpy as np

from fxtrace import Client, TraceRequest


def main(address: str) -> None:
    """Prints which source word each target word attends to most, in each head of the last decoder layer."""
    with Client(address, arrays="numpy") as client:
        trace = client.create_trace(TraceRequest("reference"))
        configuration = trace.configuration
        source, target = (str(configuration[side]).split() for side in ("source", "target"))
        weights = client.read_tensor(
            trace.id, "decoder.1.cross_attention.weights"
        )  # (batch, n_heads, tgt_len, src_len)

        print(f"{trace.id}  decoder.1.cross_attention.weights  {weights.shape}")
        for word, row in zip(target, weights[0].transpose(1, 0, 2), strict=True):
            strongest = (f"{source[np.argmax(head)]} {head.max():.2f}" for head in row)
            print(f"{word:>12}  " + "  ".join(f"{each:<14}" for each in strongest))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:50051")
