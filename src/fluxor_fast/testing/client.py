"""Clients for tests: httpx's own, with an application behind them.

``TestClient`` is for plain functions, ``AsyncClient`` for coroutines. Either starts the application
when it is entered, and stops it when it is left.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Final

import httpx

from fluxor_fast.testing.threaded import ThreadedTransport
from fluxor_fast.testing.transport import FluxorTransport

__all__ = ["AsyncClient", "TestClient"]

BASE: Final = "http://testserver"
SECONDS: Final = 5.0
"""Until a request that is not answered fails, unless it says otherwise; httpx's own."""


class TestClient(httpx.Client):
    """An ``httpx.Client`` of an application that runs beside the test, in a thread of its own::

        with TestClient(app) as client:
            assert client.get("/health").json() == {"status": "healthy"}

    :param app: an ``App``, an ASGI application, or the name of one as ``module:attribute``.
    :param settings: by path, ``{"server.max_ccu": 10}``; the others have their defaults.
    :param address: the client's.
    :param raise_server_exceptions: raise what handlers raise; else there is only their 500.
    :param options: of ``httpx.Client``: ``headers``, ``cookies``, ``follow_redirects``, …
    """

    __test__: ClassVar[bool] = False  # pytest would take it for a class of tests

    def __init__(
        self,
        app: Any,
        *,
        settings: Mapping[str, object] | None = None,
        address: str = "127.0.0.1",
        raise_server_exceptions: bool = True,
        base_url: str = BASE,
        timeout: Any = SECONDS,
        **options: Any,
    ) -> None:
        self._served = ThreadedTransport(
            app,
            settings=settings,
            address=address,
            raise_server_exceptions=raise_server_exceptions,
        )
        super().__init__(
            transport=self._served, base_url=base_url, timeout=timeout, trust_env=False, **options
        )

    def from_address(self, address: str, **options: Any) -> httpx.Client:
        """Return another client of the same running application, at another address.

        It shares nothing else with this one: neither connections, nor headers, nor cookies.

        :param options: of ``httpx.Client``.
        """
        options = {"base_url": self.base_url, "timeout": self.timeout, **options}
        return httpx.Client(transport=self._served.beside(address), trust_env=False, **options)


class AsyncClient(httpx.AsyncClient):
    """The same in the loop of the test, for coroutines: ``async with AsyncClient(app) as client:``.

    The parameters are those of ``TestClient``, the options those of ``httpx.AsyncClient``.
    """

    def __init__(
        self,
        app: Any,
        *,
        settings: Mapping[str, object] | None = None,
        address: str = "127.0.0.1",
        raise_server_exceptions: bool = True,
        base_url: str = BASE,
        timeout: Any = SECONDS,
        **options: Any,
    ) -> None:
        self._served = FluxorTransport(
            app,
            settings=settings,
            address=address,
            raise_server_exceptions=raise_server_exceptions,
        )
        super().__init__(
            transport=self._served, base_url=base_url, timeout=timeout, trust_env=False, **options
        )

    def from_address(self, address: str, **options: Any) -> httpx.AsyncClient:
        """Return another client of the same running application; see ``TestClient``."""
        options = {"base_url": self.base_url, "timeout": self.timeout, **options}
        return httpx.AsyncClient(transport=self._served.beside(address), trust_env=False, **options)
