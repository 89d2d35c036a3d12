"""Applications that cannot start."""

from fluxor_fast import App
from fluxor_fast.errors import BootError

no_app = {"not": "an application"}
boots_badly = App()
hook_fails = App()


@boots_badly.on_startup
def refuse() -> None:
    raise BootError("the frobnicator is not configured: set FROB=1")


@hook_fails.on_startup
async def fail() -> None:
    raise KeyError("frob")
