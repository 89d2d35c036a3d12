"""The examples: each serves what it says, by the command of its README or in this process."""

from __future__ import annotations

import importlib
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import psycopg
import pytest
from httpx_sse import connect_sse

from fluxor_fast.testing import LiveServer, TestClient

EXAMPLES = Path(__file__).parents[2] / "examples"


def load(name: str) -> ModuleType:
    """Import ``app`` of an example, as its server would: anew, from its folder."""
    folder = str(EXAMPLES / name)
    sys.modules.pop("app", None)
    sys.path.insert(0, folder)
    try:
        return importlib.import_module("app")
    finally:
        sys.path.remove(folder)
        sys.modules.pop("app", None)


def command(name: str) -> tuple[str, list[str]]:
    """Return application and flags of the command in the README of an example."""
    text = (EXAMPLES / name / "README.md").read_text()
    (line,) = re.findall(r"^fluxor-fast serve .*", text, re.MULTILINE)
    assert f"cd examples/{name}\n" in text
    _, _, app, *flags = shlex.split(line)
    return app, flags


@pytest.mark.parametrize("name", sorted(one.name for one in EXAMPLES.iterdir() if one.is_dir()))
def test_each_is_listed_and_has_a_command(name: str) -> None:
    assert f"[{name}]({name})" in (EXAMPLES / "README.md").read_text()
    app, flags = command(name)
    assert app == "app:app"
    assert (EXAMPLES / name / "app.py").is_file()
    assert set(flags[::2]) <= {"--workers", "--database-url"}


def test_minimal_passes_its_own_test_and_its_command_works() -> None:
    subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", "/dev/null"],
        cwd=EXAMPLES / "minimal",
        check=True,
        timeout=60,
        stdout=subprocess.DEVNULL,
    )
    with (
        LiveServer("app:app", cwd=EXAMPLES / "minimal") as server,
        server.client() as client,
    ):
        assert client.get("/hello/Ada").json()["hello"] == "Ada"
        assert client.get("/health").json() == {"status": "healthy"}


def test_fastapi_keeps_its_behaviour() -> None:
    with (
        LiveServer("app:app", workers=2, cwd=EXAMPLES / "fastapi_app") as server,
        server.client() as client,
    ):
        assert client.get("/items/2").json() == {"name": "ink", "price": 4}
        assert client.get("/items/3").json() == {"detail": "no such item"}
        assert client.put("/items/3", json={"name": "", "price": 1}).status_code == 422
        assert client.get("/count").text == "0\n1\n2\n"
        assert "/items/{number}" in client.get("/openapi.json").json()["paths"]
        assert client.get("/docs").status_code == 200


# events


@pytest.fixture
def events() -> Iterator[TestClient]:
    with TestClient(load("events").app) as client:
        yield client


def test_events_reach_who_listens_and_what_was_missed_is_told(events: TestClient) -> None:
    assert "EventSource" in events.get("/").text
    assert events.post("/say", json={"text": "before"}).json() == {"id": 1}
    with connect_sse(events, "GET", "/events") as source:
        assert events.post("/say", json={"text": "näher\n"}).status_code == 202
        event = next(source.iter_sse())
        assert (event.event, event.id, event.json()) == ("said", "2", {"text": "näher\n"})
    with connect_sse(events, "GET", "/events", headers={"Last-Event-ID": "0"}) as source:
        seen = source.iter_sse()
        assert [next(seen).id, next(seen).id] == ["1", "2"]


@pytest.mark.parametrize("body", ["[]", '{"text": ""}', '{"text": 3}'])
def test_what_is_no_text_is_not_said(events: TestClient, body: str) -> None:
    kind = {"Content-Type": "application/json"}
    assert events.post("/say", content=body, headers=kind).status_code == 422


def test_events_on_the_wire() -> None:
    with (
        LiveServer("app:app", cwd=EXAMPLES / "events") as server,
        server.client() as listener,
        server.client() as speaker,
        connect_sse(listener, "GET", "/events") as source,
    ):
        speaker.post("/say", json={"text": "on the wire"})
        assert next(source.iter_sse()).json() == {"text": "on the wire"}


# todo


@pytest.fixture
def todo(database_url: str) -> Iterator[TestClient]:
    settings = {"database.url": database_url, "database.pool_max": 4, "database.pool_min": 1}
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("drop table if exists lists, todos, moves, fluxor_migrations")
    with TestClient(load("todo").app, settings=settings) as client:
        yield client


def test_todos_are_made_shown_changed_and_removed(todo: TestClient) -> None:
    assert todo.get("/health").json() == {"database": True}
    made = todo.post("/lists", json={"name": " home "})
    assert (made.status_code, made.json()["name"]) == (201, "home")
    path = made.headers["location"]
    entry = todo.post(path, json={"title": "buy ink"})
    assert entry.status_code == 201
    number = entry.json()["id"]
    assert todo.patch(f"/todos/{number}", json={"done": True}).json()["done"] is True
    assert [one["title"] for one in todo.get(path).json()["todos"]] == ["buy ink"]
    assert todo.get("/lists").json() == [{"id": made.json()["id"], "name": "home", "open": 0}]
    assert todo.delete(f"/todos/{number}").status_code == 204
    assert todo.delete(f"/lists/{made.json()['id']}").status_code == 204
    assert todo.get(path).status_code == 404


def test_what_is_wrong_is_told(todo: TestClient) -> None:
    refused = todo.post("/lists", json={"name": "", "more": 1})
    assert refused.status_code == 422
    assert sorted(one["path"] for one in refused.json()["problems"]) == [["more"], ["name"]]
    kind = {"Content-Type": "application/json"}
    assert todo.post("/lists", content=b"{", headers=kind).status_code == 400
    assert todo.post("/lists", json={"name": "twice"}).status_code == 201
    assert todo.post("/lists", json={"name": "twice"}).status_code == 409
    assert todo.post("/lists/999/todos", json={"title": "a"}).status_code == 404
    assert todo.patch("/todos/999", json={"done": True}).status_code == 404
    assert todo.delete("/todos/999").status_code == 404
    assert todo.get("/lists/1/todos", params={"after": "x"}).status_code == 422


def test_pages_follow_one_another(todo: TestClient) -> None:
    path = todo.post("/lists", json={"name": "long"}).headers["location"]
    for n in range(51):
        todo.post(path, json={"title": f"number {n}"})
    first = todo.get(path).json()
    assert (len(first["todos"]), first["next"]) == (50, first["todos"][-1]["id"])
    last = todo.get(path, params={"after": first["next"]}).json()
    assert [one["title"] for one in last["todos"]] == ["number 50"]
    assert last["next"] is None


def test_a_move_is_done_and_noted_or_neither(todo: TestClient, database_url: str) -> None:
    here, there = (todo.post("/lists", json={"name": name}).json()["id"] for name in "ab")
    for title in ("one", "two"):
        todo.post(f"/lists/{here}/todos", json={"title": title})
    assert todo.post(f"/lists/{here}/move", json={"to": 999}).status_code == 404
    assert todo.post(f"/lists/{here}/move", json={"to": there}).json() == {"moved": 2}
    assert todo.post(f"/lists/{here}/move", json={"to": there}).status_code == 409
    assert len(todo.get(f"/lists/{there}/todos").json()["todos"]) == 2
    with psycopg.connect(database_url) as connection:
        assert connection.execute("select todos from moves").fetchall() == [(2,)]


def test_several_workers_start_on_an_empty_database(database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("drop table if exists lists, todos, moves, fluxor_migrations")
    settings = {"database.url": database_url, "database.pool_max": 4, "database.pool_min": 2}
    folder = EXAMPLES / "todo"
    with (
        LiveServer("app:app", workers=2, settings=settings, cwd=folder) as server,
        server.client() as client,
    ):
        assert client.post("/lists", json={"name": "live"}).status_code == 201
