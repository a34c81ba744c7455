"""The estimate of a sweep: counted images and epochs times the speed of a short run."""

import json
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

from drgrade.errors import ConfigError
from drgrade.progress import format_duration
from drgrade.sweeps import estimate
from drgrade.sweeps.estimate import (
    Speed,
    StepTimer,
    TimeEstimate,
    Workload,
    count_work,
    estimate_sweeps,
    format_estimates,
    training_length,
)
from drgrade.sweeps.sweeper import plan_sweep
from drgrade.training.run import train

START = datetime(2025, 3, 4, 22, 0)


@pytest.mark.parametrize(
    ("photographs", "settings", "epochs", "images"),
    [
        # 70 photographs are 3 batches of 32, all of them full
        (70, {"max_epochs": 4}, 4, 96),
        # a batch is no larger than the set
        (7, {"max_epochs": 4}, 4, 7),
        # as many steps at every fraction
        (7, {"max_epochs": 2, "steps_per_epoch": 15}, 2, 105),
        # 5 steps of 3 an epoch: the second epoch is cut off
        (70, {"max_epochs": 4, "max_steps": 5}, 5 / 3, 96),
        (70, {"max_epochs": -1, "max_steps": 6}, 2, 96),
        (70, {"max_epochs": None, "max_steps": 6}, 2, 96),
        (70, {"max_epochs": None}, 1000, 96),
        (70, {"max_epochs": 4, "max_steps": 100}, 4, 96),
        # a step of 2 batches, and one of the rest of the epoch
        (70, {"max_epochs": 4, "max_steps": 3, "accumulate_grad_batches": 2}, 1.5, 96),
        (0, {"max_epochs": 4}, 0, 0),
    ],
)
def test_training_length(photographs, settings, epochs, images):
    steps_per_epoch = settings.pop("steps_per_epoch", None)
    trainer = OmegaConf.create({"max_steps": -1, "accumulate_grad_batches": 1, **settings})
    assert training_length(photographs, 32, trainer, steps_per_epoch) == (pytest.approx(epochs), images)


def test_training_without_an_end_is_refused():
    trainer = OmegaConf.create({"max_epochs": -1, "max_steps": -1, "accumulate_grad_batches": 1})
    with pytest.raises(ConfigError, match="never ends"):
        training_length(70, 32, trainer)


def test_time_of_a_run_is_the_sum_of_its_parts():
    work = Workload(cell=None, config=None, epochs=4, images=300)
    assert Speed(image=0.1, epoch=0.5, start=7).seconds(work) == pytest.approx(30 + 2 + 7)


def test_step_timer_leaves_out_the_first_step(monkeypatch, tmp_path):
    """Two epochs of three steps: ends at 5 (the slow first step), 6, 7; a pause of 2; then 10, 11, 13."""
    clock = iter([5.0, 6.0, 7.0, 10.0, 11.0, 13.0])
    monkeypatch.setattr(estimate.time, "monotonic", lambda: next(clock))
    strategy = SimpleNamespace(reduce_boolean_decision=lambda decision, all: decision)
    trainer = SimpleNamespace(strategy=strategy, world_size=2, is_global_zero=True, should_stop=False)
    timer = StepTimer(str(tmp_path), seconds=8)
    for trainer.current_epoch in (0, 1):
        for _ in range(3):
            assert not trainer.should_stop
            timer.on_train_batch_end(trainer, None, None, {"index": range(16)}, 0)
    assert trainer.should_stop
    timer.on_train_end(trainer, None)
    speed = json.loads((tmp_path / StepTimer.FILE).read_text())
    assert speed == {"images": 32, "step": 1.0, "epoch": 2.0, "seconds": 8.0}


def test_estimates_are_added_up():
    lines = format_estimates([TimeEstimate("one", 50, 1, 3600.0), TimeEstimate("two", 4, 5, 7200.0)], START)
    assert [line.split() for line in lines.splitlines()[1:4]] == [
        ["one", "50", "1", "60", "min"],
        ["two", "4", "5", "2", "h", "0", "min"],
        ["total", "54", "6", "3", "h", "0", "min"],
    ]
    assert lines.splitlines()[4] == "Done about Wed 05 Mar 01:00."


def test_estimate_of_parallel_cells_is_an_upper_bound():
    text = format_estimates([TimeEstimate("one", 50, 1, 7200.0, parallel=2)], START, {"one": "elsewhere"})
    assert "one: elsewhere" in text
    assert "Wed 05 Mar 00:00 at the latest: 2 cells run at a time" in text
    assert format_estimates([TimeEstimate("one", 0, 0, 0.0)], START).endswith("Nothing is left to run.")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (89, "89 s"), (90, "2 min"), (5340, "89 min"), (5400, "1 h 30 min"), (187200, "2 d 4 h")],
)
def test_format_duration(seconds, text):
    assert format_duration(seconds) == text


def provenance(folder):
    return json.loads((Path(folder) / "provenance.json").read_text())


def test_counted_images_equal_those_of_a_run(overrides, compose):
    changed = ("label_fraction=0.5", "trainer.max_steps=5", "protocol.frozen_epochs=0", "test=false")
    sweep = plan_sweep("msssl_table", [*overrides, "fold=0", "init=random", *changed])
    (work,), pretrainings = count_work(sweep, {})
    assert pretrainings == []
    cfg = compose("+experiment=msssl_table", "fold=0", "init=random", *changed)
    train(cfg)
    subsets = (Path(cfg.paths.run) / "split.csv").read_text().splitlines()
    validated = sum(line.endswith(",val") for line in subsets)
    evaluated = validated * (work.epochs + 1)  # after each epoch, and the chosen checkpoint
    assert work.images == pytest.approx(provenance(cfg.paths.run)["images"] + evaluated / 3)


def test_missing_pretrainings_are_counted_once(overrides, compose):
    given = [*overrides, "fold=0,1", "label_fraction=0.5,1.0", "init=ssl"]

    def encoders(sweep):
        counted = {}
        count_work(sweep, counted)
        return counted

    sweep = plan_sweep("msssl_table", given)
    before = encoders(sweep)
    assert len(before) == 2  # one of each fold
    assert len(encoders(plan_sweep("msssl_table", [*given, "pretrain_on=all"]))) == 1
    assert count_work(sweep, before)[1] == []  # an earlier sweep makes them
    train(compose("+experiment=msssl_table", "fold=0", "label_fraction=0.5", "init=ssl"))
    (made,) = set(before) - set(encoders(sweep))
    validated = before[made].images - provenance(made)["images"]
    assert 0 < validated < before[made].images / 2


def test_rows_that_share_a_pretraining_share_the_encoder_of_both_protocols(overrides):
    given = [*overrides, "fold=0,1", "label_fraction=0.5", "hydra.sweeper.only=[random,rotation]"]
    gradings, pretrainings = count_work(
        plan_sweep("pretext_table", [*given, "protocol=matched,published"]), {}
    )
    assert len(gradings) == 2 * 2 * 2  # rows, folds, protocols
    assert len(pretrainings) == 2  # one of each fold


def test_each_encoder_and_task_is_measured_once(overrides, monkeypatch):
    measured = []

    def measure(sweep, work, seconds):
        measured.append((work.config.task, work.config.label_fraction))
        return Speed(image=1, epoch=0, start=0)

    monkeypatch.setattr(estimate, "measure", measure)
    given = [*overrides, "fold=0", "label_fraction=0.5,1.0", "init=random,ssl"]
    (found,) = estimate_sweeps([plan_sweep("rotation_table", given)], 1.0)
    assert (found.cells, found.pretrainings) == (4, 1)
    assert [task for task, _ in measured] == ["grading", "pretext"]
    assert measured[0][1] == 1.0  # the largest cell


def test_probes_are_counted_and_not_measured(overrides):
    inline = "hydra/launcher=inline"
    sweep = plan_sweep("probe_table", [*overrides, "fold=0,1", "label_fraction=1.0", inline])
    assert sweep.local
    (found,) = estimate_sweeps([sweep], 1.0)
    assert (found.cells, found.pretrainings, found.seconds) == (4, 0, 4.0)
    pretrained = plan_sweep("probe_table", [*overrides, "fold=0", "label_fraction=1.0", "init=ssl"])
    assert len(count_work(pretrained, {})[1]) == 1
