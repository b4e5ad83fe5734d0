"""No test reaches a network beyond this machine, draws bars, or computes with more than one thread."""

import json
import os
import shutil
import signal
import socket
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if shutil.which("nvidia-smi") is None:  # Triton reads it when it is first imported, by whichever library
    os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest
from hypothesis import settings

import limbeck as lb
import limbeck.recipe

settings.register_profile("loaded machine", deadline=None)
settings.load_profile("loaded machine")

# A test run that was itself started in the background has Ctrl-C switched off, and its children would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

_connect = socket.socket.connect


def _local_only(self, address):
    if isinstance(address, tuple) and address[0] not in ("127.0.0.1", "::1", "localhost"):
        raise OSError(f"a test tried to reach {address[0]}")
    return _connect(self, address)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    monkeypatch.setattr(socket.socket, "connect", _local_only)


@pytest.fixture
def run(tmp_path):
    with lb.Run(tmp_path / "run", progress=False) as opened:
        yield opened


METHOD = '''
from limbeck import Model, Table, ask, keep

def short(row):
    return len(row["response"]) < 12 or "too long"

def method(prompts: Table, teacher: Model, *, n: int = 1, say: str = "Say: {prompt}"):
    """Echoes, and keeps what is short."""
    return keep(ask(prompts, teacher, say, n=n, max_tokens=8), short)

def broken(prompts, teacher):
    raise ZeroDivisionError("a bug")
'''


@pytest.fixture
def call(monkeypatch, capsys):
    """Runs the command line in this process: (exit code, stdout, stderr)."""
    from limbeck import cli

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["limbeck", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        out, err = capsys.readouterr()
        return end.value.code or 0, out, err

    return run


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with ten prompts and a user's file, and the current directory there."""
    monkeypatch.chdir(tmp_path)
    recipes = sys.modules["limbeck.recipe"]
    monkeypatch.setattr(recipes, "_registry", recipes.registered())  # what is registered here is forgotten again
    Path("p.jsonl").write_text("".join(json.dumps({"question": "q" * i}) + "\n" for i in range(1, 11)))
    Path("mine.py").write_text(METHOD)
    return tmp_path
