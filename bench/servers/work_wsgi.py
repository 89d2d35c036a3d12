"""The comparison's application for fastpysgi, as a script: its command line has no backlog."""

from __future__ import annotations

from typing import Any

import click
import fastpysgi  # type: ignore[import-not-found,unused-ignore]
import work


def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    """Answer."""
    body = environ["wsgi.input"].read() if environ["REQUEST_METHOD"] == "POST" else b""
    found = work.answer(environ["PATH_INFO"], body)
    if found is None:
        start_response("404 Not Found", [("Content-Length", "0")])
        return [b""]
    kind, body = found
    start_response("200 OK", [("Content-Type", kind), ("Content-Length", str(len(body)))])
    return [body]


@click.command()
@click.option("--port", type=int, required=True)
@click.option("--workers", type=int, default=1)
def main(port: int, workers: int) -> None:
    """Serve."""
    fastpysgi.server.backlog = 4096
    fastpysgi.run(app, "127.0.0.1", port, fastpysgi.LL_ERROR, workers if workers > 1 else None)


if __name__ == "__main__":
    main()
