"""Arguments of every kind, each checked.

JSON Schema calls ``1.0`` an integer, and the checks do not: so there are none in the bodies.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date
from enum import Enum
from typing import Annotated
from uuid import UUID

import msgspec
from pydantic import Field

from fluxor_fast import App, Header, Query, Request, openapi

app = App()


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


@dataclass
class Item:
    price: Annotated[float, Field(ge=0, le=1e9)]
    id: UUID | None = None


@dataclass
class Order:
    name: Annotated[str, Field(min_length=1)]
    items: list[Item] = field(default_factory=list)
    colour: Colour = Colour.RED


class Tree(msgspec.Struct, forbid_unknown_fields=True):
    height: Annotated[float, msgspec.Meta(ge=0, le=9)]
    children: list[Tree] = []


@app.post("/orders/{id:int}", strict_query=True)
def order(
    request: Request,
    id: Annotated[int, Field(le=1000)],
    body: Order,
    page: Query[int] = 1,
    numbers: Query[list[int]] = [],  # noqa: B006
    ratio: Query[float | None] = None,
    dry: Query[bool] = False,
) -> Order:
    """Take an order."""
    return body


@app.post("/trees")
async def trees(request: Request, body: list[Tree], x_count: Header[int] = 0) -> list[Tree]:
    """Take some trees."""
    return body


@app.get("/days/{day}")
def days(
    request: Request, day: date, colour: Query[Colour], id: Query[UUID | None] = None
) -> dict[str, date]:
    """Say which day that is."""
    return {"day": day}


openapi.publish(app)
