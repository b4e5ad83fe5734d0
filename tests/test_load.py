"""As many calls at a time as a server takes, the rates that were asked for, and several servers for one model."""

import contextlib
import json
from collections import Counter

import pytest

import limbeck as lb
from limbeck import lane
from tests.loopback import loopback


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(lane, "FIRST_BACKOFF", 0.02)


def ask(directory, servers, n, **options):
    """Asks n questions of one server, or of several as one model; gives the last line about buying in events.jsonl."""
    with lb.Run(directory, progress=False):
        table = lb.ask(questions(n), model(servers, **options), "{prompt}")
        assert [row["prompt"] for row in table] == [f"question {i}" for i in range(n)]
    lines = (directory / "events.jsonl").read_text().splitlines()
    assert sum(s.bought for s in servers) == n  # nothing twice, whoever answered
    return next(e for e in map(json.loads, reversed(lines)) if e["event"] == "bought")


def questions(n):
    return lb.Table.from_rows({"prompt": f"question {i}"} for i in range(n))


def model(servers, **options):
    urls = [s.url for s in servers]
    return lb.models.get("openai/m", base_url=urls if len(urls) > 1 else urls[0], **options)


def in_flight(server, since=0.5):
    """How many calls were with the server on average, from the middle of its work on."""
    spans = [(r["at"], r["answered"]) for r in server.requests if r["status"] == 200]
    first, last = min(a for a, _ in spans), max(b for _, b in spans)
    begin = first + since * (last - first)
    return sum(b - max(a, begin) for a, b in spans if b > begin) / (last - begin)


def most_within(server, seconds):
    """The most calls that came in any span of so many seconds."""
    at = sorted(r["at"] for r in server.requests)
    return max(sum(a <= b < a + seconds for b in at) for a in at)


@pytest.mark.parametrize("capacity", [8, 24])
def test_a_server_with_a_hard_limit_is_filled_and_not_hammered(tmp_path, capacity):
    with loopback(capacity=capacity, latency=0.03) as server:
        event = ask(tmp_path, [server], 40 * capacity)
        assert len(server.requests) <= 1.3 * 40 * capacity
        assert Counter(event["retries"]) == Counter({"HTTP 429": server.statuses[429]})
        assert in_flight(server) > 0.5 * capacity


def test_a_fixed_concurrency_is_kept_whatever_happens(tmp_path):
    with loopback(latency=0.01, fail=0.1, code=503) as server:
        ask(tmp_path, [server], 200, max_concurrency=7)
        assert server.most_in_flight == 7


def test_a_server_that_gets_slower_with_each_call_is_not_asked_twice(tmp_path):
    """Beyond 16 at a time every call waits for the others; `tests/test_pace.py` shows that growth ends."""
    with loopback(latency=0.02, saturation=16) as server:
        event = ask(tmp_path, [server], 500)
        assert event["retries"] == {} and len(server.requests) == 500 and in_flight(server) > 10


def test_a_server_that_takes_it_all_is_sent_more_and_more(tmp_path):
    with loopback(latency=0.1) as server:
        ask(tmp_path, [server], 1200)
        assert server.most_in_flight > 100


@pytest.mark.parametrize(
    ("option", "rate", "n"), [("requests_per_second", 40.0, 60), ("requests_per_minute", 1200.0, 30)]
)
def test_rates_that_were_asked_for_are_kept_by_the_servers_clock(tmp_path, option, rate, n):
    a_second = rate if option == "requests_per_second" else rate / 60
    with loopback(latency=0.01) as server:
        ask(tmp_path, [server], n, **{option: rate})
        assert most_within(server, 0.5) <= 0.5 * a_second + 0.1 * a_second + 2  # a tenth may come at once
        took = server.requests[-1]["at"] - server.requests[0]["at"]
        assert took < 1.3 * n / a_second  # and not much less than was allowed


def test_tokens_a_minute_are_kept_by_what_was_really_written(tmp_path):
    """A call takes 5 tokens, and 200 come with each second: 40 calls may start at once, and 40 a second after that."""
    with loopback(latency=0.01) as server:
        ask(tmp_path, [server], 100, tokens_per_minute=12_000, max_concurrency=4)
        took = server.requests[-1]["at"] - server.requests[0]["at"]
        assert (100 * 5 - 200) / 200 * 0.8 < took < 5.0


@pytest.mark.parametrize("tell", [False, True], ids=["Retry-After", "x-ratelimit"])
def test_a_servers_own_rate_is_found_and_obeyed(tmp_path, tell):
    with loopback(rate=(25, 0.5), tell=tell, latency=0.005) as server:
        event = ask(tmp_path, [server], 100)
        assert len(server.requests) <= (1.3 if tell else 1.6) * 100
        assert event["failed"] == {}


@contextlib.contextmanager
def servers(*settings):
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(loopback(**s)) for s in settings]


def test_calls_go_to_whoever_answers_sooner(tmp_path):
    with servers({"latency": 0.01}, {"latency": 0.08}) as (fast, slow):
        ask(tmp_path, [fast, slow], 400, max_concurrency=8)
        assert fast.bought > 2 * slow.bought > 0


def test_equal_servers_share_the_work(tmp_path):
    with servers(*[{"latency": 0.02}] * 3) as equals:
        ask(tmp_path, equals, 300, max_concurrency=4)
        assert min(s.bought for s in equals) > 60


def test_a_dead_server_among_others_costs_a_few_tries_and_no_row(tmp_path):
    with servers(*[{"latency": 0.01}] * 3) as (one, other, dead):
        url, _ = dead.url, dead.away()
        event = ask(tmp_path, [one, other, dead], 300)
        assert url == dead.url and dead.bought == 0 and event["failed"] == {}
        assert set(event["retries"]) == {"connect"} and event["retries"]["connect"] < 60


def test_a_server_that_comes_back_is_used_again(tmp_path):
    def comes_back(body, tries):
        if one.bought == 100 and not back:
            back.append(1)
            other.restart(after=0.0)
        return None

    back = []
    with servers({"latency": 0.01, "trouble": comes_back}, {"latency": 0.01}) as (one, other):
        other.away()
        ask(tmp_path, [one, other], 500, max_concurrency=4)
        assert back and other.bought > 50


def test_a_flaky_server_among_others_loses_nothing(tmp_path):
    with servers({"latency": 0.01}, {"latency": 0.01, "fail": 0.5}) as (sound, flaky):
        event = ask(tmp_path, [sound, flaky], 300)
        assert event["retries"]["HTTP 500"] == flaky.statuses[500] > 0 and event["failed"] == {}


def test_all_servers_dead_is_incomplete_soon(tmp_path):
    with servers({}, {}) as (one, other):
        one.away(), other.away()
        with pytest.raises(lb.Incomplete, match="connect"):
            ask(tmp_path, [one, other], 300, retries=2)


@pytest.mark.parametrize("sick", [{"fail": 1.0, "code": 503}, {"fail": 1.0, "code": 429}])
def test_a_replica_that_only_pushes_back_is_set_aside_for_a_sound_one(tmp_path, sick):
    with loopback(latency=0.05) as sound, loopback(**sick) as bad:
        ask(tmp_path, [bad, sound], 400)
        assert sound.bought == 400 and len(bad.requests) < 150


def test_a_server_that_is_gone_is_not_hammered(tmp_path):
    with loopback() as server:
        url = server.url
    model = lb.models.get("openai/m", base_url=url, retries=2)
    with lb.Run(tmp_path, progress=False) as run, pytest.raises(lb.Incomplete):
        lb.ask(lb.Table.from_rows({"prompt": f"question {i}"} for i in range(500)), model, "{prompt}")
    (bought,) = [e for e in map(json.loads, (run.dir / "events.jsonl").open()) if e["event"] == "bought"]
    assert sum(bought["retries"].values()) < 200
