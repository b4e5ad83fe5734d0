"""A function becomes a stage: memoised, with lineage, with a reason for every dropped row."""

import sys

import pytest

import limbeck as lb
from limbeck import store


class Calls:
    number = 0


@lb.op()
def double(row, by=2):
    Calls.number += 1
    if row["n"] == 3:
        return lb.Reject("three is not liked")
    return [{**row, "m": row["n"] * by}, {**row, "n": -row["n"]}]


@lb.op(scope="group", by="kind")
def count(rows):
    yield {"kind": rows[0]["kind"], "count": len(rows)}


@lb.op(scope="group", by="kind")
def first(rows):
    yield rows[0]
    yield from (lb.Dropped(row, "not the first") for row in rows[1:])


@lb.op(scope="table")
def backwards(table):
    yield from reversed(list(table))


@pytest.fixture
def numbers(run):
    return lb.Table.from_rows({"n": n, "kind": "odd" if n % 2 else "even"} for n in range(6))


def test_rows_come_in_order_and_counts_add_up(numbers):
    made = double(numbers)
    assert [r["n"] for r in made] == [0, 0, 1, -1, 2, -2, 4, -4, 5, -5]
    assert made.meta["counts"] == {"in": 6, "out": 10, "rejected": {"three is not liked": 1}}
    rejects = list(store.read(made.path / "rejects.parquet"))
    assert [(r["n"], r["_reason"]) for r in rejects] == [(3, "three is not liked")]


def test_a_stage_is_computed_once_and_again_for_other_parameters(numbers):
    Calls.number = 0
    assert double(numbers).digest == double(numbers).digest
    assert Calls.number == 6
    assert double(numbers, by=3).digest != double(numbers).digest
    assert Calls.number == 12


def test_only_new_and_changed_columns_are_stored(numbers):
    stored = list(store.read(double(numbers).path / "rows.parquet"))
    assert "kind" not in stored[0]
    assert stored[3]["_changed"] == ["n"] and stored[2]["_changed"] is None


def test_a_column_set_to_none_is_absent_afterwards(numbers):
    @lb.op()
    def forget(row):
        return {**row, "kind": None if row["n"] < 3 else row["kind"]}

    assert ["kind" in r for r in forget(numbers)] == [False] * 3 + [True] * 3
    assert list(lb.Table.from_rows(list(forget(numbers)))) == list(forget(numbers))


def test_digest_is_that_of_the_rows_however_they_are_stored(numbers):
    for made in (double(numbers), count(numbers), backwards(numbers), double(double(numbers))):
        assert made.digest == lb.Table.from_rows(list(made)).digest
        assert len(made) == len(list(made))


def test_an_operation_that_yields_nothing_leaves_a_reason(numbers):
    @lb.op()
    def silent(row):
        if row["n"] > 3:
            yield row

    assert silent(numbers).meta["counts"]["rejected"] == {"gave no row": 4}


def test_lineage_of_rows_groups_and_tables(numbers):
    source = numbers.name
    assert [r["_row"] for r in list(double(numbers).tracked())[:2]] == [f"{double(numbers).name}:{i}" for i in range(2)]
    grouped = list(store.read(count(numbers).path / "rows.parquet"))
    assert grouped[0]["_from"] == [f"{source}:{i}" for i in (0, 2, 4)]
    turned = list(store.read(backwards(numbers).path / "rows.parquet"))
    assert turned[0]["_from"] == [f"{source}:5"]


def test_group_op_drops_with_a_reason(numbers):
    made = first(numbers)
    assert [r["n"] for r in made] == [0, 1]
    assert made.meta["counts"] == {"in": 6, "out": 2, "rejected": {"not the first": 4}}


def test_groups_that_do_not_fit_in_memory_come_in_the_same_order(numbers, monkeypatch):
    table = lb.Table.from_rows({"kind": f"k{(i * 7) % 23}", "i": i} for i in range(200))
    ops = sys.modules["limbeck.op"]
    whole = [[r["i"] for r in g] for g in ops.groups(table, ["kind"])]
    monkeypatch.setattr(ops, "IN_MEMORY", 30)
    assert [[r["i"] for r in g] for g in ops.groups(table, ["kind"])] == whole


def test_a_parameter_without_a_fingerprint_is_named(numbers):
    with pytest.raises(lb.LimbeckError, match="double.*is a object"):
        double(numbers, by=object())


def test_scopes_are_checked():
    with pytest.raises(lb.LimbeckError, match="no scope 'rows'"):
        lb.op(scope="rows")
    with pytest.raises(lb.LimbeckError, match="by="):
        lb.op(scope="group")
    with pytest.raises(lb.LimbeckError, match="wants a Table first"):
        double([{"n": 1}])


def test_a_failed_operation_leaves_no_stage(numbers, run):
    @lb.op()
    def fails(row):
        if row["n"] == 4:
            raise ValueError("no four")
        return row

    with pytest.raises(ValueError, match="no four"):
        fails(numbers)
    assert not list(run.store.root.glob("fails-*")) and not list(run.store.root.glob(".tmp-*"))


def test_stages_work_without_a_run():
    table = lb.Table.from_rows([{"n": 1, "kind": "odd"}])
    assert list(count(table)) == [{"kind": "odd", "count": 1}]


def test_functions_keep_their_names_though_modules_are_called_the_same():
    import limbeck.op
    import limbeck.verbs  # noqa: F401  (which imports the module limbeck.op)

    assert callable(limbeck.op) and limbeck.op is lb.op


def test_a_row_changed_in_place_is_stored_as_it_was_changed(run):
    @lb.op()
    def louder(row):
        row["text"] = row["text"].upper()
        row["marks"].append("loud")
        return row

    made = louder(lb.Table.from_rows([{"text": "hush", "marks": ["old"]}]))
    assert list(made) == [{"text": "HUSH", "marks": ["old", "loud"]}]
    assert made.digest == lb.Table.from_rows(list(made)).digest


def test_a_rule_that_changes_its_row_changes_nothing(run):
    def rule(row):
        row["n"] = 99
        return True

    assert list(lb.keep(lb.Table.from_rows([{"n": 1}]), rule)) == [{"n": 1}]


def test_rows_that_a_group_op_just_leaves_out_are_counted(numbers):
    @lb.op(scope="group", by="kind")
    def largest(rows):
        yield max(rows, key=lambda row: row["n"])

    assert largest(numbers).meta["counts"] == {"in": 6, "out": 2, "rejected": {"left out": 4}}
