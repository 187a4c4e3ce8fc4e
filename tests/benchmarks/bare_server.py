"""A grpc.aio server with nothing in it: the floor that fxtrace's service is held against."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc

STREAM_BYTES = 256 << 20
CHUNK_BYTES = 1 << 20


async def _serve() -> None:
    data = memoryview(bytearray(b"\1") * STREAM_BYTES)  # zeros would be one page, over and over

    async def stream(request: bytes, _context: Any) -> AsyncIterator[bytes]:
        for start in range(0, int(request), CHUNK_BYTES):
            at = start % STREAM_BYTES
            yield bytes(data[at : at + CHUNK_BYTES])

    async def empty(_request: bytes, _context: Any) -> bytes:
        return b""

    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    handlers: dict[str, Any] = {
        "stream": grpc.unary_stream_rpc_method_handler(stream),
        "empty": grpc.unary_unary_rpc_method_handler(empty),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bare", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"127.0.0.1:{port}", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(_serve())
