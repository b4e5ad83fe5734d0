"""The ledger keeps what was bought, in groups, once each."""

import sqlite3
import time

import pytest

from limbeck import ledger as ledgers
from limbeck.errors import LimbeckError
from limbeck.ledger import Ledger, Record


def record(key, **fields):
    given = {
        "key": key, "words": "w" + key, "model": "m", "body": "{}", "occurrence": 0, "draw": 0, "salt": "0",
        "reply": {"text": key}, "refused": None, "served": None, "prompt_tokens": 3, "completion_tokens": 4,
        "cost": 0.5, "seconds": 0.1, "site": "1:ask", "row": "r",
    }  # fmt: skip
    return Record(**(given | fields))


@pytest.fixture
def ledger(tmp_path):
    made = Ledger(tmp_path / "run" / "ledger")
    yield made
    made.close()


def test_what_was_flushed_is_read_back(ledger):
    for i in range(1200):
        ledger.put(record(f"k{i}"))
    ledger.flush()
    keys = [f"k{i}" for i in range(1300)]
    assert ledger.have(keys) == {f"k{i}" for i in range(1200)}
    assert ledger.replies(["k7"]) == {"k7": ({"text": "k7"}, None)}
    assert ledger.spent() == {"calls": 1200, "tokens": 8400, "money": 600.0}


def test_a_key_is_kept_as_it_was_first_bought(ledger):
    ledger.put(record("k", reply={"text": "first"}))
    ledger.put(record("k", reply={"text": "second"}))
    ledger.flush()
    assert ledger.replies(["k"])["k"][0] == {"text": "first"}


def test_refusals_are_kept_with_their_reason(ledger):
    ledger.put(record("k", reply=None, refused="content filter"))
    ledger.flush()
    assert ledger.replies(["k"]) == {"k": (None, "content filter")}


def test_requests_are_stored_once_per_words(ledger, tmp_path):
    for i in range(5):
        ledger.put(record(f"k{i}", words="same", body='{"messages": []}'))
    ledger.flush()
    assert sqlite3.connect(ledger.path).execute("select count(*) from request").fetchone() == (1,)
    assert ledger.call("k3")["request"] == {"messages": []}


def test_another_key_schema_is_refused_before_anything_is_bought_again(tmp_path, monkeypatch):
    Ledger(tmp_path / "l").close()
    monkeypatch.setattr(ledgers, "KEY_SCHEMA", 2)
    with pytest.raises(LimbeckError, match="version 1.*bought again"):
        Ledger(tmp_path / "l")


def test_a_damaged_ledger_is_told_and_not_overwritten(tmp_path):
    (tmp_path / "l").mkdir()
    (tmp_path / "l" / "calls.sqlite").write_bytes(b"not a database at all" * 100)
    with pytest.raises(LimbeckError, match="cannot be read"):
        Ledger(tmp_path / "l")
    assert (tmp_path / "l" / "calls.sqlite").read_bytes().startswith(b"not a database")


def test_borrowed_replies_are_free(ledger, tmp_path):
    other = Ledger(tmp_path / "other" / "ledger")
    other.put(record("k"))
    other.flush()
    assert ledger.borrow(tmp_path / "other", ["k", "unknown"]) == {"k"}
    other.close()
    assert ledger.replies(["k"])["k"][0] == {"text": "k"}
    assert ledger.spent()["calls"] == 0
    with pytest.raises(LimbeckError, match="holds no ledger"):
        ledger.borrow(tmp_path / "nothing", ["k"])


def test_a_full_disk_is_told_to_whoever_buys(ledger, monkeypatch):
    def full(group):
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(ledger, "_commit", full)
    ledger.put(record("k"))
    with pytest.raises(LimbeckError, match="disk is full"):
        ledger.flush()


def test_what_was_put_is_durable_soon_without_asking_for_it(ledger):
    ledger.put(record("k"))
    until = time.monotonic() + 5
    while sqlite3.connect(ledger.path).execute("select count(*) from call").fetchone() == (0,):
        assert time.monotonic() < until
