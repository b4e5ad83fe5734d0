"""What lies beside the ledger comes back to the last bit, or is called damaged."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.fingerprint import digest
from limbeck.ledger.blobs import Blobs, Damaged, frame, frame_json, unframe, unframe_json
from limbeck.ledger.tokens import decode, encode

floats = st.floats(width=64) | st.floats(width=32) | st.integers(-(2**60), 2**60)
texts = st.text(st.characters(exclude_categories=())) | st.just("\ud800 lone")
entry = st.fixed_dictionaries(
    {"token": texts, "logprob": floats},
    optional={
        "id": st.integers(-(2**33), 2**33),
        "bytes": st.none() | st.lists(st.integers(0, 300)) | st.just("é".encode()).map(list),
    },
)
entries = st.lists(
    st.tuples(entry, st.none() | st.lists(entry, max_size=4)).map(lambda e: e[0] | ({"top": e[1]} if e[1] else {}))
)
anything = st.recursive(
    st.none() | st.booleans() | floats | texts, lambda v: st.lists(v) | st.dictionaries(texts, v), max_leaves=8
)


def same(a, b):
    """Equal as JSON data, where nan is nan and a boolean is no number."""
    if isinstance(a, float) and isinstance(b, float) and math.isnan(a):
        return math.isnan(b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(same, a, b))
    return a == b and isinstance(a, bool) == isinstance(b, bool)


@given(entries | anything, st.lists(st.integers(-(2**40), 2**40)) | anything, st.lists(floats) | anything)
def test_large_parts_come_back_as_they_were(logprobs, ids, vector):
    parts = {"logprobs": logprobs, "token_ids": ids, "vector": vector}
    assert same(decode(encode(parts)), parts)


def test_log_probabilities_of_a_local_model_take_a_seventh_of_their_json():
    import numpy as np

    drawn = np.random.default_rng(0).normal(size=(200, 6)).astype(np.float32).tolist()
    made = [
        {"token": f" w{i}", "logprob": row[0], "id": i, "top": [{"token": f" t{j}", "logprob": p, "id": j}
         for j, p in enumerate(row[1:])]} for i, row in enumerate(drawn)
    ]  # fmt: skip
    packed = frame(encode({"logprobs": made}), "k")
    assert decode(unframe(packed, "k")[0]) == {"logprobs": made}
    assert len(packed) * 7 < len(json.dumps(made))


@given(anything, st.text(max_size=5))
def test_a_frame_of_json_comes_back_as_it_was(value, name):
    clean = json.loads(json.dumps(value).replace("NaN", "0").replace("-Infinity", "0").replace("Infinity", "0"))
    assert same(unframe_json(frame_json(clean, "k"), "k"), clean)


@given(st.binary(max_size=2000), st.data())
def test_a_frame_with_one_byte_changed_is_called_damaged(content, data):
    whole = frame(content, "k")
    assert unframe(whole, "k")[0] == content
    at = data.draw(st.integers(0, len(whole) - 1))
    changed = whole[:at] + bytes((whole[at] ^ data.draw(st.integers(1, 255)),)) + whole[at + 1 :]
    with pytest.raises(Damaged):
        unframe(changed, "k")


def test_a_frame_under_another_name_is_called_damaged():
    with pytest.raises(Damaged, match="checksum"):
        unframe(frame(b"a reply", "its key"), "another key")


def test_an_image_is_one_file_named_by_its_digest_and_written_once(tmp_path):
    blobs, image = Blobs(tmp_path / "blobs"), b"\x89PNG" * 9
    assert blobs.write({digest(image): image}, []) is None
    made = (tmp_path / "blobs" / digest(image)).stat().st_mtime_ns
    blobs.write({digest(image): image}, [])
    assert [f.name for f in (tmp_path / "blobs").iterdir()] == [digest(image)]
    assert (tmp_path / "blobs" / digest(image)).stat().st_mtime_ns == made
    assert blobs.image(digest(image)) == image


def test_a_changed_or_missing_image_is_called_damaged(tmp_path):
    blobs, image = Blobs(tmp_path / "blobs"), b"pixels"
    blobs.write({digest(image): image}, [])
    (tmp_path / "blobs" / digest(image)).write_bytes(b"pixelz")
    with pytest.raises(Damaged, match="not the image"):
        blobs.image(digest(image))
    with pytest.raises(Damaged, match="cannot be read"):
        blobs.image("0" * 32)


def test_a_pack_holds_its_entries_and_a_short_one_is_called_damaged(tmp_path):
    blobs = Blobs(tmp_path / "blobs")
    name = blobs.write({}, [b"first", b"second"])
    assert name == f"{digest(b'firstsecond')}.pack"
    assert blobs.entry(name, 5, 6) == b"second"
    (tmp_path / "blobs" / name).write_bytes(b"firstsec")
    with pytest.raises(Damaged, match="ends before byte 11"):
        blobs.entry(name, 5, 6)
