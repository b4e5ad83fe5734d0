"""Notes on terms: which model they fit, and how a user's own note stands above them."""

import re

import pytest

from limbeck.models import get
from limbeck.models.terms import _FAMILIES, note


@pytest.mark.parametrize(
    ("provider", "name", "words"),
    [
        ("openai", "gpt-4o-mini", "OpenAI's terms do not allow"),
        ("openai", "o4-mini", "OpenAI's terms"),
        ("openai", "openai/gpt-5.4-2026-03-01", "OpenAI's terms"),
        ("openai", "openai/gpt-oss-20b", "Apache 2.0"),
        ("anthropic", "claude-sonnet-5", "Anthropic's commercial terms do not allow"),
        ("litellm", "bedrock/anthropic.claude-3-5-sonnet", "Anthropic's"),
        ("gemini", "gemini-2.5-flash", "Gemini API's terms do not allow"),
        ("gemini", "tunedModels/mine", "Gemini API's terms"),
        ("hf", "google/gemma-3-4b-it", "Gemma terms count"),
        ("hf", "google/gemma-7b", "Gemma terms count"),
        ("openai", "meta-llama/Llama-3.3-70B-Instruct", "at the start of its name"),
        ("hf", "deepseek-ai/DeepSeek-R1-Distill-Llama-3.1-8B", "at the start of its name"),
        ("hf", "meta-llama/Llama-2-7b", "any model but Llama"),
        ("openai", "llama3:8b", "any model but Llama"),
        ("hf", "Qwen/Qwen3-0.6B", "Apache 2.0"),
        ("openai", "deepseek-chat", "distillation"),
        ("hf", "microsoft/phi-4", "MIT"),
    ],
)
def test_a_note_fits_its_family(provider, name, words):
    assert words in note(provider, name)


@pytest.mark.parametrize(
    ("provider", "name"),
    [("openai", "my-model"), ("hf", "EleutherAI/gpt-j-6b"), ("hf", "./out/student"), ("tiny", "teacher"),
     ("fake", "gpt-4"), ("hf", "gpt2"), ("openai", "yolo1")],
)  # fmt: skip
def test_where_nothing_is_known_nothing_is_said(provider, name):
    assert note(provider, name) is None


def test_every_note_is_one_line_with_its_date_and_its_address_and_says_to_read_them():
    for pattern, words, date, address in _FAMILIES:
        assert re.compile(pattern) and re.fullmatch(r"20\d\d-\d\d-\d\d", date) and address.startswith("https://")
        assert "\n" not in words and len(words) < 220
    said = note("openai", "gpt-4o")
    assert "2025-05-31" in said and "https://openai.com/" in said and said.endswith("read them)")


def test_the_users_own_note_counts():
    url = "http://a/v1"
    assert get("openai/gpt-4o", base_url=url).terms == note("openai", "gpt-4o")
    assert get("openai/gpt-4o", base_url=url, terms="we have a contract").terms == "we have a contract"
    assert get("openai/gpt-4o", base_url=url, terms="").terms is None
    assert get("openai/gpt-4o", base_url=url, terms="x").digest == get("openai/gpt-4o", base_url=url).digest
