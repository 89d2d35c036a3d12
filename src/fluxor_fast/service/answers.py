"""The shapes of the service's answers, for mypy and for ``/openapi.json``.

They are plain dicts when the service runs: a shape costs a request nothing. (``typing``'s own
``TypedDict`` is one that pydantic can describe only from Python 3.12 on.)
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from typing_extensions import TypedDict

from fluxor_fast.contract import Answer

__all__ = [
    "BUSY_DATABASE",
    "FORBIDDEN",
    "INVALID",
    "TAKEN",
    "AdminMetrics",
    "AdminStatistics",
    "Detailed",
    "Echo",
    "Figures",
    "Health",
    "Home",
    "Key",
    "KeyList",
    "LoggedIn",
    "MadeKey",
    "Readiness",
    "User",
    "UserPage",
]


class Home(TypedDict):
    """What this is."""

    message: str
    version: str
    request_id: str
    features: list[str]


class Health(TypedDict):
    """That the process is alive; ``timestamp`` in Unix seconds."""

    status: Literal["healthy"]
    service: str
    timestamp: int


class ServerReady(TypedDict):
    """Whether the server has room; utilisations in percent."""

    ready: bool
    queue_utilization: float
    ccu_utilization: float


class DatabaseReady(TypedDict):
    """Whether the database answered when it was last looked at."""

    ready: bool


class ReadyChecks(TypedDict):
    """What readiness depends on."""

    server: ServerReady
    database: DatabaseReady


class Readiness(TypedDict):
    """Whether the instance should get traffic."""

    ready: bool
    checks: ReadyChecks


class Checked(TypedDict):
    """What one check found."""

    status: Literal["up", "down", "timeout"]
    critical: bool
    duration_ms: float
    error: str | None


class Detailed(TypedDict):
    """What all checks found, by name."""

    status: Literal["healthy", "degraded", "unhealthy"]
    checks: dict[str, Checked]


class Figures(TypedDict):
    """The instance at one moment: counts, and utilisations in percent."""

    queued_requests: int
    rejected_requests: int
    queue_capacity: int
    queue_utilization: float
    slots: int
    slots_in_use: int
    workers: int
    connections: int
    normal_ccu: int
    current_ccu: int
    max_ccu: int
    ccu_utilization: float
    backpressure_active: bool
    total_requests: int
    successful_requests: int
    error_requests: int


class FiguresByReason(Figures):
    """The same, with the refusals by their reason."""

    rejected_by_reason: dict[str, int]


class AdminMetrics(TypedDict):
    """The instance's figures for administrators."""

    server: FiguresByReason
    request_id: str


class InstancePool(TypedDict):
    """Connections of all workers' pools, and requests that wait for one."""

    size: int
    available: int
    waiting: int


class PoolStatistics(TypedDict):
    """The database pool; ``worker`` has psycopg_pool's own figures of the answering worker."""

    ready: bool
    instance: InstancePool
    worker: dict[str, int]


class AdminStatistics(TypedDict):
    """The database pool's figures for administrators."""

    database: PoolStatistics
    request_id: str


class Echo(TypedDict):
    """What came."""

    echo: Any


class User(TypedDict):
    """A user, without the password."""

    id: int
    email: str
    name: str | None
    roles: list[str]
    created_at: datetime


class UserPage(TypedDict):
    """Users by id; ``next`` is the ``after`` of the page that follows, if one does."""

    users: list[User]
    next: int | None


class LoggedIn(TypedDict):
    """An access token and the refresh token of its session, and the seconds that each lasts."""

    token: str
    expires_in: int
    refresh_token: str
    refresh_expires_in: int
    request_id: str


class Key(TypedDict):
    """An API key, without its secret."""

    id: int
    prefix: str
    name: str
    tier: str
    roles: list[str]
    created_at: datetime
    expires_at: datetime | None


class MadeKey(Key):
    """An API key that was made; ``key`` is what to send as ``X-API-Key``."""

    key: str


class KeyList(TypedDict):
    """API keys by id."""

    keys: list[Key]


INVALID = Answer("The request is well-formed, but not what is wanted; `problems` has up to 20.")
TAKEN = Answer("A user with this email address exists already, in whatever case.")
FORBIDDEN = Answer("The token or key has not the role `admin`.")
BUSY_DATABASE = Answer("The database is busy or away.")
