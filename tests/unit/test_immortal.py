"""
Objects that are made immortal before a fork.

Each test is a program of its own: what is immortal stays so until its process ends. Where this Python cannot
do it, another one on this machine runs them.
"""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path

import pytest

from airflow_arbiter import immortal

MODULE = Path(immortal.__file__)

LOADING = f"""
import ctypes, gc, importlib.util, os, sys
spec = importlib.util.spec_from_file_location("immortal", {str(MODULE)!r})
immortal = importlib.util.module_from_spec(spec)
spec.loader.exec_module(immortal)

def is_immortal(item):
    return ctypes.c_uint32.from_address(id(item)).value == ctypes.c_uint32.from_address(id(None)).value
"""


@functools.cache
def able_python() -> str | None:
    """A Python that can: this one, or one that is installed beside it."""
    names = [f"python{major}.{minor}" for major, minor in immortal.VERSIONS]
    beside = Path(sys.base_prefix).parent.glob("3.*/bin/python")  # as pyenv keeps them
    for python in (sys.executable, *names, *map(str, sorted(beside))):
        try:
            answer = subprocess.run(
                [python, "-c", f"{LOADING}\nprint(repr(immortal.reason_against()))"],
                capture_output=True, text=True, timeout=30,
            )  # fmt: skip
        except OSError:
            continue
        if answer.stdout.strip() == "''":
            return python
    return None


def run(program: str) -> str:
    python = able_python()
    if python is None:
        pytest.skip(f"no CPython of {immortal.VERSIONS} on this machine")
    done = subprocess.run([python, "-c", LOADING + program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.strip()


def test_all_that_is_there_becomes_immortal() -> None:
    """Containers, what they hold, and what only code refers to; what comes later is counted as ever."""
    made = """
import types
text, number, pair = "te" + str(1), 10**9 + 1, (str(2), str(3))
class Thing: pass
thing = Thing()
thing.part = {"deep": [str(4), (str(5), 2.5)]}
code = compile("def made():\\n    return 'never to be ' 'called'\\n", "file", "exec")
inner = code.co_consts[0]
immortal.immortalize_heap()
deep = thing.part["deep"]
for item in (text, number, pair, *pair, Thing, thing, thing.part, deep, *deep, *deep[1],
             code, inner, inner.co_consts, inner.co_consts[1], inner.co_linetable):
    assert is_immortal(item), item
later = [Thing(), str(6)]
assert not any(map(is_immortal, (later, *later)))
counted = sys.getrefcount(later)
again = later
assert sys.getrefcount(later) == counted + 1
"""
    run(made)


def test_what_does_something_at_its_end_stays_mortal() -> None:
    """A file that nobody closes is flushed at the end, and a finalizer runs when its object is let go."""
    ended = """
import tempfile
class Ending:
    def __del__(self): print("ended")
class Slotted:
    __slots__ = ()
    def __del__(self): print("slotted ended")
ending, slotted = [Ending()], Slotted()
path = tempfile.mktemp()
file = open(path, "w")
file.write("flushed")
def generate(): yield
generator = generate()
immortal.immortalize_heap()
assert not any(map(is_immortal, (ending[0], slotted, file, generator)))
ending.clear()
del slotted, file
print(open(path).read())
os.remove(path)
"""
    assert run(ended).split("\n") == ["ended", "slotted ended", "flushed"]


def test_a_type_is_looked_at_without_its_code() -> None:
    """Classes may answer for attributes that they do not have."""
    odd = """
class Meta(type):
    def __getattribute__(cls, name): raise SystemExit(f"asked for {name}")
class Odd(metaclass=Meta): pass
odd = object.__new__(Odd)
immortal.immortalize_heap()
assert is_immortal(odd)
"""
    run(odd)


def test_the_pages_of_immortal_objects_stay_shared() -> None:
    """A child that looks at every object copies next to nothing; without, it copies nearly all of them."""
    looking = """
objects = [(str(n), [n]) for n in range(200_000)]
def private_kib_of_looking():
    read, write = os.pipe()
    if not os.fork():
        gc.disable()
        def private():
            with open("/proc/self/smaps_rollup") as rollup:
                return sum(int(line.split()[1]) for line in rollup if line.startswith("Private_Dirty"))
        before = private()
        kept = [part for item in objects for part in (item, *item)]
        kept.clear()
        os.write(write, str(private() - before).encode())
        os._exit(0)
    os.close(write)
    os.wait()
    return int(os.read(read, 20))
gc.freeze()
without = private_kib_of_looking()
gc.unfreeze()
immortal.immortalize_heap()
gc.freeze()
print(without, private_kib_of_looking())
"""
    without, with_it = map(int, run(looking).split())
    assert without > 20_000
    assert with_it < without / 4


def test_the_collector_leaves_immortal_objects_alone() -> None:
    """Garbage that refers to them, and cycles with them in, do no harm."""
    living = """
base = {str(n): [str(n)] for n in range(1000)}
immortal.immortalize_heap()
gc.freeze()
for turn in range(20):
    for key, held in list(base.items()):
        new = [held, key]
        new.append(new)
        base[key] = [new]
        held.append(new)
    gc.collect()
gc.unfreeze()
gc.collect()
assert sorted(base) == sorted(str(n) for n in range(1000))
import json, email.message, decimal
json.loads(json.dumps({"a": [1.5] * 100}))
"""
    run(living)


def test_a_python_that_is_not_known_is_refused() -> None:
    """Where objects may begin with something else, nothing is written into them."""
    refused = """
immortal.VERSIONS = ((3, 99),)
assert "3.99" in immortal.reason_against()
try:
    immortal.immortalize_heap()
except RuntimeError as error:
    print(error)
assert not is_immortal(immortal.__dict__)
"""
    assert run(refused) == "it is known for CPython 3.99 only"
