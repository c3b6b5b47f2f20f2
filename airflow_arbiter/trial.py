"""
A server on trial: the configuration of the real one, without what would reach beyond itself.

Owns which settings such a server must not have, and tells what is configured. Run by
:mod:`airflow_arbiter.examination`, never for clients.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from airflow_arbiter.__main__ import PROG, USAGE_ERROR
from airflow_arbiter.app import AirflowGunicornApp
from airflow_arbiter.errors import ArbiterError
from airflow_arbiter.examination import CONFIGURED, TIMES

_QUIET: dict[str, Any] = {
    "daemon": False,  # it would outlive whoever started it
    "control_socket_disable": False,
    "errorlog": "-",
    "accesslog": None,
    "logconfig": None,
    "logconfig_json": None,
    "logconfig_dict": {},
    "syslog": False,
    "capture_output": False,
    "statsd_host": None,
}
"""Files and collectors of the real server's would hear of this one, or be rotated by it."""

_HOOKS = ("on_starting", "when_ready", "pre_exec", "nworkers_changed", "on_reload", "on_exit")
"""What a master calls on its own account, as to register a service. Those around a worker are part of it."""


class TrialApp(AirflowGunicornApp):
    """
    Serve for a moment, for nobody.
    """

    def load_config(self) -> None:
        super().load_config()
        for name, value in _QUIET.items():
            self.cfg.set(name, value)
        for name in _HOOKS:
            self.cfg.set(name, self.cfg.settings[name].default)
        self.cfg.set("logconfig_dict", self._logconfig())
        # Before what does not fit is lowered: whoever asks wants to hear of just that.
        configured = {name: getattr(self.cfg, name) for name in TIMES}
        Path(self.cfg.control_socket).with_name(CONFIGURED).write_text(json.dumps(configured))

    def watched_folders(self) -> list[Path]:
        return []

    def metrics(self) -> None:
        return None


def main() -> None:
    """
    Serve until told to stop.

    :raises SystemExit: always in the end.
    """
    try:
        app = TrialApp(arguments=sys.argv[1:], prog=PROG)
    except ArbiterError as error:
        sys.stderr.write(f"{PROG}: error: {error}\n")
        sys.exit(USAGE_ERROR)
    app.run()


if __name__ == "__main__":
    main()
