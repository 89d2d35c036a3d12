"""The fixtures for pytest, in runs of pytest of their own."""

from __future__ import annotations

import sys
from importlib.metadata import entry_points

import pytest

pytest_plugins = ["pytester"]

INI = "[pytest]\naddopts = -p pytest_fluxor_fast -p no:cacheprovider\n"
MAIN = """
from fluxor_fast import App

app = App()


@app.get("/")
def home(request):
    return {"client": request.client, "most": request.app.settings.server.max_ccu}
"""

PASSING = """
import asyncio


def test_client(fluxor_client):
    assert fluxor_client.get("/").json() == {"client": "127.0.0.1", "most": 5000}


def test_async_client(fluxor_async_client):
    async def test():
        async with fluxor_async_client as client:
            assert (await client.get("/")).status_code == 200

    asyncio.run(test())


def test_server(fluxor_server):
    with fluxor_server.client() as client:
        assert client.get("/").status_code == 200
"""


@pytest.fixture(autouse=True)
def alone(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    # whether or not it is installed here, it is loaded once, and no other plugin is
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("PYTHONPATH", ":".join(path for path in sys.path if "/src" in path))
    pytester.makeini(INI)
    pytester.makepyfile(main=MAIN)


def test_the_fixtures_serve_what_the_option_names(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(PASSING)
    result = pytester.runpytest_subprocess("--fluxor-app", "main:app", "-Werror")
    result.assert_outcomes(passed=3)


def test_the_configuration_file_can_name_it(pytester: pytest.Pytester) -> None:
    pytester.makeini(INI + "fluxor_app = main:app")
    pytester.makepyfile("def test_it(fluxor_client): assert fluxor_client.get('/').is_success")
    pytester.runpytest_subprocess().assert_outcomes(passed=1)


def test_application_and_settings_can_be_overridden(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest
        from fluxor_fast import App

        @pytest.fixture
        def fluxor_app():
            app = App()
            app.get("/")(lambda request: str(request.app.settings.server.max_ccu))
            return app

        @pytest.fixture
        def fluxor_settings():
            return {"server.max_ccu": 7}

        def test_it(fluxor_client):
            assert fluxor_client.get("/").text == "7"
        """
    )
    pytester.runpytest_subprocess().assert_outcomes(passed=1)


def test_without_an_application_it_says_how_to_name_one(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_it(fluxor_client): ...")
    result = pytester.runpytest_subprocess()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*which application? Name it with --fluxor-app*"])


def test_a_failing_handler_shows_its_traceback(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        main="from fluxor_fast import App\napp = App()\n"
        "@app.get('/')\ndef home(request):\n    return 1 / 0\n"
    )
    pytester.makepyfile("def test_it(fluxor_client): fluxor_client.get('/')")
    result = pytester.runpytest_subprocess("--fluxor-app=main:app")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*return 1 / 0*", "*main.py:5: ZeroDivisionError*"])


def test_a_run_that_uses_none_of_it_does_not_import_the_framework(
    pytester: pytest.Pytester,
) -> None:
    pytester.makepyfile(
        """
        import sys

        def test_it():
            ours = [name for name in sys.modules if name.partition(".")[0] == "fluxor_fast"]
            assert ours == []
            assert "httpx" not in sys.modules and "uvloop" not in sys.modules
            assert "pytest_fluxor_fast" in sys.modules
        """
    )
    pytester.runpytest_subprocess().assert_outcomes(passed=1)


def test_an_installation_offers_it_under_the_name_of_its_module() -> None:
    found = [one for one in entry_points(group="pytest11") if one.name == "pytest_fluxor_fast"]
    if not found:
        pytest.skip("this environment was installed before there was one")
    assert {one.value for one in found} == {"pytest_fluxor_fast"}
