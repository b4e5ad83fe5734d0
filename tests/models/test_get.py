"""Names, options and their errors; what naming a model must not load."""

import asyncio
import importlib.metadata
import subprocess
import sys

import pytest

from limbeck import models
from limbeck.errors import LimbeckError
from limbeck.models import Price, Request, as_price, get, is_model


@pytest.fixture(autouse=True)
def key(monkeypatch):
    for provider in ("OPENAI", "ANTHROPIC", "GEMINI"):
        monkeypatch.setenv(f"{provider}_API_KEY", "k")
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)


def said(name, **options) -> str:
    with pytest.raises(LimbeckError) as caught:
        get(name, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_provider_is_what_stands_before_the_first_slash():
    model = get("openai/org/name:free")
    assert (model.name, model.model) == ("openai/org/name:free", "org/name:free")


@pytest.mark.parametrize("name", ["anthropic/claude-sonnet-5", "gemini/gemini-2.5-flash", "openai/gpt-5-mini"])
def test_hosted_models_know_their_price_and_what_they_can_write(name):
    model = get(name)
    assert model.name == name and model.price.output > model.price.input and model.max_output > 10_000
    assert {"chat", "tools", "vision"} <= model.can and model.terms


def test_options_that_every_provider_takes():
    wanted = {"price": "0.15/0.6", "max_output": 7, "max_concurrency": 3, "retries": 0}
    for name in ("openai/m", "fake/echo"):
        model = get(name, **wanted)
        assert model.price == Price(0.15, 0.6)
        assert (model.max_output, model.max_concurrency, model.retries) == (7, 3, 0)
        assert get(name).digest == model.digest != get(name, revision="2").digest


@pytest.mark.parametrize("value", ["0.15/0.6", (0.15, 0.6), [0.15, 0.6], Price(0.15, 0.6), " 0.15 / 0.6 "])
def test_prices_as_people_write_them(value):
    assert as_price(value) == Price(0.15, 0.6)


def test_one_price_is_for_both():
    assert as_price(0) == Price(0, 0) and as_price("2") == Price(2, 2)


@pytest.mark.parametrize("value", ["cheap", "1/2/3", "-1/2", "nan/1", (), "", {"in": 1}])
def test_prices_that_are_none(value):
    with pytest.raises(LimbeckError, match="0.15/0.6"):
        as_price(value)


def test_an_unknown_provider_names_the_nearest():
    assert '"openai/gpt-4o"' in said("opnai/gpt-4o")
    assert '"hf/Qwen/Qwen3-0.6B"' in said("Qwen/Qwen3-0.6B")
    assert '"openai/gpt-4o-mini"' in said("gpt-4o-mini")
    assert '"openai/…"' in said("openai") and '"openai/…"' in said("openai/")


def test_an_unknown_option_names_the_nearest():
    assert "'base_url'" in said("openai/m", base_ulr="x")
    assert "'max_output'" in said("openai/m", max_outputs=3)
    assert "max_concurrency" in said("fake/echo", zzz=3)  # nothing is near: all of them
    assert "digest" not in said("hf/m", digst="x")


def test_rates_may_be_fractions():
    wanted = {"requests_per_second": 0.5, "requests_per_minute": 30, "tokens_per_minute": 1e5}
    model = get("openai/m", **wanted)
    assert {k: getattr(model, k) for k in wanted} == wanted
    assert get("openai/m").requests_per_second is get("openai/m").max_concurrency is None


@pytest.mark.parametrize(
    "options",
    [{"max_concurrency": 0}, {"retries": -1}, {"max_output": "9"}, {"retries": True}, {"max_concurrency": 1.5},
     {"requests_per_second": 0}, {"requests_per_minute": -1}, {"tokens_per_minute": "9"}, {"tokens_per_minute": True},
     {"requests_per_second": float("nan")}],
)  # fmt: skip
def test_numbers_that_are_none(options):
    assert next(iter(options)) in said("fake/echo", **options)


@pytest.mark.parametrize(
    ("name", "options", "wanted"),
    [
        ("openai/m", {"timeout": "abc"}, "timeout as a number; it got 'abc'"),
        ("openai/m", {"timeout": True}, "timeout as a number"),
        ("openai/m", {"timeout": -1}, "more than 0"),
        ("openai/m", {"base_url": True}, "base_url as text"),
        ("tiny/student", {"seed": "x"}, "seed as a whole number"),
        ("hf/./nowhere", {"trust_remote_code": "maybe"}, "trust_remote_code as true or false"),
    ],
)
def test_options_of_another_kind(name, options, wanted):
    assert wanted in said(name, **options)


def test_a_number_is_taken_where_text_is_wanted():
    assert get("openai/m", revision=2).digest == get("openai/m", revision="2").digest
    assert get("openai/m", timeout=5).timeout == 5.0


def test_names_that_are_not_there():
    assert "fake/echo" in said("fake/eco")
    assert "tiny/teacher" in said("tiny/techer")
    assert "no directory" in said("hf/./nowhere")


def test_what_is_a_model_by_its_look():
    assert all(map(is_model, ("openai/gpt-4o", "hf/./dir", "hf/Qwen/Qwen3-0.6B", "tiny/teacher", "fake/echo")))
    assert not any(map(is_model, ("openai", "openai/", "gpt-4o", "data/rows.jsonl", "./hf", "/hf/x", "", "5", "a b/c")))


def test_other_packages_add_providers(monkeypatch):
    point = importlib.metadata.EntryPoint("mine", "limbeck.models.fake:named", "limbeck.models")
    real = importlib.metadata.entry_points
    monkeypatch.setattr(
        importlib.metadata, "entry_points", lambda group: [point] if group == "limbeck.models" else real(group=group)
    )
    models.providers.cache_clear()
    try:
        assert is_model("mine/echo") and set(models.providers()) == {*models._BUILT_IN, "mine"}
        model = get("mine/echo", price=1)
        assert asyncio.run(model.reply(Request([{"role": "user", "content": "hi"}]), "0")).text == "hi"
        assert '"mine/x"' in said("mien/x")
    finally:
        models.providers.cache_clear()


def test_asking_what_models_there_are_loads_nothing_heavy():
    code = (
        "import sys; from limbeck.models import is_model, providers; is_model('hf/x'); "
        "print([m for m in ('torch', 'transformers', 'aiohttp', 'pyarrow') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_the_students_weights_are_written_once_per_seed(tmp_path, monkeypatch):
    pytest.importorskip("torch")
    from limbeck.models import shipped

    made = []

    def student(seed, out):
        made.append(seed)
        out.mkdir()
        (out / "config.json").write_text("{}")
        (out / "model.safetensors").write_bytes(bytes([seed]) * 64)
        return out

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(shipped.shipped, "student", student)
    first, again, other = get("tiny/student"), get("tiny/student", seed=0), get("tiny/student", seed=1)
    assert made == [0, 1]
    assert first.digest == again.digest != other.digest
    assert first.name == "tiny/student" and first.path == again.path != other.path
    assert len(list((tmp_path / "limbeck").iterdir())) == 2


def test_litellm_that_is_not_installed_is_said_with_the_way_out(monkeypatch):
    monkeypatch.setitem(sys.modules, "litellm", None)
    with pytest.raises(LimbeckError, match="limbeck.litellm"):
        asyncio.run(get("litellm/mistral/m").reply(Request([{"role": "user", "content": "hi"}]), "0"))
