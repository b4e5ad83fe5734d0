"""A model's digest: what its answers depend on changes it, nothing else does."""

import json
import struct

import pytest

from limbeck.errors import LimbeckError
from limbeck.models import files


def save(directory, tensors: dict[str, bytes], name="model.safetensors"):
    """Writes a safetensors file by hand: eight bytes of length, the header, the data."""
    header, data = {}, b""
    for key, value in tensors.items():
        header[key] = {"dtype": "U8", "shape": [len(value)], "data_offsets": [len(data), len(data) + len(value)]}
        data += value
    text = json.dumps(header).encode()
    (directory / name).write_bytes(struct.pack("<Q", len(text)) + text + data)


@pytest.fixture
def model(tmp_path):
    (tmp_path / "config.json").write_text('{"hidden_size": 4, "transformers_version": "5.17.0"}')
    (tmp_path / "tokenizer.json").write_text("{}")
    save(tmp_path, {"a": b"x" * 100, "b": b"y" * 100})
    return tmp_path


def digest(path):
    return files.digest(str(path), None, "hf/m")


def test_what_does_not_answer_does_not_count(model, tmp_path_factory):
    before = digest(model)
    (model / "README.md").write_text("a card")
    (model / "training_args.bin").write_bytes(b"x")
    (model / "trainer_state.json").write_text("{}")
    (model / "config.json").write_text('{"transformers_version": "5.23.0",\n "hidden_size": 4, "_name_or_path": "x"}')
    assert digest(model) == before
    moved = tmp_path_factory.mktemp("elsewhere") / "m"
    model.rename(moved)
    assert digest(moved) == before
    moved.rename(model)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "chat_template.jinja", "generation_config.json"])
def test_files_that_answer_count(model, name):
    before = digest(model)
    (model / name).write_text('{"hidden_size": 5}')
    assert digest(model) != before


def test_weights_count(model):
    before = digest(model)
    save(model, {"a": b"x" * 100, "b": b"y" * 99 + b"z"})
    after = digest(model)
    save(model, {"a": b"x" * 100, "c": b"y" * 99 + b"z"})
    assert len({before, after, digest(model)}) == 3


def test_a_large_file_is_sampled_in_every_tensor(model, monkeypatch):
    monkeypatch.setattr(files, "_WHOLE", 0)
    sizes = {"embed": 50_000, "small": 10, "middle": 20_000, "head": 50_000}
    save(model, {k: bytes(n) for k, n in sizes.items()})
    before = digest(model)
    for changed, n in sizes.items():  # as a merged adapter does: one tensor differs, all others stay
        save(model, {k: (b"\1" * n if k == changed else bytes(m)) for k, m in sizes.items()})
        assert digest(model) != before, changed
    save(model, {k: bytes(n) for k, n in sizes.items()})
    assert digest(model) == before


def test_weights_in_the_older_form(model, monkeypatch):
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    before = digest(model)
    monkeypatch.setattr(files, "_WHOLE", 0)
    (model / "pytorch_model.bin").write_bytes(b"q" * 1000)
    assert digest(model) != before


def test_a_hub_model_is_its_name_and_commit():
    def of(name, revision):
        return files.digest(name, revision, "hf/m")

    assert of("org/a", "c1") == of("org/a", "c1")
    assert len({of("org/a", "c1"), of("org/a", "c2"), of("org/b", "c1")}) == 3


def test_the_cached_commit_is_pinned(tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    commit = "0123456789abcdef0123456789abcdef01234567"
    config = tmp_path / "snapshots" / commit / "config.json"
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda repo, file, revision: str(config))
    assert files.locate("org/m", None, "hf/org/m") == ("org/m", commit)


def test_what_is_not_there_is_said_in_one_line(tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda repo, file, revision: None)

    def offline(*a, **k):
        raise OSError("cannot reach the hub\nsecond line")

    monkeypatch.setattr(hub, "hf_hub_download", offline)
    empty = tmp_path / "empty"
    empty.mkdir()
    for name, words in (
        ("org/m", "cannot reach the hub"), ("./nowhere", "no directory"), (str(empty), "config.json"),
        ("a/b/c", "no directory"),
    ):  # fmt: skip
        with pytest.raises(LimbeckError, match=words) as caught:
            files.locate(name, None, f"hf/{name}")
        assert "\n" not in str(caught.value)
    (empty / "config.json").write_text("{}")
    with pytest.raises(LimbeckError, match="no weights"):
        digest(empty)
