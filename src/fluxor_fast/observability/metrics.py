"""The figures of the whole instance, summed over its workers.

They are read from shared memory, where each worker writes its own; a dead worker's counters
live on in the base region, so totals never go back (see ``arbiter.shared``). Reading them
decides nothing and disturbs nobody.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from fluxor_fast.arbiter.shared import (
    BOUNDS,
    CACHE_RESULTS,
    PROXY_REFUSALS,
    SHED_REASONS,
    SharedMemory,
    State,
    Word,
)
from fluxor_fast.config import Capacity

__all__ = ["PROMETHEUS_TYPE", "InstanceMetrics", "Snapshot"]

PROMETHEUS_TYPE = CONTENT_TYPE_LATEST


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The instance at one moment. Counts but for the utilisations, which are percent."""

    max_ccu: int
    normal_capacity: int
    limit: int
    """Where normal requests are refused now: normal capacity, or what it has adapted to."""
    slots: int
    max_queue: int
    max_connections: int
    workers: int
    """Workers that are ready."""
    failing: int
    """Workers that there should be, and that crash-loop instead (see ``arbiter.breaker``)."""
    ccu: int
    """Requests in the system: running and waiting."""
    running: int
    """Requests that hold a slot."""
    queued: int
    """Requests in the system that do not."""
    connections: int
    offered: int
    accepted: int
    completed: int
    aborted: int
    lost: int
    shed: dict[str, int]
    responses: dict[str, int]
    """Answers by status class, ``1xx`` to ``5xx``."""
    database: dict[str, int]
    """Pool connections: ``size``, ``available``, and requests ``waiting`` for one."""
    cache: dict[str, int]
    """Calls of cached functions by what became of them (``CACHE_RESULTS``), ``entries``, ``bytes``.
    """

    @property
    def rejected(self) -> int:
        """Requests refused, for whatever reason."""
        return sum(self.shed.values())

    @property
    def total_requests(self) -> int:
        """Answers sent."""
        return sum(self.responses.values())

    @property
    def errors(self) -> int:
        """Answers of 5xx that are not refusals."""
        return self.responses["5xx"] - self.rejected

    @property
    def successful(self) -> int:
        """Answers below 400."""
        return sum(self.responses[status] for status in ("1xx", "2xx", "3xx"))

    @property
    def queue_utilization(self) -> float:
        """Waiting requests in percent of the queue."""
        return 100.0 * self.queued / max(self.max_queue, 1)

    @property
    def ccu_utilization(self) -> float:
        """Requests in the system in percent of ``max_ccu``."""
        return 100.0 * self.ccu / self.max_ccu

    @property
    def backpressure_active(self) -> bool:
        """Whether normal requests are being refused."""
        return self.ccu >= self.limit


class InstanceMetrics(Collector):
    """Reads the instance's figures.

    :param own: the words of this worker, for ``publish_pool``.
    """

    def __init__(
        self, memory: SharedMemory, capacity: Capacity, own: memoryview[int] | None = None
    ) -> None:
        self._memory = memory
        self._capacity = capacity
        self._own = own
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def snapshot(self) -> Snapshot:
        """Return the figures of this moment."""
        memory, capacity = self._memory, self._capacity
        totals = memory.totals()
        ccu = sum(memory.permits)
        room = min(capacity.normal, capacity.slots + capacity.max_queue)
        limit = min(memory.limit[0] or room, room)
        running = min(sum(memory.slots), ccu)
        responses = totals[Word.RESPONSES : Word.RESPONSES + 5]
        return Snapshot(
            max_ccu=capacity.max_ccu,
            normal_capacity=capacity.normal,
            limit=limit,
            slots=capacity.slots,
            max_queue=capacity.max_queue,
            max_connections=capacity.max_connections,
            workers=len(self._pids(State.READY)),
            failing=len(self._pids(State.FAILING)),
            ccu=ccu,
            running=running,
            queued=ccu - running,
            connections=sum(memory.connections),
            offered=totals[Word.OFFERED],
            accepted=totals[Word.ACCEPTED],
            completed=totals[Word.COMPLETED],
            aborted=totals[Word.ABORTED],
            lost=totals[Word.LOST],
            shed={reason: totals[Word.SHED + at] for at, reason in enumerate(SHED_REASONS)},
            responses={f"{at + 1}xx": count for at, count in enumerate(responses)},
            database={
                "size": totals[Word.DB_SIZE],
                "available": totals[Word.DB_AVAILABLE],
                "waiting": totals[Word.DB_WAITING],
            },
            cache={
                **{kind: totals[Word.CACHE + at] for at, kind in enumerate(CACHE_RESULTS)},
                "entries": totals[Word.CACHE_ENTRIES],
                "bytes": totals[Word.CACHE_BYTES],
            },
        )

    def publish_pool(self, size: int, available: int, waiting: int) -> None:
        """Publish the state of this worker's database pool."""
        if self._own is not None:
            self._own[Word.DB_SIZE] = size
            self._own[Word.DB_AVAILABLE] = available
            self._own[Word.DB_WAITING] = waiting

    def publish_cache(self, results: Sequence[int], entries: int, size: int) -> None:
        """Publish what this worker's cache has done (by ``CACHE_RESULTS``), and holds in bytes."""
        if self._own is not None:
            for at, count in enumerate(results):
                self._own[Word.CACHE + at] = count
            self._own[Word.CACHE_ENTRIES] = entries
            self._own[Word.CACHE_BYTES] = size

    def prometheus(self) -> bytes:
        """Return all figures as Prometheus text."""
        return generate_latest(self._registry)

    def _pids(self, state: State) -> list[int]:
        regions = (self._memory.region(index) for index in range(self._memory.workers))
        return [region[Word.PID] for region in regions if region[Word.STATE] == state]

    def collect(self) -> Iterator[Metric]:
        """Yield the metric families; called by ``prometheus_client``."""
        now = self.snapshot()
        totals = self._memory.totals()

        requests = CounterMetricFamily(
            "http_requests", "Answers by status class.", labels=["status"]
        )
        for status, count in now.responses.items():
            requests.add_metric([status], count)
        yield requests
        yield CounterMetricFamily(
            "http_request_errors", "Answers of 5xx that are not refusals.", value=now.errors
        )
        shed = CounterMetricFamily("http_requests_shed", "Refused requests.", labels=["reason"])
        for reason, count in now.shed.items():
            shed.add_metric([reason], count)
        yield shed
        headers = CounterMetricFamily(
            "http_proxy_headers_refused",
            "Connections closed for want of a PROXY header.",
            labels=["reason"],
        )
        for at, reason in enumerate(PROXY_REFUSALS):
            headers.add_metric([reason], totals[Word.PROXY + at])
        yield headers
        flow = CounterMetricFamily(
            "http_requests_flow", "Requests by what became of them.", labels=["stage"]
        )
        for stage in ("offered", "accepted", "completed", "aborted", "lost"):
            flow.add_metric([stage], getattr(now, stage))
        yield flow
        hits = CounterMetricFamily(
            "cache_hits", "Calls of cached functions that computed nothing.", labels=["tier"]
        )
        for tier in ("memory", "redis", "waited"):
            hits.add_metric([tier], now.cache[tier])
        yield hits
        yield CounterMetricFamily(
            "cache_misses", "Calls of cached functions that computed.", value=now.cache["computed"]
        )
        yield CounterMetricFamily(
            "cache_evictions", "Entries dropped for want of room.", value=now.cache["evicted"]
        )
        yield self._durations(totals)

        for name, text, value in (
            ("queue_utilization_percent", "Waiting requests in percent of the queue.",
             now.queue_utilization),
            ("ccu_utilization_percent", "Requests in the system in percent of max_ccu.",
             now.ccu_utilization),
            ("ccu", "Requests in the system.", now.ccu),
            ("ccu_limit", "Where normal requests are refused now.", now.limit),
            ("queue_depth", "Requests waiting.", now.queued),
            ("worker_pool_active_count", "Requests that hold a slot.", now.running),
            ("http_connections", "Open connections.", now.connections),
            ("http_websockets", "Open WebSockets.", totals[Word.WEBSOCKETS]),
            ("workers_ready", "Workers that are ready.", now.workers),
            ("workers_failing", "Workers that crash-loop; 0 while one is tried.", now.failing),
            ("database_connections", "Connections of the pools.", now.database["size"]),
            ("database_connections_active", "Connections in use.",
             now.database["size"] - now.database["available"]),
            ("cache_entries", "Entries of all workers' caches.", now.cache["entries"]),
            ("cache_bytes", "Bytes of all workers' caches.", now.cache["bytes"]),
            ("database_waiting", "Requests waiting for a connection.",
             now.database["waiting"]),
        ):  # fmt: skip
            yield GaugeMetricFamily(name, text, value=value)

        cpu, memory = _usage(self._pids(State.READY))
        yield CounterMetricFamily(
            "process_cpu_seconds", "CPU of the workers that are ready.", value=cpu
        )
        yield GaugeMetricFamily(
            "process_resident_memory_bytes",
            "Memory of the workers that are ready, shared pages divided among their users.",
            value=memory,
        )

    @staticmethod
    def _durations(totals: list[int]) -> Metric:
        counts = totals[Word.BUCKETS : Word.BUCKETS + len(BOUNDS) + 1]
        names = [*(format(bound, "g") for bound in BOUNDS), "+Inf"]
        return HistogramMetricFamily(
            "http_request_duration_seconds",
            "From the arrival of a request to its answer.",
            buckets=list(zip(names, accumulate(counts), strict=True)),
            sum_value=totals[Word.DURATION_US] / 1e6,
        )


_TICKS = os.sysconf("SC_CLK_TCK")


def _usage(pids: list[int]) -> tuple[float, int]:
    """Return CPU seconds and proportional memory in bytes of the processes ``pids``."""
    cpu, memory = 0, 0
    for pid in pids:
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
            cpu += int(fields[11]) + int(fields[12])
            with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
                for line in file:
                    if line.startswith(b"Pss:"):
                        memory += int(line.split()[1]) * 1024
        except OSError:
            continue  # it has just left
    return cpu / _TICKS, memory
