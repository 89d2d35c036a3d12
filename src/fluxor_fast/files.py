"""Files: below a folder for everyone who asks (``StaticFiles``), or one by its path.

Rules:

1. A path is taken apart as it was sent, and each segment decoded once: what then is empty, begins
   with a dot (hidden files, ``.`` and ``..``), or holds ``/``, ``\\`` or NUL, names no file. What
   is left is opened without ever leaving the root (see ``disk``); symbolic links are not followed.
2. Only regular files are served. Everything else, and what may not be read, is 404: what is
   there and what is not looks the same.
3. A look-up that the kernel's caches can answer is done in the event loop; others in a thread.
4. The entity tag is made of size and time of last change in nanoseconds. It is weak while that is
   not ``RIPE`` seconds ago: a clock tick may see two changes (RFC 9110, section 8.8.1). Changes
   that hide, with the same size and the time set back, are not seen: replace files, best by
   renaming.
5. ``SMALL`` files are read and sent like any answer, larger ones by the kernel (``sendfile``).
6. No content sniffing: the type is that of the name (``X-Content-Type-Options: nosniff``).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import mimetypes
import os
import time
from collections.abc import Mapping
from pathlib import Path, PurePath
from stat import S_ISDIR, S_ISREG
from typing import ClassVar, Final
from urllib.parse import unquote_to_bytes

from fluxor_fast.disk import cached, open_below
from fluxor_fast.errors import HTTPError, RouteError
from fluxor_fast.http.conditional import http_date, part, precondition
from fluxor_fast.http.request import Request
from fluxor_fast.http.response import BINARY, Response
from fluxor_fast.http.streaming import BodySender, BodyWriter
from fluxor_fast.sendfile import send_file

__all__ = ["SMALL", "StaticFiles", "file_response"]

SMALL: Final = 64 * 1024
"""Bytes up to which a file, or the part asked for, is read into memory."""
RIPE: Final = 2.0
"""Seconds after a change from which another one shows in the time stamp on any file system."""

# of Python's own table, not the machine's: the same everywhere
_TYPES: Final[Mapping[str, str]] = mimetypes.MimeTypes().types_map[1] | {
    ".avif": "image/avif",
    ".bz2": "application/x-bzip2",
    ".gz": "application/gzip",
    ".js": "text/javascript",
    ".md": "text/markdown",
    ".mjs": "text/javascript",
    ".svgz": "application/gzip",
    ".tgz": "application/gzip",
    ".webp": "image/webp",
    ".woff": "font/woff",
    ".woff2": "font/woff2",
    ".xz": "application/x-xz",
    ".zst": "application/zstd",
}
_NOWHERE: Final = frozenset(
    (
        errno.ENOENT,
        errno.ENOTDIR,
        errno.ELOOP,  # a symbolic link
        errno.EXDEV,  # the kernel saw a way out of the root
        errno.ENAMETOOLONG,
        errno.EACCES,
        errno.EPERM,
        errno.ENXIO,  # a socket
        errno.ENODEV,
        errno.EINVAL,  # a name that the file system cannot have
    )
)


class _Opened:
    """An open regular file; closed with its last reference at the latest."""

    __slots__ = ("etag", "fd", "modified", "size")

    def __init__(self, fd: int, now: float) -> None:
        self.fd = fd
        stat = os.fstat(fd)
        if not S_ISREG(stat.st_mode):
            self.close()
            number = errno.EISDIR if S_ISDIR(stat.st_mode) else errno.ENOENT
            raise OSError(number, os.strerror(number))
        self.size = stat.st_size
        # never later than the answer's date (RFC 9110, 8.8.2.1), which is up to a second old
        self.modified = min(stat.st_mtime, now - 1)
        weak = "" if now - stat.st_mtime >= RIPE else "W/"
        self.etag = f'{weak}"{stat.st_mtime_ns:x}-{stat.st_size:x}"'

    def close(self) -> None:
        """Close the file, if it is open."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    __del__ = close


def _type_of(name: str) -> str:
    found = _TYPES.get(PurePath(name).suffix.lower(), BINARY)
    return f"{found}; charset=utf-8" if found.startswith("text/") else found


def _respond(
    request: Request,
    file: _Opened,
    content_type: str,
    cache_control: str | None,
    now: float,
    *,
    quick: bool,
) -> Response:
    """Return the answer with ``file``, which is closed unless the answer is still to send it.

    :raises BlockingIOError: if ``quick`` and the file is not in memory.
    """
    kept = False
    try:
        response = _response(request, file, content_type, cache_control, now, quick)
        kept = isinstance(response, _FileBody)
    finally:
        if not kept:
            file.close()
    return response


def _response(
    request: Request,
    file: _Opened,
    content_type: str,
    cache_control: str | None,
    now: float,
    quick: bool,
) -> Response:
    headers = {"ETag": file.etag}
    if cache_control is not None:
        headers["Cache-Control"] = cache_control
    method, asked = request.method, request.headers
    status = 200
    if method in ("GET", "HEAD"):  # what others ask for is not the file
        status = precondition(method, asked, file.etag, file.modified, now)
    if status == 304:
        return Response(status=304, headers=headers)
    if status == 412:
        raise HTTPError(412, "the file is another one by now")
    headers["Last-Modified"] = http_date(file.modified)
    headers["Accept-Ranges"] = "bytes"
    headers["X-Content-Type-Options"] = "nosniff"
    wanted = part(method, asked, file.etag, file.size)
    offset, count = wanted or (0, file.size)
    if wanted is not None:
        status = 206
        headers["Content-Range"] = f"bytes {offset}-{offset + count - 1}/{file.size}"
    if count > SMALL or method == "HEAD":
        return _FileBody(file, offset, count, status, headers, content_type)
    if quick and count and not cached(file.fd, offset, count):
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    body = os.pread(file.fd, count, offset)
    if len(body) != count:
        raise HTTPError(503, "the file is being changed", headers={"Retry-After": "1"})
    return Response(body, status, headers, content_type)


class _FileBody(BodySender):
    """An answer whose body the kernel sends."""

    __slots__ = ("_file", "_offset")

    keeps_slot: ClassVar[bool] = False

    def __init__(
        self,
        file: _Opened,
        offset: int,
        length: int,
        status: int,
        headers: Mapping[str, str],
        content_type: str,
    ) -> None:
        super().__init__(status, headers, content_type, length)
        self._file = file
        self._offset = offset

    async def send(self, writer: BodyWriter) -> None:
        """Send the part of the file."""
        assert self.length is not None
        await send_file(writer, self._file.fd, self._offset, self.length)

    async def close(self) -> None:
        """Close the file."""
        self._file.close()


def file_response(
    request: Request,
    path: str | os.PathLike[str],
    *,
    content_type: str | None = None,
    cache_control: str | None = None,
) -> Response:
    """Return the answer to a GET or HEAD with the file at ``path``, for a handler to return.

    The path is trusted: do not make it from what a client sent (``StaticFiles`` is for that).
    Preconditions and ranges that the request asks for are answered. The file is opened here, and
    read if it is small, which on a slow disk is for a handler with ``blocking=True``.

    :param content_type: by default that of the name.
    :param cache_control: value of ``Cache-Control``.
    :raises HTTPError: 404 without such a regular file that may be read, 412 and 416 as asked for.
    """
    now = time.time()
    try:
        file = _Opened(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY), now)
    except OSError as error:
        raise _failure(request, error) from None
    return _respond(
        request, file, content_type or _type_of(os.fspath(path)), cache_control, now, quick=False
    )


def _failure(request: Request, error: OSError) -> Exception:
    if error.errno in _NOWHERE or isinstance(error, IsADirectoryError):
        return HTTPError(404, f"nothing is at {request.path}")
    if error.errno in (errno.EMFILE, errno.ENFILE, errno.EAGAIN):
        return HTTPError(503, "the file cannot be opened now", headers={"Retry-After": "1"})
    return error


class StaticFiles:
    """A handler that serves the files below a folder; ``App.files`` registers one.

    :param directory: the folder. It must be there at the start; it may be exchanged later.
    :param index: file to answer with for a path that ends with ``/``, such as ``index.html``; a
        folder asked for without the ``/`` is then redirected. None: folders are 404.
    :param cache_control: value of ``Cache-Control`` for all files; none by default.
    :raises RouteError: if ``directory`` is no folder.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        index: str | None = None,
        cache_control: str | None = None,
    ) -> None:
        self.directory = Path(directory).absolute()
        if not self.directory.is_dir():
            raise RouteError(f"{self.directory} is not a folder")
        self.index = index
        self.cache_control = cache_control
        self._root = os.fsencode(self.directory)

    def __repr__(self) -> str:
        return f"StaticFiles({str(self.directory)!r})"

    async def __call__(self, request: Request, path: str) -> Response:
        """Answer with the file that the request's path names below the route's own.

        ``path`` is not used: in it an encoded ``/`` looks like one that was sent.
        """
        name = self._name(request)
        try:
            with contextlib.suppress(BlockingIOError):
                return self._answer(request, name, quick=True)
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(None, self._patiently, request, name)
        except OSError as error:
            raise _failure(request, error) from None

    def _name(self, request: Request) -> bytes:
        """Return the path below the root (rule 1)."""
        own = request.head.route.path.count("/")
        segments = [unquote_to_bytes(one) for one in request.path.split("/")[own:]]
        if segments[-1] == b"" and self.index is not None:
            segments[-1] = os.fsencode(self.index)
        for one in segments:
            if not one or one[0] == 0x2E or b"/" in one or b"\\" in one or b"\0" in one:
                raise HTTPError(404, f"nothing is at {request.path}")
        return b"/".join(segments)

    def _patiently(self, request: Request, name: bytes) -> Response:
        return self._answer(request, name, quick=False)

    def _answer(self, request: Request, name: bytes, *, quick: bool) -> Response:
        now = time.time()
        try:
            file = _Opened(open_below(self._root, name, quick=quick), now)
        except IsADirectoryError:
            if self.index is None:
                raise
            query = request.head.query.decode("latin-1")
            place = f"{request.path}/?{query}" if query else f"{request.path}/"
            return Response(status=308, headers={"Location": place})
        return _respond(
            request, file, _type_of(os.fsdecode(name)), self.cache_control, now, quick=quick
        )
