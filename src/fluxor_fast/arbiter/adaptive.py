"""A limit that follows what the service can do: concurrency from latency, for the whole instance.

The step is that of Netflix's Gradient2 (https://github.com/Netflix/concurrency-limits, class
``Gradient2Limit``): limit × tolerance × baseline / latency + a queue allowance, and a part of
the way there is gone. Not Vegas, from the same place: it moves by log10(limit) a step, some 18
at most here, and would need a minute to get back to thousands. What differs, and why:

- The ratio may be up to 2, as in Envoy's adaptive concurrency filter (by its documentation
  limit = gradient × limit + √limit): with 1 at most, the limit comes back far too slowly.
- Gradient2's baseline is a long average of all latencies, cut by 5 % while it is twice the
  latest. Under standing overload that average rises to the latency of the full queue, and the
  limit creeps up with it (its pull requests 88, 92 and 134 fight that). Here the baseline is
  only lowered while the limit presses; whether it must rise is *measured*, as Envoy measures its
  minRTT: a *probe* publishes a limit so low that nobody should wait. Latency that stays high
  is then the service's own. A probe costs about half the throughput for two short windows; it
  is made only while requests are shed, rarely, and when the limit has halved or doubled.
- A window lasts as long as a request, at least (like ``WindowedLimit``'s), so that what is
  judged was admitted under the limit in force; else the loop would swing.

Latency includes waiting: saturated, it is limit / throughput (Little's law), and the limit
settles where latency is tolerance × baseline. The module does no I/O and reads no clock.
Workers must publish their histogram once per look: old latencies would mislead a probe.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import accumulate

from fluxor_fast.arbiter.shared import BOUNDS, SHED_REASONS, Word

__all__ = ["AdaptiveLimit", "AdaptiveSettings", "Look"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptiveSettings:
    """How the limit adapts. Times are in seconds.

    :raises ValueError: for values that contradict one another.
    """

    ceiling: int  # requests; the static limit: adapting only ever takes away from it
    floor: int = 20  # requests; so that there is something to measure; probes see no less
    tolerance: float = 2.0  # latency aimed at / baseline: room to keep a bursty service busy
    smoothing: float = 0.3  # part of the way per window; stable with an answer 4 windows late
    queue: Callable[[float], float] = math.sqrt  # requests added, by limit: what bursts need
    least_baseline: float = 0.005  # a batch waits some ms by design; CoDel's target too
    window: float = 0.2  # shorter than the arbiter's look, so that each look may act
    longest_window: float = 2.0  # then act, or forget: what is older tells nothing of now
    min_samples: int = 20  # latencies in a window; the mean of fewer is mostly noise
    probe_every: float = 30.0  # with some 0.5 s at half throughput: below 1 % lost
    probe_again: float = 2.0  # if the last one moved the baseline, or the limit moved far

    def __post_init__(self) -> None:
        if not (1 <= self.floor <= self.ceiling and self.min_samples >= 1):
            raise ValueError("1 <= floor <= ceiling and 1 <= min_samples must hold")
        if not (self.tolerance >= 1 and 0 < self.smoothing <= 1 and self.least_baseline > 0):
            raise ValueError("1 <= tolerance, 0 < smoothing <= 1, 0 < least_baseline must hold")
        if not (0 < self.window <= self.longest_window and self.probe_again <= self.probe_every):
            raise ValueError("0 < window <= longest_window, probe_again <= probe_every must hold")


@dataclass(frozen=True, slots=True)
class Look:
    """What happened since the last look, all workers together."""

    completed: int  # requests answered
    duration_us: int  # sum of the durations counted in ``buckets``, microseconds
    buckets: Sequence[int]  # durations by ``BOUNDS``, and what is beyond
    ccu: int  # requests in the system now
    shed: int  # requests refused, for any reason

    @classmethod
    def between(cls, before: Sequence[int], after: Sequence[int], ccu: int) -> Look:
        """Return the difference of two ``SharedMemory.totals()``, never below zero."""
        grown = [max(b - a, 0) for a, b in zip(before, after, strict=True)]
        buckets = grown[Word.BUCKETS : Word.BUCKETS + len(BOUNDS) + 1]
        shed = sum(grown[Word.SHED : Word.SHED + len(SHED_REASONS)])
        return cls(grown[Word.COMPLETED], grown[Word.DURATION_US], buckets, ccu, shed)


# FOLLOW: the gradient decides. A probe: DRAIN what waits, MEASURE, REFILL (latencies too good)
_Phase = Enum("_Phase", "FOLLOW DRAIN MEASURE REFILL")


class AdaptiveLimit:
    """The controller: fed with looks, answers with the limit to publish.

    ``limit`` is always within floor and ceiling, and starts at the ceiling; ``baseline`` is the
    latency without waiting as far as known, in seconds. Time is any clock that does not go back.
    """

    def __init__(self, settings: AdaptiveSettings, now: float) -> None:
        self.settings = settings
        self.limit = settings.ceiling
        self.baseline: float | None = None
        self._level = self._probe_level = float(settings.ceiling)  # the limit, but for probes
        self._phase = _Phase.FOLLOW
        self._lag = 0.0  # seconds a request takes, or the queue to drain
        self._rate = 0.0  # completed per second before the probe
        self._probed = -math.inf  # when the last probe ended
        self._unsure = False  # whether it raised the baseline
        self._restart(now)

    def _restart(self, now: float) -> None:
        self._since = now
        self._completed = self._duration_us = self._ccu = self._shed = 0
        self._buckets = [0] * (len(BOUNDS) + 1)

    def update(self, look: Look, now: float) -> int:
        """Take in one look, made at ``now`` (seconds); return the limit to publish."""
        settings, phase = self.settings, self._phase
        self._completed += look.completed
        self._duration_us += look.duration_us
        self._shed += look.shed
        self._ccu = max(self._ccu, look.ccu)
        self._buckets = [a + b for a, b in zip(self._buckets, look.buckets, strict=True)]
        elapsed = now - self._since
        enough = sum(self._buckets) >= settings.min_samples or phase is _Phase.DRAIN
        wait = max(settings.window, self._lag) if enough else settings.longest_window
        if elapsed < min(wait, settings.longest_window):
            return self.limit
        if phase is _Phase.DRAIN:
            self._phase, self._lag = _Phase.MEASURE, 0.0
        elif phase is _Phase.MEASURE:
            self._end_probe(self._latency() if enough else None, now)
        elif phase is _Phase.REFILL:
            self._phase = _Phase.FOLLOW
        elif enough:
            self._follow(self._latency(), max(elapsed, 1e-9), now)
        self._restart(now)
        return self.limit

    def _latency(self) -> float:
        """Return the window's mean latency, seconds, but no more than the bound that 90 % keep.

        The sum is exact where buckets are coarse; the bound keeps a few very long ones out.
        """
        samples = sum(self._buckets)
        kept = sum(seen < 0.9 * samples for seen in accumulate(self._buckets))
        mean = self._duration_us / samples / 1e6
        return max(min(mean, (*BOUNDS, math.inf)[kept]), 1e-6)

    def _follow(self, latency: float, elapsed: float, now: float) -> None:
        settings, level = self.settings, self._level
        base = latency if self.baseline is None else self.baseline
        pressed = 2 * self._ccu >= level
        if latency < base:
            base += 0.2 * (latency - base)
        elif not pressed:  # nobody waits, most likely; slowly, as a queue may build up unseen
            base += 0.02 * (min(latency, 1.25 * base) - base)
        self.baseline, self._lag = base, latency
        base = max(base, settings.least_baseline)
        gradient = min(max(settings.tolerance * base / latency, 0.5), 2.0)
        goal = level * gradient + settings.queue(level)
        goal = level + settings.smoothing * (goal - level)
        if not pressed:  # app-limited: good latencies prove nothing, so it may not grow; a queue
            if 8 * self._ccu >= level and gradient < 1:  # that builds up is met half way, where
                self._set(min(level, max(goal, 2.0 * self._ccu)))  # nobody is refused yet
            return
        self._set(goal)
        moved = self._unsure or not 0.5 < self._level / self._probe_level < 2
        pause = settings.probe_again if moved else settings.probe_every
        if self._shed and self._completed and now >= self._probed + pause:
            self._rate = self._completed / elapsed
            self._lag = settings.window + max(latency, self._ccu / self._rate)  # the queue is out
            self._probe(base)

    def _probe(self, base: float) -> None:  # half of what keeps the service just busy
        self.limit = max(round(min(self._rate * base / 2, self._level)), self.settings.floor)
        self._phase = _Phase.DRAIN

    def _end_probe(self, latency: float | None, now: float) -> None:
        settings, least = self.settings, self.settings.least_baseline
        self._unsure = False
        if latency is not None and self.baseline is not None:
            before = max(self.baseline, least)
            if 0.8 <= max(latency, least) / before <= 1.25:  # noise, rather
                self.baseline += 0.5 * (latency - self.baseline)
            elif latency < before:
                self.baseline = latency
                if self.limit > settings.floor:  # some may still have waited: further down
                    self._lag = settings.window + latency
                    self._probe(max(latency, least))
                    return
            else:  # at most fourfold: it might have been a hiccup, so look again soon
                self.baseline, self._unsure = min(latency, 4 * before), True
            # what was answered per second before, at the latency aimed at (Little's law)
            self._lag = self.baseline
            goal = self._rate * settings.tolerance * max(self.baseline, least)
            self._level = min(goal + settings.queue(goal), 2 * self._level)
        self._set(self._level)
        self._probe_level, self._probed, self._phase = self._level, now, _Phase.REFILL

    def _set(self, level: float) -> None:
        self._level = min(max(level, float(self.settings.floor)), float(self.settings.ceiling))
        self.limit = round(self._level)
