"""Entity tags made of bytes."""

from __future__ import annotations

from fluxor_fast import App
from fluxor_fast.http.response import Response
from fluxor_fast.middleware.etag import ETag
from tests.support.inprocess import in_loop, serving


@in_loop
async def test_who_has_it_gets_304_with_the_fields_of_the_200() -> None:
    app = App()
    app.add_middleware(ETag(largest=100))
    state = {"a": 1}
    app.get("/")(lambda request: state)
    app.post("/")(lambda request: state)
    fields = {"Cache-Control": "max-age=1"}
    app.get("/cached")(lambda request: Response("x", headers=fields))
    app.get("/own")(lambda request: Response("x", headers={"etag": '"own"'}))
    app.get("/large")(lambda request: "x" * 101)
    app.get("/empty")(lambda request: None)
    async with serving(app) as server:
        client = await server.connect()
        first = await client.get("/")
        tag = first.headers["etag"]
        for known in (tag, f"W/{tag}", f'"other", {tag}', "*"):
            for method in ("GET", "HEAD"):
                again = await client.get("/", f"If-None-Match: {known}", method=method)
                assert (again.status, again.body, again.headers["etag"]) == (304, b"", tag)
                assert "content-type" not in again.headers
        for unknown in ('"other"', tag.strip('"'), ""):
            assert (await client.get("/", f"If-None-Match: {unknown}")).status == 200
        state["a"] = 2
        assert (await client.get("/", f"If-None-Match: {tag}")).headers["etag"] != tag
        answer = await client.get("/", "Content-Length: 0", f"If-None-Match: {tag}", method="POST")
        assert (answer.status, answer.headers.get("etag")) == (200, None)
        cached = await client.get("/cached")
        known = await client.get("/cached", f"If-None-Match: {cached.headers['etag']}")
        assert (known.status, known.headers["cache-control"]) == (304, "max-age=1")
        assert fields == {"Cache-Control": "max-age=1"}
        assert (await client.get("/own")).headers["etag"] == '"own"'
        for path in ("/large", "/empty", "/nowhere"):
            assert "etag" not in (await client.get(path)).headers
