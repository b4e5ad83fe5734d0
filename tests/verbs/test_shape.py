"""Verbs that give rows another shape."""

import pytest

import limbeck as lb


@pytest.fixture
def table(run):
    return lb.Table.from_rows({"prompt": f"q{i}", "n": i} for i in range(6))


def test_fields_sets_from_templates_columns_and_functions_and_drops(table):
    made = lb.fields(table, text="{prompt}: {n}", copy=lb.Column("n"), odd=lambda r: r["n"] % 2 == 1, prompt=None)
    assert made.head(2) == [
        {"n": 0, "text": "q0: 0", "copy": 0, "odd": False},
        {"n": 1, "text": "q1: 1", "copy": 1, "odd": True},
    ]
    assert made.columns == ["n", "text", "copy", "odd"]


def test_fields_can_let_columns_change_places(table):
    assert lb.fields(table, prompt=lb.Column("n"), n=lb.Column("prompt")).head(1) == [{"prompt": 0, "n": "q0"}]


def test_fields_names_an_unknown_slot(table):
    with pytest.raises(lb.LimbeckError, match="promt"):
        lb.fields(table, x="{promt}")


def test_assign_is_a_function_of_the_row_and_not_of_its_place(table):
    drawn = {r["prompt"]: r["op"] for r in lb.assign(table, "op", list("abcdefgh"), seed=1)}
    fewer = lb.where(table, lambda r: r["n"] > 2)
    assert {r["prompt"]: r["op"] for r in lb.assign(fewer, "op", list("abcdefgh"), seed=1)} == {
        k: v for k, v in drawn.items() if k > "q2"
    }
    assert len(set(drawn.values())) > 1
    assert drawn != {r["prompt"]: r["op"] for r in lb.assign(table, "op", list("abcdefgh"), seed=2)}


def test_equal_rows_draw_apart(run):
    same = lb.Table.from_rows([{"prompt": "same"}] * 40)
    assert len({r["op"] for r in lb.assign(same, "op", list("abcdefgh"))}) > 3


def test_draw_takes_different_choices(table):
    made = list(lb.draw(table, "who", ["a", "b", "c"], k=2))
    assert len(made) == 12
    assert all(made[i]["who"] != made[i + 1]["who"] for i in range(0, 12, 2))
    with pytest.raises(lb.LimbeckError, match="between 1 and the 3"):
        lb.draw(table, "who", ["a", "b", "c"], k=4)


def test_cross_concat_minus_where(table):
    crossed = lb.cross(table, "target", [1, 2])
    assert [(r["n"], r["target"]) for r in crossed][:3] == [(0, 1), (0, 2), (1, 1)]
    both = lb.concat(table, lb.where(table, n=3))
    assert [r["n"] for r in both] == [0, 1, 2, 3, 4, 5, 3] and len(both) == 7
    assert [r["n"] for r in lb.minus(both, lb.where(table, lambda r: r["n"] > 1))] == [0, 1]
    assert [r["n"] for r in lb.minus(both, table, on=["n", "prompt"])] == []


def test_views_are_not_stored(table, run):
    before = set(run.store.root.iterdir())
    pool = table
    for i in range(5):
        pool = lb.concat(pool, lb.cross(lb.where(table, n=i), "round", [i]))
    assert len(pool) == 11 and lb.fields(pool, x="{n}").digest
    assert set(run.store.root.iterdir()) == before


def test_a_long_chain_of_concats_stays_flat(table):
    pool = table
    for _ in range(2000):
        pool = lb.concat(pool, table)
    assert len(pool) == 6 * 2001


def test_shots_show_different_rows_and_know_where_they_come_from(table):
    made = list(lb.shots(table, k=3, n=4, seed=2).tracked())
    assert len(made) == 4
    for row in made:
        lines = row["shots"].splitlines()
        assert [line.split(". ")[0] for line in lines] == ["1", "2", "3"] and len(set(lines)) == 3
    assert [r["shots"] for r in lb.shots(table, k=3, n=4, seed=2)] == [r["shots"] for r in made]
    assert len(lb.shots(table, k=100, n=1).head()[0]["shots"].splitlines()) == 6
    with pytest.raises(lb.LimbeckError, match="pool is empty"):
        lb.shots(lb.where(table, n=99), k=1, n=1)
