"""A pool for an application that may be given a database."""

from __future__ import annotations

import logging

from fluxor_fast.app import App
from fluxor_fast.db.pool import Database


def with_database(app: App) -> None:
    """Have ``app.state.database`` while the application runs, if a database is configured."""

    @app.on_startup
    async def connect() -> None:
        app.state.database = None
        if app.settings.database.effective_url is not None:
            app.state.database = Database.from_settings(app.settings)
            await app.state.database.open()
            if not await app.state.database.first_contact():
                logging.getLogger(__name__).error("no database")

    @app.on_shutdown
    async def disconnect() -> None:
        if app.state.database is not None:
            await app.state.database.close()
