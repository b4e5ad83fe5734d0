"""A key goes to its server and nowhere else: not into files, logs, errors, reprs, nor what is printed."""

import contextlib
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import limbeck as lb
from limbeck import report
from limbeck.ledger import Ledger
from tests.loopback import loopback

KEY = "sk-proj-Zq3x7NotForOtherEyes42"
ROOT = Path(__file__).parents[1]
# What servers say when they do not like a key: some say it back, whole or in a header.
ECHOES = [
    {"error": {"message": f"Incorrect API key provided: {KEY}.", "code": "invalid_api_key"}},
    {"error": {"message": f"no such user for Authorization: Bearer {KEY}"}},
    {"detail": [{"msg": "bad", "headers": {"authorization": f"Bearer {KEY}"}}]},
    f"key={KEY}",
]


def held_in(directory: Path) -> list[Path]:
    """The files below a directory that hold the key, also where they hold it compressed."""
    return [path for path in directory.rglob("*") if path.is_file() and KEY.encode() in contents(path)]


def contents(path: Path) -> bytes:
    plain = path.read_bytes()
    if path.suffix == ".parquet":
        return plain + repr(pq.read_table(path).to_pylist()).encode()
    if path.name == "calls.sqlite":
        with contextlib.closing(Ledger(path.parent, readonly=True)) as ledger:
            keys = [key for (key,) in ledger._all("select key from call")]
            return plain + repr([ledger.call(key) for key in keys]).encode()
    return plain


def limbeck(directory: Path, *words: str, key_in: str) -> subprocess.CompletedProcess:
    """Runs the command line with the key in an argument, or in the environment."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONASYNCIODEBUG": "1"}
    if key_in == "environment":
        environment["OPENAI_API_KEY"] = KEY
    else:
        words = (*words, f"teacher.api_key={KEY}")
    command = [sys.executable, "-m", "limbeck", *words]
    return subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(("status", "file"), [(None, "rows.parquet"), (400, "rejects.parquet")])
def test_the_search_finds_a_key_in_a_call_and_in_a_stage(tmp_path, status, file):
    rows = lb.Table.from_rows([{"prompt": "a question", "note": KEY * 2}])
    echo = loopback(fn=lambda messages, k: messages[0]["content"], trouble=lambda body, tries: status)
    with echo as server, lb.Run(tmp_path, progress=False):
        lb.ask(rows, lb.models.get("openai/m", base_url=server.url), "{prompt} {note}")
    assert {"calls.sqlite", file} <= {path.name for path in held_in(tmp_path)}


@pytest.mark.parametrize("key_in", ["argument", "environment"])
def test_a_whole_run_from_ask_to_report_leaves_no_key_behind(tmp_path, key_in):
    (tmp_path / "p.jsonl").write_text("".join(json.dumps({"prompt": f"question {i}"}) + "\n" for i in range(6)))
    words = ("run", "label", "prompts=p.jsonl", "teacher=openai/m", "--out", "out")

    def sulks(body, tries):
        return 503 if tries < 1 else 400 if "question 5" in str(body) else None

    with loopback(trouble=sulks, error=ECHOES[1]) as server:
        done = limbeck(tmp_path, *words, f"teacher.base_url={server.url}", key_in=key_in)
        assert server.bought == 5 and {r["key"] for r in server.requests} == {f"Bearer {KEY}"}
    assert done.returncode == 0 and (tmp_path / "out/report.html").exists(), done.stderr
    assert KEY not in done.stdout + done.stderr
    assert held_in(tmp_path) == []


@pytest.mark.parametrize("status", [401, 403, 400, 500, 429])
@pytest.mark.parametrize("echo", ECHOES, ids=["message", "bearer", "nested", "text"])
def test_a_server_that_says_the_key_back_is_not_quoted(tmp_path, caplog, capfd, status, echo):
    caplog.set_level(logging.DEBUG)
    with loopback(trouble=lambda body, tries: status, error=echo) as server:
        model = lb.models.get("openai/m", base_url=server.url, api_key=KEY, retries=0)
        try:
            with lb.Run(tmp_path, progress=False):
                lb.ask(lb.Table.from_rows([{"prompt": "a question"}]), model, "{prompt}")
            said = ""  # a reject of the row, which held_in reads
        except lb.Incomplete as error:
            said, inner = f"{error!s} {error!r} {error.args}", error
            while (inner := inner.__cause__ or inner.__context__) is not None:
                said += f"{inner!s} {inner!r}"
        report.write(tmp_path)
    assert server.requests[0]["key"] == f"Bearer {KEY}"
    assert KEY not in said and held_in(tmp_path) == []
    out = capfd.readouterr()
    assert KEY not in out.out + out.err + caplog.text


def test_a_reply_that_holds_the_key_is_data_and_the_request_never_does(tmp_path):
    """What a model answers is kept as it is; what limbeck asks holds no key."""
    with loopback() as server, lb.Run(tmp_path, progress=False):
        model = lb.models.get("openai/m", base_url=server.url, api_key=KEY)
        lb.ask(lb.Table.from_rows([{"prompt": "a question"}]), model, "{prompt}", meta=("usage", "model"))
        assert KEY not in json.dumps(server.requests[0]["body"])
    assert held_in(tmp_path) == []


def test_models_and_errors_do_not_show_their_key(tmp_path):
    with loopback() as server:
        url = server.url
    model = lb.models.get("openai/m", base_url=[url, url.replace("127.0.0.1", "localhost")], api_key=KEY, retries=0)
    shown = [repr(model), str(model), model.name, model.digest, model.endpoint, f"{model.replicas}"]
    with pytest.raises(lb.Incomplete) as stopped, lb.Run(tmp_path, progress=False):
        lb.ask(lb.Table.from_rows([{"prompt": "a question"}]), model, "{prompt}")
    assert KEY not in "".join([*shown, str(stopped.value)]) and held_in(tmp_path) == []


@pytest.mark.parametrize("url", ["http://user:{key}@127.0.0.1:9/v1", "http://127.0.0.1:9/v1?key={key}"])
def test_a_key_in_the_address_is_not_shown_either(tmp_path, url):
    try:
        model = lb.models.get("openai/m", base_url=url.format(key=KEY), retries=0)
        shown = repr(model) + model.name
        with pytest.raises(lb.Incomplete) as stopped, lb.Run(tmp_path, progress=False):
            lb.ask(lb.Table.from_rows([{"prompt": "a question"}]), model, "{prompt}")
        shown += str(stopped.value)
    except lb.LimbeckError as error:  # an address of this form may be refused, but not by saying it
        shown = str(error)
    assert KEY not in shown and held_in(tmp_path) == []
