"""The control socket of a real server: where it is, who may ask, and that nobody can hold the master up."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from harness.codeapp import CodeApp
from harness.controlling import (
    NOBODY,
    Asking,
    Attack,
    ask_as_nobody,
    gunicornc,
    mode,
    run,
    second_pid,
    socket_of,
)
from harness.isolation import READ_ONLY_STEPS, SERVE, as_user, in_mount_namespace
from harness.load import Load
from harness.starting import Start
from harness.waiting import eventually

from airflow_arbiter import client, meeting

# -- the place
# -------------------------------------------------------------------------------------------------------


def test_a_private_place(serve: Start, place: Path) -> None:
    """Folder and socket are their user's alone, each server has its own, and takes it away at its end."""
    env = {"XDG_RUNTIME_DIR": str(place)}
    servers = [serve(env=env, workers=1) for _ in range(2)]
    paths = [socket_of(server) for server in servers]
    folder = place / "airflow-arbiter"
    assert sorted(folder.iterdir()) == sorted(paths)
    assert [path.name.endswith(f"-{s.pid}.sock") for path, s in zip(paths, servers, strict=True)] == [
        True
    ] * 2
    assert [mode(folder), *map(mode, paths)] == [0o700, 0o600, 0o600]
    assert [len(client.ask(path, "help")) for path in paths] == [1, 1]
    for server in servers:
        server.send(signal.SIGTERM)
        assert server.wait_exit() == 0
    assert list(folder.iterdir()) == []


def test_a_socket_that_was_left_behind(serve: Start, place: Path) -> None:
    """A path of a server that was killed is free again; in the folder, the next server tidies up."""
    path = place / "named"
    env = {"XDG_RUNTIME_DIR": str(place)}
    killed = [serve(f"--control-socket={path}", workers=1), serve(env=env, workers=1)]
    left = socket_of(killed[1])
    for server in killed:
        psutil.Process(server.pid).kill()
        server.wait_exit()
        eventually(lambda: not server.orphans(), what="its workers have left")  # noqa: B023
    os.utime(left, (0, 0))  # a young one could be another's that is about to listen
    again = [serve(f"--control-socket={path}", workers=1), serve(env=env, workers=1)]
    assert [bool(client.ask(socket_of(server), "help")) for server in again] == [True, True]
    assert not left.exists()


def test_a_path_where_another_answers(serve: Start, place: Path) -> None:
    """The first keeps it; the second says so once, and serves."""
    path = place / "named"
    first = serve(f"--control-socket={path}", workers=1)
    second = serve(f"--control-socket={path}", workers=1)
    (warning,) = second.wait_event("control.unavailable")
    assert warning.values["because"] == f"{path}: another server answers there"
    assert second.answers()
    second.send(signal.SIGTERM)
    assert second.wait_exit() == 0
    assert client.ask(socket_of(first), "help")


def test_nowhere_to_put_it(serve: Start) -> None:
    """On a system that is read-only, the server says once why there is no socket, and serves."""
    steps = (*READ_ONLY_STEPS, "mount -t tmpfs -o mode=1777 writable /mnt", "mkdir /mnt/faults")
    command = in_mount_namespace(*steps)
    server = serve("--worker-tmp-dir=/mnt", command=command, env={"FAULTS": "/mnt/faults"}, workers=1)
    server.wait_event("control.unavailable")
    assert server.answers()
    server.send(signal.SIGHUP)
    server.wait_event("rollout.completed")
    assert len(server.events("control.unavailable")) == 1


def test_not_wanted(serve: Start, place: Path) -> None:
    """Where it is turned off, there is none, and not a word of it."""
    server = serve("--no-control-socket", env={"XDG_RUNTIME_DIR": str(place)}, workers=1)
    assert "control" not in server.log()
    assert list(place.iterdir()) == []


def test_as_a_daemon(start: Start, code: CodeApp, place: Path) -> None:
    """A daemon has one as well, and its command can stop it."""
    path, pid_file = place / "named", place / "pid"
    command = [*code.command(preload=False), "--daemon", f"--pid={pid_file}", f"--control-socket={path}"]
    start(command=command, workers=1).wait_exit()
    eventually(path.exists, what="the socket")
    pid = int(pid_file.read_text())
    client.ask(path, "shutdown")
    eventually(lambda: not psutil.pid_exists(pid), what="the daemon has gone")
    assert not path.exists()


# -- the processes
# -------------------------------------------------------------------------------------------------------


def test_workers_do_not_hold_it(serve: Start, place: Path) -> None:
    """Neither the socket nor a connection that was open when they were forked."""
    path = place / "named"
    server = serve(f"--control-socket={path}", workers=1)
    with socket.socket(socket.AF_UNIX) as held:
        held.connect(str(path))
        client.ask(path, "help")  # by now the other was taken
        server.send_each(signal.SIGTTIN, times=1)
        pids = [worker.pid for worker in server.wait_ready(2)]
        assert [str(path) in _unix_sockets(pid) for pid in (server.pid, *pids)] == [True, False, False]
        assert psutil.Process(server.pid).num_threads() == 1, "nor is there a thread, as gunicorn has one"


def _unix_sockets(pid: int) -> set[str]:
    """The paths of the Unix sockets that a process has open. Connections have the path of their listener."""
    return {str(found.laddr) for found in psutil.Process(pid).net_connections(kind="unix") if found.laddr}


def test_over_a_reload(start: Start, code: CodeApp, place: Path) -> None:
    """The new image answers at the same socket; who asks meanwhile waits, and always finds somebody."""
    path = place / "named"
    server = start(f"--control-socket={path}", command=code.command(), workers=1)
    server.wait_ready(1)
    before = path.stat().st_ino
    with Asking(path) as asking:
        for number in (1, 2):
            code.write(f"answer {number}", at_import="import time; time.sleep(0.5)")
            server.send(signal.SIGHUP)
            server.wait_event("rollout.completed", number)
            seen = asking.outcomes["answered"]
            eventually(lambda: asking.outcomes["answered"] > seen, what="it is answered")  # noqa: B023
    assert asking.outcomes["nobody"] == 0
    assert asking.outcomes["lost"] <= 2, "only who was just being answered"
    assert path.stat().st_ino == before
    assert len(server.events("control.listening")) == 1
    assert not [worker for worker in server.workers() if str(path) in _unix_sockets(worker.pid)]
    server.send(signal.SIGTERM)
    assert server.wait_exit() == 0
    assert not path.exists()


def test_over_an_upgrade(serve: Start, place: Path) -> None:
    """The second master has a socket of its own, and the first's name when that is gone."""
    path = place / "named"
    server = serve(f"--control-socket={path}", workers=1)
    server.send(signal.SIGUSR2)
    second = Path(f"{path}.2")
    eventually(lambda: meeting.is_living(second), what="the second master's socket")
    config = [client.ask(asked, "show config")["control_socket"] for asked in (path, second)]
    assert config == [str(path), str(second)]
    identity = second.stat().st_ino
    pid = eventually(lambda: second_pid(server), what="the second master")
    try:
        server.send(signal.SIGTERM)
        assert server.wait_exit() == 0
        eventually(lambda: path.exists() and path.stat().st_ino == identity, what="it has taken the name")
        assert client.ask(path, "show config")["control_socket"] == str(path)
    finally:
        os.kill(pid, signal.SIGTERM)
    eventually(lambda: not psutil.pid_exists(pid), what="the second master has gone")
    assert list(place.iterdir()) == []


# -- who asks
# -------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_is_refused(serve: Start, place: Path) -> None:
    """Even where somebody has opened the folder and the socket, only the server's user and root are heard."""
    path = place / "named"
    server = serve(f"--control-socket={path}", workers=1)
    place.chmod(0o755)
    path.chmod(0o666)
    assert ask_as_nobody(path) in (b"; came through", b"answer: ; came through", b"")
    (refused,) = server.wait_event("control.refused")
    assert refused.values["peer_uid"] == str(NOBODY)
    assert client.ask(path, "help")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may ask for others")
def test_root_finds_the_server_of_another_user(serve: Start, place: Path) -> None:
    """By the folder, as with Airflow's, or by the master's pid alone."""
    runtime = place / "runtime"
    runtime.mkdir()
    os.chown(runtime, NOBODY, NOBODY)
    place.chmod(0o755)
    where = {"XDG_RUNTIME_DIR": str(runtime)}
    server = serve(command=[*as_user(NOBODY), *SERVE], env=where, workers=1)
    socket_of(server)
    elsewhere = dict.fromkeys(("XDG_RUNTIME_DIR", "AIRFLOW_HOME", "TMPDIR"), str(place / "none"))
    for words, env in (([], {**elsewhere, **where}), (["--pid", str(server.pid)], elsewhere)):
        ended = run("status", "--output", "json", *words, env=env)
        assert (ended.returncode, ended.stderr) == (0, "")
        assert json.loads(ended.stdout)["server"]["pid"] == server.pid


@pytest.mark.parametrize("kind", Attack.KINDS)
def test_nobody_holds_the_master_up(
    serve: Start, place: Path, kind: str, record_property: Callable[[str, object], None]
) -> None:
    """Whatever a client does, workers are replaced, requests answered, and other clients heard."""
    path = place / "named"
    server = serve(f"--control-socket={path}", workers=2)
    with Load(server.port, clients=2, pause_s=0.005) as load, Attack(path, kind) as attack:
        eventually(lambda: attack.rounds or kind == "requests", what="it has begun")
        with Asking(path) as asking:
            server.send(signal.SIGHUP)
            server.wait_event("rollout.completed")
            eventually(lambda: asking.outcomes["answered"] >= 5, what="others are answered")
    assert load.failures == {}
    assert set(asking.outcomes) == {"answered"}
    server.send(signal.SIGTERM)
    assert server.wait_exit() == 0
    (stopped,) = server.events("arbiter.stopped")
    record_property("longest_turn_ms", f"{kind}: {stopped.values['longest_turn_ms']}")
    record_property("outcomes", f"{dict(asking.outcomes)} in {attack.rounds} rounds")
    assert float(stopped.values["longest_turn_ms"]) < 1000, "it has waited for somebody"
    assert "Traceback" not in server.log()


# -- gunicorn's client
# -------------------------------------------------------------------------------------------------------


def test_gunicornc_shows_the_truth(start: Start, code: CodeApp, place: Path) -> None:
    """Of workers of this image of the master and of an earlier one: booted, beating, and their requests."""
    path = place / "named"
    options = (f"--control-socket={path}", "--worker-refresh-batch-size=0")
    server = start(*options, command=code.command(), workers=2)
    server.wait_ready(2)
    for reloads in (0, 1):
        if reloads:
            server.send(signal.SIGHUP)
            server.wait_event("reload.resumed")
        for _ in range(10):
            server.get()
        shown = gunicornc(path, "show workers")
        assert [worker["pid"] for worker in shown["workers"]] == [worker.pid for worker in server.ready()]
        assert [worker["booted"] for worker in shown["workers"]] == [True, True]
        assert all(worker["last_heartbeat"] < 30 for worker in shown["workers"])
        asked = 10 * (reloads + 1)
        eventually(lambda: _requests(path) == asked, what="all are counted")  # noqa: B023
        assert gunicornc(path, "show all")["web_worker_count"] == 2
        stats = gunicornc(path, "show stats")
        counts = [
            stats[name] for name in ("pid", "workers_current", "workers_target", "workers_spawned", "reloads")
        ]
        assert counts == [server.pid, 2, 2, 2, reloads]


def _requests(path: Path) -> int:
    return sum(worker["requests"] for worker in gunicornc(path, "show workers")["workers"])


def test_gunicornc_costs_no_capacity(serve: Start, place: Path) -> None:
    """Its `worker kill` replaces the worker, its `worker add` and `remove` change the target."""
    path = place / "named"
    server = serve(f"--control-socket={path}", workers=2)
    victim = server.ready()[0].pid
    with Load(server.port, clients=2, pause_s=0.005) as load:
        assert gunicornc(path, f"worker kill {victim}") == {"success": True, "replacing": victim}
        eventually(
            lambda: victim not in [w.pid for w in server.workers()] and len(server.ready()) == 2,
            what="it is replaced",
        )
        assert gunicornc(path, "worker add 1") == {"added": 1, "previous": 2, "total": 3}
        server.wait_ready(3)
        assert gunicornc(path, "worker remove 5") == {"removed": 2, "previous": 3, "total": 1}
        server.wait_ready(1)
    assert load.failures == {}
    assert gunicornc(path, "reload")["status"] == "reloading"
    server.wait_ready(1, generation=2)
    assert gunicornc(path, "shutdown") == {"status": "shutting_down", "mode": "graceful"}
    assert server.wait_exit() == 0
