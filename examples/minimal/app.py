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
def add(request: Request) -> dict[str, float]:
    numbers = request.json()
    if not (isinstance(numbers, list) and all(isinstance(n, int | float) for n in numbers)):
        raise HTTPError(422, "send a list of numbers")
    return {"sum": sum(numbers)}
