"""An application that counts, over all processes, how many requests are in its handler."""

import asyncio
import fcntl
import os
import struct

from fluxor_fast import App, Request

app = App()
FILE = os.environ.get("INSIDE_FILE", "/nonexistent")


def count(change: int) -> None:
    """Change the number of those inside, and keep the highest. The kernel keeps others out."""
    with open(FILE, "r+b", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        inside, most = struct.unpack("qq", file.read(16))
        inside += change
        file.seek(0)
        file.write(struct.pack("qq", inside, max(most, inside)))


@app.get("/")
async def inside(request: Request) -> dict[str, int]:
    count(1)
    try:
        await asyncio.sleep(0.01)
    finally:
        count(-1)
    return {"pid": os.getpid()}


@app.get("/who", priority="exempt")
def who(request: Request) -> dict[str, int]:
    return {"pid": os.getpid(), "arbiter": os.getppid()}


@app.get("/ready", priority="exempt")
def ready(request: Request) -> tuple[int, dict[str, bool]]:
    return (503 if request.app.stopping else 200), {"ready": not request.app.stopping}


@app.get("/figures", priority="exempt")
def figures(request: Request) -> dict[str, int]:
    now = request.app.metrics.snapshot()
    return {"ccu": now.ccu, "workers": now.workers, "completed": now.completed}
