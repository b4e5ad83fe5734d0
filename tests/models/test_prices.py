"""The price table and how names are looked up in it."""

import pytest

from limbeck.models import Price, get
from limbeck.models.prices import _KNOWN, price_of


def test_a_snapshot_costs_what_its_family_does_unless_the_table_names_it():
    mini = price_of("gpt-4o-mini")
    assert mini == (Price(0.15, 0.6), 16_384)
    assert price_of("gpt-4o-mini-2024-07-18") == price_of("openai/gpt-4o-mini") == mini
    assert price_of("claude-sonnet-4-20250514") == price_of("claude-sonnet-4")
    assert price_of("gpt-4o-2024-05-13") != price_of("gpt-4o-2024-08-06") == price_of("gpt-4o")


@pytest.mark.parametrize("name", ["gpt-4o-mini-audio", "my-model", "gpt-4o-mini-mine", "", "Qwen/Qwen3-0.6B"])
def test_what_is_not_in_the_table_has_no_price(name):
    assert price_of(name) == (None, None)


def test_a_given_price_overrides_the_table():
    model = get("openai/gpt-4o-mini", base_url="http://a/v1")
    assert (model.price, model.max_output) == (Price(0.15, 0.6), 16_384)
    assert get("openai/gpt-4o-mini", base_url="http://a/v1", price="1/2").price == Price(1, 2)


def test_output_costs_no_less_than_input_where_there_is_any():
    assert all(0 < low <= high and limit > 0 for low, high, limit in _KNOWN.values() if limit)
    assert all(low > 0 and high == 0 and "embed" in name for name, (low, high, limit) in _KNOWN.items() if not limit)


def test_a_batch_costs_half():
    assert Price(2.0, 8.0).batch == 0.5 and price_of("gpt-4o")[0].batch == 0.5
