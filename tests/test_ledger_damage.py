"""A ledger that a disk, a kill or a stranger harmed: what was durable comes back, what is harmed is never read."""

import contextlib
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from limbeck.errors import LimbeckError
from limbeck.ledger import Ledger

from .test_ledger import LARGE, record

N = 400
KEYS = [f"{i:032x}" for i in range(N)]


def said(key):
    return {"text": key * (4 if key < KEYS[N // 2] else 30)}  # short ones are not compressed


@pytest.fixture
def closed(tmp_path):
    """The file of a closed ledger of 400 calls; every fourth has large parts."""
    made = Ledger(tmp_path / "l")
    for i, key in enumerate(KEYS):
        made.put(record(key, reply=said(key) | (LARGE if i % 4 == 0 else {}), body='{"messages": ["?"]}'))
    made.close()
    return tmp_path / "l" / "calls.sqlite"


def opened_until_whole(directory):
    """Opens and reads until nothing is said to be damaged; returns the replies and the lines that were said."""
    lines = []
    while len(lines) < 5:
        try:
            ledger = Ledger(directory)
            try:
                ledger.have(KEYS)
                replies = {k: r[0] for k, r in ledger.replies(KEYS).items()}
                [ledger.call(k) for k in replies]
                return replies, lines
            finally:
                ledger.close()
        except LimbeckError as error:
            lines.append(str(error))
    raise AssertionError(lines)


def cut(share):
    return lambda data: data[: int(len(data) * share)]


def overwrite(at, by):
    return lambda data: data[: int(len(data) * at)] + by + data[int(len(data) * at) + len(by) :]


@pytest.mark.parametrize(
    ("harm", "least"),
    [(cut(0.5), 1), (cut(0.9), 1), (cut(0.999), N // 2), (overwrite(0.5, b"\xff" * 64), N // 2),
     (overwrite(0.4, bytes(20_000)), N // 2), (overwrite(0.0, b"not a database"), 0)],
    ids=["half", "nine tenths", "a few bytes short", "64 bytes", "five pages", "header"],
)  # fmt: skip
def test_a_harmed_file_is_named_and_set_aside_and_what_is_readable_is_saved(closed, harm, least):
    harmed = harm(closed.read_bytes())
    closed.write_bytes(harmed)
    replies, lines = opened_until_whole(closed.parent)
    assert all(reply == said(key) for key, reply in replies.items())
    assert least <= len(replies) < N
    assert lines and all("\n" not in line and str(closed) in line for line in lines)
    if "set aside as calls.sqlite.damaged" in "".join(lines):
        assert closed.with_name("calls.sqlite.damaged").exists()
    replies, lines = opened_until_whole(closed.parent)
    assert not lines


def test_what_was_spent_on_lost_calls_stays_spent(closed):
    with contextlib.closing(Ledger(closed.parent)) as ledger:
        before = ledger.spent()
    closed.write_bytes(overwrite(0.4, bytes(20_000))(closed.read_bytes()))
    replies, lines = opened_until_whole(closed.parent)
    assert lines and len(replies) < N
    with contextlib.closing(Ledger(closed.parent)) as ledger:
        assert before["calls"] == N and before["money"] > 0 and ledger.spent() == before
        ledger.put(record("bought anew"))
        ledger.flush()
        assert ledger.spent()["calls"] == N + 1


def test_a_byte_changed_in_a_reply_costs_that_reply_alone(closed):
    data = closed.read_bytes()
    inside = data.index(b'{"text":"' + KEYS[5].encode()) + 20
    closed.write_bytes(data[:inside] + b"X" + data[inside + 1 :])
    replies, lines = opened_until_whole(closed.parent)
    assert len(replies) == N - 1
    assert len(lines) == 1 and "holds 1 damaged calls" in lines[0] and "checksum" in lines[0]
    ledger = Ledger(closed.parent)
    assert len(ledger.have(KEYS)) == N - 1 and ledger.spent()["calls"] == N  # it was paid for, and is bought anew
    ledger.close()


def test_a_byte_changed_in_a_pack_is_found_when_its_part_is_asked_for(closed):
    (pack,) = (closed.parent / "blobs").glob("*.pack")
    data = bytearray(pack.read_bytes())
    data[20] ^= 1
    pack.write_bytes(data)
    ledger = Ledger(closed.parent)
    assert len(ledger.replies(KEYS)) == N
    with pytest.raises(LimbeckError, match="holds 1 damaged calls.*set aside: run again"):
        ledger.replies(KEYS, whole=True)
    assert len(ledger.replies(KEYS, whole=True)) == N - 1
    ledger.close()


def test_who_only_reads_names_damage_and_changes_nothing(closed):
    (pack,) = (closed.parent / "blobs").glob("*.pack")
    pack.unlink()
    before = closed.read_bytes()
    ledger = Ledger(closed.parent, readonly=True)
    with pytest.raises(LimbeckError, match="damaged calls.*ends before byte.*running its recipe again"):
        ledger.call(KEYS[0])
    assert ledger.call(KEYS[1])["reply"] == said(KEYS[1])
    ledger.close()
    assert closed.read_bytes() == before


def test_a_stale_log_of_a_damaged_ledger_is_not_played_into_the_new_one(closed):
    ledger = Ledger(closed.parent)
    ledger.put(record("late", reply={"text": "late"}))
    ledger.flush()
    log = closed.with_name("calls.sqlite-wal").read_bytes()
    ledger.close()
    closed.with_name("calls.sqlite-wal").write_bytes(log)
    closed.write_bytes(b"no header" + closed.read_bytes()[9:])
    replies, lines = opened_until_whole(closed.parent)
    assert len(lines) == 1 and all(reply == said(key) for key, reply in replies.items())


class Life(RuleBasedStateMachine):
    """Any order of buying, killing, reopening, borrowing and harming gives back exactly what was durable."""

    def __init__(self):
        super().__init__()
        self.home = Path(tempfile.mkdtemp())
        self.ledger = Ledger(self.home / "run" / "ledger")
        self.lender = Ledger(self.home / "other" / "ledger")
        self.durable, self.put, self.lent, self.lives = {}, {}, {}, 0

    keys = st.integers(0, 30).map(lambda i: f"{i:032x}")
    replies = st.fixed_dictionaries({"text": st.text(max_size=600)}, optional={"vector": st.lists(st.floats(-1, 1))})

    @rule(key=keys, reply=replies)
    def buy(self, key, reply):
        self.ledger.put(record(key, reply=reply))
        self.put.setdefault(key, reply)

    @rule()
    def flush(self):
        self.ledger.flush()
        self.durable = {**self.put, **self.durable}
        self.put = {}

    @rule(key=keys, reply=replies)
    def lend(self, key, reply):
        self.lender.put(record(key, reply=reply))
        self.lender.flush()
        self.lent.setdefault(key, reply)

    @rule(keys=st.lists(keys, max_size=8, unique=True))
    def borrow(self, keys):
        taken = self.ledger.borrow(self.home / "other", keys)
        assert taken == set(keys) & self.lent.keys()
        self.durable = {**{k: self.lent[k] for k in taken}, **self.put, **self.durable}
        self.put = {}

    @rule()
    def kill(self):
        """What a killed process leaves: the files as they are, whatever was not committed missing."""
        self.flush()
        self.lives += 1
        shutil.copytree(self.home / "run", self.home / f"run-{self.lives}")
        self.ledger.close()
        shutil.rmtree(self.home / "run")
        (self.home / f"run-{self.lives}").rename(self.home / "run")
        self.ledger = Ledger(self.home / "run" / "ledger")

    @precondition(lambda self: self.durable)
    @rule(data=st.data())
    def harm(self, data):
        """One byte of one stored reply changes."""
        self.flush()
        key = data.draw(st.sampled_from(sorted(self.durable)))
        stored = bytearray(self.ledger._all("select reply from call where key = ?", (key,))[0][0])
        stored[data.draw(st.integers(0, len(stored) - 1))] ^= data.draw(st.integers(1, 255))
        with self.ledger._db as db:
            db.execute("update call set reply = ? where key = ?", (bytes(stored), key))
        with pytest.raises(LimbeckError, match="1 damaged calls"):
            self.ledger.replies([key])
        del self.durable[key]

    @invariant()
    def what_is_durable_is_there(self):
        held = self.ledger.replies(list(self.durable), whole=True)
        assert {k: reply for k, (reply, _) in held.items()} == self.durable
        assert self.ledger.have(list(self.durable)) == self.durable.keys()

    def teardown(self):
        self.ledger.close()
        self.lender.close()
        shutil.rmtree(self.home)


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=12, stateful_step_count=12, deadline=None)
