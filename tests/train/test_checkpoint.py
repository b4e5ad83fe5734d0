import json

import pytest

from limbeck.train import checkpoint


def half(folder, step):
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    (path / "model.safetensors").write_bytes(b"weights" * step)
    (path / "trainer_state.json").write_text("{}")
    return path


def whole(folder, step):
    path = half(folder, step)
    checkpoint.mark(path)
    return path


def test_only_a_marked_checkpoint_counts_and_the_rest_is_removed(tmp_path):
    old = whole(tmp_path, 9)
    torn = half(tmp_path, 10)
    assert checkpoint.newest(tmp_path) == old and not torn.exists()


def test_the_one_before_stays_until_the_next_one_counts(tmp_path):
    old = whole(tmp_path, 1)
    new = half(tmp_path, 2)
    assert old.exists()
    checkpoint.mark(new)
    assert not old.exists() and checkpoint.newest(tmp_path) == new


@pytest.mark.parametrize("damage", ["cut", "gone", "mark"])
def test_a_marked_checkpoint_with_a_broken_file_does_not_count(tmp_path, damage):
    path = whole(tmp_path, 3)
    if damage == "cut":
        (path / "model.safetensors").write_bytes(b"")
    elif damage == "gone":
        (path / "trainer_state.json").unlink()
    else:
        (path / checkpoint.MARK).write_text('{"model.saf')
    assert checkpoint.newest(tmp_path) is None and not path.exists()


def test_half_removed_does_not_count(tmp_path, monkeypatch):
    path = whole(tmp_path, 3)
    monkeypatch.setattr(checkpoint.shutil, "rmtree", lambda *a, **k: None)  # killed before anything else went
    checkpoint.remove(path)
    assert not checkpoint.complete(path) and (path / "model.safetensors").exists()


def test_a_torn_last_line_of_the_log_is_dropped(tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_text(json.dumps({"step": 1}) + "\n" + '{"step": 2, "lo')
    assert checkpoint.read_log(log) == [{"step": 1}]
    assert checkpoint.read_log(tmp_path / "none") == []
