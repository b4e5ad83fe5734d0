"""What an OpenAI model is known by: key, digest, bounds; and the test server as a process."""

import subprocess
import sys
from pathlib import Path
from urllib.request import Request as Get
from urllib.request import urlopen

import orjson
import pytest

from limbeck.errors import LimbeckError
from limbeck.models import Request, get
from tests.loopback import loopback
from tests.models.test_openai import ASK, ask, error


def test_the_key_is_sent_and_shown_nowhere(monkeypatch):
    with loopback() as server:
        ask(server)
        ask(server, api_key="sk-own")
        monkeypatch.setenv("OPENAI_API_KEY", "sk-env")
        ask(server)
        server.trouble = lambda b, k: 401
        failure = error(server, api_key="sk-own")
        assert "sk-own" not in str(failure) + repr(get("openai/m-1", base_url=server.url, api_key="sk-own"))
    assert [r["key"] for r in server.requests[:3]] == [None, "Bearer sk-own", "Bearer sk-env"]


def test_a_missing_key_names_both_ways_out(monkeypatch):
    with pytest.raises(LimbeckError, match="OPENAI_API_KEY.*base_url"):
        get("openai/gpt-4o-mini")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1/chat/completions/")
    assert get("openai/gpt-4o-mini").endpoint == "http://127.0.0.1:9/v1"
    with pytest.raises(LimbeckError, match="base_url"):
        get("openai/x", base_url="localhost:8000")


def test_the_digest_is_name_and_revision_alone():
    def digest(name="openai/m", **o):
        return get(name, **{"base_url": "http://a/v1", **o}).digest

    same = digest(base_url="http://b/v1", api_key="k", timeout=3, max_concurrency=2, retries=0, price="1/1")
    assert same == digest()
    assert len({digest(), digest("openai/n"), digest(revision="r1"), digest(revision="r2")}) == 4


def test_the_bound_on_prompt_tokens_counts_what_is_not_text():
    model = get("openai/m", base_url="http://a/v1")
    picture = [{"type": "text", "text": "what is it"}, {"type": "image_url", "image_url": {"url": "data:,"}}]
    seen = Request([{"role": "user", "content": picture}])
    tools = Request(ASK.messages, tools=[{"type": "function", "function": {"name": "f" * 500}}])
    assert model.prompt_tokens_at_most(seen) > 40_000
    assert model.prompt_tokens_at_most(tools) > 500 + len(ASK.messages[0]["content"])


def test_the_server_as_a_process_logs_before_it_answers(tmp_path: Path):
    log = tmp_path / "served.jsonl"
    command, root = [sys.executable, "-m", "tests.loopback", "--log", log], Path(__file__).parents[2]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root)
    try:
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        texts = [r.text for r in ask(url, times=3)]
        body = orjson.dumps({"model": "m-1", "messages": ASK.messages})
        with urlopen(Get(f"{url}/chat/completions", data=body)) as answer:  # any client will do
            texts.append(orjson.loads(answer.read())["choices"][0]["message"]["content"])
    finally:
        server.kill()
        server.wait()
    lines = [orjson.loads(line) for line in log.read_text().splitlines()]
    assert [(line["k"], line["n"]) for line in lines] == [(0, 0), (1, 1), (2, 2), (3, 3)]
    assert len({line["words"] for line in lines}) == 1
    assert sorted(t[-1] for t in texts) == ["0", "1", "2", "3"]
