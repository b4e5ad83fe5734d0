"""How much one endpoint takes: calls in flight that grow and shrink with it, rates that are kept, pauses obeyed.

The limit is additive increase, multiplicative decrease, as TCP has it: it doubles a round while all goes well, halves
when the endpoint pushes back, and from then on grows by one a round. A round is as many answers as the limit. Unlike
TCP, a few lone push-backs in a round change nothing: some servers throw errors at any load.
"""

import statistics
from typing import Any

START, MOST = 32, 512  # calls in flight where nothing is known yet; and ever
LEAST_BY_LATENCY = 16  # slow answers alone never bring it below
WINDOW = 20  # answers at least by which latency is judged
TOO_SLOW, NO_GAIN = 2.0, 1.05  # so much slower than at its best, and no more answers a second for it
PUSHED = 0.2  # of a round's calls pushed back: too many are in flight
PUSHES_BACK = {"HTTP 408", "HTTP 425", "HTTP 429", "HTTP 503", "HTTP 529", "timeout"}


class Pace:
    """One endpoint's limits. Times are seconds of one monotonic clock, which the caller reads."""

    def __init__(
        self,
        most: int | None = None,
        per_second: float | None = None,
        per_minute: float | None = None,
        tokens_per_minute: float | None = None,
    ):
        self.fixed = most is not None
        self.most = most or MOST
        self.limit: float = most or min(START, MOST)
        self.doubling = True
        self.eased = -1.0  # when it was last lowered
        self.paused_until = 0.0
        self._round, self._pushed = 0, 0  # outcomes of this round; those that pushed back
        self._requests = [_Bucket(r / s, r / s / 10) for r, s in ((per_second, 1), (per_minute, 60)) if r]
        self._tokens = _Bucket(tokens_per_minute / 60, tokens_per_minute / 60) if tokens_per_minute else None
        self._written = 256.0  # tokens of an answer, as seen so far
        self._recent: list[float] = []
        self._since, self._window = -1.0, max(WINDOW, self.width)
        self._best_latency, self._best_rate = float("inf"), 0.0

    @property
    def width(self) -> int:
        """How many calls may be in flight now."""
        return max(1, int(self.limit))

    @property
    def counts_tokens(self) -> bool:
        return self._tokens is not None

    def wait(self, now: float) -> float:
        """Seconds until one more call may start; 0 when it may now."""
        waits = [b.wait(now, 1.0) for b in self._requests]
        if self._tokens:
            waits.append(self._tokens.wait(now, 1.0))
        return max(self.paused_until - now, 0.0, *waits)

    def start(self, prompt_tokens: float = 0.0) -> float:
        """Books one call and returns the tokens that it is thought to take."""
        for bucket in self._requests:
            bucket.level -= 1.0
        if self._tokens is None:
            return 0.0
        guess = prompt_tokens + self._written
        self._tokens.level -= guess  # may go below nothing: one large call waits for no larger bucket than there is
        return guess

    def end(self, guess: float, tokens: float) -> None:
        """Corrects a guess once it is known what the call took (0: it failed)."""
        if self._tokens is not None:
            self._tokens.level += guess - tokens

    def pause(self, until: float) -> None:
        self.paused_until = max(self.paused_until, until)

    def told(self, room: Any, now: float) -> None:
        """Obeys what the endpoint says it has left: nothing starts before it has something again."""
        for left, reset, least in ((room.requests, room.requests_reset, 1), (room.tokens, room.tokens_reset, 1)):
            if left is not None and left < least and reset:
                self.pause(now + min(reset, 60.0))

    def answered(self, now: float, started: float, written: int, running: int) -> None:
        """Takes note of an answer: room for more, unless answers only get slower for it."""
        self._written += 0.05 * (written - self._written)
        self._count(False)
        if not self.fixed and self._congested(now, now - started):
            self._ease(now, 0.9, LEAST_BY_LATENCY)
        elif running >= self.width - 1 and self.limit < self.most:  # what is not used tells nothing
            self.limit = min(self.most, self.limit + (1.0 if self.doubling else 1.0 / self.limit))

    def pushed_back(self, now: float, started: float) -> None:
        """Halves the limit where many are pushed back, once for all calls that were in flight together."""
        if started <= self.eased:
            return
        self.doubling = False
        if self._pushed + 1 >= max(1.0, PUSHED * self.limit):
            self._ease(now, 0.5, 1)
        else:
            self._count(True)

    def _count(self, pushed: bool) -> None:
        self._round += 1
        self._pushed += pushed
        if self._round > self.limit:
            self._round, self._pushed = 0, 0

    def _ease(self, now: float, factor: float, least: float) -> None:
        self.limit = max(min(least, self.limit), self.limit * factor)
        self.eased, self.doubling = now, False
        self._round, self._pushed = 0, 0

    def _congested(self, now: float, seconds: float) -> bool:
        """At the end of a window: answers take twice as long as they did at best, and no more of them come."""
        if self._since < 0:
            self._since = now
        self._recent.append(seconds)
        if len(self._recent) < self._window:
            return False
        latency, rate = statistics.median(self._recent), len(self._recent) / max(now - self._since, 1e-9)
        slow = latency > TOO_SLOW * self._best_latency and rate < NO_GAIN * self._best_rate
        if rate < 0.8 * self._best_rate:  # fewer, not just later: what is asked is now longer, the best was another's
            self._best_latency *= 1.2
        self._best_latency = min(latency, self._best_latency)
        self._best_rate = max(rate, self._best_rate * 0.98)
        self._recent, self._since, self._window = [], now, max(WINDOW, self.width)
        return slow


class _Bucket:
    """What a rate allows now: `level` fills by `rate` a second, up to `most`."""

    def __init__(self, rate: float, most: float):
        self.rate, self.most = rate, max(1.0, most)
        self.level, self._at = self.most, -1.0

    def wait(self, now: float, amount: float) -> float:
        if self._at >= 0:
            self.level = min(self.most, self.level + (now - self._at) * self.rate)
        self._at = now
        lacking = amount - self.level
        return lacking / self.rate if lacking > 1e-6 else 0.0
