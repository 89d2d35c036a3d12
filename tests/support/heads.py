"""What a head says, to compare heads that were made in different ways."""

from __future__ import annotations

from typing import Any

from fluxor_fast import Head

LAZY = {"_fields", "headers", "host", "query_items"}  # made when they are asked for, or from what


def contents(head: Head) -> dict[str, Any]:
    """Return all that ``head`` says; its route is compared as an object."""
    said = {name: value for name, value in vars(head).items() if name not in LAZY}
    return said | {"raw_headers": head.raw_headers, "authority": head.authority}
