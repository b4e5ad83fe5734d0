import collections

import torch

from limbeck.train.examples import Examples
from limbeck.train.schedule import Schedule, chance


def stream(n):
    made = Examples()
    for i in range(n):
        made.add([i, i], [False, True], 1)
        made.end_row({})
    return made


def name(row):
    return int(row.sequences[0].ids[0])


def read(schedule):
    return [[name(row) for row in schedule[place][1]] for place in range(len(schedule))]


def test_every_epoch_reads_every_row_once_in_another_order():
    rows = [first for (first,) in read(Schedule([stream(10)], 30, 5, 6, seed=0))]
    epochs = [rows[:10], rows[10:20], rows[20:]]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_the_order_depends_on_the_seed_alone():
    order = [read(Schedule([stream(10)], 20, 5, 4, seed)) for seed in (0, 0, 1)]
    assert order[0] == order[1] != order[2]
    backwards = Schedule([stream(10)], 20, 5, 4, 0)
    assert [name(backwards[i][1][0]) for i in reversed(range(20))] == [r for (r,) in reversed(order[0])]


def test_streams_of_other_lengths_go_round_at_their_own_pace():
    counts = collections.Counter(second for _, second in read(Schedule([stream(10), stream(3)], 12, 3, 4, 0)))
    assert counts == {0: 4, 1: 4, 2: 4}


def test_the_last_step_is_filled_with_rows_that_teach_nothing():
    schedule = Schedule([stream(10)], rows_seen=10, steps=3, global_batch=4, seed=0)
    assert len(schedule) == 12
    learned = [bool(schedule[place][1][0].sequences[0].learn.any()) for place in range(12)]
    assert learned == [True] * 10 + [False] * 2
    assert [schedule[place][0] for place in range(12)] == list(range(12))


def test_what_fills_the_last_step_has_the_form_of_the_rows():
    pairs = Examples(["scores"])
    pairs.add([1, 2], [False, True], 1)
    pairs.add([3, 4], [False, True], 1)
    pairs.end_row({"scores": [1.0, 2.0]})
    _, (filler,) = Schedule([pairs], rows_seen=1, steps=1, global_batch=2, seed=0)[1]
    assert len(filler.sequences) == 2 and filler.columns == {"scores": [0.0, 0.0]}


def test_chance_is_fixed_and_spread():
    assert chance(0, 1) == 141287642295103307 and chance(1, 0) != 141287642295103307
    draws = torch.tensor([chance(7, i) / 2**60 for i in range(2000)])
    assert draws.min() >= 0 and draws.max() < 1 and abs(draws.mean() - 0.5) < 0.03
