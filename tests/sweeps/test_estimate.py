"""The estimate is the sum done by hand; a short run's speeds are those of its usual steps."""

from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drgrade.errors import ConfigError
from drgrade.sweeps.estimate import (
    Estimate,
    Length,
    Rates,
    Training,
    cell_seconds,
    duration,
    table,
    training_length,
    training_seconds,
)
from drgrade.sweeps.probing import rates
from drgrade.sweeps.stopwatch import Measured


@pytest.mark.parametrize(
    ("photographs", "settings", "expected"),
    [
        # 70 photographs are 3 batches of 32, all of them full; the first of 4 epochs is frozen
        (70, {"max_epochs": 4, "max_steps": -1, "frozen_epochs": 1}, Length(4, 4 * 3 * 32, 3 * 32)),
        # a batch is no larger than the set
        (7, {"max_epochs": 4, "max_steps": -1}, Length(4, 4 * 7)),
        # as many steps at every fraction
        (7, {"max_epochs": 2, "max_steps": -1, "steps_per_epoch": 15}, Length(2, 2 * 15 * 7)),
        # 5 steps of 3 an epoch: two epochs are begun, the second is cut off
        (70, {"max_epochs": 4, "max_steps": 5}, Length(2, 5 * 32)),
        (70, {"max_epochs": -1, "max_steps": 6}, Length(2, 6 * 32)),
        (70, {"max_epochs": None, "max_steps": 6}, Length(2, 6 * 32)),
        (70, {"max_epochs": None, "max_steps": -1}, Length(1000, 1000 * 3 * 32)),
        (70, {"max_epochs": 4, "max_steps": 100}, Length(4, 4 * 3 * 32)),
        # all that there is may be frozen
        (70, {"max_epochs": 4, "max_steps": 2, "frozen_epochs": 3}, Length(1, 2 * 32, 2 * 32)),
        # a step of 2 batches, and one of what is left of the epoch
        (70, {"max_epochs": 4, "max_steps": 2, "accumulated": 2}, Length(1, 3 * 32)),
        (70, {"max_epochs": 4, "max_steps": 3, "accumulated": 2}, Length(2, 5 * 32)),
        (0, {"max_epochs": 4, "max_steps": -1}, Length(0, 0)),
    ],
)
def test_a_training_is_as_long_as_its_settings_say(photographs, settings, expected):
    assert training_length(photographs, 32, **settings) == expected


def test_a_training_without_an_end_is_refused():
    with pytest.raises(ConfigError, match="never ends"):
        training_length(70, 32, -1, -1)


def test_seconds_are_the_sum_of_what_is_done():
    measured = Rates(trained=10, frozen=40, evaluated=50, epoch=0.5, start=7)
    training = Training(Length(epochs=4, images=300, frozen=100), evaluated=150)
    # 200/10 + 100/40 + 4 * 0.5 + 150/50
    assert training_seconds(training, measured) == pytest.approx(27.5)
    assert cell_seconds(training, measured) == pytest.approx(34.5)


def test_speeds_leave_out_the_first_steps_and_a_run_takes_what_it_took():
    measured = Measured(
        steps=[(0, 32, 5.0), (0, 32, 0.5), (0, 32, 0.3), (1, 32, 3.0), (1, 32, 1.0), (1, 32, 0.6)],
        evaluations=[(16, 0.2), (16, 0.2), (16, 0.4)],
        epochs=2,
        training=5.0 + 0.8 + 4.6 + 0.4 + 0.6,
        validation=0.4,
    )
    found = rates(measured, frozen_epochs=1, wall=25.0)
    assert found.trained == pytest.approx(64 / 1.6)
    assert found.frozen == pytest.approx(64 / 0.8)
    assert found.evaluated == pytest.approx(48 / 0.8)
    assert found.epoch == pytest.approx(0.3)
    assert cell_seconds(Training(Length(2, 192, 96), 48), found) == pytest.approx(25.0)


def test_speeds_of_a_run_without_validation_or_with_one_step():
    measured = Measured(steps=[(0, 8, 0.5)], evaluations=[(0, 0.1)], epochs=1, training=0.7)
    found = rates(measured, frozen_epochs=0, wall=3.0)
    assert (found.trained, found.frozen, found.evaluated) == (16, 16, 16)
    assert found.start == pytest.approx(3.0 - 0.5 - 0.2)


def test_the_table_adds_up_and_says_when_it_is_done():
    now = datetime(2025, 3, 4, 22, 0)
    lines = table([Estimate("one", 50, 1, 3600.0), Estimate("two", 4, 5, 7200.0)], now).splitlines()
    assert [line.split() for line in lines[1:4]] == [
        ["one", "50", "1", "60", "min"],
        ["two", "4", "5", "2", "h", "0", "min"],
        ["total", "54", "6", "3", "h", "0", "min"],
    ]
    assert lines[4] == "Done about Wed 05 Mar 01:00."


def test_cells_at_the_same_time_make_it_an_upper_bound():
    now = datetime(2025, 3, 4, 22, 0)
    said = table([Estimate("one", 50, 1, 7200.0, parallel=2)], now, {"one": "elsewhere"})
    assert "one: elsewhere" in said
    assert "Wed 05 Mar 00:00 at the latest" in said
    assert "With 2 at a time it may be as early as Tue 04 Mar 23:00 (60 min)" in said


def test_nothing_left_is_said():
    assert table([Estimate("one", 0, 0, 0.0)], datetime(2025, 1, 1)).endswith("Nothing is left to run.")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (89, "89 s"), (90, "2 min"), (5340, "89 min"), (5400, "1 h 30 min"), (187200, "2 d 4 h")],
)
def test_durations_read_well(seconds, text):
    assert duration(seconds) == text


@given(
    st.integers(1, 500),
    st.integers(1, 64),
    st.integers(1, 30),
    st.one_of(st.just(-1), st.integers(1, 200)),
    st.one_of(st.none(), st.integers(1, 20)),
    st.integers(1, 4),
    st.integers(0, 40),
)
def test_the_length_is_that_of_a_loop_that_counts(
    photographs, batch, max_epochs, max_steps, steps_per_epoch, accumulated, frozen
):
    found = training_length(
        photographs,
        batch,
        max_epochs,
        max_steps,
        steps_per_epoch=steps_per_epoch,
        accumulated=accumulated,
        frozen_epochs=frozen,
    )
    size = min(batch, photographs)
    batches = steps_per_epoch or -(-photographs // size)
    epochs = images = still = steps = 0
    while epochs < max_epochs and (max_steps == -1 or steps < max_steps):
        epochs += 1
        for number in range(1, batches + 1):
            images += size
            still += size if epochs <= frozen else 0
            steps += number % accumulated == 0 or number == batches
            if steps == max_steps:
                break
    assert found == Length(epochs, images, still)
