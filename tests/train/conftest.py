"""A student and a teacher of some thousand weights, a word-level tokenizer, and rows to learn: all made here."""

import random
from pathlib import Path

import pytest

from limbeck.models.hf import HF
from limbeck.run import Run
from limbeck.table import Table

WORDS = [f"w{i}" for i in range(40)]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %}<bot> {{ m['content'] }} <end>\n"
    "{% else %}<user> {{ m['content'] }} {% endif %}{% endfor %}{% if add_generation_prompt %}<bot> {% endif %}"
)


def word_tokenizer(words=WORDS, template=TEMPLATE, **names):
    """A tokenizer with one id a word. `names` overrides its special tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<unk>", "<bos>", "<end>", "<user>", "<bot>"]
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate([*special, "\n", *words])}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(" ", "removed"), pre_tokenizers.Split("\n", "isolated")]
    )
    named = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<bos>", "eos_token": "<end>"} | names
    made = PreTrainedTokenizerFast(tokenizer_object=core, additional_special_tokens=["<user>", "<bot>"], **named)
    made.chat_template = template
    return made


def checkpoint(
    folder: Path, seed: int, tokenizer=None, hidden: int = 32, vocab: int | None = None, dropout: float = 0.0
):
    """Writes an untrained Llama with `hidden` units and one layer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = tokenizer or word_tokenizer()
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab or len(tokenizer),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        attention_dropout=dropout,
        initializer_range=0.2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def student(tmp_path_factory) -> HF:
    return HF(checkpoint(tmp_path_factory.mktemp("student"), seed=1), device="cpu")


@pytest.fixture(scope="session")
def teacher(tmp_path_factory) -> HF:
    return HF(checkpoint(tmp_path_factory.mktemp("teacher"), seed=2, hidden=48), device="cpu")


def lessons(n: int, seed: int = 0) -> list[dict]:
    """Rows whose answer is their prompt backwards, of uneven lengths."""
    rng = random.Random(seed)
    rows = []
    for _ in range(n):
        words = rng.choices(WORDS[:10], k=rng.randint(2, 6))
        rows.append({"prompt": " ".join(words), "response": " ".join(reversed(words))})
    return rows


@pytest.fixture
def rows(run) -> Table:
    return Table.from_rows(lessons(24))


@pytest.fixture
def run(tmp_path):
    with Run(tmp_path / "out", progress=False) as opened:
        yield opened


def weights_of(model) -> dict:
    """The weights that a trained model's directory holds."""
    from safetensors.torch import load_file

    return load_file(Path(model.path) / "model.safetensors")


def events_of(run, kind: str) -> list[dict]:
    import json

    lines = [json.loads(line) for line in (run.dir / "events.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == kind]
