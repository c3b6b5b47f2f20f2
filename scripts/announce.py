"""
Say when the server of ``make run`` answers, and how to log in.

    announce.py check        exit 1 if the port is taken
    announce.py watch PID    wait for the server, whose process is PID

The server stays the foreground process. The watcher ends with it, or after the announcement, or after ten
minutes. Host, port and Airflow's home come from the environment, as for the server.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import sys
import time
from pathlib import Path

HOST = os.environ["AIRFLOW__API__HOST"]
PORT = int(os.environ["AIRFLOW__API__PORT"])
PASSWORDS = Path(os.environ["AIRFLOW_HOME"], "simple_auth_manager_passwords.json.generated")
LIMIT_S = 600
PAUSE_S = 0.3


def check() -> None:
    """
    Make sure that nobody else has the port: somebody else's answer must not be announced as ours.
    """
    try:
        socket.create_server((HOST, PORT)).close()
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        sys.exit(f"http://{HOST}:{PORT} cannot be used ({reason}); choose another port: make run PORT=9090")


def watch(server: int) -> None:
    """
    Announce the server once it answers.

    :param server: its process.
    """
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline and _is_alive(server):
        if _answers():
            sys.stdout.write(_announcement())
            return
        time.sleep(PAUSE_S)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _answers() -> bool:
    """Ask for the health, past any proxy of the environment."""
    connection = http.client.HTTPConnection(HOST, PORT, timeout=5)
    try:
        connection.request("GET", "/api/v2/monitor/health")
        answer = connection.getresponse()
        health = json.load(answer)
        return answer.status == http.HTTPStatus.OK and health["metadatabase"]["status"] == "healthy"
    except (OSError, http.client.HTTPException, ValueError, TypeError, KeyError):
        return False
    finally:
        connection.close()


def _announcement() -> str:
    try:
        log_in = f"log in as admin with the password {json.loads(PASSWORDS.read_text())['admin']}"
    except (OSError, ValueError, KeyError):
        log_in = f"the users and their passwords are in {PASSWORDS}"
    return f"\nREADY  http://{HOST}:{PORT}  {log_in}\n       Ctrl-C stops it\n\n"


if __name__ == "__main__":
    if sys.argv[1] == "check":
        check()
    else:
        watch(int(sys.argv[2]))
