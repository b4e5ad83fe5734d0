"""A run directory has one owner, remembers what it used, and says what happened."""

import json
import os
import subprocess
import sys

import pytest

import limbeck as lb
from limbeck import run as runs
from limbeck import store
from limbeck.models.fake import Fake
from tests.loopback import loopback


def test_verbs_that_buy_need_an_open_run():
    with pytest.raises(lb.LimbeckError, match="needs an open run"):
        lb.ask(lb.Table.from_rows([{"prompt": "x"}]), Fake(lambda r: "y"), "{prompt}")


def test_a_second_process_on_the_directory_is_refused(tmp_path):
    code = f"import limbeck as lb\nlb.Run({str(tmp_path)!r}).__enter__()"
    with lb.Run(tmp_path, progress=False):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and f"another process (pid {os.getpid()})" in done.stderr
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_events_have_a_version_and_tell_the_story(tmp_path):
    with lb.Run(tmp_path, progress=False):
        lb.ask(lb.Table.from_rows([{"prompt": "x"}]), Fake(lambda r: "y"), "{prompt}")
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert {e["v"] for e in events} == {runs.EVENTS_VERSION}
    assert [e["event"] for e in events] == ["open", "terms", "ask", "bought", "stage", "close"]


def test_the_run_is_closed_and_nothing_is_recorded_as_used_after_an_error(tmp_path):
    with pytest.raises(ValueError), lb.Run(tmp_path, progress=False):
        raise ValueError("boom")
    assert runs.current_or_none() is None
    assert not (tmp_path / "used.json").exists()


def test_gc_removes_what_the_last_finished_run_did_not_use(tmp_path):
    def run(rows):
        with lb.Run(tmp_path, progress=False):
            return lb.ask(lb.Table.from_rows(rows), Fake(lambda r: "y"), "{prompt}")

    with pytest.raises(lb.LimbeckError, match="no finished run"):
        store.gc(tmp_path)
    old, new = run([{"prompt": "old"}]), run([{"prompt": "new"}])
    freed, removed = store.gc(tmp_path)
    assert old.name in removed and new.name not in removed and freed > 0
    assert list(new) == [{"prompt": "new", "response": "y"}]
    with lb.Run(tmp_path, progress=False) as again:
        assert again.ledger.spent()["calls"] == 2  # the ledger is never touched


def test_gc_removes_trained_models_only_by_name(tmp_path):
    with lb.Run(tmp_path, progress=False):
        pass
    (tmp_path / "models" / "abc").mkdir(parents=True)
    assert store.gc(tmp_path) == (0, [])
    with pytest.raises(lb.LimbeckError, match="'abd'.*abc"):
        store.gc(tmp_path, models=["abd"])
    assert store.gc(tmp_path, models=["abc"])[1] == ["abc"]


def test_scratch_of_a_killed_run_is_garbage(tmp_path):
    with lb.Run(tmp_path, progress=False):
        pass
    (tmp_path / "stages" / ".tmp-dead").mkdir()
    assert store.gc(tmp_path)[1] == [".tmp-dead"]


def test_processes_of_torchrun_share_a_directory_and_only_the_first_buys(tmp_path):
    code = (
        "import sys, limbeck as lb\n"
        "with lb.Run(sys.argv[2]):\n"
        "    model = lb.models.get('openai/m', base_url=sys.argv[1])\n"
        "    rows = lb.Table.from_rows({'prompt': f'question {i}'} for i in range(30))\n"
        "    print(lb.ask(rows, model, '{prompt}', n=2).digest)\n"
    )
    with loopback(latency=0.02) as server:
        started = [
            subprocess.Popen(
                [sys.executable, "-c", code, server.url, str(tmp_path)],
                env=os.environ | {"RANK": str(rank)},
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank in (1, 0, 2)
        ]
        said = {process.communicate(timeout=60)[0] for process in started}
        assert [process.returncode for process in started] == [0, 0, 0]
        assert len(said) == 1 and server.bought == 60
    with lb.Run(tmp_path, progress=False) as run:
        assert run.ledger.spent()["calls"] == 60


def test_gc_keeps_away_from_a_run_at_work(tmp_path):
    with lb.Run(tmp_path, progress=False):
        pass
    with lb.Run(tmp_path, progress=False), pytest.raises(lb.LimbeckError, match="another process"):
        store.gc(tmp_path)


def test_an_event_line_that_a_kill_cut_short_swallows_no_other(tmp_path):
    with lb.Run(tmp_path, progress=False):
        pass
    with (tmp_path / "events.jsonl").open("a") as out:
        out.write('{"v": 1, "at"')
    with lb.Run(tmp_path, progress=False):
        pass
    last = (tmp_path / "events.jsonl").read_text().splitlines()[-2:]
    assert [json.loads(line)["event"] for line in last] == ["open", "close"]
