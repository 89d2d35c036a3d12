"""Tells what a worker has in its environment."""

from __future__ import annotations

import os

from fluxor_fast import App, Request

app = App()


@app.get("/")
def names(request: Request) -> list[str]:
    return sorted(os.environ)
