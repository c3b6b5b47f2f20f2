"""The message between two images of a master, which may be of two versions of this package."""

from __future__ import annotations

import base64
import json
import os
import pickle
import sys
from pathlib import Path

import pytest

from airflow_arbiter import handover
from airflow_arbiter.errors import IntegrationError
from airflow_arbiter.handover import Handover


class App:
    """Stands for an application."""

    def __init__(self, options: dict[str, object], *, arguments: tuple[str, ...] = ()) -> None:
        self.options = options
        self.arguments = arguments
        self.kept: dict[str, object] = {}

    def take_up(self, kept: dict[str, object]) -> None:
        self.kept = kept


def a_hook() -> None:
    """Stands for a hook of the operator's."""


def test_what_is_written_is_read() -> None:
    """Every value comes out as it went in, and the file is closed."""
    message = Handover(generation=7, workers=[{"pid": 1, "spawned_at": 2.5}], fixed={"bind": ["a"]})
    fd = message.write()
    assert Handover.read(fd) == message
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_a_long_message_is_whole() -> None:
    """A system may write less at a time than it is given."""
    message = Handover(workers=[{"pid": number} for number in range(20_000)])
    assert Handover.read(message.write()) == message


def test_another_version_is_understood() -> None:
    """What is not known is left out, and what is missing has a default."""
    fd = os.memfd_create("test")
    os.write(fd, json.dumps({"generation": 3, "of_the_future": True}).encode())
    os.lseek(fd, 0, os.SEEK_SET)
    assert Handover.read(fd) == Handover(generation=3)


def test_its_file_is_not_inherited_by_chance() -> None:
    """Only where it is meant to be, a descriptor survives an exec."""
    fd = Handover().write()
    assert not os.get_inheritable(fd)
    handover.keep_over_exec(fd)
    assert os.get_inheritable(fd)
    handover.close_on_exec(fd)
    assert not os.get_inheritable(fd)
    os.close(fd)


def test_an_application_is_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """From its class and arguments, hooks by name, what it keeps, and the command line of the program."""
    monkeypatch.setattr(sys, "argv", ["resume.py", "3"])
    app, main_path = handover.carry(App, ({"on_exit": a_hook, "workers": 3},), {"arguments": ("--x",)})
    assert main_path == ""
    made = Handover(app=app, argv=["serve", "--workers=3"], kept={"secret": "s"}).make_app()
    assert made.kept == {"secret": "s"}
    assert (made.options, made.arguments) == ({"on_exit": a_hook, "workers": 3}, ("--x",))
    assert sys.argv == ["serve", "--workers=3"]


@pytest.mark.parametrize(
    "option", [pytest.param(lambda: None, id="lambda"), pytest.param(sys.stdout, id="open-file")]
)
def test_what_cannot_be_carried_is_refused(option: object) -> None:
    """The message says what to do instead."""
    with pytest.raises(
        IntegrationError, match=r"given to App\(\) cannot be carried over .* name hooks by functions"
    ):
        handover.carry(App, ({"hook": option},), {})


def test_options_of_a_program_are_carried_with_its_path(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Where they name functions of the program, it is loaded again; where it is no file, they cannot be."""
    main = sys.modules["__main__"]
    monkeypatch.setattr(main, "a_hook", a_hook, raising=False)
    monkeypatch.setattr(a_hook, "__module__", "__main__")
    monkeypatch.setattr(main, "__file__", str(tmp_path / "program.py"), raising=False)
    app, main_path = handover.carry(App, ({"on_exit": a_hook},), {})
    assert b"__main__" in base64.b64decode(app)
    assert main_path == str((tmp_path / "program.py").resolve())
    assert handover.carry(App, ({},), {})[1] == ""
    monkeypatch.delattr(main, "__file__")
    with pytest.raises(IntegrationError, match="a program that is no file"):
        handover.carry(App, ({"on_exit": a_hook},), {})


def test_a_class_that_is_gone_is_an_error_of_the_new_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be found any more raises when the application is made."""
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    app = base64.b64encode(pickle.dumps((App, (), {})).replace(b"App", b"Gon")).decode()
    with pytest.raises(AttributeError, match="Gon"):
        Handover(app=app, argv=["x"]).make_app()


def test_the_command_line_has_the_interpreters_options() -> None:
    """The new image runs with the same ones, and its program is ours, by path."""
    line = handover.command(5, "preflight", "6")
    assert line[0] == sys.executable
    assert line[-4:] == [str(handover.RESUME), "5", "preflight", "6"]
    assert handover.RESUME.is_file()
