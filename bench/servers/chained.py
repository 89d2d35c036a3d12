"""The applications of ``bench/chain.py``: a profile behind the whole chain, and bare."""

from __future__ import annotations

import os
from typing import Any

from chained_profile import TOKENS, profile_of

from fluxor_fast import App, Request
from fluxor_fast.auth.apikeys import ApiKeys, StoredKey, bearer_or_key
from fluxor_fast.cache import Cache
from fluxor_fast.middleware.compression import Compression
from fluxor_fast.middleware.cors import CORS
from fluxor_fast.middleware.rate_limit import RateLimit
from fluxor_fast.middleware.recovery import Recovery
from fluxor_fast.middleware.security_headers import SecurityHeaders

app = App()


@app.get("/health")
def health(request: Request) -> dict[str, Any]:
    return {"status": "healthy"}


async def _absent(prefix: str) -> StoredKey | None:
    return None


if os.environ.get("CHAINED_BARE"):

    @app.get("/api/users/{id:int}")
    async def bare(request: Request, id: int) -> dict[str, Any]:
        return profile_of(id)

else:
    cache = Cache()
    keys: list[ApiKeys] = []

    @app.on_startup
    async def start() -> None:
        keys.append(ApiKeys(_absent))

    app.add_middleware(Recovery())
    app.add_middleware(CORS(["https://*.example.com"], credentials=True))
    app.add_middleware(SecurityHeaders())
    # as many as nobody asks: it judges each request, and refuses none
    app.add_middleware(RateLimit(10**9, window=86_400))
    app.add_middleware(Compression())

    @app.get(
        "/api/users/{id:int}",
        middleware=[bearer_or_key(lambda request: TOKENS, lambda request: keys[0])],
    )
    @cache.cached(ttl=300, key=lambda request, id: id)
    async def profile(request: Request, id: int) -> dict[str, Any]:
        return profile_of(id)
