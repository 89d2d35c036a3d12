"""Compressed answers."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import brotli
import pytest

from fluxor_fast import App, Request, StreamingResponse
from fluxor_fast.http.response import Response
from fluxor_fast.middleware.compression import AVAILABLE, Compression, best_coding, zstd
from fluxor_fast.middleware.etag import ETag
from tests.support.inprocess import in_loop, serving
from tests.support.seeds import seeded

LARGE = {"items": [{"id": n, "name": f"name {n}"} for n in range(200)]}
READERS: dict[str | None, Any] = {
    None: bytes,
    "gzip": gzip.decompress,
    "br": brotli.decompress,
    "zstd": lambda data: zstd.ZstdDecompressor().decompress(data),
}


@pytest.mark.parametrize(
    ("accepted", "coding"),
    [
        ("", None),
        ("gzip", "gzip"),
        ("GZIP", "gzip"),
        ("x-gzip", "gzip"),
        ("gzip, deflate, br, zstd", "zstd"),
        ("gzip, br", "br"),
        ("gzip;q=1.0, br;q=0.5", "gzip"),
        ("gzip;q=0", None),
        ("gzip;q=0.000", None),
        ("*", "zstd"),
        ("*;q=0, gzip", "gzip"),
        ("zstd;q=0, br;q=0, *", "gzip"),
        ("identity", None),
        ("identity, gzip;q=0.5", None),
        ("identity;q=0, gzip;q=0.5", "gzip"),
        ("deflate, compress", None),
        ("gzip;q=1.001", None),
        ("gzip;q=x, br ; q=0.1", "br"),
        ("gzip\t;\tQ=0.3", "gzip"),
    ],
)
def test_the_coding_is_what_the_client_would_rather_have(accepted: str, coding: str | None) -> None:
    assert best_coding(accepted, AVAILABLE) == coding


def make(**options: Any) -> App:
    app = App()
    app.add_middleware(Compression(**options))
    app.get("/json")(lambda request: LARGE)
    app.get("/small")(lambda request: {"a": 1})
    app.get("/text")(lambda request: "word " * 1000)

    @app.get("/async")
    async def coroutine(request: Request) -> dict[str, Any]:
        return LARGE

    app.get("/blocking", blocking=True)(lambda request: LARGE)
    return app


@in_loop
async def test_what_is_compressed_is_what_was_said_on_every_kind_of_route() -> None:
    expected = json.dumps(LARGE, separators=(",", ":")).encode()
    async with serving(make()) as server:
        client = await server.connect()
        for path in ("/json", "/async", "/blocking"):
            for coding in (None, "gzip", "br", "zstd"):
                lines = [] if coding is None else [f"Accept-Encoding: {coding}"]
                answer = await client.get(path, *lines)
                assert answer.headers.get("content-encoding") == coding
                assert READERS[coding](answer.body) == expected
                assert answer.headers["vary"] == "Accept-Encoding"
                assert answer.headers["content-type"] == "application/json"
                asked = await client.get(path, *lines, method="HEAD")
                assert asked.headers["content-length"] == answer.headers["content-length"]
        small = await client.get("/small", "Accept-Encoding: gzip")
        assert (small.body, small.headers["vary"]) == (b'{"a":1}', "Accept-Encoding")
        text = await client.get("/text", "Accept-Encoding: gzip")
        assert gzip.decompress(text.body) == b"word " * 1000


KEPT = {
    "encoded": Response(b"x" * 5000, 200, {"content-encoding": "br"}, "text/plain"),
    "part": Response(b"x" * 5000, 206, {"Content-Range": "bytes 0-4999/9000"}, "text/plain"),
    "picture": Response(b"x" * 5000, 200, {}, "image/png"),
    "asked": Response(b"x" * 5000, 200, {"Cache-Control": "private, No-Transform"}, "text/plain"),
    "nothing": Response(status=204),
    "short": Response(b"x" * 1023, 200, {}, "text/plain"),
    "huge": Response(b"x" * 1_048_577, 200, {}, "text/plain"),
    "untyped": Response(b"x" * 5000),
}


@pytest.mark.parametrize("case", KEPT)
@in_loop
async def test_some_answers_stay_as_they_are(case: str) -> None:
    app = App()
    app.add_middleware(Compression())
    app.get("/")(lambda request: KEPT[case])
    async with serving(app) as server:
        client = await server.connect()
        answer = await client.get("/", "Accept-Encoding: gzip, br, zstd")
        assert answer.body == KEPT[case].body
        assert answer.headers.get("content-encoding", "br") == "br"
        assert answer.headers["vary"] == "Accept-Encoding"


@in_loop
async def test_what_does_not_become_smaller_stays() -> None:
    noise = seeded("noise").randbytes(4000)
    app = App()
    app.add_middleware(Compression())
    app.get("/")(lambda request: Response(noise, content_type="text/plain"))
    async with serving(app) as server:
        client = await server.connect()
        answer = await client.get("/", "Accept-Encoding: gzip")
        assert (answer.body, answer.headers.get("content-encoding")) == (noise, None)


@in_loop
async def test_files_and_ranges_of_them_keep_their_lengths(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"word " * 1000)
    app = App()
    app.add_middleware(Compression())
    app.files("/f", tmp_path)
    async with serving(app) as server:
        client = await server.connect()
        whole = await client.get("/f/a.txt", "Accept-Encoding: gzip")
        assert gzip.decompress(whole.body) == b"word " * 1000
        assert whole.headers["etag"].startswith('W/"')
        assert "accept-ranges" not in whole.headers
        part = await client.get("/f/a.txt", "Accept-Encoding: gzip", "Range: bytes=0-2499")
        assert (part.status, part.body) == (206, b"word " * 500)
        known = await client.get(
            "/f/a.txt", "Accept-Encoding: gzip", f"If-None-Match: {whole.headers['etag']}"
        )
        assert (known.status, known.headers["vary"]) == (304, "Accept-Encoding")


@in_loop
async def test_an_entity_tag_becomes_weak_and_still_matches() -> None:
    app = make()
    app.add_middleware(ETag())
    async with serving(app) as server:
        client = await server.connect()
        plain = await client.get("/json")
        packed = await client.get("/json", "Accept-Encoding: gzip")
        assert packed.headers["etag"] == f"W/{plain.headers['etag']}"
        again = await client.get(
            "/json", "Accept-Encoding: gzip", f"If-None-Match: {packed.headers['etag']}"
        )
        assert (again.status, again.body) == (304, b"")


@pytest.mark.parametrize("coding", ["gzip", "br", "zstd"])
@in_loop
async def test_a_stream_is_compressed_when_wanted_and_each_piece_can_be_read(coding: str) -> None:
    from fluxor_fast.middleware.compression import _PIECES, _compressed

    async def pieces() -> AsyncIterator[bytes | str]:
        for n in range(5):
            yield f"piece {n};" if n % 2 else f"piece {n};".encode()

    readers: dict[str, Any] = {
        "gzip": lambda: zlib.decompressobj(31).decompress,
        "br": lambda: brotli.Decompressor().process,
        "zstd": lambda: zstd.ZstdDecompressor().decompress,
    }
    read = readers[coding]()
    found = [read(piece) async for piece in _compressed(pieces(), _PIECES[coding]())]
    assert found == [*(f"piece {n};".encode() for n in range(5)), b""]

    app = App()
    closed: list[bool] = []

    @app.get("/")
    async def stream(request: Request) -> StreamingResponse:
        async def several() -> AsyncIterator[bytes]:
            try:
                yield b"word " * 1000
            finally:
                closed.append(True)

        return StreamingResponse(several(), content_type="text/plain", length=5000)

    for streams in (False, True):
        app = App()
        app.get("/", middleware=[Compression(streams=streams)])(stream)
        async with serving(app) as server:
            client = await server.connect()
            # HTTP/1.0: the end of the body is that of the connection
            await client.send(f"GET / HTTP/1.0\r\nAccept-Encoding: {coding}\r\n\r\n".encode())
            while await client._more():
                pass
            head, _, body = client.buffer.partition(b"\r\n\r\n")
        assert (b"Content-Encoding" in head) is streams
        assert READERS[coding if streams else None](body) == b"word " * 1000
        assert (b"Content-Length" in head) is not streams
    assert closed == [True, True]


def test_a_coding_that_is_not_there_is_refused_at_start() -> None:
    with pytest.raises(ValueError, match="deflate"):
        Compression(codings=["deflate"])
