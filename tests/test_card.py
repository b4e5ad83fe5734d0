"""The dataset card: what it tells of a run, and which files it may replace."""

import json
from pathlib import Path

import pytest
import yaml

import limbeck as lb
from limbeck.formats import card
from tests.loopback import loopback
from tests.test_cli import BASE

MINE = """
from limbeck import ask, keep, recipe, score, Judge

def short(row):
    return len(row["response"]) < 6 or "too | long"

@recipe("mine", paper="2305.11206", title="Echoes", elicits=("labeling",), skill="Small Talk", departs=("No people.",))
def mine(prompts, teacher, *, n: int = 1):
    return keep(ask(prompts, teacher, "answer", n=n, max_tokens=8), short)
"""


@pytest.fixture
def done(place, call):
    """Runs the recipe and gives a function that exports it."""
    Path("mine.py").write_text(MINE)
    assert call("run", "mine.py:mine", *BASE, "teacher.terms=ask first", "n=2", "--out", "out")[0] == 0

    def export(*words):
        code, out, err = call("export", "out", *words)
        assert code == 0, err
        return out, err

    return export


def parts(path):
    """The card's front matter as data, and its text."""
    _, front, text = path.read_text().split("---\n", 2)
    return yaml.safe_load(front), text


def test_the_card_says_how_the_rows_were_made(done):
    _, err = done()
    front, text = parts(Path("out/README.md"))
    assert "its card is out/README.md" in err
    assert front == {
        "pretty_name": "mine",
        "tags": ["synthetic", "limbeck", "small-talk", "labeling"],
        "size_categories": ["n<1K"],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "rows.jsonl"}]}],
    }
    rows = len(Path("out/rows.jsonl").read_text().splitlines())
    assert "# license:" in Path("out/README.md").read_text() and f"{rows} rows with the columns `prompt`" in text
    for told in (
        "- recipe: `mine`", "https://arxiv.org/abs/2305.11206", "leaves the paper: No people.", "`n=2`",
        "prompts: `answer` (", "20 calls,", "made with limbeck ", "- `fake/echo`: ask first", "| ask | 10 | 20 |  |",
        f"| keep | 20 | {rows} | {20 - rows} too long |",
    ):  # fmt: skip
        assert told in text, told
    assert len(text.splitlines()) < 60


def test_the_hub_reads_it(done):
    hub = pytest.importorskip("huggingface_hub")
    done("--format", "parquet", "--out", "hub/train.parquet")
    read = hub.DatasetCard.load("hub/README.md")
    assert read.data.tags[0] == "synthetic" and read.data.configs[0]["data_files"][0]["path"] == "train.parquet"
    assert read.text.startswith("\n# mine")


def test_an_export_again_replaces_its_own_card_and_no_other(done, place, call):
    done()
    first = Path("out/README.md").read_text()
    done("--format", "trl")
    assert "path: rows.trl.jsonl" in Path("out/README.md").read_text()
    done()
    assert Path("out/README.md").read_text() == first
    edited = first.replace("# license: yours to choose", "license: mit  # chosen")
    Path("out/README.md").write_text(edited)
    _, err = done()
    assert Path("out/README.md").read_text() == edited
    assert "its card is out/rows.jsonl.md: out/README.md is not its own, or was edited" in err
    assert Path("out/rows.jsonl.md").read_text() == first
    Path("out/rows.jsonl.md").write_text("mine")
    assert "no card was written" in done()[1] and Path("out/rows.jsonl.md").read_text() == "mine"
    assert call("run", "label", *BASE, "--out", "other")[0] == 0
    Path("both").mkdir()
    done("--out", "both/a.jsonl")
    assert call("export", "other", "--out", "both/b.jsonl")[0] == 0
    assert "# mine" in Path("both/README.md").read_text() and "# label" in Path("both/b.jsonl.md").read_text()


def test_rows_on_standard_output_bring_no_card(done):
    out, err = done("--out", "-")
    assert json.loads(out.splitlines()[0])["prompt"] == "q" and err == "" and not Path("out/README.md").exists()


def test_the_finished_rows_of_a_run_that_is_not_done_have_a_card_that_says_so(place, call):
    assert call("run", "label", *BASE, "--out", "out", "--budget", "4 calls")[0] == 3
    assert call("export", "out", "--partial")[0] == 0
    front, text = parts(Path("out/README.md"))
    assert "4 rows with" in text and "was not done, and these are its finished rows" in text


def test_a_script_that_saved_its_rows_has_a_card_too_with_what_was_served_and_why_rows_left(tmp_path):
    def judged(row):
        return int(row["prompt"][1:]) % 2 == 0 or f"odd | {row['prompt']}"

    with loopback(lambda m, k: "words", served_model="m-2026-01-01") as server, lb.Run(tmp_path, progress=False):
        teacher = lb.models.get("openai/m", base_url=server.url)
        other = lb.models.get("openai/judge", base_url=server.url)
        other.digest = "another"
        rows = lb.Table.from_rows({"prompt": f"q{i}"} for i in range(24))
        lb.ask(rows, other, "Rate {prompt}", into="aside")
        lb.save(lb.keep(lb.ask(rows, teacher, "{prompt}"), judged))
    path = card.write(tmp_path, tmp_path / "rows.jsonl", lb.Table.from_parquet(tmp_path / "rows.parquet"))
    _, text = parts(path)
    assert f"# {tmp_path.name}" in text and "24 calls" not in text and "48 calls" in text and "price unknown" in text
    assert "- `openai/m`, served as `m-2026-01-01`: no note on its terms is kept" in text
    assert "openai/judge" not in text  # it wrote nothing of these rows
    assert "| keep | 24 | 12 | 1 odd q1, 1 odd q3, 1 odd q5, 1 odd q7, 1 odd q9, 7 more reasons |" in text


def test_many_steps_are_told_by_their_kind(tmp_path):
    with lb.Run(tmp_path, progress=False):
        rows = lb.Table.from_rows({"prompt": f"q{i}"} for i in range(2))
        for i in range(15):
            rows = lb.ask(rows, "fake/echo", f"{i} {{prompt}}", into=f"r{i}")
        lb.save(rows)
    _, text = parts(card.write(tmp_path, tmp_path / "rows.jsonl", rows))
    assert "| ask (15 times) | 30 | 30 |  |" in text
