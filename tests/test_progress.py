"""What is seen of long work: a line that fits, events for machines, one sentence at the end."""

import asyncio
import io
import json
import sys
import time

import pytest

import limbeck as lb
from limbeck import lane, progress
from limbeck.models.base import Price
from limbeck.models.fake import Fake
from limbeck.progress import Progress, fitted, summary
from tests.loopback import loopback

LOOK = {
    "done": 1234, "total": 5000, "rate": 417.2, "seconds_left": 83.0, "tokens_per_second": 12345.0, "money": 0.42,
    "projected": 1.80, "in_flight": 37, "width": 64, "retries": {"timeout": 3, "HTTP 429": 9},
    "failed": {"HTTP 401": 2},
}  # fmt: skip


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


@pytest.fixture
def open_terminal(monkeypatch):
    """Makes standard error a terminal, from when the test says so, and gives what is written there."""

    def made():
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", "150")
        monkeypatch.setattr(sys, "stderr", Terminal())
        return sys.stderr

    return made


def rows(n):
    return lb.Table.from_rows({"prompt": f"question {i}"} for i in range(n))


def line(width, **other):
    return "  ".join(fitted("answer", "openai/gpt-5-mini", LOOK | other, width).values())


def test_a_wide_line_tells_everything():
    assert line(250) == (
        f"answer  {'━' * 5}{'─' * 19}  1,234/5,000  417/s  1:23 left  $0.42 of about $1.80  37/64 in flight  "
        "2 unanswered  12 retried: 9 HTTP 429, 3 timeout  1.23k tokens/s  openai/gpt-5-mini"
    ).replace("1.23k", "12.3k")


def test_a_narrow_line_fits_and_keeps_what_matters_most():
    for width in range(30, 250):
        assert len(line(width)) <= width
    assert "12 retried  " not in line(120) and line(120).endswith("12 retried")
    assert line(30) == "answer  1,234/5,000  1:23 left"
    assert fitted("a label that is much too long", "", LOOK, 22) == {"label": "a label…", "done": "1,234/5,000"}


def test_once_it_is_stopped_it_says_that_it_drains():
    assert "37/64 in flight" in line(120, stopping=True) and "1:23 left" not in line(120, stopping=True)
    assert line(30, stopping=True) == "answer  1,234/5,000  stopping"


def test_what_is_not_known_is_not_shown():
    bare = {"done": 3, "total": None, "rate": 0.0, "seconds_left": None, "tokens_per_second": 0.0, "money": 0.0,
            "projected": None}  # fmt: skip
    assert fitted("read", "", bare, 80) == {"label": "read", "done": "3"}


def test_rate_time_left_and_projected_total_come_from_the_counts(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    bar = Progress("ask", 1000, shown=False)
    bar.state = lambda: {"tokens": [bar.done * 2, bar.done], "in_flight": 7, "width": 8}
    for _ in range(100):
        now[0] += 1.0
        bar.advance(5, money=0.01)
        look = bar.look()
    assert look["done"] == 500 and look["rate"] == 5.0 and look["seconds_left"] == 100.0
    assert look["money"] == pytest.approx(1.0) and look["projected"] == pytest.approx(2.0)
    assert look["tokens_per_second"] == 15.0 and look["in_flight"] == 7
    for _ in range(40):  # half a minute later nothing is left of the old rate
        now[0] += 1.0
        bar.advance(1)
        look = bar.look()
    assert look["rate"] == pytest.approx(1.0, rel=0.05)


def test_a_bar_is_drawn_on_a_terminal_and_nowhere_else(open_terminal, monkeypatch):
    terminal = open_terminal()
    with Progress("train", 4, shown=True, note="loss 2.5") as bar:
        bar.advance(2)
        time.sleep(0.3)
    drawn = terminal.getvalue()
    assert "train" in drawn and "2/4" in drawn and "loss 2.5" in drawn
    for shown, stream in ((True, io.StringIO()), (False, Terminal())):
        monkeypatch.setattr(sys, "stderr", stream)
        with Progress("train", 4, shown=shown) as bar:
            bar.advance(2)
        assert stream.getvalue() == ""


def test_what_a_recipe_prints_goes_where_it_is_sent_while_a_bar_is_drawn(open_terminal, capsys):
    terminal = open_terminal()
    with Progress("ask", 4, shown=True) as bar:
        print("a line of the user's")
        bar.advance()
    assert capsys.readouterr().out == "a line of the user's\n" and "user's" not in terminal.getvalue()


def test_an_ask_ends_in_one_line_that_says_what_it_came_to(tmp_path, open_terminal, monkeypatch):
    terminal = open_terminal()
    monkeypatch.setattr(lane, "FIRST_BACKOFF", 0.01)

    def answer(messages, k):
        return "no" if messages[-1]["content"].endswith("7") else "[1]"

    with loopback(answer, trouble=lambda body, tries: 500 if tries < 2 else None) as server:
        model = lb.models.get("openai/m", base_url=server.url, price=(1e6, 0))
        with lb.Run(tmp_path):
            lb.ask(rows(4), model, "{prompt}", parse="json")
            lb.ask(rows(10), model, "{prompt}", parse="json")
    last = [said for said in terminal.getvalue().splitlines() if "calls bought" in said][-1]
    told = last.rpartition("'{prompt}': ")[2]
    assert told.startswith("9 rows; 6 calls bought, 4 replayed in ")
    assert told.endswith("18 tokens, $12.00; 12 retried (HTTP 500); 1 left out (no JSON)")


def test_an_ask_that_stopped_says_so():
    look = {"bought": 3, "tokens": [5, 7], "money": 0.5, "unpriced": 1, "retries": {}, "failed": {"timeout": 2}}
    assert summary("ask", [look, look], 0, None, 100.0) == (
        "ask: stopped; 6 calls bought in 2 min, 24 tokens, $1.00 and 2 calls of unknown price; 4 unanswered (timeout)"
    )
    rejected = {f"reason {n}": n for n in range(1, 8)}
    assert summary("ask", [], 5, {"out": 5, "rejected": rejected}, 1.0) == (
        "ask: 5 rows; 5 replayed in 1 s; 28 left out (7 reason 7, 6 reason 6, 5 reason 5, 4 reason 4, 3 reason 3, …)"
    )


def test_how_a_purchase_goes_is_told_to_machines(tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "TOLD_EVERY", 0.05)

    async def brain(request):
        await asyncio.sleep(0.05)
        return lb.Reply("x", prompt_tokens=3, completion_tokens=1)

    with lb.Run(tmp_path, progress=False):
        lb.ask(rows(12), Fake(brain, price=Price(1e6, 1e6), max_concurrency=2), "{prompt}")
    events = [json.loads(told) for told in (tmp_path / "events.jsonl").read_text().splitlines()]
    told = [e for e in events if e["event"] == "progress"]
    kinds = [e["event"] for e in events]
    assert (
        len(told) >= 3 and kinds.index("ask") < kinds.index("progress") and kinds[-3:] == ["bought", "stage", "close"]
    )
    middle = told[len(told) // 2]
    assert middle["v"] == 1 and middle["site"] == "1:ask" and middle["total"] == 12 and 0 < middle["done"] < 12
    assert middle["in_flight"] == middle["width"] == 2 and middle["retries"] == {} and middle["rate"] > 0
    assert middle["money"] == pytest.approx(4.0 * middle["done"]) and middle["projected"] == pytest.approx(48.0)
    assert middle["tokens"] == [3 * middle["bought"], middle["bought"]] and middle["seconds_left"] > 0


def test_the_terms_of_a_model_are_said_once_before_its_first_call(tmp_path, capsys):
    said = []

    def brain(request):
        said.append(capsys.readouterr().err)
        return "x"

    model = Fake(brain, max_concurrency=1)
    model.terms = "read them"
    for shown in (["terms of fake: read them\n", *[""] * 5], []):  # the second time all is held already
        said.clear()
        with lb.Run(tmp_path, progress=False):
            lb.ask(rows(3), model, "{prompt}", parse="json")
            lb.ask(rows(3), model, "Again: {prompt}", into="again")
        assert said == shown and capsys.readouterr().err == ""
    events = [json.loads(told) for told in (tmp_path / "events.jsonl").read_text().splitlines()]
    (noted,) = [e for e in events if e["event"] == "terms"]
    assert noted["model"] == "fake" and noted["digest"] == model.digest and noted["terms"] == "read them"
