"""fluxor-fast: a pre-fork HTTP server and small framework that does not fall over.

The public names; what is not here or in ``fluxor_fast.errors`` may change.
"""

from fluxor_fast.app import App, Middleware
from fluxor_fast.errors import ClientDisconnected, FluxorError, HTTPError
from fluxor_fast.files import StaticFiles, file_response
from fluxor_fast.http.events import Event, EventStream
from fluxor_fast.http.request import Head, Headers, Request
from fluxor_fast.http.response import Json, Response
from fluxor_fast.http.streaming import BodySender, BodyWriter, StreamingResponse
from fluxor_fast.parameters import Body, Header, Path, Query, Source
from fluxor_fast.routing import Kind, Priority, Route
from fluxor_fast.version import __version__

__all__ = [
    "App",
    "Body",
    "BodySender",
    "BodyWriter",
    "ClientDisconnected",
    "Event",
    "EventStream",
    "FluxorError",
    "HTTPError",
    "Head",
    "Header",
    "Headers",
    "Json",
    "Kind",
    "Middleware",
    "Path",
    "Priority",
    "Query",
    "Request",
    "Response",
    "Route",
    "Source",
    "StaticFiles",
    "StreamingResponse",
    "__version__",
    "file_response",
]
