"""The servers of the comparison: how each is started, and which are not there and why.

All answer what ``servers/work.py`` says. The ceiling and nginx write constants; the others make
each answer anew. Those called raw have no framework between server and answer.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import harness
from harness import Cores, Failed, Server

__all__ = [
    "CONTESTANTS",
    "DATABASE",
    "SERVERS",
    "Contestant",
    "Place",
    "fluxor",
    "granian",
    "missing",
    "side_by_side",
    "start",
    "uvicorn",
]

SERVERS = Path(__file__).resolve().parent / "servers"
MOST_CONNECTIONS = 6000
# 64 users who ask again at once are a standing queue of 64 handlers, which is what is measured:
# at the default of 5 ms some of those who echo 17 KB are refused on a slow processor
STANDING = ("--queue-target", "0.05")
HTTP = frozenset({"health", "plaintext", "pipelined", "cold", "echo1k", "echo17k", "params"})
DATABASE = frozenset({"db", "queries"})
NGINX = """
daemon off; worker_processes {workers}; worker_rlimit_nofile 8192; error_log stderr crit;
pid {folder}/nginx.pid;
events {{ worker_connections 8192; }}
http {{
  access_log off; keepalive_requests 1000000000; default_type application/json;
  client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
  uwsgi_temp_path {folder}; scgi_temp_path {folder};
  server {{
    listen 127.0.0.1:{port} backlog=4096{share};
    location = /health {{ return 200 '{health}'; }}
    location = /plaintext {{ default_type text/plain; return 200 'Hello, World!'; }}
  }}
}}
"""


@dataclass(frozen=True)
class Place:
    """Where a contestant runs, and with what."""

    port: int
    workers: int
    folder: Path
    """For files it needs; gone at the end."""
    answer: bytes = b""
    """What the ceiling writes."""
    pipelined: bool = False
    url: str | None = None
    pool: int = 10


@dataclass(frozen=True)
class Contestant:
    """One server.

    :param needs: modules and programs without which it is left out.
    :param constant: it does not make its answers, and can be no faster than its kernel.
    """

    title: str
    command: Callable[[Place], list[str]]
    needs: tuple[str, ...] = ()
    workloads: frozenset[str] = HTTP
    constant: bool = False


def _common(place: Place) -> list[str]:
    return ["--host", "127.0.0.1", "--port", str(place.port), "--workers", str(place.workers),
            "--backlog", "4096"]  # fmt: skip


def _script(name: str) -> Callable[[Place], list[str]]:
    return lambda place: [
        sys.executable, str(SERVERS / name), "--port", str(place.port),
        "--workers", str(place.workers),
    ]  # fmt: skip


def _ceiling(place: Place) -> list[str]:
    answer = harness.to_base64(place.answer)
    flag = ["--pipelined"] if place.pipelined else []
    return [*_script("ceiling.py")(place), "--answer", answer, *flag]


def fluxor(place: Place, app: str = "work_fluxor:app", *options: str) -> list[str]:
    """Return our own command."""
    database = [
        "--database-url", place.url,
        "--database-pool-min", str(place.pool), "--database-pool-max", str(place.pool),
    ] if place.url else []  # fmt: skip
    return [
        harness.command_of("fluxor-fast"), "serve", app, *_common(place),
        "--log-level", "error", "--graceful-timeout", "1",
        "--max-connections", str(MOST_CONNECTIONS), *STANDING, *database, *options,
    ]  # fmt: skip


def uvicorn(app: str) -> Callable[[Place], list[str]]:
    """Return the command of uvicorn for an application."""
    return lambda place: [
        harness.command_of("uvicorn"), *_common(place), "--log-level", "error",
        "--loop", "uvloop", "--http", "httptools", "--ws", "none", "--no-access-log",
        "--app-dir", str(SERVERS), app,
    ]  # fmt: skip


def granian(interface: str, app: str, *options: str) -> Callable[[Place], list[str]]:
    """Return the command of granian for an application."""
    return lambda place: [
        harness.command_of("granian"), *_common(place), "--log-level", "error",
        "--interface", interface, "--loop", "uvloop", "--http", "1", "--no-ws",
        "--runtime-threads", "1", "--no-access-log", "--working-dir", str(SERVERS), *options, app,
    ]  # fmt: skip


def _gunicorn(place: Place) -> list[str]:
    return [
        harness.command_of("gunicorn"), "--bind", f"127.0.0.1:{place.port}",
        "--workers", str(place.workers), "--backlog", "4096", "--log-level", "error",
        "--graceful-timeout", "1", "-k", "uvicorn_worker.UvicornWorker",
        "--chdir", str(SERVERS), "work_asgi:app",
    ]  # fmt: skip


def _nginx(place: Place) -> list[str]:
    file = place.folder / "nginx.conf"
    health = place.answer.partition(b"\r\n\r\n")[2].decode()
    file.write_text(
        NGINX.format(
            port=place.port,
            workers=place.workers,
            folder=place.folder,
            health=health,
            share=" reuseport" if place.workers > 1 else "",
        )
    )
    return [harness.command_of("nginx"), "-c", str(file), "-e", "stderr"]


def go_program() -> str | None:
    """Return Go, which need not be on the PATH."""
    usual = "/usr/local/go/bin/go"
    return shutil.which("go") or (usual if os.access(usual, os.X_OK) else None)


def _fasthttp(place: Place) -> list[str]:
    go = go_program()
    program = Path(__file__).resolve().parent / "results" / "fasthttp"
    assert go is not None
    program.parent.mkdir(exist_ok=True)
    done = subprocess.run(
        [go, "build", "-o", str(program), "."], cwd=SERVERS / "go", capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    if done.returncode != 0:
        raise Failed(f"go build: {done.stderr.strip()[-300:]}")
    return ["env", f"GOMAXPROCS={place.workers}", str(program), "--port", str(place.port)]


def _robyn(place: Place) -> list[str]:
    return [sys.executable, str(SERVERS / "work_robyn.py"), str(place.port), str(place.workers)]


FIXED = frozenset({"health", "plaintext", "pipelined", "cold", "params"})
CONTESTANTS = {
    "fluxor": Contestant("fluxor-fast", fluxor, workloads=HTTP | DATABASE),
    "ceiling": Contestant("uvloop, constant", _ceiling, workloads=FIXED, constant=True),
    "nginx": Contestant(
        "nginx, constant", _nginx, ("nginx",), FIXED - {"params"}, constant=True
    ),
    "fasthttp": Contestant("Go fasthttp", _fasthttp, ("go",)),
    "granian-rsgi": Contestant(
        "granian RSGI, raw", granian("rsgi", "work_rsgi:app"), ("granian",)
    ),
    "granian-flush": Contestant(
        "granian RSGI, raw, pipeline flush",
        granian("rsgi", "work_rsgi:app", "--http1-pipeline-flush"),
        ("granian",),
        frozenset({"pipelined"}),
    ),
    "granian-asgi": Contestant(
        "granian ASGI, raw", granian("asgi", "work_asgi:app"), ("granian",)
    ),
    "uvicorn": Contestant(
        "uvicorn, raw", uvicorn("work_asgi:app"), ("uvicorn",), HTTP | DATABASE
    ),
    "uvicorn-asyncpg": Contestant(
        "uvicorn, raw, asyncpg", uvicorn("work_asgi:app"), ("uvicorn", "asyncpg"), DATABASE
    ),
    "gunicorn": Contestant("gunicorn, uvicorn worker, raw", _gunicorn, ("gunicorn",)),
    "sanic": Contestant("sanic", _script("work_sanic.py"), ("sanic",)),
    "robyn": Contestant("robyn", _robyn, ("robyn",)),
    "socketify": Contestant(
        # its coroutines lose answers under load: no bodies
        "socketify", _script("work_socketify.py"), ("socketify",), HTTP - {"echo1k", "echo17k"}
    ),
    "blacksheep": Contestant(
        "BlackSheep on uvicorn", uvicorn("work_blacksheep:app"), ("blacksheep", "uvicorn")
    ),
    "falcon": Contestant("falcon on uvicorn", uvicorn("work_falcon:app"), ("falcon", "uvicorn")),
    "fastpysgi": Contestant("fastpysgi, raw", _script("work_wsgi.py"), ("fastpysgi",)),
}  # fmt: skip
PROGRAMS = {"nginx": lambda: shutil.which("nginx"), "go": go_program}


def missing(name: str) -> str | None:
    """Return why a contestant cannot take part on this machine; None if it can."""
    for need in CONTESTANTS[name].needs:
        if need in PROGRAMS:
            if PROGRAMS[need]() is None:
                return f"{need} is not installed"
        elif importlib.util.find_spec(need) is None:
            return f"the package {need} is not installed"
    return None


def _speaks(port: int) -> bool:
    return bool(harness.fetch(port, "/health", timeout=1.0).raw)


def side_by_side(
    commands: Mapping[str, Callable[[Place], list[str]]], folder: Path, cores: Cores
) -> dict[str, Server]:
    """Return a server of one worker for each of ``commands``, to be entered."""
    return {
        name: Server(
            name,
            command(Place(port := harness.free_port(), 1, folder)),
            port,
            cpus=cores.server,
            environ={"PYTHONPATH": str(SERVERS)},
        )
        for name, command in commands.items()
    }


def start(name: str, place: Place, cores: Cores) -> Server:
    """Return the server, to be entered."""
    environ = {"PYTHONPATH": str(SERVERS)}
    if place.url:
        environ |= {
            "COMPARE_DATABASE": place.url,
            "COMPARE_POOL": str(place.pool),
            "COMPARE_DRIVER": "asyncpg" if "asyncpg" in name else "psycopg",
        }
    return Server(
        name,
        CONTESTANTS[name].command(place),
        place.port,
        # the ceiling may write what is no 200
        ready=_speaks if name == "ceiling" else harness.answers,
        cpus=cores.server,
        environ=environ,
    )
