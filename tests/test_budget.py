"""A cap holds whatever a request asks for: the bound of a call is read from what is sent."""

import pytest

import limbeck as lb
from limbeck.models import Request, get
from tests.loopback import loopback

ASK = Request([{"role": "user", "content": "how many legs has a spider"}])


@pytest.mark.parametrize(
    ("asked", "extra", "most"),
    [
        (10, {"max_tokens": 1000}, 1000),
        (10, {"max_completion_tokens": 1000}, 1000),
        (None, {"max_tokens": 7}, 7),
        (10, {"max_tokens": 7}, 7),
        (10, {"top_k": 1}, 10),
        (None, {"top_k": 1}, 50),
        (10, {"max_tokens": None}, 50),
        (10, {"max_tokens": -1}, None),
        (10, {"max_tokens": "1000"}, None),
    ],
)
def test_the_bound_on_what_is_written_is_the_limit_that_is_sent(asked, extra, most):
    model = get("openai/m", base_url="http://a/v1")
    model.max_output = 50
    assert model.written_at_most(Request(ASK.messages, max_tokens=asked, extra=extra)) == most


def test_a_limit_in_extra_does_not_pass_the_budget(tmp_path):
    rows = lb.Table.from_rows({"prompt": f"q{i}"} for i in range(8))
    with loopback(lambda m, k: "word " * 1000) as server:
        model = get("openai/m", base_url=server.url, price="0/50", max_concurrency=4)
        with pytest.raises(lb.BudgetError), lb.Run(tmp_path, budget="$0.12", progress=False):
            lb.ask(rows, model, "{prompt}", max_tokens=10, extra={"max_tokens": 1000})
    assert server.bought == 2


@pytest.mark.parametrize("budget", [None, "$1"])
def test_several_choices_in_extra_stop_the_run_before_a_call(tmp_path, budget):
    rows = lb.Table.from_rows([{"prompt": "a question"}])
    with loopback() as server, lb.Run(tmp_path, budget=budget, progress=False):
        model = get("openai/m", base_url=server.url, price="1/1")
        with pytest.raises(lb.LimbeckError, match=r"n=8; say n= of ask"):
            lb.ask(rows, model, "{prompt}", max_tokens=5, extra={"n": 8})
        assert not server.requests
        assert len(lb.ask(rows, model, "{prompt}", max_tokens=5, extra={"n": 1})) == 1
