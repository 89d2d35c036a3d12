"""Files: what is served, what never is, and how it leaves. Over real sockets unless it says so."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import hashlib
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fluxor_fast import App, Request, StaticFiles, disk, file_response, files, sendfile
from fluxor_fast.disk import OPENAT2, open_below
from fluxor_fast.errors import RouteError
from fluxor_fast.files import RIPE, SMALL
from tests.support.inprocess import Client, Server, head, in_loop, serving, turns, until
from tests.support.seeds import seeded

SECRET = b"the secret outside"
WAYS = [
    pytest.param(
        True, id="openat2", marks=pytest.mark.skipif(not OPENAT2, reason="no openat2 here")
    ),
    pytest.param(False, id="segments"),
]


def content(size: int) -> bytes:
    """Return bytes of which no two stretches are alike."""
    return b"".join(b"%07x\n" % at for at in range(size // 8 + 1))[:size]


BIG = content(1_000_003)


@pytest.fixture
def public(tmp_path: Path) -> Path:
    """A folder to serve, with everything in it that must not lead out of it."""
    folder = tmp_path / "public"
    (folder / "docs").mkdir(parents=True)
    (folder / ".git").mkdir()
    (folder / "empty").mkdir()
    (tmp_path / "secret.txt").write_bytes(SECRET)
    (tmp_path / "public-too").mkdir()
    (tmp_path / "public-too" / "x.txt").write_bytes(SECRET)
    (folder / "a.txt").write_text("text a\n")
    (folder / "big.bin").write_bytes(BIG)
    (folder / "nothing.css").touch()
    (folder / "a b+ü.html").write_text("<p>")
    (folder / "%2e%2e").write_text("two letters and two digits")
    (folder / "docs" / "index.html").write_text("<h1>docs")
    (folder / "docs" / "app.js").write_text("let a")
    (folder / ".env").write_bytes(SECRET)
    (folder / ".git" / "config").write_bytes(SECRET)
    (folder / "back\\slash.txt").write_bytes(SECRET)
    (folder / "inside.txt").symlink_to("a.txt")
    (folder / "outside.txt").symlink_to("../secret.txt")
    (folder / "absolute.txt").symlink_to(tmp_path / "secret.txt")
    (folder / "up").symlink_to("..")
    (folder / "itself").symlink_to(".")
    (folder / "proc").symlink_to("/proc/self")
    (folder / "dangling").symlink_to("nowhere")
    os.mkfifo(folder / "fifo")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(folder / "socket"))
    if os.geteuid() == 0:
        with contextlib.suppress(PermissionError):
            os.mknod(folder / "null", 0o666 | 0o020000, os.makedev(1, 3))
    ripe(folder)
    return folder


def ripe(folder: Path) -> None:
    """Set the time of change of all files back, so that their entity tags are strong."""
    for one in folder.rglob("*"):
        if one.is_file() and not one.is_symlink():
            os.utime(one, (1_700_000_000, 1_700_000_000))


def application(public: Path, **options: Any) -> App:
    app = App()
    app.files("/static", public, **options)

    @app.get("/ping")
    def ping(request: Request) -> Any:
        return {"pong": True}

    return app


def descriptors() -> dict[str, str]:
    found = {}
    for one in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found[one.name] = str(one.readlink())
    return found


def open_files(folder: Path) -> list[str]:
    return [where for where in descriptors().values() if where.startswith(str(folder))]


# what is served


@in_loop
async def test_a_file_and_what_is_said_about_it(public: Path) -> None:
    async with serving(application(public, cache_control="max-age=60")) as server:
        client = await server.connect()
        answer = await client.get("/static/a.txt")
        assert (answer.status, answer.body) == (200, b"text a\n")
        wanted = {
            "content-type": "text/plain; charset=utf-8",
            "content-length": "7",
            "last-modified": "Tue, 14 Nov 2023 22:13:20 GMT",
            "accept-ranges": "bytes",
            "cache-control": "max-age=60",
            "x-content-type-options": "nosniff",
        }
        assert wanted.items() <= answer.headers.items()
        assert answer.headers["etag"] == f'"{1_700_000_000 * 10**9:x}-7"'


@in_loop
async def test_the_type_is_that_of_the_name(public: Path) -> None:
    for name, expected in {
        "a.html": "text/html; charset=utf-8",
        "a.css": "text/css; charset=utf-8",
        "a.JS": "text/javascript; charset=utf-8",
        "a.json": "application/json",
        "a.svg": "image/svg+xml",
        "a.webp": "image/webp",
        "a.woff2": "font/woff2",
        "a.wasm": "application/wasm",
        "a.tar.gz": "application/gzip",
        "a": "application/octet-stream",
        "data:,a.html": "text/html; charset=utf-8",
        "a.unheard-of": "application/octet-stream",
    }.items():
        (public / name).write_text("x")
        async with serving(application(public)) as server:
            answer = await (await server.connect()).get(f"/static/{name}")
            assert answer.headers["content-type"] == expected
            assert "content-encoding" not in answer.headers


@in_loop
async def test_names_are_decoded_once(public: Path) -> None:
    async with serving(application(public)) as server:
        client = await server.connect()
        assert (await client.get("/static/a%20b+%c3%BC.html")).body == b"<p>"
        assert (await client.get("/st%61tic/%61.txt")).body == b"text a\n"
        assert (await client.get("/static/docs/app.js?v=1")).body == b"let a"
        assert (await client.get("/static/%252e%252e")).body == b"two letters and two digits"


@pytest.mark.parametrize("name", ["a.txt", "big.bin", "nothing.css"])
@in_loop
async def test_head_is_told_the_same_without_the_body(public: Path, name: str) -> None:
    async with serving(application(public)) as server:
        client = await server.connect()
        whole = await client.get(f"/static/{name}")
        answer = await client.get(f"/static/{name}", "Range: bytes=1-2", method="HEAD")
        assert answer.status == 200
        for answer_headers in (whole.headers, answer.headers):
            answer_headers.pop("x-request-id")
            answer_headers.pop("date")
        assert answer.headers == whole.headers
        assert (await client.get("/ping")).status == 200
        assert open_files(public) == []


@in_loop
async def test_only_get_and_head(public: Path) -> None:
    async with serving(application(public)) as server:
        client = await server.connect()
        answer = await client.get("/static/a.txt", method="DELETE")
        assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD, OPTIONS")


@in_loop
async def test_an_index_and_the_way_to_it(public: Path) -> None:
    async with serving(application(public, index="index.html")) as server:
        client = await server.connect()
        assert (await client.get("/static/docs/")).body == b"<h1>docs"
        answer = await client.get("/static/docs?a=1")
        assert (answer.status, answer.headers["location"]) == (308, "/static/docs/?a=1")
        assert (await client.get("/static/empty/")).status == 404
        assert (await client.get("/static/")).status == 404
        assert (await client.get("/static/a.txt/")).status == 404
        assert (await client.get("/static/up/")).status == 404


@in_loop
async def test_at_the_root_of_the_paths_nothing_leads_to_another_host(public: Path) -> None:
    app = App()
    app.files("/", public, index="index.html")
    (public / "example.org").mkdir()
    async with serving(app) as server:
        client = await server.connect()
        assert (await client.get("/a.txt")).body == b"text a\n"
        for path in ("//example.org", "//example.org/", "/\\example.org", "/%5cexample.org"):
            answer = await client.get(path)
            assert answer.status in (400, 404)
            assert "location" not in answer.headers
        answer = await client.get("/example.org")
        assert answer.headers["location"] == "/example.org/"


@in_loop
async def test_a_folder_may_be_exchanged(public: Path, tmp_path: Path) -> None:
    new = tmp_path / "new"
    new.mkdir()
    (new / "a.txt").write_text("new a")
    link = tmp_path / "current"
    link.symlink_to(public)
    async with serving(application(link)) as server:
        client = await server.connect()
        assert (await client.get("/static/a.txt")).body == b"text a\n"
        link.unlink()
        link.symlink_to(new)
        assert (await client.get("/static/a.txt")).body == b"new a"


def test_what_cannot_be_served(public: Path) -> None:
    app = App()
    with pytest.raises(RouteError, match="not a folder"):
        app.files("/static", public / "nowhere")
    with pytest.raises(RouteError, match="not a folder"):
        app.files("/static", public / "a.txt")
    app.files("/static/", public, priority="critical")
    with pytest.raises(RouteError, match="twice"):
        app.files("/static", public)
    assert repr(app.routes[0].handler) == f"StaticFiles({str(public)!r})"


# what never is

OUT = [
    "..", "../", "../secret.txt", "docs/../../secret.txt", "docs/../a.txt", "./a.txt", ".",
    "%2e%2e/secret.txt", "%2E%2e/secret.txt", ".%2e/secret.txt", "%2e/a.txt",
    "..%2fsecret.txt", "%2e%2e%2fsecret.txt", "docs%2fapp.js", "docs%2f..%2f..%2fsecret.txt",
    "..%5csecret.txt", "..\\secret.txt", "docs%5capp.js", "back%5cslash.txt", "back\\slash.txt",
    "%252e%252e/secret.txt", "%252e%252e%252fsecret.txt", "..%252fsecret.txt",
    "%25%32%65%25%32%65/secret.txt", "%c0%ae%c0%ae/secret.txt", "%e0%80%ae%e0%80%ae/secret.txt",
    "%u002e%u002e/secret.txt", "..;/secret.txt", "..%00/secret.txt", "../secret.txt%00",
    "a.txt%00", "a.txt%00.html", "%00", "a.txt/", "a.txt/.", "a.txt/..", "a.txt/../../secret.txt",
    "/etc/passwd", "//etc/passwd", "%2fetc%2fpasswd", "%2fetc/passwd", "%2f", "/", "//a.txt",
    "docs//app.js", "docs", "docs/", "empty", "", "nowhere", "nowhere/a.txt", "a.txt/b",
    ".env", "%2eenv", ".git/config", ".git%2fconfig", "docs/.hidden", "...", "..../secret.txt",
    "inside.txt", "outside.txt", "absolute.txt", "up/secret.txt", "up/public/a.txt", "itself/a.txt",
    "proc/environ", "proc/root/etc/passwd", "proc/cwd", "dangling", "up",
    "fifo", "socket", "null", "../public-too/x.txt", "..%2fpublic-too/x.txt", "-too/x.txt",
    "x" * 255, "x" * 256, "x" * 5000, "/".join(["x"] * 2000), "%ff", "%",
]  # fmt: skip


@pytest.mark.parametrize("openat2", WAYS)
@in_loop
async def test_nothing_leads_out_of_the_folder(
    public: Path, openat2: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    by(openat2, monkeypatch)
    async with serving(application(public)) as server:
        client = await server.connect()
        for path in OUT:
            answer = await asyncio.wait_for(client.get(f"/static/{path}"), 5)
            assert (path, answer.status) in ((path, 404), (path, 400))
            assert set(answer.json()) == {"error", "message", "code"}
            assert SECRET not in answer.body
            if answer.status == 400:  # not even a request target
                client = await server.connect()
        assert (await client.get("/static/a.txt")).status == 200
        assert open_files(public) == []


@in_loop
async def test_what_is_there_and_what_is_not_looks_the_same(public: Path) -> None:
    async with serving(application(public)) as server:
        client = await server.connect()
        seen = set()
        for path in ("nowhere", "outside.txt", ".env", "docs", "fifo", "../secret.txt"):
            answer = await client.get(f"/static/{path}")
            answer.headers.pop("x-request-id")
            answer.headers.pop("date")
            answer.headers.pop("content-length")
            seen.add((answer.body.replace(path.encode(), b""), str(answer.headers)))
        assert len(seen) == 1


def by(openat2: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def way(root: bytes, path: bytes, *, quick: bool) -> int:
        return open_below(root, path, quick=quick, openat2=openat2)

    monkeypatch.setattr(files, "open_below", way)


@pytest.mark.parametrize("openat2", WAYS)
@in_loop
async def test_a_link_exchanged_at_the_wrong_moment_leads_nowhere(
    public: Path, tmp_path: Path, openat2: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    by(openat2, monkeypatch)
    outside = tmp_path / "elsewhere"
    outside.mkdir()
    (outside / "x.txt").write_bytes(SECRET)
    (public / "swap").mkdir()
    (public / "swap" / "x.txt").write_text("inside")
    link = tmp_path / "link"
    link.symlink_to(outside)
    stop = threading.Event()

    def swap() -> None:
        spare = tmp_path / "spare"
        while not stop.is_set():
            (public / "swap").rename(spare)
            link.rename(public / "swap")
            (public / "swap").rename(link)
            spare.rename(public / "swap")

    thread = threading.Thread(target=swap)
    thread.start()
    seen: dict[int, int] = {200: 0, 404: 0}
    try:
        async with serving(application(public)) as server:
            client = await server.connect()
            end = time.monotonic() + 0.5
            while time.monotonic() < end or not all(seen.values()):
                answer = await client.get("/static/swap/x.txt")
                assert answer.status == 404 or answer.body == b"inside"
                seen[answer.status] += 1
                assert time.monotonic() < end + 10, seen
    finally:
        stop.set()
        thread.join()


def outcome(root: Path, path: bytes, openat2: bool) -> str:
    try:
        fd = open_below(os.fsencode(root), path, quick=False, openat2=openat2)
    except OSError as error:
        return "none" if error.errno in files._NOWHERE else repr(error)
    try:
        return str(Path(f"/proc/self/fd/{fd}").readlink())
    finally:
        os.close(fd)


@pytest.mark.skipif(not OPENAT2, reason="no openat2 here")
def test_both_ways_of_opening_find_the_same(public: Path) -> None:
    """Over random paths through folders, links and files, up to four segments deep."""
    rng = seeded("ways of opening")
    names = [os.fsencode(one.name) for one in public.rglob("*")]
    found = 0
    for _ in range(1000):
        path = b"/".join(rng.choices(names, k=rng.randint(1, 4)))
        one = outcome(public, path, True)
        assert one == outcome(public, path, False), path
        assert one == "none" or one.startswith(str(public))
        found += one != "none"
    assert found > 100


@pytest.mark.skipif(not OPENAT2, reason="no openat2 here")
@pytest.mark.parametrize(
    "path", [b"..", b"../secret.txt", b"docs/../../secret.txt", b"/etc/passwd"]
)
def test_the_kernel_itself_holds_the_root(public: Path, path: bytes) -> None:
    with pytest.raises(OSError) as caught:
        open_below(os.fsencode(public), path, quick=False, openat2=True)
    assert caught.value.errno == errno.EXDEV


# preconditions and ranges, as far as files have to do with them


@pytest.mark.parametrize("name", ["a.txt", "big.bin"])
@in_loop
async def test_not_modified(public: Path, name: str) -> None:
    async with serving(application(public, cache_control="no-cache")) as server:
        client = await server.connect()
        whole = await client.get(f"/static/{name}")
        etag, modified = whole.headers["etag"], whole.headers["last-modified"]
        for line in (f"If-None-Match: {etag}", f"If-Modified-Since: {modified}"):
            for method in ("GET", "HEAD"):
                answer = await client.get(f"/static/{name}", line, method=method)
                assert answer.status == 304
                # RFC 9110, section 15.4.5
                assert set(answer.headers) == {"etag", "cache-control", "date", "x-request-id"}
                assert answer.headers["etag"] == etag
        assert (await client.get(f"/static/{name}", 'If-None-Match: "x"')).status == 200
        assert (await client.get(f"/static/{name}", 'If-Match: "x"')).status == 412
        assert open_files(public) == []


@in_loop
async def test_an_entity_tag_is_weak_until_the_next_change_would_show(
    public: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(application(public)) as server:
        client = await server.connect()
        now = time.time()
        for age, strong in ((0, False), (RIPE - 1, False), (RIPE + 1, True), (-60, False)):
            os.utime(public / "a.txt", (now - age, now - age))
            answer = await client.get("/static/a.txt")
            assert answer.headers["etag"].startswith('"') is strong
            # RFC 9110, section 8.8.2.1: not later than the answer itself
            assert answer.headers["last-modified"] <= answer.headers["date"] or age >= 0
            etag = answer.headers["etag"]
            assert (await client.get("/static/a.txt", f"If-None-Match: {etag}")).status == 304
            ranged = await client.get("/static/a.txt", "Range: bytes=0-1", f"If-Range: {etag}")
            assert ranged.status == (206 if strong else 200)


@in_loop
async def test_a_change_changes_the_entity_tag(public: Path) -> None:
    async with serving(application(public)) as server:
        client = await server.connect()
        seen = {(await client.get("/static/a.txt")).headers["etag"]}
        for text in ("text b\n", "text c\n", "longer than before"):
            (public / "a.txt").write_text(text)
            answer = await client.get("/static/a.txt")
            assert answer.body == text.encode()
            seen.add(answer.headers["etag"])
            await asyncio.sleep(0.011)  # a tick of the file system's clock
        assert len(seen) == 4


@in_loop
async def test_ranges_are_the_slices_of_the_file(public: Path) -> None:
    rng = seeded("ranges")
    size = len(BIG)
    async with serving(application(public)) as server:
        client = await server.connect()
        for _ in range(150):
            start = rng.randrange(size)
            stop = rng.randrange(start, size) if rng.random() < 0.5 else size
            if rng.random() < 0.5:
                stop = min(start + rng.randrange(2 * SMALL), size)
            if stop == start:
                continue
            form = f"{start}-{stop - 1}" if rng.random() < 0.7 or stop < size else f"{start}-"
            if stop == size and rng.random() < 0.3:
                form = f"-{size - start}"
            answer = await client.get("/static/big.bin", f"Range: bytes={form}")
            assert answer.status == 206
            assert answer.headers["content-range"] == f"bytes {start}-{stop - 1}/{size}"
            assert answer.body == BIG[start:stop]
        answer = await client.get("/static/big.bin", f"Range: bytes={size}-")
        assert (answer.status, answer.headers["content-range"]) == (416, f"bytes */{size}")
        answer = await client.get("/static/big.bin", "Range: bytes=0-0,-1")
        assert (answer.status, answer.body) == (200, BIG)
        answer = await client.get("/static/nothing.css", "Range: bytes=0-9")
        assert (answer.status, answer.body) == (200, b"")
        assert open_files(public) == []


# how it leaves


@pytest.mark.parametrize("size", [0, 1, SMALL - 1, SMALL, SMALL + 1, sendfile.CHUNK * 3 + 7])
@in_loop
async def test_files_of_every_size_are_whole(public: Path, size: int) -> None:
    (public / "x.bin").write_bytes(content(size))
    async with serving(application(public)) as server:
        client = await server.connect()
        for _ in range(2):
            answer = await client.get("/static/x.bin")
            assert answer.body == content(size)
        assert (await client.get("/ping")).status == 200


def fails(number: int) -> Callable[..., int]:
    """Return a system call that fails."""

    def call(*args: object, **options: object) -> int:
        raise OSError(number, os.strerror(number))

    return call


@pytest.mark.parametrize(
    "how", ["tls", "no socket", "no descriptor", "EINVAL", "not cached", "cold"]
)
@in_loop
async def test_where_the_kernel_cannot_do_it_pieces_are_written(
    public: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if how == "tls":
        monkeypatch.setattr("fluxor_fast.server.streaming.AnswerWriter.tls", True)
        monkeypatch.setattr(os, "sendfile", fails(errno.EIO))
    elif how == "no descriptor":
        monkeypatch.setattr(os, "dup", fails(errno.EMFILE))
    elif how == "EINVAL":
        monkeypatch.setattr(os, "sendfile", fails(errno.EINVAL))
    elif how == "not cached":
        monkeypatch.setattr(sendfile, "cached", lambda *_: False)
        monkeypatch.setattr(files, "cached", lambda *_: False)
    elif how == "cold":
        with (public / "big.bin").open("rb+") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    elif how == "no socket":

        class NoSocket:
            def __init__(self, real: Any) -> None:
                self.real = real

            def __getattr__(self, name: str) -> Any:
                return (lambda _: None) if name == "get_extra_info" else getattr(self.real, name)

        monkeypatch.setattr(
            "fluxor_fast.server.streaming.AnswerWriter.transport",
            property(lambda writer: NoSocket(writer._connection.transport)),
        )
        monkeypatch.setattr("fluxor_fast.server.streaming.AnswerWriter.tls", False)
        monkeypatch.setattr(os, "sendfile", fails(errno.EIO))
    async with serving(application(public)) as server:
        client = await server.connect()
        for _ in range(2):
            assert (await client.get("/static/big.bin")).body == BIG
            assert (await client.get("/static/a.txt")).body == b"text a\n"
            part = await client.get("/static/big.bin", "Range: bytes=5-900000")
            assert part.body == BIG[5:900_001]
    assert open_files(public) == []


@in_loop
async def test_answers_after_a_file_wait_for_its_end(public: Path) -> None:
    """The order of a connection holds, with and without sendfile among its answers."""
    async with serving(application(public)) as server:
        client = await server.connect()
        paths = ["/ping", "/static/big.bin", "/ping", "/static/a.txt", "/static/big.bin", "/ping"]
        await client.send(b"".join(head(path) for path in paths * 3))
        for path in paths * 3:
            answer = await client.answer()
            assert answer.status == 200
            assert (
                answer.body
                == {
                    "/ping": b'{"pong":true}',
                    "/static/big.bin": BIG,
                    "/static/a.txt": b"text a\n",
                }[path]
            )
        assert open_files(public) == []


@in_loop
async def test_connection_close_and_http_10(public: Path) -> None:
    async with serving(application(public)) as server:
        client = await server.connect()
        await client.send(head("/static/big.bin", "Connection: close"))
        (answer,) = await client.rest()
        assert (answer.body, answer.headers["connection"]) == (BIG, "close")
        client = await server.connect()
        await client.send(head("/static/big.bin", version="1.0"))
        (answer,) = await client.rest()
        assert answer.body == BIG


def resident() -> int:
    """Return the memory of this process that is its own (not the files'), in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no RssAnon")


@in_loop
async def test_fifty_megabytes_to_a_slow_reader_take_no_memory(public: Path) -> None:
    piece = content(1 << 20)
    expected = hashlib.sha256()
    with (public / "huge.bin").open("wb") as file:
        for at in range(50):
            file.write(at.to_bytes(8) + piece[8:])
            expected.update(at.to_bytes(8) + piece[8:])
    async with serving(application(public)) as server:
        client = await server.connect(receive_buffer=32 * 1024)
        other = await server.connect()
        await client.send(head("/static/huge.bin"))
        loop = asyncio.get_running_loop()
        got = b""
        while b"\r\n\r\n" not in got:
            got += await loop.sock_recv(client.sock, 4096)
        got = got.partition(b"\r\n\r\n")[2]
        seen, count = hashlib.sha256(got), len(got)
        gc.collect()
        before = peak = resident()
        (connection,) = (one for one in server.service.open if one.current is not None)
        while count < 50 << 20:
            data = await loop.sock_recv(client.sock, 64 * 1024)
            assert data
            seen.update(data)
            count += len(data)
            if count >> 21 != (count - len(data)) >> 21:  # now and then it rests
                await asyncio.sleep(0.005)
                peak = max(peak, resident())
                assert connection.transport.get_write_buffer_size() < 128 * 1024
                assert (await other.get("/ping")).status == 200
        assert seen.digest() == expected.digest()
        assert peak - before < 4 << 20
        await until(lambda: server.permits == 0, "the permit comes back")
        assert open_files(public) == []


@in_loop
async def test_who_goes_away_in_the_middle_leaves_nothing(public: Path) -> None:
    rng = seeded("goes away")
    async with serving(application(public)) as server:
        await (await server.connect()).get("/ping")
        before = descriptors()
        for _ in range(60):
            client = await server.connect(receive_buffer=4096)
            await client.send(head("/static/big.bin") * rng.randint(1, 3))
            for _ in range(rng.randint(0, 12)):
                await asyncio.sleep(0)
                client.read_some()
            if rng.random() < 0.5:
                client.reset()
            else:
                client.close()
            server.clients.remove(client)
        await until(lambda: server.runner.busy == 0, "all are noticed")
        await until(lambda: descriptors().keys() == before.keys(), "all descriptors are closed")
        assert open_files(public) == []
        assert server.permits == 0


async def begun(server: Server, path: str = "/static/big.bin") -> Client:
    """Return a client that has asked for a file and takes in only the beginning."""
    client = await server.connect(receive_buffer=4096)
    await client.send(head(path))
    await until(lambda: open_files(server.app.state.public), "the file is open")
    await turns()
    client.read_some()
    await turns()
    return client


@in_loop
async def test_who_stops_reading_is_ended_by_the_write_timeout(public: Path) -> None:
    app = application(public)
    app.state.public = public
    (public / "huge.bin").write_bytes(BIG * 20)  # more than the kernel takes in for a client
    async with serving(app) as server:
        client = await begun(server, "/static/huge.bin")
        assert len(server.service.open) == 1
        server.check(29)
        await turns()
        assert len(server.service.open) == 1
        server.check(4)
        await until(lambda: not server.service.open, "the connection is ended")
        await until(lambda: open_files(public) == [], "the file is closed")
        client.close()


@in_loop
async def test_a_file_that_shrinks_ends_the_connection(
    public: Path, caplog: pytest.LogCaptureFixture
) -> None:
    app = application(public)
    app.state.public = public
    (public / "huge.bin").write_bytes(BIG * 20)
    async with serving(app) as server:
        client = await begun(server, "/static/huge.bin")
        os.truncate(public / "huge.bin", 1000)
        with caplog.at_level(logging.CRITICAL, "fluxor_fast.server"):
            with pytest.raises((AssertionError, ConnectionResetError)):
                await client.answer()  # strict: a body that ends too early is none
            await until(lambda: not server.service.open, "the connection is ended")
        assert open_files(public) == []


@in_loop
async def test_slow_readers_of_files_take_no_slots(public: Path) -> None:
    app = application(public)
    app.state.public = public
    (public / "huge.bin").write_bytes(BIG * 20)

    @app.get("/slot")
    async def slot(request: Request) -> Any:
        return {"ok": True}

    async with serving(app, slots=2) as server:
        readers = [await begun(server, "/static/huge.bin") for _ in range(5)]
        await until(lambda: len(open_files(public)) == 5, "all are being sent")
        client = await server.connect()
        assert (await client.get("/slot")).status == 200
        assert server.permits == 5
        assert server.runner.slots.total() == 0
        for reader in readers:
            reader.reset()
            server.clients.remove(reader)


@in_loop
async def test_no_descriptor_left_is_told(public: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "open_below", fails(errno.EMFILE))
    async with serving(application(public)) as server:
        answer = await (await server.connect()).get("/static/a.txt")
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")


@in_loop
async def test_a_disk_that_fails_is_our_fault(
    public: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(files, "open_below", fails(errno.EIO))
    async with serving(application(public)) as server:
        answer = await (await server.connect()).get("/static/a.txt")
        assert (answer.status, answer.json()["code"]) == (500, "INTERNAL_SERVER_ERROR")
    assert "Input/output error" in caplog.text


# without waiting


@pytest.fixture
def never_in_a_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def refused(*args: object) -> None:
        raise AssertionError("a thread was asked")

    monkeypatch.setattr(StaticFiles, "_patiently", refused)
    yield


@pytest.mark.skipif(not OPENAT2, reason="no openat2 here")
@pytest.mark.usefixtures("never_in_a_thread")
@in_loop
async def test_what_the_kernel_has_cached_is_answered_in_the_loop(public: Path) -> None:
    fd = open_below(os.fsencode(public), b"a.txt", quick=False)
    in_memory = disk.cached(fd, 0, 7)
    os.close(fd)
    if not in_memory:
        pytest.skip("this file system does not tell what is cached")
    async with serving(application(public)) as server:
        client = await server.connect()
        for _ in range(3):
            assert (await client.get("/static/a.txt")).status == 200
            assert (await client.get("/static/docs/app.js")).status == 200


# one file by its path


@pytest.mark.parametrize("kind", ["sync", "async", "blocking"])
@in_loop
async def test_a_handler_may_answer_with_a_file(public: Path, kind: str) -> None:
    app = App()

    def plain(request: Request, name: str) -> Any:
        response = file_response(
            request, public / name, content_type="text/x-own", cache_control="private"
        )
        response.headers["X-Own"] = "1"
        return response

    async def coroutine(request: Request, name: str) -> Any:
        return plain(request, name)

    handler: Any = coroutine if kind == "async" else plain
    app.route("/{name}", methods=("GET", "POST"), blocking=kind == "blocking")(handler)
    async with serving(app) as server:
        client = await server.connect()
        for name, expected in (
            ("a.txt", b"text a\n"),
            ("big.bin", BIG),
            ("inside.txt", b"text a\n"),
        ):
            answer = await client.get(f"/{name}")
            assert answer.body == expected
            assert answer.headers["x-own"] == "1"
            assert answer.headers["content-type"] == "text/x-own"
            etag = answer.headers["etag"]
            assert (await client.get(f"/{name}", f"If-None-Match: {etag}")).status == 304
            ranged = await client.get(f"/{name}", "Range: bytes=2-3")
            assert (ranged.status, ranged.body) == (206, expected[2:4])
            # preconditions and ranges of other methods are not about the file
            lines = ("If-None-Match: *", "Range: bytes=2-3", "Content-Length: 0")
            posted = await client.get(f"/{name}", *lines, method="POST")
            assert (posted.status, posted.body) == (200, expected)
        for name in ("nowhere", "docs", "fifo", "socket", "dangling"):
            assert (await client.get(f"/{name}")).status == 404
        assert open_files(public) == []


@in_loop
async def test_an_answer_that_middleware_drops_closes_its_file(public: Path) -> None:
    app = App()

    def other(call_next: Any, route: Any) -> Any:
        async def wrapped(request: Request) -> Any:
            await call_next(request)
            return {"other": True}

        return wrapped

    app.files("/static", public, middleware=(other,))
    async with serving(app) as server:
        client = await server.connect()
        assert (await client.get("/static/big.bin")).json() == {"other": True}
        assert open_files(public) == []
