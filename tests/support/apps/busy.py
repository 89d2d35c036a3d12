"""An application whose handlers keep the processor, and count themselves."""

import time
from itertools import count

from fluxor_fast import App, Request

app = App()
app.state.next = count(1).__next__
app.state.turn = 0


@app.get("/")
def home(request: Request) -> dict[str, int]:
    return {}


@app.get("/busy")
def busy(request: Request) -> dict[str, int]:
    until = time.monotonic() + 0.02
    while time.monotonic() < until:
        pass
    app.state.turn = app.state.next()
    return {"turn": app.state.turn}


@app.get("/turn", priority="exempt")
def turn(request: Request) -> dict[str, int]:
    return {"turn": app.state.turn}
