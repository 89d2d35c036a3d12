"""Fixtures for pytest: a client, an asynchronous client and a live server of an application.

PYTEST_DONT_REWRITE

pytest loads this module in every run where the package is installed, so it imports nothing but
pytest: what a test does not ask for costs nothing. That is why it stands beside ``fluxor_fast``,
whose own start imports the framework. ``-p no:pytest_fluxor_fast`` leaves it out.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from fluxor_fast.testing import AsyncClient, LiveServer, TestClient

__all__ = [
    "fluxor_app",
    "fluxor_async_client",
    "fluxor_client",
    "fluxor_server",
    "fluxor_settings",
]

_WHICH = "the application to test, as module:attribute"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--fluxor-app``, and ``fluxor_app`` to the configuration file."""
    group = parser.getgroup("fluxor-fast")
    group.addoption("--fluxor-app", metavar="MODULE:ATTRIBUTE", help=_WHICH)
    parser.addini("fluxor_app", _WHICH)


@pytest.fixture
def fluxor_app(pytestconfig: pytest.Config) -> Any:
    """The application: that of ``--fluxor-app``, or of ``fluxor_app`` in the configuration file.

    Override it to return an ``App``, an ASGI application, or the name of one.
    """
    name = pytestconfig.getoption("--fluxor-app") or pytestconfig.getini("fluxor_app")
    if not name:
        raise pytest.UsageError(
            "which application? Name it with --fluxor-app main:app or fluxor_app = main:app in the"
            " configuration file, or override the fixture fluxor_app"
        )
    root = str(pytestconfig.rootpath)
    if root not in sys.path:  # as the server finds what lies in the folder it is started in
        sys.path.insert(0, root)
    return name


@pytest.fixture
def fluxor_settings() -> dict[str, object]:
    """Settings by path, ``{"server.max_ccu": 10}``, for the other fixtures; to be overridden."""
    return {}


@pytest.fixture
def fluxor_client(fluxor_app: Any, fluxor_settings: dict[str, object]) -> Iterator[TestClient]:
    """A ``TestClient`` of the application, which is started for this test alone."""
    from fluxor_fast.testing import TestClient

    with TestClient(fluxor_app, settings=fluxor_settings) as client:
        yield client


@pytest.fixture
def fluxor_async_client(fluxor_app: Any, fluxor_settings: dict[str, object]) -> AsyncClient:
    """An ``AsyncClient``, not entered: ``async with fluxor_async_client as client:``.

    So it runs in the loop of the test, whatever runs that.
    """
    from fluxor_fast.testing import AsyncClient

    return AsyncClient(fluxor_app, settings=fluxor_settings)


@pytest.fixture
def fluxor_server(fluxor_app: Any, fluxor_settings: dict[str, object]) -> Iterator[LiveServer]:
    """A ``LiveServer`` of the application, for this test alone."""
    from fluxor_fast.testing import LiveServer

    with LiveServer(fluxor_app, settings=fluxor_settings) as server:
        yield server
