"""Home, health, metrics and echo: what answers without waiting, inside the batch.

None of these handlers waits or blocks, but for ``/health/detailed`` and, where an API key has to be
looked up, those for administrators. Whether the database is
ready is a flag that its keeper sets, so a probe costs no query. ``/health`` is for liveness: it
depends on nothing. ``/ready`` is for load balancers: 503 takes the instance out while it is
nearly full or without its database.
"""

from __future__ import annotations

import time
from typing import Any

import orjson
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from fluxor_fast import __version__
from fluxor_fast.app import App
from fluxor_fast.auth.apikeys import bearer_or_key
from fluxor_fast.auth.roles import require_role
from fluxor_fast.contract import Answer, Contract
from fluxor_fast.http.request import Request
from fluxor_fast.http.response import Response
from fluxor_fast.service import chain
from fluxor_fast.service.answers import (
    FORBIDDEN,
    AdminMetrics,
    AdminStatistics,
    Detailed,
    Echo,
    Figures,
    Health,
    Home,
    Readiness,
)
from fluxor_fast.service.runtime import has_room, keys_of, runtime, tokens_of

__all__ = ["add_routes"]

FEATURES = [
    "exact limit on concurrent users over all workers",
    "backpressure and load shedding",
    "replacement of failed workers",
    "PostgreSQL connection pool",
    "JWT authentication",
    "API keys",
    "roles",
    "health checks",
    "Prometheus metrics",
]


def add_routes(app: App) -> None:
    """Register these routes on ``app``."""
    admin = (bearer_or_key(tokens_of, keys_of), chain.by_identity(app), require_role("admin"))

    def exempt(path: str, answers: dict[int, Answer]) -> Any:
        return app.get(path, priority="exempt", contract=Contract(answers))

    def for_admins(path: str, answer: Answer) -> Any:
        contract = Contract({200: answer, 403: FORBIDDEN}, auth="bearer or key")
        return app.get(path, priority="critical", middleware=admin, contract=contract)

    app.get("/", contract=Contract({200: Answer("What this is.", Home)}))(home)
    exempt("/health", {200: Answer("It is alive.", Health)})(health)
    exempt(
        "/ready",
        {
            200: Answer("It takes traffic.", Readiness),
            503: Answer("It is nearly full, about to stop, or without its database.", Readiness),
        },
    )(ready)
    exempt(
        "/health/detailed",
        {
            200: Answer("No critical check failed.", Detailed),
            503: Answer("A critical check failed.", Detailed),
        },
    )(health_detailed)
    exempt("/metrics", {200: Answer("The figures.", str, CONTENT_TYPE_LATEST)})(metrics)
    app.get("/api/metrics", contract=Contract({200: Answer("The figures.", Figures)}))(api_metrics)
    app.post("/api/echo", contract=Contract({200: Answer("What came.", Echo)}, body=Any))(echo)
    for_admins("/api/admin/metrics", Answer("The figures.", AdminMetrics))(admin_metrics)
    for_admins("/api/admin/stats", Answer("The figures.", AdminStatistics))(admin_stats)


def home(request: Request) -> Home:
    """Say what this is."""
    return {
        "message": "Welcome to fluxor-fast",
        "version": __version__,
        "request_id": request.rid.decode("ascii"),
        "features": FEATURES,
    }


def health(request: Request) -> Health:
    """Say that the process is alive."""
    return {
        "status": "healthy",
        "service": runtime(request).name,
        "timestamp": int(time.time()),
    }


def ready(request: Request) -> Readiness | tuple[int, Readiness]:
    """Say whether the instance should get traffic; utilisations in percent."""
    app = request.app
    now = app.metrics.snapshot()
    queue, ccu = now.queue_utilization, now.ccu_utilization
    server_ready = has_room(queue, ccu) and not app.stopping
    database_ready = app.state.runtime.database.ready
    answer: Readiness = {
        "ready": server_ready and database_ready,
        "checks": {
            "server": {
                "ready": server_ready,
                "queue_utilization": round(queue, 2),
                "ccu_utilization": round(ccu, 2),
            },
            "database": {"ready": database_ready},
        },
    }
    return answer if answer["ready"] else (503, answer)


async def health_detailed(request: Request) -> tuple[int, Detailed]:
    """Run every registered check; 503 when a critical one fails."""
    report = await runtime(request).health.run()
    answer: Detailed = {
        "status": report.status,
        "checks": {
            check.name: {
                "status": check.status,
                "critical": check.critical,
                "duration_ms": check.duration_ms,
                "error": check.error,
            }
            for check in report.checks
        },
    }
    return (503 if report.status == "unhealthy" else 200), answer


def metrics(request: Request) -> Response:
    """Return the instance's figures as Prometheus text."""
    return Response(request.app.metrics.prometheus(), content_type=CONTENT_TYPE_LATEST)


def api_metrics(request: Request) -> Figures:
    """Return the instance's figures as JSON."""
    return _figures(request)


def echo(request: Request) -> Echo:
    """Return the body, which must be JSON whatever its ``Content-Type`` says."""
    request.json()
    # checked, it goes back as it came: numbers of any size and depths that orjson reads but
    # does not write survive
    return {"echo": orjson.Fragment(request.body)}


async def admin_metrics(request: Request) -> AdminMetrics:
    """Return the instance's figures as JSON, with refusals by reason."""
    return {
        "server": {
            **_figures(request),
            "rejected_by_reason": request.app.metrics.snapshot().shed,
        },
        "request_id": request.id,
    }


async def admin_stats(request: Request) -> AdminStatistics:
    """Return the database pool's figures: of the instance, and more of the answering worker."""
    return {
        "database": {
            "ready": runtime(request).database.ready,
            "instance": request.app.metrics.snapshot().database,
            "worker": runtime(request).database.statistics(),
        },
        "request_id": request.id,
    }


def _figures(request: Request) -> Figures:
    now = request.app.metrics.snapshot()
    return {
        "queued_requests": now.queued,
        "rejected_requests": now.rejected,
        "queue_capacity": now.max_queue,
        "queue_utilization": round(now.queue_utilization, 2),
        "slots": now.slots,
        "slots_in_use": now.running,
        "workers": now.workers,
        "connections": now.connections,
        "normal_ccu": now.normal_capacity,
        "current_ccu": now.ccu,
        "max_ccu": now.max_ccu,
        "ccu_utilization": round(now.ccu_utilization, 2),
        "backpressure_active": now.backpressure_active,
        "total_requests": now.total_requests,
        "successful_requests": now.successful,
        "error_requests": now.errors,
    }
