"""Bad code changes nothing but the log, and the next good change heals."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest
from harness.codeapp import CodeApp, assert_gone, title, wait_answer
from harness.controlling import socket_of
from harness.load import Load
from harness.server import Server
from harness.starting import Start
from harness.waiting import eventually

import airflow_arbiter

GOOD, FAILED = (
    "airflow-arbiter: master [codeapp:app]",
    "[reload failed] airflow-arbiter: master [codeapp:app]",
)


def _serve(start: Start, code: CodeApp, *arguments: str) -> Server:
    server = start("--health-check-path=/health", *arguments, command=code.command(), workers=2)
    server.wait_ready(2)
    return server


@pytest.mark.parametrize(
    ("faults", "error", "shows"),
    [
        pytest.param({"at_import": "x ="}, "SyntaxError: invalid syntax", "x =", id="syntax-error"),
        pytest.param(
            {"at_import": "import nosuch"}, "No module named 'nosuch'", "import nosuch", id="import-error"
        ),
        pytest.param({"at_import": "sys.exit('bye')"}, "SystemExit: bye", "sys.exit", id="import-exits"),
        pytest.param({"at_import": "os._exit(0)"}, "ended its process", "", id="import-ends-the-process"),
        pytest.param({"at_import": "time.sleep(99)"}, "not ready within 3 s", "", id="import-hangs"),
        pytest.param(
            {"at_startup": "return 'failed'"}, "startup failed", "startup is broken", id="startup-fails"
        ),
        pytest.param({"at_health": "return 503"}, "not ready within 3 s", "503", id="unhealthy"),
        pytest.param(
            {"at_health": "raise KeyError('sick')"}, "KeyError: 'sick'", "raise KeyError", id="probe-raises"
        ),
    ],
)
def test_bad_code_harms_nobody(
    start: Start, code: CodeApp, faults: dict[str, str], error: str, shows: str
) -> None:
    """The old code serves on and is what replaces a worker; why is told once; good code comes in after."""
    server = _serve(start, code, f"--worker-boot-timeout={3 if 'not ready' in error else 60}")
    old = server.ready()
    with Load(server.port, clients=4, pause_s=0.002) as load:
        code.write("bad", **faults)
        server.send(signal.SIGHUP)
        (refused,) = server.wait_event("reload.refused")
        assert error in str(refused.values)
        assert shows in server.log()
        assert server.ready() == old
        eventually(lambda: title(server.pid) == FAILED, what="the title tells")
    assert load.failures == {}
    assert load.bodies == {b"one"}
    server.kill_a_worker()
    server.wait_event("worker.ready", 3)
    wait_answer(server, "one")
    with Load(server.port, clients=4, pause_s=0.002) as load:
        code.write("healed")
        server.send(signal.SIGHUP)
        server.wait_event("rollout.completed")
        wait_answer(server, "healed")
        eventually(lambda: title(server.pid) == GOOD, what="the title is clean")
    assert load.failures == {}
    told = [event.values["error"] for event in server.events("reload.refused")]
    assert set(told) == {refused.values["error"]}
    # What was just not ready in time is tried again by itself.
    assert len(told) == 1 or "not ready" in error
    server.send(signal.SIGTERM)
    assert server.wait_exit() == 0
    assert_gone(code.pids())


def test_how_the_app_leaves_the_preflight_does_not_matter(start: Start, code: CodeApp) -> None:
    """A shutdown that hangs, a thread and a process that stay: the code is good, and nothing is left."""
    server = _serve(start, code, "--worker-boot-timeout=20")
    leaves = "if os.getpid() != {pid} and not os.fork(): _mark('import'); time.sleep(99)"
    code.write(
        "two",
        at_import=leaves.format(pid=server.pid),
        at_startup="asyncio.get_running_loop().run_in_executor(None, time.sleep, 99)",
        at_shutdown="await asyncio.sleep(99)",
    )
    server.send(signal.SIGHUP)
    server.wait_event("reload.resumed")
    preflight, child = (mark.pid for mark in code.marks("import") if mark.pid != server.pid)
    assert_gone([preflight, child])
    server.wait_ready(2, generation=2)


@pytest.mark.parametrize("preload", [True, False], ids=["preloaded", "plain"])
def test_a_broken_configuration_harms_nobody(
    start: Start, code: CodeApp, tmp_path: Path, preload: bool
) -> None:
    """A configuration with an error is refused once, the title tells, and the next good one is taken in."""
    config = tmp_path / "conf.py"
    config.write_text("")
    server = start(f"--config={config}", command=code.command(preload=preload), workers=2)
    old = server.wait_ready(2)
    config.write_text("raise RuntimeError('broken')")
    server.send(signal.SIGHUP)
    (refused,) = server.wait_event("reload.refused")
    assert "RuntimeError: broken" in refused.values["error"]
    eventually(lambda: title(server.pid) == FAILED, what="the title tells")
    assert server.ready() == old
    config.write_text("worker_boot_timeout = 50")
    server.send(signal.SIGHUP)
    server.wait_event("rollout.completed")
    eventually(lambda: title(server.pid) == GOOD, what="the title is clean")
    assert len(server.events("reload.refused")) == 1


# -- good in the preflight, bad a moment later
# ---------------------------------------------------------------------------------------------

BREAKS = "if os.path.exists(FOLDER + '/broken') and os.getpid() == {pid}: {how}"
RAISES, HANGS = "raise RuntimeError('broken')", "import time; time.sleep(999)"


def _break_the_new_image(server: Server, code: CodeApp, how: str = RAISES) -> list[int]:
    """Let the import fail in the master only; the result is who served before."""
    old = [worker.pid for worker in server.ready()]
    (code.folder / "broken").touch()
    code.write("two", at_import=BREAKS.format(pid=server.pid, how=how))
    server.send(signal.SIGHUP)
    server.wait_event("reload.failed")
    eventually(lambda: title(server.pid) == FAILED, what="the title tells")
    return old


@pytest.mark.parametrize("how", [RAISES, HANGS], ids=["raises", "hangs"])
def test_code_that_breaks_between_preflight_and_exec(start: Start, code: CodeApp, how: str) -> None:
    """The workers are kept; one that dies is missed until the code is good again, which needs no signal."""
    server = _serve(start, code, "--worker-boot-timeout=3")
    with Load(server.port, clients=4, pause_s=0.002) as load:
        old = _break_the_new_image(server, code, how)
        server.wait_event("reload.failed", 2)  # tries again by itself
        assert [worker.pid for worker in server.ready()] == old
    assert load.failures == {}
    assert load.bodies == {b"one"}
    os.kill(old[0], signal.SIGKILL)
    server.wait_event("worker.exited")
    server.wait_event("rollout.stalled")
    assert [worker.pid for worker in server.ready()] == old[1:]
    with Load(server.port, clients=4, pause_s=0.002) as load:
        (code.folder / "broken").unlink()
        server.wait_event("rollout.completed")
        wait_answer(server, "two")
    assert load.failures == {}
    server.wait_ready(2)
    eventually(lambda: title(server.pid) == GOOD, what="the title is clean")
    assert server.log().count("Traceback") <= 4
    server.send(signal.SIGTERM)
    assert server.wait_exit() == 0


def test_a_master_without_app_and_workers_waits_for_good_code(start: Start, code: CodeApp) -> None:
    """A server that has served does not give up, not even when it has neither workers nor an app."""
    server = _serve(start, code)
    for pid in _break_the_new_image(server, code):
        os.kill(pid, signal.SIGKILL)
    server.wait_event("worker.exited", 2)
    server.wait_event("reload.failed", 2)
    (code.folder / "broken").unlink()
    server.wait_ready(2)
    wait_answer(server, "two")


def test_the_end_of_a_master_without_app(start: Start, code: CodeApp) -> None:
    """It can be ended as any other."""
    server = _serve(start, code)
    _break_the_new_image(server, code)
    server.send(signal.SIGTERM)
    assert server.wait_exit() == 0
    assert_gone(code.pids())


@pytest.mark.parametrize("how", [RAISES, HANGS], ids=["raises", "hangs"])
def test_a_configuration_that_breaks_between_preflight_and_exec(
    start: Start, code: CodeApp, tmp_path: Path, how: str
) -> None:
    """The workers serve on, and the new image goes on as soon as it can read the configuration."""
    server = _serve_with_breaking_configuration(start, code, tmp_path, how)
    with Load(server.port, clients=4, pause_s=0.002) as load:
        server.send(signal.SIGHUP)
        server.wait_event("reload.failed")
        eventually(lambda: title(server.pid) == FAILED, what="the title tells")
        (code.folder / "broken").unlink()
        server.wait_event("rollout.completed")
        wait_answer(server, "two")
    assert load.failures == {}
    assert server.log().count("reload.failed") == 1


def test_a_master_without_configuration_removes_nothing_of_anothers(
    start: Start, code: CodeApp, tmp_path: Path
) -> None:
    """Where something else has taken the place of its control socket, that stays."""
    server = _serve_with_breaking_configuration(start, code, tmp_path)
    control = socket_of(server)
    server.send(signal.SIGHUP)
    eventually(lambda: title(server.pid) == FAILED, what="the title tells")
    control.unlink()
    control.write_text("another's")
    try:
        server.send(signal.SIGTERM)
        assert server.wait_exit() == 0
        assert control.read_text() == "another's"
    finally:
        control.unlink(missing_ok=True)


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGQUIT])
def test_the_end_of_a_master_without_configuration(
    start: Start, code: CodeApp, tmp_path: Path, sig: signal.Signals
) -> None:
    """Everything ends, a worker that hangs too, and no file is left behind."""
    server = _serve_with_breaking_configuration(start, code, tmp_path)
    os.kill(server.ready()[0].pid, signal.SIGSTOP)
    server.send(signal.SIGHUP)
    eventually(lambda: title(server.pid) == FAILED, what="the title tells")
    server.send(sig)
    assert server.wait_exit() == 0
    assert_gone(code.pids())
    assert not socket_of(server).exists()
    assert not (tmp_path / "pid").exists()
    assert not (tmp_path / "socket").exists()


def _serve_with_breaking_configuration(
    start: Start, code: CodeApp, tmp_path: Path, how: str = RAISES
) -> Server:
    config = tmp_path / "conf.py"
    files = (f"--pid={tmp_path / 'pid'}", f"--bind=unix:{tmp_path / 'socket'}", "--graceful-timeout=1")
    config.write_text("")
    boot_timeout = f"--worker-boot-timeout={3 if how == HANGS else 60}"
    server = _serve(start, code, f"--config={config}", boot_timeout, *files)
    (code.folder / "broken").touch()
    config.write_text(f"import os\nFOLDER = {str(code.folder)!r}\n{BREAKS.format(pid=server.pid, how=how)}")
    code.write("two")
    return server


# -- this package itself, half upgraded
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", ["arbiter", "handover"])
def test_a_package_that_breaks_between_preflight_and_exec(
    start: Start, code: CodeApp, tmp_path: Path, module: str
) -> None:
    """The workers serve on, and the new image goes on as soon as it can be imported, without a signal."""
    server = _serve_with_breaking_package(start, code, tmp_path, module)
    with Load(server.port, clients=4, pause_s=0.002) as load:
        server.send(signal.SIGHUP)
        eventually(lambda: title(server.pid) == FAILED, what="the title tells")
        server.wait_event("reload.failed")
        load.wait_answered(100)
        (tmp_path / "away").rename(_module(tmp_path, module))
        server.wait_event("rollout.completed")
        wait_answer(server, "two")
    assert load.failures == {}
    assert server.log().count("reload.failed") == 1
    server.send(signal.SIGTERM)
    assert server.wait_exit() == 0
    assert_gone(code.pids())


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGQUIT])
def test_the_end_of_a_master_without_its_package(
    start: Start, code: CodeApp, tmp_path: Path, sig: signal.Signals
) -> None:
    """Everything ends, and no file is left behind."""
    server = _serve_with_breaking_package(start, code, tmp_path, "arbiter")
    server.send(signal.SIGHUP)
    eventually(lambda: title(server.pid) == FAILED, what="the title tells")
    server.send(sig)
    assert server.wait_exit() == 0
    assert_gone(code.pids())
    assert not socket_of(server).exists()
    assert not (tmp_path / "pid").exists()


def _module(folder: Path, name: str) -> Path:
    """A module of the copy of this package."""
    return folder / "copy" / "airflow_arbiter" / f"{name}.py"


def _serve_with_breaking_package(start: Start, code: CodeApp, tmp_path: Path, module: str) -> Server:
    """Serve with a copy of this package, of which a module goes away when the preflight has gone well."""
    shutil.copytree(Path(airflow_arbiter.__file__).parent, tmp_path / "copy" / "airflow_arbiter")
    path = os.pathsep.join(filter(None, [str(tmp_path / "copy"), os.environ.get("PYTHONPATH")]))
    server = start(f"--pid={tmp_path / 'pid'}", command=code.command(), env={"PYTHONPATH": path}, workers=2)
    server.wait_ready(2)
    goes = f"os.rename({str(_module(tmp_path, module))!r}, {str(tmp_path / 'away')!r})"
    code.write("two", at_shutdown=f"if 'preflight' in _title(): {goes}")
    text = (code.package / "__init__.py").read_text()
    code.save(code.package / "__init__.py", f"{text}\nfrom setproctitle import getproctitle as _title\n")
    return server
