"""Errors, unfinished sweeps, facts and notes of a study."""

import dataclasses
import json
import math
import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from synthetic import (
    RANDOM,
    ROTATION,
    FakeMethod,
    change_config,
    change_json,
    fail_run,
    remove_run,
    stop_run,
    write_runs,
)

from drgrade.errors import DataError
from drgrade.reporting.csv_writer import csv_files
from drgrade.reporting.methods import published_rows
from drgrade.reporting.study import build_study
from drgrade.reporting.tables import learning_rates_table, main_table
from drgrade.stats.formatting import DASH


@pytest.mark.parametrize(
    ("message", "options"),
    [
        (f"data_hash is {'d' * 12} in .* and {'e' * 12}", {"data_hash": "e" * 64}),
        ("split.seed is 0", {"split_seed": 1}),
        ("folds is 3", {"folds": (0, 1, 2, 3)}),
        ("kind of test set", {"folds": ("published",)}),
    ],
)
def test_sweeps_with_different_data_or_folds_are_errors(tmp_path, message, options):
    write_runs(tmp_path / "one", [ROTATION], [1.0])
    write_runs(tmp_path / "other", [RANDOM], [1.0], **options)
    with pytest.raises(DataError, match=message) as error:
        build_study([tmp_path])
    for part in (str(tmp_path / "one"), str(tmp_path / "other"), "separately"):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("data__image_size", 12),
        ("data__illumination", "clahe"),
        ("split__disagreeing", "majority"),
        ("split__file", "folds.csv"),
    ],
)
def test_other_preparation_and_splits_are_errors(tmp_path, name, value):
    runs = write_runs(tmp_path, [RANDOM], [1.0])
    change_config(runs[1], **{name: value})
    with pytest.raises(DataError, match=name.replace("__", ".")):
        build_study([tmp_path])


def test_other_test_photographs_in_a_fold_are_refused_with_equal_configs(tmp_path):
    one = write_runs(tmp_path / "one", [ROTATION], [1.0])
    other = write_runs(tmp_path / "other", [RANDOM], [1.0], split_seed=1)
    for run in other:
        change_config(run, split__seed=0)
    with pytest.raises(DataError, match=r"fold 0: .* were not tested on the same photographs") as error:
        build_study([tmp_path])
    assert str(one[0]) in str(error.value)
    assert str(other[0]) in str(error.value)


def test_other_groups_are_errors(tmp_path):
    runs = write_runs(tmp_path, [ROTATION, RANDOM], [1.0])
    split = pd.read_csv(runs[0] / "split.csv", dtype=str)
    split.assign(group=split["image_id"]).to_csv(runs[0] / "split.csv", index=False)
    with pytest.raises(DataError, match="groups differ"):
        build_study([tmp_path])


def test_photograph_in_two_test_folds_is_an_error(tmp_path):
    runs = write_runs(tmp_path, [RANDOM], [1.0], sweep=None)
    remove_run(runs[1])
    change_config(runs[0], fold=1)
    change_json(runs[0] / "metrics.json", fold=1)
    write_runs(tmp_path / "again", [RANDOM], [1.0], sweep=None)
    for run in (tmp_path / "again").iterdir():
        if "fold-0" not in run.name:
            remove_run(run)
    with pytest.raises(DataError, match="is tested in two folds"):
        build_study([tmp_path])


def test_group_in_two_test_folds_is_an_error(tmp_path):
    runs = write_runs(tmp_path, [RANDOM], [1.0], sweep=None)
    names = []
    for run in runs[:2]:
        split = pd.read_csv(run / "split.csv", dtype=str)
        names.append(split["group"][split["subset"] == "test"].min())
    text = (runs[1] / "split.csv").read_text()
    (runs[1] / "split.csv").write_text(text.replace(f",{names[1]},", f",{names[0]},"))
    with pytest.raises(DataError, match=f"group {names[0]} is tested in two folds"):
        build_study([tmp_path])


def test_learning_rates_are_counted_in_each_row(tmp_path):
    tuned = FakeMethod((*RANDOM.overrides, "protocol=tuned"))
    runs = write_runs(tmp_path, [tuned, RANDOM], [1.0])
    for run, rate in zip(runs, (3e-3, 3e-3, 1e-3), strict=False):
        change_json(run / "metrics.json", learning_rate=rate)
    study = build_study([tmp_path], resamples=20)
    assert [row.learning_rates for row in study.rows if row.learning_rates] == [{3e-4: 0, 1e-3: 1, 3e-3: 2}]
    table = learning_rates_table(study)
    assert [column.name for column in table.columns[1:]] == ["0.0003", "0.001", "0.003"]
    assert sorted(group.lines[0][1:] for group in table.groups) == [["0", "1", "2"], [DASH] * 3]
    assert "Most runs chose the highest rate of the list" in table.remarks[0]
    assert "(2 of 3 runs)" in table.remarks[0]
    assert "learning_rates.csv" in csv_files(study)


def test_other_training_labels_under_one_protocol_are_errors(tmp_path):
    runs = write_runs(tmp_path, [ROTATION, RANDOM], [1.0])
    change_json(runs[0] / "metrics.json", split_hash="f" * 64)
    with pytest.raises(DataError, match="were trained on different labels") as error:
        build_study([tmp_path])
    assert "100 % of the labels, label seed 0, fold 0" in str(error.value)
    assert "f" * 12 in str(error.value)


def test_two_protocols_may_have_different_training_labels_and_are_never_averaged(tmp_path):
    matched = FakeMethod((*RANDOM.overrides, "protocol=matched"), skill=0.9)
    write_runs(tmp_path, [RANDOM, matched], [1.0])
    study = build_study([tmp_path], resamples=20)
    assert len(study.rows) == 2
    assert study.splits["published", 1.0, 0, "0"] != study.splits["matched", 1.0, 0, "0"]
    for row, protocol in zip(study.rows, ("published", "matched"), strict=True):
        of_protocol = [
            run for run in study.runs if ("protocol-matched" in run.name) == (protocol == "matched")
        ]
        values = [json.loads((run / "metrics.json").read_text())["test/qwk"] for run in of_protocol]
        assert row.mean.value == pytest.approx(np.mean(values), abs=1e-12)


def test_duplicate_run_counts_once(tmp_path):
    write_runs(tmp_path / "a", [RANDOM], [1.0])
    alone = build_study([tmp_path], resamples=20)
    write_runs(tmp_path / "b", [RANDOM], [1.0])
    both = build_study([tmp_path], resamples=20)
    assert both.runs == alone.runs
    assert both.rows[0].mean == alone.rows[0].mean
    assert sum("repeats" in note for note in both.notes) == 3


def test_many_duplicate_runs_are_one_note(tmp_path):
    for name in ("a", "b"):
        write_runs(tmp_path / name, [RANDOM], [0.5, 1.0])
    (note,) = (note for note in build_study([tmp_path], resamples=20).notes if "repeat" in note)
    assert note.startswith("6 runs are duplicates")
    assert str(tmp_path / "b") in note


def test_duplicate_run_with_different_results_is_an_error(tmp_path):
    one = write_runs(tmp_path / "a", [RANDOM], [1.0])
    other = write_runs(tmp_path / "b", [dataclasses.replace(RANDOM, skill=0.9)], [1.0])
    with pytest.raises(DataError, match="different results") as error:
        build_study([tmp_path])
    assert str(one[0]) in str(error.value)
    assert str(other[0]) in str(error.value)


def test_unfinished_sweep_lists_its_missing_runs(tmp_path):
    runs = write_runs(tmp_path / "study", [ROTATION, RANDOM], [0.1, 1.0])
    fail_run(runs[0], "RuntimeError: out of memory")  # pre-trained, 10 %
    stop_run(runs[3])  # pre-trained, 100 %
    for run in (runs[6], runs[7], runs[8]):  # all of random, 10 %
        remove_run(run)
    study = build_study([tmp_path], resamples=20)
    assert [(missing.name, missing.status) for missing in study.missing] == sorted(
        [(runs[0].name, "failed"), (runs[3].name, "unfinished")]
        + [(run.name, "not begun") for run in runs[6:9]]
    )
    assert {missing.reason for missing in study.missing if missing.status == "failed"} == {
        "RuntimeError: out of memory"
    }
    assert [(row.label_fraction, list(row.folds), row.complete) for row in study.rows] == [
        (0.1, ["1", "2"], False),
        (1.0, ["1", "2"], False),
        (1.0, ["0", "1", "2"], True),
    ]
    assert study.notes[0] == (
        "Incomplete rows: rotation, pre-trained, 10 % (folds 1, 2 only); "
        "rotation, pre-trained, 100 % (folds 1, 2 only)."
    )
    assert [comparison.folds for comparison in study.comparisons] == [2]


def test_row_is_incomplete_if_a_seed_of_its_sweep_has_not_begun(tmp_path):
    runs = write_runs(tmp_path, [ROTATION, RANDOM], [1.0], seeds=(0, 1))
    for run in runs[1:6:2]:  # seed 1 of the pre-trained one, in all folds: nothing but the sweep knows
        remove_run(run)
    study = build_study([tmp_path], resamples=20)
    assert [(row.replicates, row.complete) for row in study.rows] == [
        ([(0, 0)], False),
        ([(0, 0), (1, 0)], True),
    ]


def test_row_with_fewer_folds_than_others_is_incomplete_without_a_sweep_too(tmp_path):
    runs = write_runs(tmp_path, [ROTATION, RANDOM], [1.0], sweep=None)
    remove_run(runs[0])
    study = build_study([tmp_path], resamples=20)
    assert [row.complete for row in study.rows] == [False, True]
    assert not study.missing


def test_failed_run_that_was_repeated_is_not_missing(tmp_path):
    fail_run(write_runs(tmp_path / "first", [RANDOM], [1.0], sweep=None)[0])
    runs = write_runs(tmp_path / "second", [RANDOM], [1.0], sweep=None)
    for run in runs[1:]:
        remove_run(run)
    study = build_study([tmp_path], resamples=20)
    assert not study.missing
    assert study.rows[0].complete
    assert any("is replaced by" in note for note in study.notes)


def test_names_of_missing_runs_contain_the_sweep_if_there_are_several(tmp_path):
    for name, method in (("one", ROTATION), ("two", RANDOM)):
        fail_run(write_runs(tmp_path / name, [method], [1.0])[0])
    names = [missing.name for missing in build_study([tmp_path], resamples=20).missing]
    assert [name.split("/")[0] for name in names] == ["one", "two"]


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.permutations(range(12)))
def test_order_of_folders_and_lines_does_not_change_the_study(parts, order):
    folders, expected = parts
    found = build_study([folders[number] for number in order], resamples=50)
    assert_same(found, expected)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Return runs with shuffled lines, and the study computed before shuffling."""
    folder = tmp_path_factory.mktemp("study")
    runs = write_runs(folder, sweep=None)
    expected = build_study([folder], resamples=50)
    for run in runs:
        for file in ("split.csv", "predictions.csv"):
            table = pd.read_csv(run / file, dtype=str, keep_default_na=False)
            table.sample(frac=1, random_state=1).to_csv(run / file, index=False)
    return runs, expected


def assert_same(one, other):
    """Assert bitwise equality, including arrays."""
    if dataclasses.is_dataclass(one):
        for field in dataclasses.fields(one):
            assert_same(getattr(one, field.name), getattr(other, field.name))
    elif isinstance(one, np.ndarray):
        assert np.array_equal(one, other, equal_nan=one.dtype.kind == "f")
    elif isinstance(one, dict):
        assert list(one) == list(other)
        assert_same(list(one.values()), list(other.values()))
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for mine, theirs in zip(one, other, strict=True):
            assert_same(mine, theirs)
    else:
        assert one == other or (math.isnan(one) and math.isnan(other))


def test_row_does_not_depend_on_other_sweeps(tmp_path):
    write_runs(tmp_path / "one", [ROTATION], [1.0])
    alone = build_study([tmp_path / "one"], resamples=50).rows[0]
    write_runs(tmp_path / "two", [RANDOM], [0.1, 1.0])
    among = build_study([tmp_path], resamples=50).rows[0]
    assert_same(among, alone)


def test_seed_changes_the_draws(tmp_path):
    write_runs(tmp_path, [RANDOM], [1.0])
    one, other = (build_study([tmp_path], resamples=50, seed=seed).rows[0] for seed in (0, 1))
    assert one.mean.value == other.mean.value
    assert one.mean.interval != other.mean.interval


def test_facts_contain_data_and_provenance(tmp_path):
    runs = write_runs(tmp_path / "study", seeds=(0, 3))
    study = build_study([tmp_path / "study"], resamples=20, title="A title")
    assert study.title == "A title"
    assert build_study([tmp_path / "study"], resamples=20).title == "Grading with few labels: demo"
    assert study.data["data set"] == "demo"
    assert study.data["photographs"] == "90"
    assert study.data["image size"] == "96 px"
    assert study.data["folds"] == "3"
    assert study.provenance["commands"] == "train.py -m +experiment=study"
    assert study.provenance["commits"] == "c" * 40
    assert study.provenance["seeds"] == "0; 3"
    assert "20 resamples, seed 0" in study.provenance["intervals"]
    assert study.runs == sorted(runs)
    split = pd.read_csv(runs[0] / "split.csv")
    assert study.grades.tolist() == split["grade"].value_counts().sort_index().tolist()
    hashes = {json.loads((run / "metrics.json").read_text())["split_hash"] for run in runs}
    assert set(study.splits.values()) == hashes
    assert len(study.splits) == 2 * 3


def test_facts_contain_the_command_of_single_runs(tmp_path):
    write_runs(tmp_path, [RANDOM], [1.0], sweep=None)
    assert (
        build_study([tmp_path], resamples=20).provenance["commands"] == "train.py method=rotation init=random"
    )


def test_notes_contain_caveats(tmp_path):
    unknown = FakeMethod(("method=other", "init=imagenet"), saw_test=None)
    runs = write_runs(tmp_path, [ROTATION, RANDOM, unknown], [1.0])
    change_json(runs[0] / "provenance.json", commit="b" * 40 + "+")
    change_json(runs[1] / "provenance.json", versions={"python": "3.12", "torch": "2.9"})
    notes = build_study([tmp_path], resamples=20).notes
    for expected in (
        "Pre-training used the test photographs, without their grades: rotation, pre-trained.",
        "It is unknown whether pre-training used the test photographs: other, ImageNet weights.",
        "Protocol published: validation labels (5 % of the training photographs) are not counted in the "
        "label fraction.",
        "The runs used 2 different commits.",
        "Some runs used code with uncommitted changes (marked +).",
        "The runs used 2 different sets of package versions.",
    ):
        assert expected in notes


def test_validation_within_the_fraction_is_noted(tmp_path):
    write_runs(tmp_path, [FakeMethod((*RANDOM.overrides, "protocol.val_within_fraction=true"))], [1.0])
    notes = build_study([tmp_path], resamples=20).notes
    assert "Protocol published: validation labels are part of the label fraction." in notes


def test_pretraining_costs_are_listed_once_per_encoder(tmp_path):
    encoder, gone = tmp_path / "encoders" / "rotation-x", tmp_path / "encoders" / "gone"
    encoder.mkdir(parents=True)
    facts = {"seconds": 50.0, "images": 500, "devices": 1}
    (encoder / "provenance.json").write_text(json.dumps(facts))
    methods = [
        dataclasses.replace(ROTATION, encoder=str(encoder)),
        dataclasses.replace(RANDOM, encoder=str(gone)),
    ]
    write_runs(tmp_path / "study", methods)
    study = build_study([tmp_path / "study"], resamples=20)
    cost, unknown = study.pretrainings
    assert (unknown.encoder, unknown.peak_memory) == ("gone", None)
    assert np.isnan([unknown.seconds, unknown.images_per_second]).all()
    assert (cost.encoder, cost.seconds, cost.images_per_second, cost.peak_memory) == (
        "rotation-x",
        50,
        10,
        None,
    )
    assert cost.method == study.methods[0].key


def test_encoder_folder_is_found_from_any_working_directory(tmp_path, monkeypatch):
    encoder = tmp_path / "outputs" / "encoders" / "rotation-x"
    encoder.mkdir(parents=True)
    (encoder / "provenance.json").write_text(json.dumps({"seconds": 50.0}))
    (encoder / "encoder.safetensors").touch()
    relative = "outputs/encoders/rotation-x"
    methods = [
        dataclasses.replace(ROTATION, encoder=relative),
        dataclasses.replace(RANDOM, encoder=f"{relative}/encoder.safetensors"),
    ]
    write_runs(tmp_path / "outputs" / "sweeps" / "study", methods, [1.0])
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    (cost,) = build_study([tmp_path / "outputs"], resamples=20).pretrainings
    assert (cost.encoder, cost.seconds) == ("rotation-x", 50)


def test_folds_without_a_grade_are_named(tmp_path):
    write_runs(tmp_path, [RANDOM], [1.0], photographs=24)
    study = build_study([tmp_path], resamples=20)
    (note,) = (note for note in study.notes if "no test photographs of some grades" in note)
    for fold in range(3):
        tested = pd.read_csv(next(tmp_path.glob(f"*fold-{fold}*")) / "predictions.csv")["grade"]
        for grade in range(5):
            named = re.search(rf"fold {fold} has no grade [0-4, and]*{grade}", note)
            assert bool(named) == (grade not in set(tested))


@pytest.mark.parametrize("shared", [True, False])
def test_encoder_that_several_seeds_share_is_noted(shared, tmp_path):
    for run in write_runs(tmp_path, [ROTATION], [1.0], folds=(0, 1), seeds=(0, 1)):
        own = "" if shared else run.name[-1]  # the seed
        change_json(run / "metrics.json", encoder_hash=f"a{own}")
    notes = build_study([tmp_path], resamples=20).notes
    assert any("start from the same pre-trained encoder" in note for note in notes) == shared


def test_different_encoders_of_a_method_are_noted(tmp_path):
    runs = write_runs(tmp_path, [ROTATION], [1.0])
    for run in runs:
        change_json(run / "metrics.json", encoder_hash="a")
    assert not any(
        "started from different encoders" in note for note in build_study([tmp_path], resamples=20).notes
    )
    change_json(runs[0] / "metrics.json", encoder_hash="b")
    assert any(
        "started from different encoders" in note for note in build_study([tmp_path], resamples=20).notes
    )
    for run in runs:  # each fold has its own
        change_config(run, pretrain_on="train")
    assert not any(
        "started from different encoders" in note for note in build_study([tmp_path], resamples=20).notes
    )


def test_published_rows_equal_the_papers():
    every = published_rows()
    assert len(every) == 5 * 7 + 5 * 5 + 6 * 3 + 3 * 3
    assert len({(row.label, row.data, row.label_fraction) for row in every}) == len(every)
    assert all(0 < row.mean < 1 and row.source for row in every)
    rows = {(row.label, row.label_fraction): row for row in every if row.data == "aptos2019"}
    rotation = {
        0.05: (0.1751, 0.2944, 0.4670),
        0.1: (0.2889, 0.4321, 0.5085),
        0.25: (0.4738, 0.5754, 0.6937),
        0.5: (0.6116, 0.6798, 0.7365),
        1.0: (0.6956, 0.7247, 0.7556),
    }
    for fraction, figures in rotation.items():
        row = rows["rotation (2022)", fraction]
        assert (row.minimum, row.mean, row.maximum) == figures
    assert rows["jigsaw (Taleb et al. 2020)", 0.1].mean == 0.52
    assert rows["random init (Taleb et al. 2020)", 0.25].minimum is None
    assert rows["random init (replication 2025)", 0.05].mean == 0.599
    assert rows["exemplar (replication 2025)", 1.0].mean == 0.689
    elsewhere = {(row.label, row.data): row.mean for row in every if row.label_fraction == 1}
    assert elsewhere["SSiT, ViT-S/16 (GSSL 2024)", "ddr"] == 0.8188
    assert elsewhere["GSSL, ViT-S/16 (GSSL 2024)", "messidor2"] == 0.6463
    assert elsewhere["DINOv2-B (ClementP 2024)", "idrid"] == 0.824
    low = [row for row in every if "2020" in row.label or "2022" in row.label]
    assert all(("not a fair baseline" in row.caveat) == (row.label_fraction < 0.5) for row in low)
    assert all(row.caveat for row in every if row not in low)


@pytest.mark.parametrize("data", ["aptos2019", "idrid", "demo"])
def test_report_shows_published_rows_of_its_data_set_and_fractions_unless_all_are_wanted(tmp_path, data):
    for run in write_runs(tmp_path, [RANDOM], [0.1, 1.0]):
        change_json(run / "metrics.json", data=data)
    own = build_study([tmp_path], resamples=10)
    assert {row.data for row in own.published} <= {data}
    assert {row.label_fraction for row in own.published} == {
        "aptos2019": {0.1, 1.0}, "idrid": {1.0}, "demo": set()
    }[data]  # fmt: skip
    assert not any("Published results" in note for note in own.notes)
    every = build_study([tmp_path], resamples=10, published="all")
    assert len(every.published) == len(published_rows())
    assert len({(row.label, row.label_fraction) for row in every.published}) == len(every.published)
    assert all((f", on {row.data}" in row.label) == (row.data != data) for row in every.published)
    assert any(note.startswith("Published results are also shown for ") for note in every.notes)


def test_footnotes_mark_the_published_rows_they_apply_to(tmp_path):
    for run in write_runs(tmp_path, [RANDOM], [0.1, 1.0]):
        change_json(run / "metrics.json", data="aptos2019")
    study = build_study([tmp_path], resamples=10)
    table = main_table(study)
    lines = {group.name: [line[0] for line in group.lines] for group in table.groups}
    (mark,) = (mark for caveat, mark in study.footnotes.items() if "not a fair baseline" in caveat)
    assert lines["random init (Taleb et al. 2020)"] == [f"10 % {mark}", "100 %"]
    assert lines["rotation (2022)"] == [f"10 % {mark}", "100 %"]
    remarks = [remark for remark in table.remarks if remark.startswith("[")]
    assert [remark.partition(":")[0] for remark in remarks] == ["[a]", "[b]", "[c]", "[d]"]
    assert any(remark.startswith(f"{mark}: not a fair baseline") for remark in remarks)
    assert not any(mark in line[0] for group in table.groups if not group.published for line in group.lines)
