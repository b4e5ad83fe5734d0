"""Fingerprints change with what a result depends on, and with nothing else."""

import dataclasses
import functools
import importlib.util
import os
import sys
import textwrap

import pytest

from limbeck.errors import LimbeckError
from limbeck.fingerprint import canonical, code_digest, digest, fingerprint


def test_parts_are_hashed_apart_from_each_other():
    assert digest("ab", "c") != digest("a", "bc")
    assert digest("a") == digest(b"a")


def test_golden_digests():
    assert digest("limbeck", "1") == "16a181e179800659e77d624e9c6aaf32"
    assert fingerprint({"n": 2, "stop": ["x"], "t": 0.5, "none": None}) == "0c358f3a664500080a1eef03c1a828d0"


def test_canonical_json_has_one_form():
    assert canonical({"b": 1.0, "a": -0.0}) == canonical({"a": 0, "b": 1}) == b'{"a":0,"b":1}'
    assert canonical([1e300, 2**70, "\ud800"]) != canonical([1e300, 2**70, "\ud801"])
    assert canonical(float("nan")) != canonical(None)


@pytest.mark.parametrize("pair", [(1, 1.0), (1, True), ("1", 1), ([], {}), ([1, [2]], [[1], 2]), (None, "None")])
def test_different_parameters_differ(pair):
    assert fingerprint(pair[0]) != fingerprint(pair[1])


def test_what_has_no_fingerprint_is_named():
    with pytest.raises(LimbeckError, match=r"ask\.extra\.deep\[1\] is a object"):
        fingerprint({"deep": [1, object()]}, "ask.extra")


@dataclasses.dataclass
class Rule:
    limit: int


def test_dataclasses_and_partials_count_their_values():
    assert fingerprint(Rule(1)) == fingerprint(Rule(1)) != fingerprint(Rule(2))
    assert fingerprint(functools.partial(max, 1)) != fingerprint(functools.partial(max, 2))


def make(limit):
    return lambda row: row["n"] > limit


def test_closures_and_defaults_count():
    assert fingerprint(make(1)) == fingerprint(make(1)) != fingerprint(make(2))
    assert fingerprint(lambda row, k=1: k) != fingerprint(lambda row, k=2: k)


LIMIT = 3


def uses_global(row):
    return row["n"] > LIMIT


def test_a_changed_global_counts(monkeypatch):
    before = fingerprint(uses_global)
    monkeypatch.setitem(globals(), "LIMIT", 4)
    assert fingerprint(uses_global) != before


def load(folder, name):
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def write(path, text, stamp):
    path.write_text(textwrap.dedent(text))
    os.utime(path, ns=(stamp, stamp))


def test_code_of_modules_imported_from_the_same_folder_counts(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    write(tmp_path / "helper_of_mine.py", "import json\ndef twice(x): return 2 * x\n", 1)
    write(
        tmp_path / "mine_rules.py", "from helper_of_mine import twice\ndef rule(row): return twice(row['n']) > 1\n", 1
    )
    rule = load(tmp_path, "mine_rules").rule
    before = code_digest(rule)
    assert code_digest(rule) == before
    write(tmp_path / "unrelated.py", "x = 1\n", 1)
    assert code_digest(rule) == before
    write(tmp_path / "helper_of_mine.py", "import json\ndef twice(x): return 3 * x\n", 2)
    assert code_digest(rule) != before


def test_the_same_code_in_another_folder_is_the_same(tmp_path):
    found = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "moved_rules.py", "def rule(row): return True\n", 1)
        found.append(code_digest(load(tmp_path / name, "moved_rules").rule))
    assert found[0] == found[1]


def test_functions_of_one_name_in_one_file_differ_by_what_they_say():
    rules = [lambda row: row["n"] < 5, lambda row: row["n"] > 5, lambda row: row["é"] > 5, lambda row: True]
    assert len({fingerprint(rule) for rule in rules}) == 4
    found = []
    for _ in range(2):

        def rule(row):
            return row["n"] + 1

        found.append(fingerprint(rule))

    def rule(row):
        return row["n"] - 1

    assert found[0] == found[1] != fingerprint(rule)


def test_functions_that_have_no_file_differ_too():
    made = [eval(f"lambda row: row['n'] {sign} 5") for sign in "<>"]
    assert fingerprint(made[0]) != fingerprint(made[1])


def test_functions_that_call_themselves_or_each_other_have_a_fingerprint():
    def even(n):
        return n == 0 or odd(n - 1)

    def odd(n):
        return n > 0 and even(n - 1)

    def down(n):
        return n and down(n - 1)

    assert len({fingerprint(even), fingerprint(odd), fingerprint(down)}) == 3
    assert fingerprint([down, down]) == fingerprint([down, down])
