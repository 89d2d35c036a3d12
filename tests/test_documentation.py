"""The page: whole, from local files, with a policy that lets in nothing else; there if wanted."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest

from fluxor_fast import App, Response
from fluxor_fast.documentation import POLICY, add_page, install
from fluxor_fast.middleware.security_headers import SecurityHeaders
from fluxor_fast.openapi import document
from tests.support.described import Description
from tests.support.inprocess import in_loop, serving
from tests.support.pure import Asker, run

PAGES = {
    "/docs": "text/html; charset=utf-8",
    "/docs/page.css": "text/css; charset=utf-8",
    "/docs/page.js": "text/javascript; charset=utf-8",
}


def get(app: App, path: str) -> Response:
    return run(Asker(app).ask("GET", path))


def page() -> App:
    app = App()
    add_page(app)
    return app


def test_the_page_and_its_files() -> None:
    app = page()
    description = Description(document(app))
    for path, content_type in PAGES.items():
        answer = get(app, path)
        assert (answer.status, answer.content_type) == (200, content_type)
        assert answer.headers["Content-Security-Policy"] == POLICY
    description.check("GET", "/docs", get(app, "/docs"))
    assert get(app, "/docs/index.html").status == 404
    assert get(app, "/docs/..%2Fpage.js").status == 404


def test_nothing_is_inline_or_from_elsewhere() -> None:
    app = page()
    html = str(get(app, "/docs").body, "utf-8")
    assert "@" not in html  # every place is filled
    assert set(re.findall(r'(?:src|href)="([^"]+)"', html)) == {
        "/docs/page.css",
        "/docs/page.js",
        "/openapi.json",
    }
    assert not re.search(r"<script(?! src=)|<style|\sstyle=|\son[a-z]+=", html)
    script = str(get(app, "/docs/page.js").body, "utf-8")
    assert not re.search(r"(inner|outer|Adjacent)HTML|eval|document\.write|https?:", script)
    assert "url(" not in str(get(app, "/docs/page.css").body, "utf-8")


def test_its_places_are_escaped() -> None:
    app = App()
    add_page(app, "/a", '/"><script>')
    assert "<script>" not in str(get(app, "/a").body, "utf-8")


@in_loop
async def test_its_policy_takes_the_place_of_the_apis() -> None:
    app = page()
    app.add_middleware(SecurityHeaders())
    async with serving(app) as server:
        client = await server.connect()
        answer = await client.get("/docs")
    assert answer.headers["content-security-policy"] == POLICY
    assert answer.headers["x-frame-options"] == "DENY"


@pytest.mark.parametrize(("docs", "dev"), [(False, False), (True, False), (False, True)])
def test_it_is_there_if_wanted(docs: bool, dev: bool) -> None:
    app = App()
    install(app)
    app.settings = SimpleNamespace(
        web=SimpleNamespace(docs=docs), server=SimpleNamespace(dev=dev, max_body=1)
    )
    run(app.start())
    assert get(app, "/docs").status == (200 if docs or dev else 404)


def test_without_a_server_it_is_not_there() -> None:
    app = App()
    install(app)
    run(app.start())
    assert get(app, "/docs").status == 404
