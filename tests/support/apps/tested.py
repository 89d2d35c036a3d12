"""Served by tests of the live server."""

import os
import sys

from fluxor_fast import App, Request

app = App()


@app.get("/")
def home(request: Request) -> dict[str, object]:
    return {
        "pid": os.getpid(),
        "client": request.client,
        "most": request.app.settings.server.max_ccu,
        "secret": request.app.settings.auth.jwt_secret is not None,
        "mark": os.environ.get("MARK"),
    }


@app.get("/print")
def say(request: Request) -> None:
    print("said by a handler", file=sys.stderr, flush=True)
