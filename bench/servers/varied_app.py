"""The comparison's application, with one part of the server done in another way.

Which one the variable ``VARIED`` says. The application is imported in the worker before anything
is made there, so what is replaced here is what the worker uses.
"""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import uuid
from collections.abc import Callable, Iterator
from itertools import repeat
from typing import Any

from work_fluxor import app

from fluxor_fast.server import worker
from fluxor_fast.server.heads import HeadCache
from fluxor_fast.server.protocol import HttpProtocol

__all__ = ["VARIATIONS", "app"]


def _collector_untouched() -> None:
    gc.freeze = gc.set_threshold = lambda *_: None  # type: ignore[assignment]


def _collector_off() -> None:
    _collector_untouched()
    gc.disable()


def _uuid_ids() -> None:
    def ids(prefix: bytes) -> Iterator[bytes]:
        for make in repeat(uuid.uuid4):
            yield make().hex.encode()

    worker.request_ids = ids


def _no_cache() -> None:
    made = HeadCache.__init__

    def init(self: HeadCache, *args: Any, **options: Any) -> None:
        made(self, *args, **{**options, "entries": 0})

    HeadCache.__init__ = init  # type: ignore[method-assign]


def _on_connection(do: Callable[[socket.socket], None]) -> None:
    made = HttpProtocol.connection_made

    def connection_made(self: HttpProtocol, transport: asyncio.BaseTransport) -> None:
        do(transport.get_extra_info("socket"))
        made(self, transport)

    HttpProtocol.connection_made = connection_made  # type: ignore[method-assign]


def _option(level: int, name: int, value: int) -> Callable[[], None]:
    return lambda: _on_connection(lambda client: client.setsockopt(level, name, value))


def _timer() -> None:
    """One timer a request, as where each connection has its own deadline."""
    received = HttpProtocol.data_received

    def data_received(self: HttpProtocol, data: bytes) -> None:
        timer = asyncio.get_running_loop().call_later(10, int)
        received(self, data)
        timer.cancel()

    HttpProtocol.data_received = data_received  # type: ignore[method-assign]


def _one_accept() -> None:
    worker.ACCEPTS = 1


VARIATIONS: dict[str, tuple[str, Callable[[], None]]] = {
    "collector_untouched": ("collector with Python's thresholds, nothing frozen",
                            _collector_untouched),
    "collector_off": ("no collector at all", _collector_off),
    "uuid_ids": ("request ids by uuid4", _uuid_ids),
    "no_cache": ("no head cache", _no_cache),
    "timer": ("a timer for each request, not one sweep", _timer),
    "nagle": ("without TCP_NODELAY", _option(socket.IPPROTO_TCP, socket.TCP_NODELAY, 0)),
    "quickack": ("TCP_QUICKACK once, at the accept",
                 _option(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)),
    "buffers": ("socket buffers of 16 KB, fixed",
                lambda: _on_connection(lambda client: [
                    client.setsockopt(socket.SOL_SOCKET, name, 16384)
                    for name in (socket.SO_RCVBUF, socket.SO_SNDBUF)
                ] and None)),
    "one_accept": ("one accept for each loop turn", _one_accept),
}  # fmt: skip

if (name := os.environ.get("VARIED", "")) in VARIATIONS:
    VARIATIONS[name][1]()
