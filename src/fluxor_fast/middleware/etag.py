"""Entity tags for small answers to GET, made of their bytes; 304 for who has them already.

It saves bytes on the way, not the handler's work. An answer that holds the time of day never
matches: there it is a cost without a use.

Rules (sections of RFC 9110):

1. Only a 200 to GET or HEAD with a body of at most ``largest`` bytes, complete in memory, and
   without an ``ETag`` of its own. Files have theirs.
2. The tag is strong: the same bytes. Inside of compression (added after it) it is weak where the
   answer is compressed, and one that a client sends back matches all the same (13.1.2).
3. A 304 has the fields that the 200 would have, but those that describe the body (15.4.5).

Cost alone: 5.2 µs per request (``python bench/middleware.py etag``), most of it the hash and the
longer way of an answer that is no plain dict any more.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Any, ClassVar

from fluxor_fast.composition import Layer
from fluxor_fast.http.conditional import entity_tags
from fluxor_fast.http.request import Request
from fluxor_fast.http.response import Response, to_response

__all__ = ["ETag"]


class ETag(Layer):
    """Middleware: ``ETag`` and 304.

    :param largest: bytes of a body beyond which there is none.
    """

    once: ClassVar[bool] = True
    takes_json: ClassVar[bool] = True

    def __init__(self, largest: int = 64 * 1024) -> None:
        self.largest = largest

    def finish(self, request: Request, value: Any) -> Any:
        """Tag the answer, or say that the client has it."""
        head = request.head
        if head.method not in ("GET", "HEAD"):
            return value
        response = to_response(value)
        if (
            response.streams
            or response.status != 200
            or not 0 < len(response.body) <= self.largest
            or any(name.lower() == "etag" for name in response.headers)
        ):
            return response
        tag = f'"{blake2b(response.body, digest_size=12).hexdigest()}"'
        response.headers["ETag"] = tag
        known = head.headers.get("if-none-match")
        if known is not None and (
            known.strip() == "*" or any(one == tag for _, one in entity_tags(known) or ())
        ):
            return Response(status=304, headers=response.headers)
        return response
