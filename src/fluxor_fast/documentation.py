"""A page for people that shows an application's description: its routes, shapes, and a way to try.

Its three files come with this package: nothing is loaded from elsewhere, so it works without the
network, and no third party learns of it or can change it.

Rules:

1. It has a policy of its own, in the place of the API's: script, style and requests of this origin
   alone, nothing inline, no frames (CSP level 3). Tokens are typed in, and kept nowhere.
2. It is off unless asked for (``--docs``), and on with ``--dev``. The description is for programs,
   and says no more than answers do; a page is another kind of thing to have on an origin that
   otherwise serves none: it asks people for tokens. Who wants it says so.
3. What the description says becomes text, never markup: a docstring is no script.
"""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Final

from fluxor_fast.app import App
from fluxor_fast.contract import Answer, Contract
from fluxor_fast.errors import HTTPError
from fluxor_fast.http.request import Request
from fluxor_fast.http.response import Response

__all__ = ["POLICY", "add_page", "install"]

POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self';"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HTML: Final = "text/html; charset=utf-8"
_FILES: Final = {"page.css": "text/css; charset=utf-8", "page.js": "text/javascript; charset=utf-8"}
_FOLDER: Final = Path(__file__).parent / "page"


def add_page(app: App, path: str = "/docs", description: str = "/openapi.json") -> None:
    """Register the page at ``path`` and its files below it.

    :param description: where the description is; see ``openapi.publish``.
    """
    headers = {"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff"}
    text = (_FOLDER / "index.html").read_text()
    text = text.replace("@description@", escape(description)).replace("@base@", escape(path))
    files = {name: (_FOLDER / name).read_bytes() for name in _FILES}

    def documentation(request: Request) -> Response:
        """Show this API to people."""
        return Response(text, headers=headers, content_type=_HTML)

    def documentation_file(request: Request, name: str) -> Response:
        """Give a file of that page."""
        if name not in files:
            raise HTTPError(404, f"nothing is at {request.path}")
        return Response(files[name], headers=headers, content_type=_FILES[name])

    page = Answer("The page.", str, content_type=_HTML)
    app.get(path, contract=Contract({200: page}))(documentation)
    app.get(f"{path}/{{name}}")(documentation_file)


def install(app: App, path: str = "/docs", description: str = "/openapi.json") -> None:
    """Register the page when the worker starts, if the settings want it (rule 2)."""

    def start() -> None:
        settings = app.settings
        if settings is not None and (settings.web.docs or settings.server.dev):
            add_page(app, path, description)

    app.on_startup(start)
