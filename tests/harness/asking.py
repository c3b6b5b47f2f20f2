"""One question over HTTP or HTTPS, with headers, and the whole answer."""

from __future__ import annotations

import http.client
import json
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came back, whatever its status."""

    status: int
    body: bytes
    headers: dict[str, str] = field(compare=False)

    def json(self) -> Any:
        """The body, parsed."""
        return json.loads(self.body)


def ask(
    port: int,
    path: str,
    *,
    method: str = "GET",
    headers: dict[str, str] | None = None,
    body: Any = None,
    tls: ssl.SSLContext | None = None,
) -> Answer:
    """
    Ask once, on a new connection; redirects are not followed.

    :param body: sent as JSON, if there is any.
    :param tls: makes it HTTPS.
    """
    connection = (
        http.client.HTTPSConnection("localhost", port, timeout=TIMEOUT_S, context=tls)
        if tls is not None
        else http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    )
    try:
        sent = {"Content-Type": "application/json"} if body is not None else {}
        text = json.dumps(body) if body is not None else None
        connection.request(method, path, body=text, headers={**sent, **(headers or {})})
        answer = connection.getresponse()
        return Answer(
            status=answer.status,
            body=answer.read(),
            headers={name.lower(): value for name, value in answer.getheaders()},
        )
    finally:
        connection.close()


def log_in(port: int, home: Path) -> dict[str, str]:
    """
    Log in as the simple auth manager's first user, with the password that it has generated.

    :param home: Airflow's.
    :return: the headers of a user who is logged in.
    """
    passwords = json.loads((home / "simple_auth_manager_passwords.json.generated").read_text())
    username, password = next(iter(passwords.items()))
    answer = ask(port, "/auth/token", method="POST", body={"username": username, "password": password})
    return {"Authorization": f"Bearer {answer.json()['access_token']}"}
