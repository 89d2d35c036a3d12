"""Starlette and FastAPI applications that use much of what the two offer."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any

from fastapi import (
    BackgroundTasks,
    Depends,
    FastAPI,
    File,
    Form,
    Header,
    HTTPException,
    Query,
    UploadFile,
    WebSocket,
    WebSocketException,
)  # fmt: skip
from fastapi.responses import StreamingResponse as FastStream
from fastapi.security import OAuth2PasswordBearer, OAuth2PasswordRequestForm
from pydantic import BaseModel, Field
from starlette.applications import Starlette
from starlette.background import BackgroundTasks as Tasks
from starlette.exceptions import HTTPException as StarletteError
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import Request
from starlette.responses import (
    FileResponse,
    JSONResponse,
    PlainTextResponse,
    RedirectResponse,
    Response,
    StreamingResponse,
)  # fmt: skip
from starlette.routing import Host, Mount, Route, Router, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.websockets import WebSocket as Socket

DONE: list[str] = []


async def echo(request: Request) -> Response:
    """Say what of a request a handler sees."""
    return JSONResponse(
        {
            "method": request.method,
            "path": request.url.path,
            "query": request.query_params.multi_items(),
            "params": request.path_params,
            "cookies": request.cookies,
            "body": (await request.body()).decode("latin-1"),
            "root": request.scope["root_path"],
            "type": request.headers.get("content-type"),
            "raw": request.scope["raw_path"].decode(),
        }
    )


async def form(request: Request) -> Response:
    async with request.form() as fields:
        found: dict[str, Any] = {}
        for name, value in fields.multi_items():
            if isinstance(value, str):
                found[name] = value
            else:
                found[name] = [value.filename, len(await value.read())]
    return JSONResponse(found)


async def count(request: Request) -> Response:
    return PlainTextResponse(str(sum([len(piece) async for piece in request.stream()])))


async def visits(request: Request) -> Response:
    request.session["visits"] = request.session.get("visits", 0) + 1
    return JSONResponse(request.session)


async def cookies(request: Request) -> Response:
    response = PlainTextResponse("two")
    response.set_cookie("a", "1", httponly=True)
    response.set_cookie("b", "2", path="/x")
    return response


async def state(request: Request) -> Response:
    request.state.count.append(1)
    return JSONResponse({"name": request.state.name})


async def later(request: Request) -> Response:
    tasks = Tasks()
    for name in ("first", "second"):
        tasks.add_task(DONE.append, name)
    return PlainTextResponse("now", background=tasks)


async def numbers() -> AsyncIterator[str]:
    for number in range(5):
        yield f"{number},"
        await asyncio.sleep(0)


async def stream(request: Request) -> Response:
    return StreamingResponse(numbers(), media_type="text/plain")


async def teapot(request: Request) -> Response:
    raise StarletteError(418, headers={"X-Pot": "tea"})


async def boom(request: Request) -> Response:
    raise RuntimeError("secret detail")


class Odd(Exception):
    pass


async def odd(request: Request) -> Response:
    raise Odd("handled")


def threaded(request: Request) -> Response:
    return PlainTextResponse("from a thread")


async def whole(request: Request) -> Response:
    return PlainTextResponse("x" * 2000)


async def nothing(request: Request) -> Response:
    return Response(status_code=204)


async def moved(request: Request) -> Response:
    return RedirectResponse("/echo", 303)


async def talk(socket: Socket) -> None:
    await socket.accept(subprotocol=next(iter(socket["subprotocols"]), None))
    said = {"path": socket.url.path, "root": socket.scope["root_path"], "name": socket.state.name}
    await socket.send_json(said)
    await socket.send_json(await socket.receive_json())
    await socket.send_bytes(await socket.receive_bytes())
    await socket.close(4000, "done")


class Marked(BaseHTTPMiddleware):
    async def dispatch(self, request: Request, call_next: Any) -> Response:
        response: Response = await call_next(request)
        response.headers["X-Marked"] = "yes"
        return response


def starlette_app(folder: Path, native: Any) -> Starlette:
    """Return one that serves files of ``folder`` and mounts ``native``."""

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[dict[str, Any]]:
        yield {"name": "broad", "count": []}

    async def file(request: Request) -> Response:
        return FileResponse(folder / "page.html", filename="päge.html")

    inner = Router([Route("/echo/{name:path}", echo, methods=["GET", "POST"])])
    routes = [
        Route("/echo", echo, methods=["GET", "POST", "PUT", "DELETE", "PATCH"]),
        Route("/echo/{id:int}/{rest:path}", echo),
        Route("/form", form, methods=["POST"]),
        Route("/count", count, methods=["POST"]),
        Route("/visits", visits),
        Route("/cookies", cookies),
        Route("/state", state),
        Route("/later", later),
        Route("/stream", stream),
        Route("/teapot", teapot),
        Route("/boom", boom),
        Route("/odd", odd),
        Route("/threaded", threaded),
        Route("/whole", whole),
        Route("/nothing", nothing),
        Route("/moved", moved),
        Route("/slash/", echo),
        Route("/file", file),
        WebSocketRoute("/talk", talk),
        Mount("/static", StaticFiles(directory=folder, html=True)),
        Mount("/mounted", routes=[Mount("/twice", inner), WebSocketRoute("/talk", talk)]),
        Mount("/api", native),
        Mount("/marked", routes=[Route("/", echo), Route("/stream", stream)],
              middleware=[Middleware(Marked)]),
        Host("other.example", Router([Route("/host", echo)])),
    ]  # fmt: skip

    async def handle_odd(request: Request, error: Exception) -> Response:
        return JSONResponse({"odd": str(error)}, 409)

    return Starlette(
        routes=routes,
        lifespan=lifespan,
        middleware=[
            Middleware(SessionMiddleware, secret_key="not a secret"),
            Middleware(CORSMiddleware, allow_origins=["https://a.example"]),
            Middleware(GZipMiddleware, minimum_size=1000),
        ],
        exception_handlers={Odd: handle_odd},
    )


bearer = OAuth2PasswordBearer(tokenUrl="token")


class Item(BaseModel):
    name: str = Field(max_length=20)
    price: float = Field(gt=0)
    tags: list[str] = []


class Priced(Item):
    total: float


async def opened() -> AsyncIterator[str]:
    yield "resource"
    DONE.append("released")


def user(token: Annotated[str, Depends(bearer)]) -> str:
    if token != "good":
        raise HTTPException(401, "bad token", headers={"WWW-Authenticate": "Bearer"})
    return "ann"


def fastapi_app() -> FastAPI:
    app = FastAPI()

    @app.get("/items/{item_id}")
    async def item(
        item_id: int,
        q: Annotated[str | None, Query(min_length=2)] = None,
        agent: Annotated[str | None, Header(alias="x-agent")] = None,
    ) -> dict[str, Any]:
        return {"id": item_id, "q": q, "agent": agent}

    @app.post("/items", status_code=201, response_model=Priced)
    def create(item: Item) -> dict[str, Any]:
        return {**item.model_dump(), "total": item.price * 1.2, "hidden": True}

    @app.post("/login")
    async def login(name: Annotated[str, Form()], password: Annotated[str, Form()]) -> str:
        return f"{name}/{len(password)}"

    @app.post("/upload")
    async def upload(file: UploadFile, note: Annotated[str, Form()] = "") -> dict[str, Any]:
        return {"name": file.filename, "size": len(await file.read()), "note": note}

    @app.post("/bytes")
    async def as_bytes(file: Annotated[bytes, File()]) -> int:
        return len(file)

    @app.post("/token")
    async def token(form: Annotated[OAuth2PasswordRequestForm, Depends()]) -> dict[str, str]:
        if form.password != "right":
            raise HTTPException(400, "wrong password")
        return {"access_token": "good", "token_type": "bearer"}

    @app.get("/me")
    async def me(name: Annotated[str, Depends(user)]) -> dict[str, str]:
        return {"name": name}

    @app.get("/resource")
    async def resource(thing: Annotated[str, Depends(opened)]) -> str:
        return thing

    @app.post("/later")
    async def later(tasks: BackgroundTasks) -> str:
        tasks.add_task(DONE.append, "later")
        return "now"

    @app.get("/stream")
    async def stream() -> FastStream:
        return FastStream(numbers(), media_type="text/plain")

    @app.get("/boom")
    async def boom() -> None:
        raise RuntimeError("secret detail")

    @app.websocket("/ws/{room}")
    async def ws(socket: WebSocket, room: int, token: str = "") -> None:
        if token != "good":
            raise WebSocketException(1008, "no token")
        await socket.accept()
        async for text in socket.iter_text():
            await socket.send_text(f"{room}: {text}")
        DONE.append("left")

    return app
