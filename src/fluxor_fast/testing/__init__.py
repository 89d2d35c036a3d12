"""Testing applications: clients without a socket, and a server in processes of its own.

Wants ``pip install "fluxor-fast[testing]"``. How: ``docs/TESTING.md``; the pytest fixtures are in
``pytest_fluxor_fast``.
"""

try:
    import httpx as _httpx  # noqa: F401
except ImportError as error:
    raise ImportError(
        "fluxor_fast.testing needs one more package: pip install 'fluxor-fast[testing]'"
    ) from error

from fluxor_fast.testing.client import AsyncClient, TestClient
from fluxor_fast.testing.live import LiveServer
from fluxor_fast.testing.transport import FluxorTransport

__all__ = ["AsyncClient", "FluxorTransport", "LiveServer", "TestClient"]
