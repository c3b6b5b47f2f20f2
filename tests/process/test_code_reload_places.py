"""New code comes in wherever and however the server runs."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import ssl
import subprocess
import sys
import zipfile
from pathlib import Path

import psutil
import pytest
import trustme
from harness.codeapp import CodeApp, assert_gone, title, wait_answer
from harness.load import Load
from harness.server import Server
from harness.starting import Start
from harness.waiting import eventually

UNSHARE = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]


def test_the_environment_is_the_programs_and_not_an_older_configurations(
    start: Start, tmp_path: Path
) -> None:
    """What a configuration has set goes with it; what the program has set or unset before `run()` stays."""
    config, program = tmp_path / "conf.py", tmp_path / "program.py"
    config.write_text("import os\nos.environ['FEATURE'] = 'on'")
    program.write_text(_SETS_AND_UNSETS.format(config=str(config)))
    server = start(
        command=[sys.executable, str(program)], env={"UNSET": "outside", "KEPT": "outside"}, workers=1
    )
    server.wait_ready(1)
    asked = "/environment?name=FEATURE&name=SET&name=UNSET&name=KEPT"
    assert server.get(asked) == (200, b"on,by the program,None,outside")
    config.write_text("")
    server.send(signal.SIGHUP)
    server.wait_event("rollout.completed")
    assert server.get(asked) == (200, b"None,by the program,None,outside")


_SETS_AND_UNSETS = """
import os
import sys

from airflow_arbiter import AirflowGunicornApp

if __name__ == "__main__":
    cfg = {{"wsgi_app": "faulty:app", "config": {config!r}, "preload_app": True}}
    app = AirflowGunicornApp(cfg, arguments=sys.argv[1:])
    os.environ["SET"] = "by the program"
    del os.environ["UNSET"]
    app.run()
"""


def test_as_pid_1(start: Start, code: CodeApp) -> None:
    """As a container's first process, which nothing may end, and which has no default actions."""
    _skip_unless_unshare()
    server = start(command=[*UNSHARE, *code.command()], workers=2)
    unshare = psutil.Process(server.pid)
    server.pid = eventually(unshare.children, what="the master")[0].pid
    server.wait_ready(2)
    with Load(server.port, clients=4, pause_s=0.002) as load:
        for number in (1, 2):
            code.write(f"answer {number}")
            server.send(signal.SIGHUP)
            server.wait_event("rollout.completed", number)
        wait_answer(server, "answer 2")
    assert load.failures == {}
    server.wait_ready(2, generation=3)
    code.hold("import", "1")
    server.send(signal.SIGHUP)
    code.wait_held("import")
    server.send(signal.SIGTERM)
    assert server.wait_exit() == 0


def _skip_unless_unshare() -> None:
    try:
        tried = subprocess.run([*UNSHARE, "true"], capture_output=True, timeout=20)
    except FileNotFoundError:
        pytest.skip("util-linux's unshare is not installed")
    if tried.returncode:
        pytest.skip(f"a PID namespace of one's own is not allowed here: {tried.stderr.decode().strip()}")


def test_with_tls(start: Start, code: CodeApp, tmp_path: Path) -> None:
    """Clients that speak TLS lose nothing, and a certificate that was renewed is taken in."""
    authority = trustme.CA()
    chain = tmp_path / "chain.pem"
    context = ssl.create_default_context()
    authority.configure_trust(context)
    first, second = (authority.issue_cert("localhost", organization_name=name) for name in ("a", "b"))
    first.private_key_and_cert_chain_pem.write_to_path(str(chain))
    server = start(f"--certfile={chain}", command=code.command(), workers=2)
    server.wait_ready(2)
    with Load(server.port, clients=4, pause_s=0.002, tls=context) as load:
        code.write("second")
        second.private_key_and_cert_chain_pem.write_to_path(str(chain))
        server.send(signal.SIGHUP)
        server.wait_event("rollout.completed")
        server.wait_ready(2, generation=2)
    assert load.failures == {}
    assert load.bodies == {b"one", b"second"}
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as plain:  # noqa: SIM117
        with context.wrap_socket(plain, server_hostname="localhost") as secure:
            seen = secure.getpeercert(binary_form=True)
    assert seen == ssl.PEM_cert_to_DER_cert(second.cert_chain_pems[0].bytes().decode())


def test_on_a_unix_socket(start: Start, code: CodeApp, tmp_path: Path) -> None:
    """The socket's file is the same one over a reload, and gone after the stop."""
    path = tmp_path / "socket"
    server = start(listen=f"--bind=unix:{path}", command=code.command(), workers=1)
    server.wait_ready(1)
    inode = path.stat().st_ino
    assert _ask_unix(path) == b"one"
    code.write("two")
    server.send(signal.SIGHUP)
    server.wait_event("rollout.completed")
    assert _ask_unix(path) == b"two"
    assert path.stat().st_ino == inode
    server.send(signal.SIGTERM)
    assert server.wait_exit() == 0
    assert not path.exists()


def _ask_unix(path: Path) -> bytes:
    connection = http.client.HTTPConnection("localhost", timeout=30)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(str(path))
    connection.request("GET", "/", headers={"Connection": "close"})
    body = connection.getresponse().read()
    connection.close()
    return body


def test_on_a_descriptor_that_was_inherited(start: Start, code: CodeApp) -> None:
    """`--bind fd://N`: the socket is kept, though its number is another one."""
    listen = (
        "import os, socket, sys; s = socket.create_server(('127.0.0.1', int(sys.argv[1].split(':')[1])));"
    )
    run = (
        "os.dup2(s.fileno(), 17); os.execv(sys.executable, [sys.executable, *sys.argv[2:], '--bind=fd://17'])"
    )
    command = [sys.executable, "-c", listen + run]
    server = start(*code.command()[1:], listen="at:{port}", command=command, workers=None)
    server.wait_ready(1)
    for number in (1, 2):
        code.write(f"answer {number}")
        server.send(signal.SIGHUP)
        server.wait_event("rollout.completed", number)
    wait_answer(server, "answer 2")


def test_as_a_daemon(start: Start, code: CodeApp, tmp_path: Path) -> None:
    """Detached once, at the start; a reload keeps its pid, its pid file and its log file."""
    pid_file, log = tmp_path / "pid", tmp_path / "log"
    launcher = start(
        "--daemon", f"--pid={pid_file}", f"--error-logfile={log}", command=code.command(), workers=2
    )
    assert launcher.wait_exit() == 0
    pid = int(eventually(lambda: pid_file.exists() and pid_file.read_text(), what="a pid file"))
    try:
        eventually(launcher.answers, what="it answers")
        with Load(launcher.port, clients=4, pause_s=0.002) as load:
            code.write("second")
            os.kill(pid, signal.SIGHUP)
            eventually(lambda: "rollout.completed" in log.read_text(), what="a reload")
            wait_answer(launcher, "second")
        assert load.failures == {}
        code.write("bad", at_import="raise RuntimeError('told in the log file')")
        os.kill(pid, signal.SIGHUP)
        eventually(lambda: "told in the log file" in log.read_text(), what="why it was refused")
        assert int(pid_file.read_text()) == pid
        assert os.getsid(pid) == os.getpgid(pid) != os.getsid(0)
    finally:
        os.kill(pid, signal.SIGTERM)
        assert_gone({pid, *code.pids()})
    assert not pid_file.exists()


# -- in a program of one's own
# ---------------------------------------------------------------------------------------------

PROGRAM = """
import os, sys
from pathlib import Path

from airflow_arbiter import AirflowGunicornApp

NOTES = Path(os.environ["NOTES"])

def note(what):
    with NOTES.open("a") as notes:
        notes.write(f"{what} {os.getpid()}\\n")

note("top")

def on_reload(server):
    note("on_reload")

def post_fork(server, worker):
    note("post_fork")

def make_options():
    options = dict(argument.removeprefix("--").split("=", 1) for argument in sys.argv[1:])
    return {**options, "wsgi_app": "codeapp:app", "preload_app": True}
"""
GUARDED = """
if __name__ == "__main__":
    note("main")
    AirflowGunicornApp({**make_options(), "on_reload": on_reload, "post_fork": post_fork}).run()
"""


def _start_program(start: Start, code: CodeApp, tmp_path: Path, text: str) -> tuple[Server, Path]:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM + text)
    notes = tmp_path / "notes"
    server = start(
        f"--chdir={code.site}", command=[sys.executable, str(program)], env={"NOTES": str(notes)}, workers=2
    )
    server.wait_ready(2)
    return server, notes


def test_in_a_program(start: Start, code: CodeApp, tmp_path: Path) -> None:
    """The program's guarded part runs once; its functions are hooks before and after."""
    server, notes = _start_program(start, code, tmp_path, GUARDED)
    with Load(server.port, clients=4, pause_s=0.002) as load:
        code.write("second")
        server.send(signal.SIGHUP)
        server.wait_event("rollout.completed")
        wait_answer(server, "second")
    assert load.failures == {}
    lines = [line.split() for line in notes.read_text().splitlines()]
    calls = [name for name, _ in lines]
    assert calls.count("main") == 1
    assert calls.count("top") == 3  # the start, the preflight and the new image
    assert calls.count("post_fork") == 4
    assert [int(pid) for name, pid in lines if name == "on_reload"] == [server.pid]


def test_in_a_program_without_hooks_of_its_own(start: Start, code: CodeApp, tmp_path: Path) -> None:
    """Where the options name nothing of the program, it is not loaded again, guarded or not."""
    server, notes = _start_program(start, code, tmp_path, "AirflowGunicornApp(make_options()).run()")
    code.write("second")
    server.send(signal.SIGHUP)
    server.wait_event("rollout.completed")
    wait_answer(server, "second")
    assert notes.read_text().split().count("top") == 1


def test_in_a_program_without_a_guard(start: Start, code: CodeApp, tmp_path: Path) -> None:
    """A program that would start a second server when it is loaded again is told how to avoid that."""
    server, notes = _start_program(
        start, code, tmp_path, 'AirflowGunicornApp({**make_options(), "on_reload": on_reload}).run()'
    )
    old = server.ready()
    server.send(signal.SIGHUP)
    (refused,) = server.wait_event("reload.refused")
    assert "if __name__ == '__main__':" in refused.values["error"]
    assert server.ready() == old
    assert notes.read_text().split().count("top") == 2


def test_in_a_program_with_a_lambda(start: Start, code: CodeApp, tmp_path: Path) -> None:
    """Options that no other process can have: the workers are replaced, with the code that is there."""
    server, _ = _start_program(
        start,
        code,
        tmp_path,
        'AirflowGunicornApp({**make_options(), "on_reload": lambda _: note("l")}).run()',
    )
    code.write("second")
    server.send(signal.SIGHUP)
    (told,) = server.wait_event("reload.without_code")
    assert "on_reload" in told.values["because"] or "lambda" in told.values["because"]
    server.wait_event("rollout.completed")
    server.wait_ready(2, generation=2)
    wait_answer(server, "one")
    assert title(server.pid) == "airflow-arbiter: master [codeapp:app]"


# -- with packages that are installed anew
# ---------------------------------------------------------------------------------------------


def test_an_upgraded_package_is_served(start: Start, code: CodeApp, tmp_path: Path) -> None:
    """After `pip install` of a new version of what the app imports, SIGHUP brings it in."""
    _install(code.site, tmp_path, "1.0")
    code.write("", at_import="import codedep; ANSWER = codedep.ANSWER")
    server = start(command=code.command(), workers=2)
    server.wait_ready(2)
    with Load(server.port, clients=4, pause_s=0.002) as load:
        load_seen = eventually(lambda: load.bodies, what="an answer")
        assert load_seen == {b"version 1.0"}
        _install(code.site, tmp_path, "2.0")
        server.send(signal.SIGHUP)
        server.wait_event("rollout.completed")
        wait_answer(server, "version 2.0")
    assert load.failures == {}
    assert load.bodies == {b"version 1.0", b"version 2.0"}


def _install(target: Path, folder: Path, version: str) -> None:
    """Install a package of one module, out of a wheel made here."""
    wheel = folder / f"codedep-{version}-py3-none-any.whl"
    info = f"codedep-{version}.dist-info"
    module = (
        f"from importlib.metadata import version\nANSWER = 'version ' + version('codedep')\nV = {version}\n"
    )
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("codedep.py", module)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: codedep\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--upgrade"]
    subprocess.run([*command, f"--target={target}", str(wheel)], check=True, capture_output=True, timeout=120)
