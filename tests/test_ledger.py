"""The ledger keeps what was bought, in groups, once each."""

import sqlite3
import threading
import time

import pytest

from limbeck import disk
from limbeck import ledger as ledgers
from limbeck.errors import LimbeckError
from limbeck.fingerprint import digest
from limbeck.ledger import Ledger, Record


def record(key, **fields):
    given = {
        "key": key, "words": "w" + key, "model": "m", "body": "{}", "occurrence": 0, "draw": 0, "salt": "0",
        "reply": {"text": key}, "refused": None, "served": None, "prompt_tokens": 3, "completion_tokens": 4,
        "cost": 0.5, "seconds": 0.1, "site": "1:ask", "row": "r",
    }  # fmt: skip
    return Record(**(given | fields))


@pytest.fixture(params=["local", "network", "network without locks"])
def ledger(tmp_path, request, monkeypatch):
    """A ledger on a local disk, and on what looks like a network file system: they behave alike."""
    if request.param != "local":
        monkeypatch.setattr(disk, "network", lambda path: "nfs4")
        monkeypatch.setattr(disk, "keeps_locks", lambda path: request.param == "network")
    made = Ledger(tmp_path / "run" / "ledger")
    yield made
    made.close()


def test_on_a_network_file_system_nothing_wants_shared_memory(ledger):
    ledger.put(record("k"))
    ledger.flush()
    files = {f.name for f in ledger.path.parent.iterdir()}
    assert ledger.network == ("nfs4" if files == {"calls.sqlite"} else None)
    assert files in ({"calls.sqlite"}, {"calls.sqlite", "calls.sqlite-wal", "calls.sqlite-shm"})


def test_a_ledger_of_a_local_disk_goes_on_on_a_network_file_system(tmp_path, monkeypatch):
    local = Ledger(tmp_path / "l")
    local.put(record("k"))
    local.flush()  # left open: its replies are still in the write-ahead log
    for name in ("calls.sqlite", "calls.sqlite-wal"):
        (tmp_path / "moved").mkdir(exist_ok=True)
        (tmp_path / "moved" / name).write_bytes((tmp_path / "l" / name).read_bytes())
    local.close()
    monkeypatch.setattr(disk, "network", lambda path: "nfs4")
    moved = Ledger(tmp_path / "moved")
    assert moved.replies(["k"])["k"][0] == {"text": "k"}
    moved.close()
    assert [f.name for f in (tmp_path / "moved").iterdir()] == ["calls.sqlite"]


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
    with pytest.raises(LimbeckError, match="set aside as calls.sqlite.damaged"):
        Ledger(tmp_path / "l")
    assert (tmp_path / "l" / "calls.sqlite.damaged").read_bytes().startswith(b"not a database")


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
    while not ledger.have(["k"]):
        assert time.monotonic() < until


LARGE = {
    "logprobs": [{"token": "é", "logprob": -0.5, "id": 7, "bytes": [195, 169], "top": [{"token": "e", "logprob": -1}]}],
    "token_ids": [7],
    "vector": [0.1, 2.5],
}


def test_log_probabilities_and_vectors_lie_beside_the_ledger_and_come_back_when_asked_for(ledger):
    for i in range(3):
        ledger.put(record(f"k{i}", reply={"text": f"{i}", **LARGE, "token_ids": [i]}))
    ledger.put(record("plain"))
    ledger.flush()
    assert ledger.replies(["k1", "plain"]) == {"k1": ({"text": "1"}, None), "plain": ({"text": "plain"}, None)}
    assert ledger.replies(["k1"], whole=True)["k1"][0] == {"text": "1", **LARGE, "token_ids": [1]}
    assert ledger.call("k2")["reply"] == {"text": "2", **LARGE, "token_ids": [2]}
    assert len(list((ledger.path.parent / "blobs").glob("*.pack"))) == 1


def test_images_of_a_request_are_files_by_digest(ledger, tmp_path):
    image = b"\x89PNG"
    ledger.put(record("k", blobs={digest(image): image}))
    ledger.flush()
    assert ledger.blobs.image(digest(image)) == image


def test_tools_are_free_and_no_calls(ledger):
    ledger.put(record("k"))
    ledger.put(record("t", kind="tool", prompt_tokens=0, completion_tokens=0, cost=0.0))
    ledger.put(record("e", kind="embed", site="2:ask", recipe="mine"))
    ledger.flush()
    assert ledger.spent() == {"calls": 2, "tokens": 14, "money": 1.0}
    assert (ledger.calls_at("1:ask"), ledger.calls_at("2:ask"), ledger.calls_at("3:ask")) == (1, 1, 0)
    assert {key: ledger.call(key)["kind"] for key in "kte"} == {"k": "chat", "t": "tool", "e": "embed"}
    assert ledger.call("e")["recipe"] == "mine"


def test_a_call_put_twice_counts_once(ledger):
    for _ in range(2):
        ledger.put(record("k"))
        ledger.flush()
    assert ledger.spent()["calls"] == ledger.calls_at("1:ask") == 1


def test_what_json_libraries_disagree_about_comes_back(ledger):
    odd = {"text": "\ud800", "huge": 2**70, "tiny": 5e-324, "none": None, "nested": [{}, [], ""]}
    ledger.put(record("k", reply=odd))
    ledger.flush()
    assert ledger.replies(["k"])["k"][0] == odd


def test_bought_before_tells_what_a_row_was_asked_here(ledger):
    ledger.put(record("a", words="w", body='{"messages": ["' + "long " * 300 + '"]}', row="r1", salt="s"))
    ledger.put(record("b", row="r2"))
    ledger.put(record("c", row="r1", site="2:ask"))
    ledger.flush()
    body = '{"messages": ["' + "long " * 300 + '"]}'
    assert ledger.bought_before("1:ask", {"r1"}) == {"r1": {"a": ("m", body, "s")}}


def test_a_reader_does_not_wait_for_a_write(tmp_path):
    ledger = Ledger(tmp_path / "l")
    ledger.put(record("k"))
    ledger.flush()
    with ledger._writing:  # a slow fsync
        asked = threading.Thread(target=lambda: ledger.replies(["k"]))
        asked.start()
        asked.join(5)
        assert not asked.is_alive()
    ledger.close()


def test_groups_hold_500_calls_at_most(tmp_path, monkeypatch):
    sizes, commit = [], Ledger._commit
    monkeypatch.setattr(Ledger, "_commit", lambda self, group: (sizes.append(len(group)), commit(self, group)))
    ledger = Ledger(tmp_path / "l")
    for i in range(1700):
        ledger.put(record(f"k{i}"))
    ledger.close()
    assert sum(sizes) == 1700 and max(sizes) <= 500
    assert Ledger(tmp_path / "l", readonly=True).spent()["calls"] == 1700


def test_a_ledger_of_the_first_version_is_read_borrowed_and_continued(tmp_path):
    (tmp_path / "old" / "ledger").mkdir(parents=True)
    db = sqlite3.connect(tmp_path / "old" / "ledger" / "calls.sqlite")
    db.executescript(
        """create table meta (name text primary key, value text);
        create table request (words text primary key, model text, body text);
        create table call (key text primary key, words text, model text, occurrence int, draw int, salt text,
            reply text, refused text, served text, prompt_tokens int, completion_tokens int, cost real, seconds real,
            at real, site text, row text, reused int default 0);
        insert into meta values ('key_schema', '1');
        insert into request values ('w', 'm', '{"messages": []}');
        insert into call values ('k', 'w', 'm', 0, 0, '0', '{"text": "old"}', null, null, 3, 4, 0.5, 0.1, 0, '1:ask',
            'r', 0);"""
    )
    db.close()
    reader = Ledger(tmp_path / "old" / "ledger", readonly=True)
    assert reader.call("k")["reply"] == {"text": "old"} and reader.call("k")["kind"] == "chat"
    reader.close()
    new = Ledger(tmp_path / "new" / "ledger")
    assert new.borrow(tmp_path / "old", ["k"]) == {"k"} and new.call("k")["request"] == {"messages": []}
    new.close()
    old = Ledger(tmp_path / "old" / "ledger")
    old.put(record("k2"))
    old.flush()
    assert old.replies(["k", "k2"]) == {"k": ({"text": "old"}, None), "k2": ({"text": "k2"}, None)}
    assert old.spent() == {"calls": 2, "tokens": 14, "money": 1.0}
    assert old.bought_before("1:ask", {"r"})["r"]["k"] == ("m", '{"messages": []}', "0")
    old.close()


def test_borrowing_takes_packs_and_images_along(ledger, tmp_path):
    image = b"pixels"
    other = Ledger(tmp_path / "other" / "ledger")
    other.put(record("k", reply={"text": "k", **LARGE}, blobs={digest(image): image}))
    other.close()
    assert ledger.borrow(tmp_path / "other", ["k"]) == {"k"}
    assert ledger.call("k")["reply"] == {"text": "k", **LARGE} and ledger.call("k")["reused"] == 1
    assert ledger.blobs.image(digest(image)) == image


def test_what_is_damaged_elsewhere_is_not_borrowed(ledger, tmp_path):
    other = Ledger(tmp_path / "other" / "ledger")
    other.put(record("good"))
    other.put(record("bad", reply={"text": "bad", **LARGE}))
    other.close()
    (pack,) = (tmp_path / "other" / "ledger" / "blobs").glob("*.pack")
    pack.write_bytes(pack.read_bytes()[:-1] + b"?")
    assert ledger.borrow(tmp_path / "other", ["good", "bad"]) == {"good"}


def test_refused_groups_are_tried_once_more_at_the_end(tmp_path, monkeypatch):
    ledger, commit = Ledger(tmp_path / "l"), Ledger._commit
    monkeypatch.setattr(ledger, "_commit", lambda group: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    ledger.put(record("a"))
    with pytest.raises(LimbeckError, match="No space left"):
        ledger.flush()
    with pytest.raises(LimbeckError, match="No space left"):
        ledger.put(record("b"))  # was in flight
    monkeypatch.setattr(ledger, "_commit", lambda group: commit(ledger, group))  # space was freed
    ledger.close()
    assert Ledger(tmp_path / "l").have(["a", "b"]) == {"a", "b"}


def test_damage_of_a_request_is_named_and_both_are_bought_anew(ledger):
    ledger.put(record("k", words="w", body='{"messages": []}'))
    ledger.flush()
    with ledger._db as db:
        db.execute("update request set body = ? where words = 'w'", (b"\0" * 30,))
    with pytest.raises(LimbeckError, match="holds 1 damaged calls, such as k .*set aside: run again"):
        ledger.call("k")
    assert ledger.have(["k"]) == set()
    ledger.put(record("k", words="w", body='{"messages": []}'))
    ledger.flush()
    assert ledger.call("k")["request"] == {"messages": []}


def test_calls_are_walked_in_the_order_in_which_they_were_kept(ledger):
    for i in range(7):
        ledger.put(record(f"k{6 - i}", body=f'{{"n": {i}}}'))
    ledger.flush()
    parts = list(ledger.calls(size=3))
    assert [[c["key"] for c in part] for part in parts] == [["k6", "k5", "k4"], ["k3", "k2", "k1"], ["k0"]]
    assert parts[2][0]["request"] == '{"n": 6}' and parts[2][0]["reply"] == {"text": "k0"}
