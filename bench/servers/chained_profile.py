"""What both sides of ``bench/chain.py`` answer, and the token that one of them asks for."""

from __future__ import annotations

from typing import Any

from fluxor_fast.auth.tokens import Tokens

SECRET = b"a secret of exactly 32 bytes....."
TOKENS = Tokens(SECRET, 86_400)


def profile_of(id: int) -> dict[str, Any]:
    """Return the profile of a user, made anew."""
    return {
        "id": id, "email": "user@example.org", "name": "A User",
        "created_at": "2024-06-03T08:00:00Z", "roles": ["user"],
    }  # fmt: skip
