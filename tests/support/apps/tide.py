"""A service with a known capacity: ten at a time in each worker, 30 ms each."""

import asyncio

from fluxor_fast import App, Request

app = App()


@app.on_startup
def start() -> None:
    app.state.room = asyncio.Semaphore(10)


@app.get("/work")
async def work(request: Request) -> dict[str, int]:
    async with app.state.room:
        await asyncio.sleep(0.03)
    return {}


@app.get("/limit", priority="exempt")
def limit(request: Request) -> dict[str, int]:
    now = request.app.metrics.snapshot()
    return {"limit": now.limit, "ccu": now.ccu}
