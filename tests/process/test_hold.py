"""The capacity model at its default size, over real workers: exact to the request."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from tests.process.test_limit import close, drain_gate, flood, refused, shown
from tests.support.server import LiveServer, eventually, get

USERS = 6000

# What holds for so long is refused by its deadline and by the rule on standing queues, if they
# are not told otherwise; and 6,000 users need more connections than the default.
FLAGS = ("--workers=2", "--max-connections=7000", "--queue-deadline=300", "--queue-target=0",
         "--refusal-pause=0", "--keep-alive-timeout=300")  # fmt: skip


@pytest.mark.parametrize(
    ("target", "held", "queued"), [("/hold", 3350, 3015), ("/hold/critical", 5000, 4665)]
)
def test_six_thousand_at_once(target: str, held: int, queued: int, tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < USERS + 1000:
        pytest.skip(f"{USERS} connections need more than the {hard} open files allowed here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, USERS + 1000), hard))
    gate = tmp_path / "gate"
    with LiveServer("held:app", *FLAGS, env={"HELD_GATE": str(gate)}) as server:
        clients = flood(server.port, USERS, target)
        try:
            answered = refused(clients, USERS - held)
            assert len(answered) == USERS - held
            # a worker that wants more announces a slot for a moment, and takes it back
            now = eventually(lambda: shown(server.port, held, 335, queued), "held, and by 335")
            assert now["shed"]["capacity"] == USERS - held == sum(now["shed"].values())
            turned_away = set(answered)
            kept = [client for client in clients if client not in turned_away]
            assert {answer.status for answer in drain_gate(gate, kept)} == {200}
            eventually(lambda: get(server.port, "/figures").json["ccu"] == 0, "all permits back")
        finally:
            close(clients)
