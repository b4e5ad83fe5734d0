"""What a provider was handed is on the disk, with all that its replies need, until they are in the ledger."""

import pytest

from limbeck.ledger import Ledger, Record
from limbeck.ledger.file import _salvage, readable
from limbeck.ledger.submitted import Batch

KEYS = [f"{i:032x}" for i in range(3)]


def call(key, **more):
    return Record(
        **{"key": key, "words": f"w{key[-1]}", "model": "m", "body": f'{{"n": {int(key, 16)}}}', "occurrence": 1,
           "draw": 2, "salt": "int 0", "reply": None, "refused": None, "served": None, "prompt_tokens": 0,
           "completion_tokens": 0, "cost": None, "seconds": 0.0, "site": "1:ask", "row": "r", **more}
    )  # fmt: skip


def batch(tag="t"):
    return Batch(tag, "m", "http://here/v1", 3, {"calls": 3.0, "tokens": 300.0, "money": 0.5}, at=7.0)


@pytest.fixture
def ledger(tmp_path):
    made = Ledger(tmp_path / "ledger")
    yield made
    made.close()


def test_a_batch_comes_back_whole_in_another_process(ledger, tmp_path):
    one = batch()
    ledger.batches.add(one, [call(k) for k in KEYS])
    ledger.batches.name(one, "batch_1")
    again = Ledger(tmp_path / "ledger", readonly=True)
    assert again.batches.all() == [one] and one.remote == "batch_1"
    assert again.batches.calls(one) == [call(k) for k in KEYS]
    again.close()


def test_it_is_known_which_calls_are_on_their_way_and_what_they_may_cost(ledger):
    assert ledger.batches.promised() == {"calls": 0, "tokens": 0, "money": 0}
    ledger.batches.add(batch("a"), [call(KEYS[0])])
    ledger.batches.add(batch("b"), [call(KEYS[1])])
    assert ledger.batches.holding(KEYS) == {KEYS[0]: "a", KEYS[1]: "b"}
    assert ledger.batches.promised() == {"calls": 6, "tokens": 600, "money": 1.0}
    ledger.batches.remove(batch("a"))
    assert ledger.batches.holding(KEYS) == {KEYS[1]: "b"} and [b.tag for b in ledger.batches.all()] == ["b"]
    assert ledger.spent()["calls"] == 0


def test_images_of_a_batch_are_on_the_disk_before_it_is_handed_in(ledger):
    ledger.batches.add(batch(), [call(KEYS[0], blobs={"d" * 32: b"picture"})])
    assert (ledger.blobs.directory / ("d" * 32)).read_bytes() == b"picture"
    assert ledger._all("select words, digest from image") == [("w0", "d" * 32)]


def test_a_damaged_ledger_keeps_its_batches(ledger, tmp_path):
    one = batch()
    ledger.batches.add(one, [call(k) for k in KEYS])
    _salvage(ledger.path, tmp_path / "fresh.sqlite")
    db = readable(tmp_path / "fresh.sqlite")
    assert db.execute("select tag, count from batch").fetchall() == [("t", 3)]
    assert db.execute("select key from batch_call order by key").fetchall() == [(k,) for k in KEYS]
    assert len(db.execute("select * from request").fetchall()) == 3
    db.close()
