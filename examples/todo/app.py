"""Lists of things to do, in PostgreSQL.

Each worker has a pool of its own; whichever comes first applies the files in ``migrations``. The
framework checks bodies by their annotations (422), and answers 503 when the database is away.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Annotated

import psycopg
from pydantic import BaseModel, Field, StringConstraints

from fluxor_fast import App, HTTPError, Query, Request, Response
from fluxor_fast.db.connection import Connection, Row
from fluxor_fast.db.migrations import Migration, migrate, read_folder
from fluxor_fast.db.pool import Database

PAGE = 50

app = App(title="todo", version="1")
Line = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200)]


class NewList(BaseModel):
    name: Line


class NewTodo(BaseModel):
    title: Line


class Change(BaseModel):
    title: Line | None = None
    done: bool | None = None


class Move(BaseModel):
    to: int = Field(ge=1)


# the database


@cache
def migrations() -> list[Migration]:
    return read_folder(Path(__file__).parent / "migrations")


async def prepare(connection: Connection) -> None:
    await migrate(connection, migrations(), patience=3.0)


@app.on_startup
async def start() -> None:
    database = app.state.database = Database.from_settings(
        app.settings, prepare=prepare, publish=app.metrics.publish_pool
    )
    await database.open()
    await database.first_contact()


@app.on_shutdown
async def stop() -> None:
    await app.state.database.close()


def database() -> Database:
    found: Database = app.state.database
    return found


def found(row: Row | None, what: str) -> Row:
    if row is None:
        raise HTTPError(404, f"there is no {what}")
    return row


# routes


@app.get("/health", priority="exempt")
def health(request: Request) -> dict[str, bool]:
    return {"database": database().ready}


@app.post("/lists")
async def add_list(request: Request, body: NewList) -> Response:
    try:
        row = await database().fetch_one(
            "insert into lists (name) values (%s) returning id, name", body.name
        )
    except psycopg.errors.UniqueViolation:
        raise HTTPError(409, "a list with this name exists already") from None
    assert row is not None
    return Response.json(row, 201, {"Location": f"/lists/{row['id']}/todos"})


@app.get("/lists")
async def show_lists(request: Request) -> list[Row]:
    return await database().fetch_all(
        "select lists.id, name, count(todos.id) filter (where not done) as open"
        " from lists left join todos on list_id = lists.id group by lists.id order by name"
    )


@app.delete("/lists/{id:int}")
async def remove_list(request: Request, id: int) -> None:
    if not await database().execute("delete from lists where id = %s", id):
        raise HTTPError(404, "there is no such list")


@app.get("/lists/{id:int}/todos")
async def show_todos(request: Request, id: int, after: Query[int] = 0) -> dict[str, object]:
    """Return a page; ``after`` is the last id of the page before."""
    found(await database().fetch_one("select id from lists where id = %s", id), "such list")
    rows = await database().fetch_all(
        "select id, title, done, created_at from todos where list_id = %s and id > %s"
        " order by id limit %s",
        id,
        after,
        PAGE + 1,  # one more tells whether a page follows
    )
    page = rows[:PAGE]
    return {"todos": page, "next": page[-1]["id"] if len(rows) > PAGE else None}


@app.post("/lists/{id:int}/todos")
async def add_todo(request: Request, id: int, body: NewTodo) -> tuple[int, Row]:
    try:
        row = await database().fetch_one(
            "insert into todos (list_id, title) values (%s, %s)"
            " returning id, title, done, created_at",
            id,
            body.title,
        )
    except psycopg.errors.ForeignKeyViolation:
        raise HTTPError(404, "there is no such list") from None
    return 201, found(row, "such list")


@app.patch("/todos/{id:int}")
async def change_todo(request: Request, id: int, body: Change) -> Row:
    row = await database().fetch_one(
        "update todos set title = coalesce(%s, title), done = coalesce(%s, done) where id = %s"
        " returning id, title, done, created_at",
        body.title,
        body.done,
        id,
    )
    return found(row, "such entry")


@app.delete("/todos/{id:int}")
async def remove_todo(request: Request, id: int) -> None:
    if not await database().execute("delete from todos where id = %s", id):
        raise HTTPError(404, "there is no such entry")


@app.post("/lists/{id:int}/move")
async def move(request: Request, id: int, body: Move) -> dict[str, int]:
    """Move what is open to another list, and note it: both, or neither."""
    try:
        async with database().transaction() as transaction:
            moved = await transaction.execute(
                "update todos set list_id = %s where list_id = %s and not done", body.to, id
            )
            await transaction.execute(
                "insert into moves (from_list, to_list, todos) values (%s, %s, %s)",
                id,
                body.to,
                moved,
            )
            if not moved:
                raise HTTPError(409, "nothing is open in this list")  # undoes the note too
    except psycopg.errors.ForeignKeyViolation:
        raise HTTPError(404, "there is no list to move to") from None
    return {"moved": moved}
