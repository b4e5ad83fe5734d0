"""The example's way over HTTP, and a published file as it is, against real servers on this machine."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from limbeck import Table, cli

from .loopback import loopback

ROOT = Path(__file__).parent.parent
GSM8K = ROOT.parent / "shared" / "golden" / "gsm8k" / "test.jsonl.gz"


def test_the_example_labels_and_samples_over_http(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    spec = importlib.util.spec_from_file_location("serve_and_label", ROOT / "examples" / "serve_and_label.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    example.main(6, tmp_path / "out")
    labelled = Table.from_parquet(tmp_path / "out" / "label" / "rows.parquet")
    assert len(labelled) == 6 and all("####" in row["response"] for row in labelled)
    assert "distinct right solutions of 6 questions" in capfd.readouterr().out


@pytest.mark.skipif(not GSM8K.exists(), reason="the GSM8K test file is not beside this checkout")
def test_gsm8k_as_published_is_labelled_over_http(tmp_path, monkeypatch, capsys):
    with loopback(fn=lambda messages, k: f"so #### {len(messages[-1]['content'])}") as server:
        words = ["run", "label", f"prompts={GSM8K}", "--rename", "question=prompt", "teacher=openai/some-name",
                 f"teacher.base_url={server.url}", "--limit", "12", "--out", str(tmp_path / "out")]  # fmt: skip
        monkeypatch.setattr(sys, "argv", ["limbeck", *words])
        with pytest.raises(SystemExit) as end:
            cli.main()
    assert not end.value.code and "12 calls bought" in capsys.readouterr().out
    rows = list(Table.from_parquet(tmp_path / "out" / "rows.parquet"))
    assert [r["response"] for r in rows] == [f"so #### {len(r['prompt'])}" for r in rows]
    assert all("####" in r["answer"] and "question" not in r for r in rows)
    asked = [json.dumps(r["body"]["messages"]) for r in server.requests]
    assert len(set(asked)) == 12
