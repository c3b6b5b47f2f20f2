"""
What each command of the control socket does.

Owns the commands' names, which of them there are, and what gunicorn's own commands mean for a pool whose
workers are replaced one by one: they go by :mod:`airflow_arbiter.steering`, so that none takes capacity away
unless it says so. Knows nothing of connections.

Source: ``gunicorn.ctl.server`` for the commands, ``gunicorn.ctl.handlers`` for their answers.
"""

from __future__ import annotations

import os
import shlex
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from gunicorn.ctl.handlers import CommandHandlers
from gunicorn.ctl.protocol import make_error_response, make_response

from airflow_arbiter import events, settings
from airflow_arbiter.errors import CommandError
from airflow_arbiter.meeting import Peer
from airflow_arbiter.report import WorkerReport
from airflow_arbiter.steering import Steering

_TAKEN = {"success": True}
_STOPS = {"graceful": signal.SIGTERM, "quick": signal.SIGINT}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Command:
    """
    A command.

    :param run: what it does, given its arguments; None has nothing to tell.
    :param help: what it does, in words.
    :param form: its arguments, for the help.
    :param least: how many arguments it needs.
    :param most: how many it takes.
    :param is_told: whether the log says who gave it.
    """

    run: Callable[..., Mapping[str, Any] | None]
    help: str
    form: str = ""
    least: int = 0
    most: int = 0
    is_told: bool = True


class Dispatcher:
    """
    Finds and runs commands.

    :param master: the arbiter, for what gunicorn's own commands show of it.
    :param steering: for everything else.
    """

    def __init__(self, master: Any, steering: Steering) -> None:
        self._steering = steering
        self._commands = _gunicorns(_Handlers(master, steering)) | self._ours()

    def answer(self, request: Mapping[str, Any], peer: Peer) -> Mapping[str, Any]:
        """
        Run a command.

        :param request: as gunicorn's client sends it.
        :param peer: who gives it, for the log.
        :return: as gunicorn's client wants it.
        """
        number = request.get("id", 0)
        try:
            name, command, arguments = self._find(_words(request))
            if command.is_told:
                told = " ".join([name, *arguments])
                events.publish("control.commanded", command=told, peer_pid=peer.pid, peer_uid=peer.uid)
            answer: Mapping[str, Any] = make_response(number, command.run(*arguments) or _TAKEN)
        except CommandError as error:
            answer = make_error_response(number, str(error))
        except Exception as error:
            # Whatever goes wrong in the middle of a command must not end the loop.
            events.publish_exception("control.failed", command=str(request.get("command"))[:100])
            answer = make_error_response(number, f"it could not be done ({type(error).__name__}: {error})")
        return answer

    def _find(self, words: Sequence[str]) -> tuple[str, _Command, Sequence[str]]:
        for length in (2, 1):
            name, arguments = " ".join(words[:length]).lower(), words[length:]
            command = self._commands.get(name)
            if command is not None and len(words) >= length:
                if not command.least <= len(arguments) <= command.most:
                    raise CommandError(f"usage: {name} {command.form}".rstrip())
                return name, command, arguments
        raise CommandError(
            f"Unknown command: {' '.join(words)[:100]!r}; see help" if words else "Empty command"
        )

    def _ours(self) -> dict[str, _Command]:
        steer = self._steering
        return {
            "status": _Command(
                run=lambda: asdict(steer.report()), help="Tell how everything stands", is_told=False
            ),
            "rollout restart": _Command(
                run=lambda: {"revision": steer.restart()}, help="Replace all workers, one by one"
            ),
            "rollout pause": _Command(run=steer.pause, help="Replace nobody for now"),
            "rollout resume": _Command(run=steer.resume, help="Go on with replacing"),
            "rollout abort": _Command(run=steer.abort, help="Give up the restarts that are under way"),
            "scale": _Command(
                run=lambda number: steer.scale(_number(number)),
                help="Want another number of workers",
                form="N",
                least=1,
                most=1,
            ),
            "worker stop": _Command(
                run=lambda pid: steer.stop_worker(_number(pid)),
                help="Replace a worker",
                form="<PID>",
                least=1,
                most=1,
            ),
            "help": _Command(run=self._help, help="Show this help message", is_told=False),
        }

    def _help(self) -> dict[str, Any]:
        """Tell the commands, in the form that gunicorn's client shows."""
        return {
            "commands": {
                f"{name} {command.form}".rstrip(): command.help
                for name, command in sorted(self._commands.items())
            }
        }


def _words(request: Mapping[str, Any]) -> list[str]:
    """
    Take a request apart.

    :raises CommandError: for one that is none.
    """
    command, arguments = request.get("command", ""), request.get("args") or []
    if not isinstance(command, str) or not isinstance(arguments, list):
        raise CommandError("a request has a command, which is text, and perhaps args, which are a list")
    try:
        return [*shlex.split(command), *map(str, arguments)]
    except ValueError as error:
        raise CommandError(f"the command cannot be read: {error}") from error


def _number(text: str) -> int:
    """
    Read a number of workers, or a pid.

    :raises CommandError: for what is none.
    """
    if not text.isascii() or not text.isdigit() or len(text) > len(str(2**31)):
        raise CommandError(f"a whole number is wanted, not {text[:100]!r}")
    return int(text)


# -- gunicorn's commands
# -------------------------------------------------------------------------------------------------------


def _gunicorns(handlers: _Handlers) -> dict[str, _Command]:
    def shown(run: Callable[[], Mapping[str, Any]], of: str) -> _Command:
        return _Command(run=run, help=of, is_told=False)

    return {
        "show all": shown(handlers.show_all, "Show the master and its workers"),
        "show workers": shown(handlers.show_workers, "List the workers with their state"),
        "show dirty": shown(handlers.show_dirty, "Say that there are no dirty workers"),
        "show config": shown(handlers.show_config, "Show the configuration in effect"),
        "show stats": shown(handlers.show_stats, "Show the server's counts"),
        "show listeners": shown(handlers.show_listeners, "Show the sockets that are served"),
        "worker add": _Command(run=handlers.add, help="Want N more workers (default 1)", form="[N]", most=1),
        "worker remove": _Command(
            run=handlers.remove, help="Want N workers fewer (default 1, never below 1)", form="[N]", most=1
        ),
        "worker kill": _Command(
            run=handlers.kill, help="Replace a worker: worker stop", form="<PID>", least=1, most=1
        ),
        "reload": _Command(run=handlers.reload, help="Take in the configuration and the code anew (HUP)"),
        "reopen": _Command(run=handlers.reopen, help="Reopen log files (USR1)"),
        "shutdown": _Command(
            run=handlers.stop, help="Stop the server (TERM/INT)", form="[graceful|quick]", most=1
        ),
    }


class _Handlers(CommandHandlers):
    """
    gunicorn's handlers, with the truth.

    Theirs look at objects that live in the master and know nothing of what the worker does.
    """

    def __init__(self, master: Any, steering: Steering) -> None:
        super().__init__(master)
        self._steering = steering

    def show_workers(self) -> dict[str, Any]:
        workers = [_seen(worker) for worker in self._steering.report().workers]
        return {"workers": workers, "count": len(workers)}

    def show_all(self) -> dict[str, Any]:
        report = self._steering.report()
        return {
            "arbiter": {"pid": report.server.pid, "type": "arbiter", "role": "master"},
            "web_workers": [{"type": "web", **_seen(worker)} for worker in report.workers],
            "web_worker_count": len(report.workers),
            "dirty_arbiter": None,
            "dirty_workers": [],
            "dirty_worker_count": 0,
        }

    def show_stats(self) -> dict[str, Any]:
        report = self._steering.report()
        return {
            # Reloads, and workers_killed in gunicorn's sense: SIGTERM counts, and so whoever has drained.
            **super().show_stats(),
            "uptime": report.server.uptime_s,
            "pid": report.server.pid,
            "workers_current": report.pool.live,
            "workers_target": report.pool.target,
            "workers_spawned": report.counters.spawned,
        }

    def show_config(self) -> dict[str, Any]:
        cfg = self.arbiter.cfg
        return {
            **super().show_config(),
            **{setting.name: getattr(cfg, setting.name) for setting in settings.OURS},
            "control_socket": self._steering.control_socket,
        }

    def add(self, count: str = "1") -> dict[str, Any]:
        """Want more workers."""
        return self._scale_by(_number(count), "added")

    def remove(self, count: str = "1") -> dict[str, Any]:
        """Want fewer workers, and one at least."""
        return self._scale_by(-_number(count), "removed")

    def _scale_by(self, count: int, done: str) -> dict[str, Any]:
        previous = self._steering.report().pool.target
        total = max(1, previous + count)
        self._steering.scale(total)
        return {done: abs(total - previous), "previous": previous, "total": total}

    def kill(self, pid: str) -> dict[str, Any]:
        """Replace a worker; it leaves when its successor is there."""
        self._steering.stop_worker(_number(pid))
        return {"success": True, "replacing": int(pid)}

    def reload(self) -> dict[str, Any]:
        return {"status": "reloading", "revision": self._steering.reload()}

    def stop(self, mode: str = "graceful") -> dict[str, Any]:
        """
        Stop the server, as by a signal.

        :raises CommandError: for another mode than these.
        """
        if mode not in _STOPS:
            raise CommandError(f"usage: shutdown [{'|'.join(_STOPS)}]")
        os.kill(os.getpid(), _STOPS[mode])
        return {"status": "shutting_down", "mode": mode}


def _seen(worker: WorkerReport) -> dict[str, Any]:
    """A worker as gunicorn shows it, and a little more."""
    return {
        "pid": worker.pid,
        "age": worker.age,
        "requests": worker.requests,
        "booted": worker.booted,
        "aborted": worker.state == "killed",
        "last_heartbeat": worker.beat_ago_s,
        "state": worker.state,
        "generation": worker.generation,
    }
