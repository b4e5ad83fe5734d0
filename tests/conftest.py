"""No test reaches a network beyond this machine, draws bars, or computes with more than one thread."""

import os
import signal
import socket

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
from hypothesis import settings

import limbeck as lb

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
