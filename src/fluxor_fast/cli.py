"""The command line: ``fluxor-fast serve | check | routes``.

Options are made from the settings' own definitions (``config.knobs``), so that flag, key and
variable can never drift apart. Exit codes: 0 after a clean stop, 2 for settings or usage, 3 for
a worker that cannot start, 4 for an application that cannot be imported, 5 for an address that
cannot be listened on, 1 for the rest.
"""

from __future__ import annotations

import secrets
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import click
import orjson
from pydantic import SecretStr

from fluxor_fast import __version__
from fluxor_fast.arbiter.arbiter import Arbiter
from fluxor_fast.config import Settings, knobs, load, masked
from fluxor_fast.errors import FluxorError
from fluxor_fast.observability.logs import configure
from fluxor_fast.openapi import document
from fluxor_fast.server.tls import Certificates
from fluxor_fast.server.worker import load_app, run_worker

__all__ = ["main"]


def _settings_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add an option for every knob that has a flag, and ``--config``."""
    for knob in reversed(list(knobs())):
        if knob.flag is None or knob.path == "server.app":
            continue
        name = knob.path.replace(".", "__")
        default = "" if knob.default is None else f"  [default: {knob.default}]"
        if knob.is_bool:
            declaration = f"{knob.flag}/--no-{knob.flag[2:]}"
            option = click.option(declaration, name, default=None, help=knob.description)
        else:
            option = click.option(
                knob.flag, name, default=None, metavar="VALUE", help=knob.description + default
            )
        command = option(command)
    return click.option(
        "--config", "config", type=click.Path(path_type=Path), help="YAML file of settings."
    )(command)


def _load(config: Path | None, app: str | None, options: dict[str, Any]) -> Settings:
    flags = {name.replace("__", "."): value for name, value in options.items()}
    if app is not None:
        flags["server.app"] = app
    return load(config, flags=flags)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="fluxor-fast")
def cli() -> None:
    """Serve JSON APIs with a limit on concurrent users that holds over all workers."""


@cli.command()
@click.argument("app", required=False)
@_settings_options
def serve(app: str | None, config: Path | None, **options: Any) -> None:
    """Serve APP (module:attribute; by default the reference service) until told to stop."""
    settings = _load(config, app, options)
    configure(settings.observability.log_level)
    certificates = _certificates(settings)
    worker_main = partial(run_worker, certificates=certificates)
    refresh = certificates.refresh if certificates is not None else lambda: None
    with _prepared(settings) as ready:
        code = Arbiter(ready, worker_main, lambda place: _announce(ready, place), refresh).run()
    sys.exit(code)


@cli.command()
@click.argument("app", required=False)
@_settings_options
def check(app: str | None, config: Path | None, **options: Any) -> None:
    """Print the effective settings, secrets masked, or all that is wrong with them."""
    settings = _load(config, app, options)
    _certificates(settings)
    click.echo(masked(settings), nl=False)


@cli.command()
@click.argument("app", required=False)
@click.option("--openapi", is_flag=True, help="Print their description in OpenAPI 3.1 instead.")
@_settings_options
def routes(app: str | None, openapi: bool, config: Path | None, **options: Any) -> None:
    """List the routes of APP."""
    settings = _load(config, app, options)
    loaded = load_app(settings.server.app, interface=settings.server.interface)
    if openapi:
        click.echo(orjson.dumps(document(loaded), option=orjson.OPT_INDENT_2))
        return
    for route in loaded.routes:
        name = getattr(route.handler, "__qualname__", repr(route.handler))
        click.echo(
            f"{route.method:7} {route.path:32} {route.kind.value:9}"
            f" {route.priority.name.lower():9} {route.handler.__module__}.{name}"
        )


def _certificates(settings: Settings) -> Certificates | None:
    """Read the certificates; None if TLS is not wanted."""
    return None if settings.tls.certificate is None else Certificates(settings.tls)


@contextmanager
def _prepared(settings: Settings) -> Iterator[Settings]:
    """Complete the settings with what has to be the same in all workers."""
    # "auto" is resolved here, once: a worker that is pinned to a core would count one
    server = settings.server.model_copy(update={"workers": settings.server.worker_count})
    settings = settings.model_copy(update={"server": server})
    if settings.auth.jwt_secret is None and settings.server.dev:
        click.echo(
            "development mode: tokens are signed with a random secret of this start", err=True
        )
        auth = settings.auth.model_copy(update={"jwt_secret": SecretStr(secrets.token_hex(32))})
        settings = settings.model_copy(update={"auth": auth})
    if settings.database.embedded is None or settings.database.effective_url:
        yield settings
        return
    from fluxor_fast.db.embedded import embedded_postgres  # an extra, wanted only here

    largest = settings.database.pool_sizes(settings.server.max_ccu)[1]
    click.echo(f"starting PostgreSQL on {settings.database.embedded} …", err=True)
    with embedded_postgres(settings.database.embedded, max_connections=largest + 20) as url:
        database = settings.database.model_copy(update={"url": SecretStr(url)})
        yield settings.model_copy(update={"database": database})


def _announce(settings: Settings, place: str) -> None:
    server = settings.server
    scheme = "http" if settings.tls.certificate is None else "https"
    url = f"{scheme}://{place}"
    curl = f"{url}/"
    if place.startswith("unix:"):
        url, curl = place, f"--unix-socket {place.removeprefix('unix:')} {scheme}://localhost/"
    capacity = server.capacity
    click.echo(
        f"fluxor-fast {__version__} serves {server.app} on {url}\n"
        f"  {server.worker_count} workers, at most {capacity.max_ccu} requests in the system"
        f" (normal ones {capacity.normal}), {capacity.slots} at once\n"
        f"  try: curl -i {curl}\n"
        f"  stop: Ctrl-C",
        err=True,
    )


def main() -> None:
    """Run the command line; errors made on purpose are one line each and an exit code."""
    try:
        cli(standalone_mode=False)
    except FluxorError as error:
        for line in str(error).splitlines():
            click.echo(f"fluxor-fast: {line}", err=True)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        sys.exit(130)
