"""New code of plugins comes into the real Airflow API server while it serves, and bad code does not."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import psutil
import pytest
from harness.asking import ask, log_in
from harness.load import Load
from harness.server import Server
from harness.starting import HARNESS, Start

PLUGIN = '''
from hashlib import sha256

from airflow.configuration import conf
from airflow.plugins_manager import AirflowPlugin
from fastapi import FastAPI

app = FastAPI()

@app.get("/answer")
def answer() -> str:
    return ANSWER

@app.get("/keys")
def keys() -> list[str]:
    """What workers must have in common, unreadable."""
    names = ("core", "fernet_key"), ("api", "secret_key"), ("api_auth", "jwt_secret")
    return [sha256(conf.get(*name).encode()).hexdigest() for name in names]

class Changing(AirflowPlugin):
    name = "changing"
    fastapi_apps = [{"app": app, "url_prefix": "/changing", "name": "Changing"}]
'''

WITHIN_S = 240.0
"""A reload imports Airflow twice, which takes ten seconds, or a minute on a machine that does much else."""

BROKEN_ALL_ALONG = """
raise RuntimeError(f"broken all along, and never in the same words: {object()}")
"""


BAD_IN_THE_MASTER = """
from setproctitle import getproctitle

if "preflight" not in getproctitle():
    raise RuntimeError("bad in the master")
"""


class Plugins:
    """
    A folder of plugins, one of which a test changes.

    :param folder: where they are.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.env = {"AIRFLOW__CORE__PLUGINS_FOLDER": str(folder)}
        self._file = folder / "changing.py"
        shutil.copy(HARNESS / "airflow_plugin.py", folder)
        (folder / "broken.py").write_text(BROKEN_ALL_ALONG)
        self.answer("first")

    def write(self, text: str) -> None:
        """Change the plugin, at once for all who look."""
        temporary = self._file.with_suffix(".tmp")
        temporary.write_text(text)
        temporary.rename(self._file)

    def answer(self, text: str) -> None:
        """Make the plugin answer something."""
        self.write(f"ANSWER = {text!r}\n{PLUGIN}")


@pytest.fixture
def plugins(tmp_path: Path) -> Plugins:
    """Plugins of one test."""
    return Plugins(tmp_path / "plugins")


def _answer(server: Server) -> str:
    answer: str = ask(server.port, "/changing/answer").json()
    return answer


# -- python -m airflow_arbiter -------------------------------------------------------------------------------


@pytest.mark.timeout(3 * WITHIN_S)
def test_a_plugin_is_changed_broken_and_mended_under_load(serve_airflow: Start, plugins: Plugins) -> None:
    """
    A change comes in by itself; a broken one does not, though a worker dies; the mended one does again. No
    request is lost, the master stays, and a plugin that was broken all along keeps nothing out.
    """
    server = serve_airflow(
        env={
            **plugins.env,
            "AIRFLOW__API__RELOAD_ON_PLUGIN_CHANGE": "True",
            "AIRFLOW__API__RELOAD_CHECK_INTERVAL": "0.5",
        },
        workers=2,
    )
    first = server.ready(1)
    assert _answer(server) == "first"
    with Load(server.port, path="/api/v2/version", clients=2, pause_s=0.05) as load:
        plugins.answer("second")
        server.wait_event("rollout.completed", 1, within_s=WITHIN_S)
        second = server.wait_ready(2, generation=2)
        assert {_answer(server) for _ in range(20)} == {"second"}
        assert not {worker.pid for worker in first} & {worker.pid for worker in second}

        plugins.write("raise RuntimeError('this change is bad')\n")
        (refused,) = server.wait_event("reload.refused", within_s=WITHIN_S)
        assert "this change is bad" in refused.values["error"]
        assert "broken all along" not in refused.values["error"]
        assert "Traceback" in server.log()
        assert server.ready() == second
    assert load.failures == {}

    server.kill_a_worker()
    server.wait_event("worker.ready", 5)
    third = server.wait_ready(2, generation=2)
    assert third != second
    assert {_answer(server) for _ in range(20)} == {"second"}

    with Load(server.port, path="/api/v2/version", clients=2, pause_s=0.05) as load:
        plugins.answer("third")
        server.wait_event("rollout.completed", 2, within_s=WITHIN_S)
        server.wait_ready(2, generation=3)
        assert {_answer(server) for _ in range(20)} == {"third"}
    assert load.failures == {}
    assert len(server.events("reload.refused")) == 1
    assert len(server.events("reload.started")) == 3
    assert [event.values["generation"] for event in server.events("reload.resumed")] == ["2", "3"]
    server.send(signal.SIGTERM)
    assert server.wait_exit(60) == 0


# -- airflow api-server --------------------------------------------------------------------------------------

FORWARDED = {"X-Forwarded-For": "203.0.113.7", "X-Forwarded-Proto": "https"}


@pytest.mark.timeout(3 * WITHIN_S)
def test_the_command_keeps_its_options_and_its_secrets(
    start_command: Start, plugins: Plugins, airflow_home: Path, tmp_path: Path
) -> None:
    """
    SIGHUP reloads `airflow api-server` with the options of its command line; where no keys are configured,
    those that were made up stay: who is logged in stays so, and workers of all generations agree. A plugin
    that turns out to be bad when the preflight is over does not get to a worker, and a mended one comes in.
    """
    (tmp_path / "airflow.cfg").touch()
    server = start_command(
        "--apps=core",
        "--proxy-headers",
        env={
            **plugins.env,
            "AIRFLOW_CONFIG": str(tmp_path / "airflow.cfg"),
            "FORWARDED_ALLOW_IPS": "127.0.0.1",
        },
    )
    server.wait_ready(2)
    user = log_in(server.port, airflow_home)
    seen = _facts(server, user)
    assert seen["answer"] == b'"first"'
    assert seen["client"] == b'{"host":"203.0.113.7","scheme":"https"}'
    assert b"healthy" not in seen["execution"]
    assert b"total_entries" in seen["dags"]
    with Load(server.port, path="/api/v2/dags", clients=2, pause_s=0.05, headers=user) as load:
        plugins.answer("second")
        server.send(signal.SIGHUP)
        server.wait_event("rollout.completed", within_s=WITHIN_S)
    assert load.failures == {}
    server.wait_ready(2, generation=2)
    assert _facts(server, user) == {**seen, "answer": b'"second"'}
    assert ask(server.port, "/api/v2/dags", headers=log_in(server.port, airflow_home)).status == 200

    plugins.write(BAD_IN_THE_MASTER)
    server.send(signal.SIGHUP)
    server.wait_event("reload.failed", within_s=WITHIN_S)
    assert "bad in the master" in server.log()
    assert _facts(server, user) == {**seen, "answer": b'"second"'}
    assert {worker.generation for worker in server.ready()} == {2}
    plugins.answer("third")
    server.wait_event("rollout.completed", 2, within_s=WITHIN_S)
    assert _facts(server, user) == {**seen, "answer": b'"third"'}

    (chosen,) = server.events("arbiter.chosen")
    assert chosen.values["arbiter"] == "airflow_arbiter"
    title = " ".join(psutil.Process(server.pid).cmdline()).strip()
    assert title == "airflow-arbiter: master [airflow-api-server]"
    server.send(signal.SIGTERM)
    assert server.wait_exit(60) == 0
    assert server.events("worker.exit_hook_failed") == []


def _facts(server: Server, user: dict[str, str]) -> dict[str, bytes]:
    """What the command's options and the secrets make of answers."""
    return {
        "answer": ask(server.port, "/changing/answer").body,
        "client": ask(server.port, "/probe/client", headers=FORWARDED).body,
        "execution": ask(server.port, "/execution/health").body,
        "dags": ask(server.port, "/api/v2/dags", headers=user).body,
        "keys": ask(server.port, "/changing/keys").body,
    }
