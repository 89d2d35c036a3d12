"""Server-sent events as bytes: what stands in an event cannot make another one."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxor_fast import Event, EventStream
from tests.support.seeds import examples


def parsed(stream: str) -> list[dict[str, str]]:
    """Return the events in ``stream`` as a client reads them (WHATWG HTML, section 9.2.6)."""
    events: list[dict[str, str]] = []
    fields: dict[str, str] = {}
    lines = stream.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    for line in lines:
        if not line:
            if "data" in fields:
                events.append(fields)
            fields = {}
            continue
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data" and "data" in fields:
            value = fields["data"] + "\n" + value
        fields[name] = value
    return events


@pytest.mark.parametrize(
    ("event", "wire"),
    [
        (Event("hello"), b"data: hello\n\n"),
        (Event(""), b"data: \n\n"),
        (Event("a\nb\r\nc\rd"), b"data: a\ndata: b\ndata: c\ndata: d\n\n"),
        (Event("a\n\nid: 1"), b"data: a\ndata: \ndata: id: 1\n\n"),
        (Event("ä", "tick", "7", 3000), "event: tick\nid: 7\nretry: 3000\ndata: ä\n\n".encode()),
        (Event({"a": [1, None]}), b'data: {"a":[1,null]}\n\n'),
        (Event(None), b"data: null\n\n"),
    ],
)
def test_the_form_of_an_event(event: Event, wire: bytes) -> None:
    assert event.encode() == wire


@pytest.mark.parametrize("bad", ["a\nb", "a\rb", "a\0b", "\n"])
def test_a_name_or_an_id_is_one_line(bad: str) -> None:
    for name in ("event", "id"):
        with pytest.raises(ValueError, match=name):
            Event("x", **{name: bad})


def test_retry_is_not_negative() -> None:
    with pytest.raises(ValueError, match="retry"):
        Event("x", retry=-1)


LINE = st.text(st.characters(exclude_characters="\r\n\0", exclude_categories=["Cs"]))


@examples(300)
@given(st.text(st.characters(exclude_categories=["Cs"])), LINE, LINE)
def test_a_client_reads_the_one_event_that_was_meant(data: str, name: str, id: str) -> None:
    (event,) = parsed(Event(data, name, id).encode().decode())
    assert event["data"] == data.replace("\r\n", "\n").replace("\r", "\n")
    assert (event["event"], event["id"]) == (name, id)


def test_the_fields_of_a_stream_of_events() -> None:
    async def none() -> Any:
        return
        yield

    stream = EventStream(none())
    assert stream.content_type == "text/event-stream"
    assert stream.headers == {"Cache-Control": "no-cache"}
    stream = EventStream(none(), headers={"cache-control": "no-store"})
    assert stream.headers == {"cache-control": "no-store"}
    bad: Any = ["not asynchronous"]
    with pytest.raises(TypeError):
        EventStream(bad)
