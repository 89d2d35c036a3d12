"""The least that is useful: a health check, a parameter, a body, an error."""

from __future__ import annotations

from fluxor_fast import App, HTTPError, Request

app = App(title="minimal")


@app.get("/health", priority="exempt")  # never refused
def health(request: Request) -> dict[str, str]:
    return {"status": "healthy"}


@app.get("/hello/{name}")
def hello(request: Request, name: str) -> dict[str, str]:
    return {"hello": name, "request_id": request.id}


@app.post("/sum")
def add(request: Request, body: list[float]) -> dict[str, float]:  # 422 for anything else
    if not body:
        raise HTTPError(409, "nothing has no sum here")
    return {"sum": sum(body)}
