"""`limbeck price`: the most that a run can cost, and about what it will, before it."""

import json
from pathlib import Path

import pytest

from limbeck import models
from limbeck.models import Request
from tests.loopback import loopback
from tests.test_cli import BASE

GPT = ("prompts=p.jsonl", "teacher=openai/gpt-5-mini", "--rename", "question=prompt")


@pytest.fixture(autouse=True)
def without_keys(monkeypatch):
    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "GEMINI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def priced(call):
    """The price as JSON."""

    def of(*words):
        code, out, err = call("price", *words, "--json")
        assert code == 0, err
        return json.loads(out)

    return of


def test_a_run_is_priced_without_a_key_and_without_a_trace(place, call):
    code, out, _ = call("price", "mine.py:method", *GPT, "n=2", "--out", "out")
    line = next(told for told in out.splitlines() if told.startswith("1 'Say"))
    assert code == 0 and "openai/gpt-5-mini" in line and "0.25/2" in line
    teacher = models.get("openai/gpt-5-mini", api_key="k")
    asked = [Request([{"role": "user", "content": f"Say: {'q' * n}"}]) for n in range(1, 11)]
    tokens_in, tokens_out = 2 * sum(map(teacher.prompt_tokens_at_most, asked)), 20 * 8
    cost = (0.25 * tokens_in + 2 * tokens_out) / 1e6
    assert line.split()[-6:] == ["20", "0", f"{tokens_in:,}", "160", f"${cost:.4f}", f"${cost / 2:.4f}"]
    assert "OpenAI's terms" in out and "--pilot 20" in out and not Path("out").exists()


def test_what_is_held_is_not_priced_again(place, call, priced):
    assert call("run", "mine.py:method", *BASE, "--limit", "4", "--out", "out")[0] == 0
    told = priced("mine.py:method", *BASE, "--out", "out")
    assert (told["total"]["calls"], told["total"]["replayed"]) == (6, 4)
    assert told["unbounded"] is None and told["estimate"] is None and told["at_most"][0]["site"] == "1:ask"
    assert priced("mine.py:method", *BASE, "--out", "new", "--reuse", "out")["total"]["replayed"] == 4
    code, _, err = call("price", "label", *BASE, "--out", "out")
    assert code == 2 and "holds a run of 'mine:method'" in err


def test_a_pilot_adds_what_it_will_about_cost(place, call, priced):
    with loopback(lambda messages, k: "one two three") as server:
        where = (*GPT, f"teacher.base_url={server.url}", "teacher.price=1000/1000", "--out", "out")
        told = priced("mine.py:method", *where, "--pilot", "4")
        assert server.bought == 4
        found = told["estimate"]
        assert (found["rows"], found["of"], found["ends"], found["spent"]["calls"]) == (4, 10, None, 4)
        assert found["calls"] == [10, 10, 10] and found["money"][0] == pytest.approx(10 * 5 * 1e-3)
        assert found["money"][0] < told["total"]["money"] and told["total"]["calls"] == 10
        code, out, _ = call("price", "mine.py:method", *where, "--pilot", "4")
        assert code == 0 and "pilot: 4 of 10 rows; 0 calls bought now" in out and "all 10 rows at this rate" in out
        assert "$0.05 ($0.05 to $0.05)" in out and server.bought == 4


def test_the_cap_holds_for_the_pilot_too(place, call):
    code, _, err = call("price", "mine.py:method", *BASE, "--out", "out", "--pilot", "4", "--budget", "2 calls")
    assert code == 3 and "budget is used up" in err


def test_what_has_no_bound_is_said_to_have_none(place, call, priced):
    own = ("prompts=p.jsonl", "teacher=openai/own", "teacher.base_url=http://127.0.0.1:1/v1", "--rename",
           "question=prompt")  # fmt: skip
    code, out, _ = call("price", "label", *own)
    assert code == 0 and "no bound on the money: no price is known for 'openai/own'" in out and "unbounded" in out
    assert priced("label", *own)["total"]["money"] is None
    Path("looks.py").write_text(
        "from limbeck import ask\ndef looks(prompts, teacher):\n"
        "    rows = ask(prompts, teacher, '{prompt}', max_tokens=5)\n"
        "    return rows if any(r['response'] == 'x' for r in rows) else ask(rows, teacher, 'Again', into='again')\n"
    )
    code, out, _ = call("price", "looks.py:looks", *BASE)
    assert code == 0 and "beyond that there is no bound: the recipe looks at replies" in out


def test_each_model_of_an_ask_has_a_line_and_all_have_a_total(place, call):
    Path("both.py").write_text(
        "from limbeck import ask\ndef both(prompts, a, b):\n    return ask(prompts, [a, b], '{prompt}', max_tokens=5)\n"
    )
    words = ("both.py:both", "prompts=p.jsonl", "a=openai/gpt-5", "b=gemini/gemini-2.5-pro", *BASE[2:])
    code, out, err = call("price", *words)
    lines = [told.split() for told in out.splitlines()]
    one, other, total = lines[1:4]
    assert code == 0 and one[2] == "openai/gpt-5" and other[2] == "gemini/gemini-2.5-pro" and total[0] == "total", err
    assert other[-1] == other[-2] and one[-1] != one[-2]  # only one of them has a batch API here
    assert total[1] == "20" and total[4] == "100"


def test_without_a_recipe_it_lists_what_models_cost(call, priced):
    code, out, _ = call("price")
    lines = {told.split()[0]: told.split()[1:] for told in out.splitlines()}
    assert code == 0 and lines["gpt-4o-mini"] == ["0.15", "0.6", "16,384"] and "list prices of" in out
    assert priced()["models"]["gpt-4o-mini"] == {"input": 0.15, "output": 0.6, "max_output": 16384}


def test_of_a_model_it_says_price_batch_price_and_terms(call, priced):
    code, out, _ = call("price", "anthropic/claude-sonnet-4-5")
    assert code == 0 and "in batches: 1.5 and 7.5" in out and "terms: Anthropic's" in out
    assert priced("openai/own", "base_url=http://127.0.0.1:1/v1", "price=1/2")["models"]["openai/own"]["output"] == 2
    code, _, err = call("price", "openai/own", "base_url=http://127.0.0.1:1/v1")
    assert code == 2 and "no price is known for 'openai/own'" in err
