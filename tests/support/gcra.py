"""The Generic Cell Rate Algorithm as ITU-T I.371 has it, for one account, to compare with."""

from __future__ import annotations

from fluxor_fast.limits.gcra import Policy


class Reference:
    """One account."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.tat = 0

    def charge(self, now: int) -> int:
        """Return how far ahead of ``now`` the request leads; it conforms up to the tolerance."""
        ahead = max(self.tat - now, 0) + self.policy.cost
        if ahead <= self.policy.tolerance:
            self.tat = now + ahead
        return ahead
