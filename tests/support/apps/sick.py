"""An application with everything that can befall a worker."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

from fluxor_fast import App, Request
from fluxor_fast.errors import BootError

app = App()
BAD = Path(os.environ.get("SICK_BAD", "/nonexistent"))
_ballast: list[bytes] = []


@app.on_startup
def start() -> None:
    """Fail while the file is there."""
    if BAD.exists():
        raise BootError("the file is there")


@app.get("/who", priority="exempt")
def who(request: Request) -> dict[str, object]:
    return {"pid": os.getpid(), "cores": sorted(os.sched_getaffinity(0))}


@app.get("/spin_in_python")
def spin_in_python(request: Request) -> dict[str, int]:
    while True:
        time.sleep(0.01)


@app.get("/spin_in_c")
def spin_in_c(request: Request) -> dict[str, int]:
    """Never give back the interpreter's lock: an expression that backtracks for ages."""
    re.match(r"(a+)+$", "a" * 50 + "b")
    return {}


@app.get("/crash")
def crash(request: Request) -> dict[str, int]:
    os.kill(os.getpid(), signal.SIGSEGV)
    time.sleep(5)
    return {}


@app.get("/exit")
def leave(request: Request) -> dict[str, int]:
    os._exit(int(request.head.query))


@app.get("/grow")
def grow(request: Request) -> dict[str, int]:
    _ballast.append(os.urandom(int(request.head.query) << 20))
    return {}


@app.get("/orphan", blocking=True)
def orphan(request: Request) -> dict[str, int]:
    """Start a process whose parent is gone when it ends."""
    done = subprocess.run(["sh", "-c", "sleep 2 >/dev/null & echo $!"], stdout=subprocess.PIPE)
    return {"pid": int(done.stdout)}
