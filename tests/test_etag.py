"""Entity tags made of bytes."""

from __future__ import annotations

from fluxor_fast import App
from fluxor_fast.http.response import Response
from fluxor_fast.middleware.etag import ETag
from fluxor_fast.testing import TestClient


def test_who_has_it_gets_304_with_the_fields_of_the_200() -> None:
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
    with TestClient(app) as client:
        first = client.get("/")
        tag = first.headers["etag"]
        for known in (tag, f"W/{tag}", f'"other", {tag}', "*"):
            for method in ("GET", "HEAD"):
                again = client.request(method, "/", headers={"If-None-Match": known})
                assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
                assert "content-type" not in again.headers
        for unknown in ('"other"', tag.strip('"'), ""):
            again = client.get("/", headers={"If-None-Match": unknown})
            assert again.status_code == 200
        state["a"] = 2
        again = client.get("/", headers={"If-None-Match": tag})
        assert again.headers["etag"] != tag
        answer = client.post("/", headers={"If-None-Match": tag})
        assert (answer.status_code, answer.headers.get("etag")) == (200, None)
        tag = client.get("/cached").headers["etag"]
        known = client.get("/cached", headers={"If-None-Match": tag})
        assert (known.status_code, known.headers["cache-control"]) == (304, "max-age=1")
        assert fields == {"Cache-Control": "max-age=1"}
        assert client.get("/own").headers["etag"] == '"own"'
        for path in ("/large", "/empty", "/nowhere"):
            assert "etag" not in client.get(path).headers
