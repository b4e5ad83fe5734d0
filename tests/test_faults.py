"""What goes wrong between here and a server: every row still gets its answer, nothing is bought twice, all is counted.

`server.bought` counts the answers sent whole, and the ledger holds exactly those. `server.lost` counts those
that were made and spoiled on the way: a provider may bill them, no client can keep them, and they are asked for again.
"""

import email.utils
import json
import shutil
import time
from collections import Counter

import pytest

import limbeck as lb
from limbeck import lane
from tests import faulty
from tests.loopback import loopback, numbered

# What events.jsonl calls each of the server's misbehaviours.
CAUSES = {
    "disconnect": "disconnect", "reset": "disconnect", "reset body": "short body", "cut": "short body",
    "garbage": "no HTTP", "drip": "timeout", "stall": "timeout", "stall body": "timeout", "broken": "broken body",
    "empty": "empty", "page": "HTTP 502", "page 200": "HTML page", "error 200": "HTTP 503",
}  # fmt: skip


def cause(trouble):
    return CAUSES[trouble] if isinstance(trouble, str) else f"HTTP {trouble}"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(lane, "FIRST_BACKOFF", 0.02)
    monkeypatch.setattr(lane, "LONGEST_BACKOFF", 0.2)


def questions(n):
    return lb.Table.from_rows({"prompt": f"question {i}"} for i in range(n))


def ask(directory, urls, n, **options):
    """Asks n questions; gives the table and the last line about buying in events.jsonl."""
    try:
        with lb.Run(directory, progress=False):
            table = lb.ask(questions(n), lb.models.get("openai/m", base_url=urls, **options), "{prompt}")
    finally:
        lines = (directory / "events.jsonl").read_text().splitlines()
        ask.bought = next(e for e in map(json.loads, reversed(lines)) if e["event"] == "bought")
    return table, ask.bought


def spent(directory):
    with lb.Run(directory, progress=False) as run:
        return run.ledger.spent()["calls"]


def is_whole(table, n):
    """Every row, in order, with the answer to its own question."""
    rows = list(table)
    assert [row["prompt"] for row in rows] == [f"question {i}" for i in range(n)]
    for row in rows:
        made = numbered([{"role": "user", "content": row["prompt"]}], 0)
        assert row["response"].rpartition(" #")[0] == made.rpartition(" #")[0]


def is_paid_once(directory, n, *servers):
    assert spent(directory) == n == sum(s.bought for s in servers)


def is_counted(event, *servers):
    """Each thing that a server did wrong is one retry, under its name."""
    did = sum((s.statuses for s in servers), Counter())
    assert Counter(event["retries"]) == Counter(cause(t) for t in did.elements() if t != 200)


@pytest.mark.parametrize("trouble", [*CAUSES, 408, 425, 429, 500, 502, 503, 504, 529])
def test_each_fault_is_got_over_and_counted_by_its_cause(tmp_path, trouble):
    """Every third question meets it on its first two tries."""

    def first_tries(body, tries):
        return trouble if tries < 2 and int(body["messages"][0]["content"].split()[-1]) % 3 == 0 else None

    with loopback(trouble=first_tries, pause=1.5) as server:
        slow = CAUSES.get(trouble) == "timeout"
        table, event = ask(tmp_path, server.url, 9, timeout=0.6 if slow else 20.0)
        is_whole(table, 9)
        is_paid_once(tmp_path, 9, server)
        assert event["retries"] == {cause(trouble): 6} and event["failed"] == {}
        assert server.lost == (6 if trouble in faulty.AFTER_ANSWERING else 0)


@pytest.mark.parametrize("seed", range(3))
def test_a_mixture_of_faults_in_a_heavy_tail_loses_and_doubles_nothing(tmp_path, seed):
    kinds = [500, 429, 503, "reset", "reset body", "cut", "broken", "empty", "page", "error 200", "disconnect"]
    faults = dict.fromkeys(kinds, 0.03)
    with loopback(faults=faults, latency=0.01, jitter=1.0, seed=seed) as server:
        table, event = ask(tmp_path, server.url, 300, retries=12)
        is_whole(table, 300)
        is_paid_once(tmp_path, 300, server)
        is_counted(event, server)
        assert len(set(server.statuses) - {200}) > 8 and server.lost > 0
        tries = Counter(json.dumps(r["body"]["messages"]) for r in server.requests)
        assert sum(tries.values()) == 300 + sum(event["retries"].values())  # nothing was asked for no reason
        shutil.rmtree(tmp_path / "stages")
        again, _ = ask(tmp_path, server.url, 300)
        assert list(again) == list(table) and server.bought == 300


@pytest.mark.parametrize("share", [0.01, 0.05, 0.10])
def test_errors_cost_their_own_number_of_tries_and_no_more(tmp_path, share):
    with loopback(fail=share, code=500, latency=0.005) as server:
        table, event = ask(tmp_path, server.url, 400)
        is_whole(table, 400)
        is_paid_once(tmp_path, 400, server)
        is_counted(event, server)
        assert 0 < len(server.requests) - 400 < 3 * 400 * share


@pytest.mark.parametrize("trouble", [*CAUSES, 429, 500, 503])
def test_a_fault_without_end_is_incomplete_and_keeps_the_rest(tmp_path, trouble):
    def one_row(body, tries):
        return trouble if body["messages"][0]["content"] == "question 4" else None

    slow = CAUSES.get(trouble) == "timeout"
    with loopback(trouble=one_row, pause=1.5) as server:
        options = {"retries": 1, "timeout": 0.6 if slow else 20.0}
        with pytest.raises(lb.Incomplete, match="1 calls got no answer") as stopped:
            ask(tmp_path, server.url, 10, **options)
        assert stopped.value.exit_code == 4 and "\n" not in str(stopped.value)
        assert ask.bought["failed"] == {cause(trouble): 1} and ask.bought["retries"] == {cause(trouble): 1}
        assert not list((tmp_path / "stages").glob("ask-*"))
        is_paid_once(tmp_path, 9, server)
        server.trouble = None
        table, event = ask(tmp_path, server.url, 10, **options)
        is_whole(table, 10)
        is_paid_once(tmp_path, 10, server)
        assert event["calls"] == 1


@pytest.mark.parametrize("trouble", ["redirect", 401, 404])
def test_what_no_retry_mends_ends_at_once_and_says_where_to_look(tmp_path, trouble):
    with loopback(trouble=lambda body, tries: trouble) as server:
        with pytest.raises(lb.Incomplete, match="base_url|key") as stopped:
            ask(tmp_path, server.url, 200, max_concurrency=8)
        assert stopped.value.exit_code == 4 and len(server.requests) <= 8 and server.bought == 0


def test_a_redirect_is_never_followed_for_it_would_carry_the_key_away(tmp_path):
    with loopback() as elsewhere, loopback(trouble=lambda body, tries: "redirect") as server:
        with pytest.raises(lb.Incomplete, match="307"):
            ask(tmp_path, server.url, 2, api_key="sk-mine")
        assert not elsewhere.requests


@pytest.mark.skipif(not shutil.which("openssl"), reason="openssl makes the certificate")
def test_a_certificate_that_nobody_vouches_for_is_refused_before_anything_is_said(tmp_path):
    with loopback(tls=faulty.certificate(tmp_path)) as server:
        with pytest.raises(lb.Incomplete, match="certificate") as stopped:
            ask(tmp_path / "run", server.url, 50, retries=1, api_key="sk-mine")
        assert stopped.value.exit_code == 4 and not server.requests


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_waited_out(tmp_path, status, form):
    def busy(body, tries):
        if tries or len(server.requests) > 1:
            return None
        server.headers["Retry-After"] = "0.5" if form == "seconds" else email.utils.formatdate(time.time() + 1.5)
        return status

    with loopback(trouble=busy) as server:
        table, event = ask(tmp_path, server.url, 5, max_concurrency=1)
        is_whole(table, 5)
        assert event["retries"] == {f"HTTP {status}": 1}
        pause = server.requests[1]["at"] - server.requests[0]["at"]
        assert 0.5 <= pause + 0.01 < 2.5  # a date has whole seconds: of 1.5 at least 0.5 remains


def test_a_server_that_dies_and_comes_back_on_the_same_port(tmp_path):
    """What was on the wire is asked again; nothing that had arrived is."""
    died = []

    def dies(body, tries):
        if server.bought >= 20 and not died:
            died.append(time.time())
            server.restart(after=0.4)
        return None

    with loopback(trouble=dies, latency=0.01) as server:
        table, event = ask(tmp_path, server.url, 60, max_concurrency=4, retries=12)
        is_whole(table, 60)
        is_paid_once(tmp_path, 60, server)
        assert died and sum(event["retries"].values()) >= 4 and set(event["retries"]) <= {"connect", "disconnect"}


def test_a_server_that_drops_idle_connections_costs_nothing(tmp_path):
    with loopback(keepalive=0.05) as server, lb.Run(tmp_path, progress=False):
        model = lb.models.get("openai/m", base_url=server.url)
        for salt in range(3):
            assert len(lb.ask(questions(5), model, "{prompt}", salt=salt)) == 5
            time.sleep(0.15)
        assert server.bought == 15
    bought = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert not any(e["retries"] for e in bought if e["event"] == "bought")


def test_a_body_that_drips_is_an_answer_where_there_is_time(tmp_path):
    with loopback(trouble=lambda body, tries: "drip", pause=0.001) as server:
        table, event = ask(tmp_path, server.url, 5, timeout=20.0)
        is_whole(table, 5)
        assert event["retries"] == {} and spent(tmp_path) == 5


def test_an_answer_that_stops_halfway_is_given_up_long_before_its_time_is_over(tmp_path):
    with loopback(trouble=lambda body, tries: None if tries else "stall body") as server:
        started = time.monotonic()
        table, event = ask(tmp_path, server.url, 5, timeout=20.0, stall=0.2)
        is_whole(table, 5)
        assert event["retries"] == {"stall": 5} and time.monotonic() - started < 10


@pytest.mark.skipif(not shutil.which("openssl"), reason="openssl makes the certificate")
def test_a_server_that_is_trusted_is_spoken_to_in_private(tmp_path, monkeypatch):
    made = faulty.certificate(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(made[0]))
    with loopback(tls=made) as server:
        is_whole(ask(tmp_path / "run", server.url, 5)[0], 5)
        with pytest.raises(lb.Incomplete, match="5 x disconnect|5 x no HTTP"):  # plain words to a private ear
            ask(tmp_path / "plain", server.url.replace("https", "http"), 5, retries=0, max_concurrency=5)


def test_private_words_to_a_plain_ear_say_so(tmp_path):
    with loopback() as server, pytest.raises(lb.Incomplete, match="http://"):
        ask(tmp_path, server.url.replace("http", "https"), 5, retries=0)


def test_stalled_calls_do_not_hold_up_the_others(tmp_path):
    """Two rows stall for ever; the rest is through before the first of them is given up."""

    def two_rows(body, tries):
        return "stall" if body["messages"][0]["content"] in ("question 0", "question 1") else None

    with loopback(trouble=two_rows, pause=30.0, latency=0.005) as server:
        with pytest.raises(lb.Incomplete, match="2 calls got no answer"):
            ask(tmp_path, server.url, 40, timeout=1.2, retries=0, max_concurrency=3)
        last = max(r["answered"] for r in server.requests if r["status"] == 200)
        assert last - server.requests[0]["at"] < 1.2 and server.bought == 38
