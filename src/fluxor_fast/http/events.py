"""Server-sent events (WHATWG HTML, section 9.2): a stream that a browser's EventSource reads.

Rules:

1. Each line of the data is a field of its own, whichever way the lines end; so no data can make
   a field or an event of its own.
2. An event's name and id are one line; an id with NUL would be ignored by the client (9.2.6).
3. A stream holds no slot: it idles between its events, and those who listen would take the slots
   of all others. It is in the system all the same (``max_ccu``, a route's ``max_in_flight``).
4. A comment is sent when nothing else was for a while: proxies keep the connection, and a client
   that is gone is noticed.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from fluxor_fast.http.response import encode_value
from fluxor_fast.http.streaming import BodySender, BodyWriter, close_iterator

__all__ = ["Event", "EventStream"]

PING: Final = b":\n\n"

_LINE_END = re.compile("\r\n|\r|\n")
_BAD = re.compile("[\r\n\0]")


@dataclass(frozen=True, slots=True)
class Event:
    """One event.

    :param data: text, or anything that a handler may return as JSON.
    :param event: its name; clients call an unnamed one ``message``.
    :param id: what a client that comes back names in ``Last-Event-ID``.
    :param retry: milliseconds after which a client that was cut off comes back.
    :raises ValueError: for a name or id with CR, LF or NUL, or a negative ``retry``.
    """

    data: Any
    event: str | None = None
    id: str | None = None
    retry: int | None = None

    def __post_init__(self) -> None:
        for name, value in (("event", self.event), ("id", self.id)):
            if value is not None and _BAD.search(value):
                raise ValueError(f"{name} has a line end or NUL in it: {value!r}")
        if self.retry is not None and self.retry < 0:
            raise ValueError(f"retry is negative: {self.retry}")

    def encode(self) -> bytes:
        """Return the event as it is sent."""
        data = self.data if isinstance(self.data, str) else encode_value(self.data).decode()
        lines = []
        if self.event is not None:
            lines.append(f"event: {self.event}")
        if self.id is not None:
            lines.append(f"id: {self.id}")
        if self.retry is not None:
            lines.append(f"retry: {self.retry}")
        lines += [f"data: {line}" for line in _LINE_END.split(data)]
        return ("\n".join(lines) + "\n\n").encode()


class EventStream(BodySender):
    """An answer of events from an asynchronous iterable: ``Event``, text, or a dict sent as JSON.

    The head leaves at once. The stream ends with the iterable, or with its client: then the
    iterable is cancelled. What it does between events runs without a slot.

    :param events: closed at the end, as with ``StreamingResponse``.
    :param headers: as for ``Response``; ``Cache-Control`` is ``no-cache`` if they have none.
    :param ping: seconds without an event after which a comment is sent (kept to about a second).
    """

    __slots__ = ("events", "ping")

    keeps_slot: ClassVar[bool] = False

    def __init__(
        self,
        events: AsyncIterable[Event | str | dict[str, Any]],
        headers: Mapping[str, str] | None = None,
        ping: float = 15.0,
    ) -> None:
        super().__init__(200, headers, "text/event-stream")
        if not any(name.lower() == "cache-control" for name in self.headers):
            self.headers["Cache-Control"] = "no-cache"
        self.events = aiter(events)
        self.ping = ping

    async def send(self, writer: BodyWriter) -> None:
        """Write the events as they come."""
        await writer.begin()
        writer.keep_alive(self.ping, PING)
        async for event in self.events:
            await writer.write((event if isinstance(event, Event) else Event(event)).encode())

    async def close(self) -> None:
        """Close the iterable."""
        await close_iterator(self.events)
