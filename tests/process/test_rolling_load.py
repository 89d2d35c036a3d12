"""Reloads and upgrades under load from wrk, k6 and clients of our own: no request fails.

``PROVE=long``: 100 reloads and 3 upgrades (a minute). Else a few, and our own clients only.
wrk counts an error for each connection that closes without an answer, and each answer that is not
2xx or 3xx. k6 asks again by itself on a new connection, as most clients do, so it sees less. Our
own count is the strictest (see ``tests.support.steady``).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.process.test_reload import APP
from tests.process.test_upgrade import serving, upgraded
from tests.support.server import get, tells
from tests.support.steady import Steady

LONG = os.environ.get("PROVE") == "long"
RELOADS, UPGRADES = (100, 3) if LONG else (4, 1)

K6 = """
import http from "k6/http"
import { check, sleep } from "k6"
export const options = { vus: 20, duration: "1h" }
export default function () {
  check(http.get(__ENV.TARGET), { "status is 200": (r) => r.status === 200 })
  sleep(0.02 + Math.random() * 0.06)
}
"""


@contextmanager
def generators(port: int, folder: Path) -> Iterator[dict[str, str]]:
    """Run wrk and k6 until the block is left; then what they counted is in the result."""
    found: dict[str, str] = {}
    target = f"http://127.0.0.1:{port}/"
    k6 = shutil.which("k6", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    wrk = shutil.which("wrk")
    if not LONG:
        yield found
        return
    if k6 is None or wrk is None:
        pytest.skip("wrk and k6 are needed")
    (folder / "script.js").write_text(K6)
    summary = folder / "summary.json"
    with (
        subprocess.Popen(
            [wrk, "-t1", "-c16", "-d1h", target], stdout=subprocess.PIPE, text=True
        ) as one,
        subprocess.Popen(
            [k6, "run", "--quiet", f"--summary-export={summary}", folder / "script.js"],
            env={**os.environ, "TARGET": target},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as two,
    ):
        try:
            yield found
        finally:
            one.send_signal(signal.SIGINT)
            two.send_signal(signal.SIGINT)
            found["wrk"] = one.communicate(timeout=30)[0]
            two.wait(60)
    metrics = json.loads(summary.read_text())["metrics"]
    checks = metrics["checks"]
    found["k6"] = f"{checks['passes']} passed, {checks['fails']} failed"


def test_reloads_and_upgrades_under_load_fail_no_request(tmp_path: Path) -> None:
    (tmp_path / "site_app.py").write_text(APP.format(version=0))
    env = {"PYTHONDONTWRITEBYTECODE": "1"}
    begun = time.monotonic()
    with serving("site_app:app", "--workers=2", cwd=tmp_path, env=env) as server:
        arbiter, upgrades = server.process.pid, 0
        with (
            Steady(server.port, 4) as busy,
            Steady(server.port, 12, pause=0.03) as thinking,
            Steady(server.port, 4, pause=0.01, fresh=True) as fresh,
            generators(server.port, tmp_path) as found,
        ):
            for version in range(1, RELOADS + 1):
                (tmp_path / "site_app.py").write_text(APP.format(version=version))
                os.kill(arbiter, signal.SIGHUP)
                tells(server, "reload: done", version)
                assert get(server.port, "/").json["version"] == version
                if version % (RELOADS // (UPGRADES + 1)) == 0 and upgrades < UPGRADES:
                    upgrades += 1
                    arbiter = upgraded(server, arbiter, upgrades)
        took = time.monotonic() - begun
        ours = {"busy": busy, "thinking": thinking, "fresh connections": fresh}
        print(f"\n{RELOADS} reloads and {upgrades} upgrades in {took:.0f} s")
        for name, clients in ours.items():
            print(f"  {name}: {clients.answered} answered, {len(clients.failures)} failed")
        for name, text in found.items():
            print(f"  {name}: {text}")
        assert "SIGKILL" not in server.log
        for clients in ours.values():
            assert clients.failures == []
        if LONG:
            assert "Socket errors" not in found["wrk"], found["wrk"]
            assert "Non-2xx" not in found["wrk"], found["wrk"]
            assert re.search(r" 0 failed", found["k6"])
