"""The command line: ``fluxor-fast serve | check | routes | systemd-unit | ctl``,
and ``migrate | backup | restore``.

Options are made from the settings' own definitions (``config.knobs``), so that flag, key and
variable can never drift apart. Exit codes: 0 after a clean stop, 2 for settings or usage, 3 for
a worker that cannot start, 4 for an application that cannot be imported, 5 for an address that
cannot be listened on, 1 for the rest.
"""

from __future__ import annotations

import grp
import logging
import os
import pwd
import re
import secrets
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import orjson
from pydantic import SecretStr

from fluxor_fast import __version__
from fluxor_fast.arbiter.arbiter import Arbiter, Version
from fluxor_fast.arbiter.machine import Machine, findings
from fluxor_fast.arbiter.reload import fixed, keep_fixed
from fluxor_fast.arbiter.sockets import inherit, place_of
from fluxor_fast.arbiter.systemd import Notifier, inherited, served
from fluxor_fast.arbiter.unit import Place, unit
from fluxor_fast.arbiter.upgrade import Inherited
from fluxor_fast.config import Settings, knobs, load, masked, secrets_of
from fluxor_fast.ctl import ctl
from fluxor_fast.dbctl import backup, migrate, restore
from fluxor_fast.errors import ConfigError, FluxorError
from fluxor_fast.observability.logs import configure
from fluxor_fast.openapi import document
from fluxor_fast.server.tls import Certificates
from fluxor_fast.server.worker import load_app, run_worker

__all__ = ["main"]

log = logging.getLogger("fluxor_fast.cli")

ENVIRONMENT_FILE = Path("/etc/fluxor-fast/environment")


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
    before = Inherited.from_environment(os.environ)
    settings = _load(config, app, options)
    _configure_logs(settings)
    notifier = Notifier.of(os.environ, os.getpid())
    also: list[socket.socket] = []
    if before is None:
        settings, also = _activated(settings)
    else:
        settings = _as_before(before.settings, settings)
    for finding in findings(settings, replace(Machine.read(), open_files=None)):
        log.warning("%s", finding)  # the arbiter tells of open files

    def reload(version: Version) -> Version:
        again = _as_before(fixed(version.settings), _load(config, app, options))
        again = _completed(again, version.settings)
        certificates = _certificates(again)
        _configure_logs(again)
        return _version(again, certificates)

    certificates = _certificates(settings)
    with _prepared(settings) as ready:
        version = _version(ready, certificates)
        code = Arbiter(
            version, lambda place: _announce(ready, place), reload, before, notifier, also
        ).run()
    sys.exit(code)


@cli.command()
@click.argument("app", required=False)
@_settings_options
def check(app: str | None, config: Path | None, **options: Any) -> None:
    """Print the effective settings, secrets masked, or all that is wrong with them."""
    settings = _load(config, app, options)
    _certificates(settings)
    click.echo(masked(settings), nl=False)
    for finding in findings(settings, Machine.read()):
        click.echo(f"too low: {finding}", err=True)


@cli.command("systemd-unit")
@click.argument("app", required=False)
@_settings_options
def systemd_unit(app: str | None, config: Path | None, **options: Any) -> None:
    """Print a systemd service for APP with these flags, this Python, this user and this folder.

    Secrets are left out: they belong into the environment file that the unit names.
    """
    settings = _load(config, app, options)
    arguments = [settings.server.app]
    if config is not None:
        arguments.append(f"--config={config.absolute()}")
    for knob in knobs():
        value = options.get(knob.path.replace(".", "__"))
        if value is None or knob.flag is None:
            continue
        if knob.is_secret:
            click.echo(f"left out: put {knob.env} into {ENVIRONMENT_FILE}", err=True)
        elif knob.is_bool:
            arguments.append(knob.flag if value else f"--no-{knob.flag[2:]}")
        else:
            arguments.append(f"{knob.flag}={value}")
    user = pwd.getpwuid(os.getuid())
    place = Place(
        [sys.executable, "-m", "fluxor_fast"],
        Path.cwd(),
        ENVIRONMENT_FILE,
        user=user.pw_name if user.pw_uid else None,
        group=grp.getgrgid(user.pw_gid).gr_name if user.pw_uid else None,
        systemd=_systemd_version(),
    )
    click.echo(unit(settings, place, arguments), nl=False)


def _systemd_version() -> int:
    """Return the version of this machine's systemd; 252 (Debian 12) if it has none."""
    try:
        said = subprocess.run(
            ["systemctl", "--version"], capture_output=True, text=True, timeout=5, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        said = ""
    match = re.match(r"systemd (\d+)", said)
    return int(match[1]) if match else 252


def _activated(settings: Settings) -> tuple[Settings, list[socket.socket]]:
    """Take the sockets that systemd has opened, unless the settings name another place."""
    server = settings.server
    passed = inherited(os.environ, os.getpid())
    if not passed or server.fd is not None or server.uds is not None:
        return settings, []  # --fd 3 takes one of them by its number
    fds = served(passed)
    server = server.model_copy(update={"fd": fds[0]})
    also = [inherit(fd, 1)[0] for fd in fds[1:]]
    for listener in also:
        log.info("listens on %s, too", place_of(listener))
    return settings.model_copy(update={"server": server}), also


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


def _version(settings: Settings, certificates: Certificates | None) -> Version:
    """Return what a worker is started with."""
    worker_main = partial(run_worker, certificates=certificates)
    return Version(
        settings, worker_main, (lambda: None) if certificates is None else certificates.refresh
    )


def _configure_logs(settings: Settings) -> None:
    observability = settings.observability
    configure(
        observability.log_level,
        observability.log_format,
        observability.log_file,
        secrets_of(settings),
    )


def _certificates(settings: Settings) -> Certificates | None:
    """Read the certificates; None if TLS is not wanted."""
    return None if settings.tls.certificate is None else Certificates(settings.tls)


@contextmanager
def _prepared(settings: Settings) -> Iterator[Settings]:
    """Complete the settings with what has to be the same in all workers."""
    settings = _completed(settings, None)
    if settings.database.embedded is None or settings.database.effective_url:
        yield settings
        return
    from fluxor_fast.db.embedded import embedded_postgres  # an extra, wanted only here

    # twice: while workers are replaced, old and new ones have their pools
    largest = settings.database.pool_sizes(settings.server.max_ccu)[1]
    click.echo(f"starting PostgreSQL on {settings.database.embedded} …", err=True)
    with embedded_postgres(settings.database.embedded, max_connections=2 * largest + 20) as url:
        database = settings.database.model_copy(update={"url": SecretStr(url)})
        yield settings.model_copy(update={"database": database})


def _completed(settings: Settings, before: Settings | None) -> Settings:
    """Complete the settings with what is made up at the start, and stays at a reload.

    :param before: the settings so far, if there are any.
    """
    # "auto" is resolved here, once: a worker that is pinned to a core would count one
    server = settings.server.model_copy(update={"workers": settings.server.worker_count})
    settings = settings.model_copy(update={"server": server})
    if settings.auth.jwt_secret is None and server.dev:
        secret = None if before is None else before.auth.jwt_secret
        if secret is None:
            click.echo(
                "development mode: tokens are signed with a random secret of this start", err=True
            )
            secret = SecretStr(secrets.token_hex(32))
        auth = settings.auth.model_copy(update={"jwt_secret": secret})
        settings = settings.model_copy(update={"auth": auth})
    database = settings.database
    if before is not None and database.embedded is not None and database.effective_url is None:
        database = database.model_copy(update={"url": before.database.url})
        settings = settings.model_copy(update={"database": database})
    return settings


def _as_before(before: str, settings: Settings) -> Settings:
    """Return ``settings`` with what cannot change while the instance serves as it was.

    :param before: that, as ``arbiter.reload.fixed`` has it.
    :raises ConfigError: if TLS is begun or ended.
    """
    kept, names = keep_fixed(before, settings)
    if "tls.certificate" in names:
        raise ConfigError(["tls.certificate: TLS begins or ends with a stop and a start only"])
    if names:
        log.warning("%s cannot change while the instance serves: as before", ", ".join(names))
    return kept


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


cli.add_command(ctl)
for command in (migrate, backup, restore):
    cli.add_command(command)


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
