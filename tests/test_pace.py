"""Pace: limits that follow the endpoint, rates that are never passed, pauses that are obeyed. Time is simulated."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.models.base import Room
from limbeck.pace import LEAST_BY_LATENCY, MOST, START, Pace


class Server:
    """Answers `capacity` calls at a time and refuses the rest; or, with `queues`, lets them wait their turn."""

    def __init__(self, pace: Pace, capacity: int, seconds: float = 1.0, queues: bool = False):
        self.pace, self.capacity, self.seconds, self.queues = pace, capacity, seconds, queues
        self.now, self.tries, self.answered = 0.0, 0, 0
        self.flying: list[tuple[float, float, bool]] = []  # (ends, started, refused)
        self.free = [0.0] * capacity

    def run(self, until: int) -> None:
        while self.answered < until:
            while len(self.flying) < self.pace.width and not self.pace.wait(self.now):
                self.pace.start()
                self.tries += 1
                busy = sum(not refused for *_, refused in self.flying)
                if busy >= self.capacity and not self.queues:
                    self.flying.append((self.now + 0.01, self.now, True))
                    continue
                slot = min(range(self.capacity), key=self.free.__getitem__)
                begins = max(self.now, self.free[slot]) if self.queues else self.now
                self.free[slot] = begins + self.seconds
                self.flying.append((begins + self.seconds * random.uniform(0.9, 1.1), self.now, False))
            self.flying.sort()
            ends, started, refused = self.flying.pop(0)
            self.now = max(self.now, ends)
            if refused:
                self.pace.pushed_back(self.now, started)
            else:
                self.answered += 1
                self.pace.answered(self.now, started, 100, len(self.flying) + 1)


@pytest.mark.parametrize("capacity", [3, 8, 40, 120])
def test_a_server_that_refuses_more_is_filled_and_hardly_pushed(capacity):
    random.seed(0)
    server = Server(Pace(), capacity)
    server.run(40 * capacity)
    assert 0.5 * capacity <= server.pace.limit <= 1.6 * capacity + 2
    tries, done = server.tries, server.answered
    server.run(done + 40 * capacity)
    assert (server.tries - tries) / (40 * capacity) < 1.3
    assert server.now < 1.5 * (80)  # seconds: not far from the best there is, one call a second in each place


def test_a_server_that_takes_everything_is_given_everything():
    server = Server(Pace(), 2000)
    server.run(4000)
    assert server.pace.limit == MOST


def test_answers_that_only_get_slower_end_the_growth():
    random.seed(0)
    server = Server(Pace(), 24, queues=True)
    server.run(4000)
    assert LEAST_BY_LATENCY <= server.pace.limit <= 100 < MOST


def test_a_limit_that_was_given_is_the_limit_from_the_start_and_slow_answers_do_not_lower_it():
    server = Server(Pace(most=100), 10, queues=True)
    assert server.pace.width == 100
    server.run(3000)
    assert server.pace.width == 100


def test_lone_errors_at_any_load_change_little():
    random.seed(1)
    pace, now = Pace(most=64), 0.0
    for _ in range(5000):
        now += 0.001
        if random.random() < 0.05:
            pace.pushed_back(now, now - 0.05)
        else:
            pace.answered(now, now - 0.05, 10, 64)
    assert pace.width > 40


def test_one_burst_of_refusals_halves_once():
    pace = Pace(most=64)
    for _ in range(64):
        pace.pushed_back(10.0, 9.0)
    assert pace.width == 32
    assert Pace().width == START


@settings(max_examples=50, deadline=None)
@given(rate=st.floats(0.5, 2000), per=st.sampled_from(["per_second", "per_minute"]), seed=st.integers(0, 99))
def test_no_window_ever_holds_more_requests_than_the_rate_and_a_tenth_of_a_second(rate, per, seed):
    draw, now, pace = random.Random(seed), 100.0, Pace(**{per: rate})
    window = 1.0 if per == "per_second" else 60.0
    starts: list[float] = []
    while len(starts) < 300:
        wait = pace.wait(now)
        if wait > 0:
            now += wait * draw.choice([0.3, 1.0, 1.0, 1.7])
        else:
            pace.start()
            starts.append(now)
    burst = max(1.0, rate / window / 10)
    for i, first in enumerate(starts):
        within = sum(first <= s < first + window for s in starts[i:])
        assert within <= rate + burst + 1


def test_tokens_are_guessed_before_and_corrected_after():
    pace, now, used = Pace(tokens_per_minute=60_000), 0.0, 0.0
    for _ in range(400):
        now += pace.wait(now)
        guess = pace.start(prompt_tokens=100)
        now += 0.001
        pace.end(guess, 150)
        pace.answered(now, now - 0.001, 50, 1)
        used += 150
    assert used <= 1000 * now + 1000 + 400  # a second's worth at first, and one call on top
    assert used >= 0.9 * 1000 * now


def test_nothing_starts_before_the_endpoint_has_room_again():
    pace = Pace()
    pace.told(Room(requests=3, requests_reset=5.0), 10.0)
    assert pace.wait(10.0) == 0
    pace.told(Room(requests=0, requests_reset=5.0, tokens=100, tokens_reset=1.0), 10.0)
    assert pace.wait(10.0) == 5.0 and pace.wait(15.1) == 0
    pace.told(Room(tokens=0, tokens_reset=2.0), 20.0)
    assert pace.wait(20.0) == 2.0


def test_the_longest_pause_wins():
    pace = Pace()
    pace.pause(30.0)
    pace.pause(20.0)
    assert pace.wait(10.0) == 20.0
