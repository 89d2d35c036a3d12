"""An application with a limit of 1,000 a minute for each address; ``LIMIT_BURST`` at once."""

import os

from fluxor_fast import App, Request
from fluxor_fast.middleware.rate_limit import RateLimit

app = App()
BURST = int(os.environ.get("LIMIT_BURST", "1000"))


@app.get("/", middleware=[RateLimit(1000, burst=BURST)])
def home(request: Request) -> dict[str, int]:
    return {"pid": os.getpid()}


@app.get("/who", priority="exempt")
def who(request: Request) -> dict[str, int]:
    return {"pid": os.getpid()}


@app.get("/answers", priority="exempt")
def answers(request: Request) -> dict[str, int]:
    """How many answers there were over all workers, by class of status."""
    found: dict[str, int] = request.app.metrics.snapshot().responses
    return found
