"""What the files in deploy/ say, in one form for all of them."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

DEPLOY = Path(__file__).parents[2] / "deploy"
MANIFEST = DEPLOY / "kubernetes" / "api-server.yaml"
VALUES = DEPLOY / "kubernetes" / "values.yaml"
COMPOSE = DEPLOY / "compose" / "compose.yaml"

KUBERNETES_GRACE_S = 30
"""What a pod gets whose specification does not say."""

PREFIX = "AIRFLOW__API__"


AIRFLOWS = {
    "server_type",
    "host",
    "port",
    "workers",
    "worker_timeout",
    "worker_refresh_interval",
    "worker_refresh_batch_size",
    "secret_key",
    "log_config",
}
"""Options of the section `[api]` that Airflow itself has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployed:
    """
    An API server as one of the files has it.

    :param env: the environment, without what comes from a Secret.
    :param secrets: the names of what does.
    :param grace_s: from the order to end until SIGKILL, `pre_stop_s` included.
    :param startup_s: how long it may take until it first answers.
    :param liveness_s: how long it may not answer until it is started anew.
    :param memory_mib: its limit.
    """

    env: dict[str, str]
    secrets: frozenset[str]
    command: list[str]
    grace_s: int
    pre_stop_s: int
    startup_s: int
    liveness_s: int
    memory_mib: int

    @property
    def options(self) -> dict[str, str]:
        """The options of Airflow's section ``[api]``."""
        return {
            name.removeprefix(PREFIX).lower(): value
            for name, value in self.env.items()
            if name.startswith(PREFIX)
        }

    @property
    def settings(self) -> dict[str, str]:
        """The settings that follow: those with a name of Airflow's, and those on gunicorn's command line."""
        options = self.options
        timeout = options.pop("worker_timeout")
        for airflows in ("server_type", "host", "port"):
            options.pop(airflows, None)
        given = dict(
            word.removeprefix("--").replace("-", "_").split("=")
            for word in shlex.split(self.env.get("GUNICORN_CMD_ARGS", ""))
        )
        return {"timeout": timeout, "graceful_timeout": timeout, "keepalive": timeout, **options, **given}


def documents(path: Path) -> list[dict[str, Any]]:
    """All YAML documents of a file."""
    return list(yaml.safe_load_all(path.read_text()))


def manifest() -> Deployed:
    """The plain manifest."""
    pod = documents(MANIFEST)[0]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    return _deployed(container, container["lifecycle"], grace_s=pod["terminationGracePeriodSeconds"])


def values() -> Deployed:
    """The values of the chart."""
    (chart,) = documents(VALUES)
    server = chart["apiServer"]
    return _deployed(server, server["containerLifecycleHooks"], grace_s=KUBERNETES_GRACE_S)


def compose() -> Deployed:
    """The service of Compose."""
    (file,) = documents(COMPOSE)
    server = file["services"]["api-server"]
    check = server["healthcheck"]
    return Deployed(
        env=server["environment"],
        secrets=frozenset(),
        command=[*server["entrypoint"], *server["command"]],
        grace_s=_seconds(server["stop_grace_period"]),
        pre_stop_s=0,
        startup_s=_seconds(check["start_period"]),
        liveness_s=_seconds(check["interval"]) * check["retries"],
        memory_mib=int(server["mem_limit"].removesuffix("m")),
    )


def _deployed(container: dict[str, Any], lifecycle: dict[str, Any], *, grace_s: int) -> Deployed:
    env = container["env"]
    sleep, seconds = lifecycle["preStop"]["exec"]["command"]
    assert sleep == "sleep"
    return Deployed(
        env={item["name"]: item["value"] for item in env if "value" in item},
        secrets=frozenset(item["name"] for item in env if "value" not in item),
        command=[*container["command"], *container.get("args", ())],
        grace_s=grace_s,
        pre_stop_s=int(seconds),
        startup_s=_budget_s(container["startupProbe"]),
        liveness_s=_budget_s(container["livenessProbe"]),
        memory_mib=int(container["resources"]["limits"]["memory"].removesuffix("Mi")),
    )


def _budget_s(probe: dict[str, Any]) -> int:
    return int(probe["periodSeconds"] * probe["failureThreshold"])


def _seconds(text: str) -> int:
    return int(text.removesuffix("s"))
