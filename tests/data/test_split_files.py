"""Tests of split files."""

import os

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from split_manifests import (
    counts,
    demo_manifest,
    ids,
    manifest_of,
    manifests_of_all_kinds,
    split_table,
    try_split,
    with_columns,
)

from drgrade.data.splits import spec as draw
from drgrade.data.splits.files import read_split_file
from drgrade.data.splits.spec import SplitSpec
from drgrade.data.splits.split import make_split, split_hash, split_sides
from drgrade.errors import ConfigError, DataError


@pytest.fixture(autouse=True)
def _coarse(monkeypatch):
    monkeypatch.setattr(draw, "STEPS", 400)


@pytest.fixture
def write(tmp_path):
    """Return a function that writes a table or text and returns the path."""

    def write(table, name="split.csv"):
        path = tmp_path / name
        path.write_text(table if isinstance(table, str) else table.to_csv(index=False), encoding="utf-8")
        return str(path)

    return write


def listed(manifest, subsets, column="subset"):
    return pd.DataFrame({"image_id": manifest["image_id"], column: subsets})


def thirty():
    return manifest_of([[row % 5] for row in range(30)])


# Split file of a run


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    manifests_of_all_kinds,
    st.sampled_from([0, 1, "published"]),
    st.sampled_from(["drop", "keep_one", "majority"]),
    st.sampled_from([0.25, 1.0]),
    st.sampled_from([0.0, 0.2]),
    st.booleans(),
    st.booleans(),
)
def test_split_file_of_a_run_reproduces_the_split(write, manifest, fold, how, fraction, val, within, other):
    spec = {"fold": fold, "folds": 3, "disagreeing": how, "val_fraction": val}
    split = try_split(manifest, **spec, label_fraction=fraction, val_within_fraction=within)
    assume(split is not None)
    ignored = {"fold": 0} if other else {}  # the file takes precedence over fold
    again = split_table(manifest, SplitSpec(**{**spec, **ignored}, file=write(split)))
    pd.testing.assert_frame_equal(again, split)
    assert split_hash(again) == split_hash(split)


@pytest.mark.parametrize("fraction", [0.1, 0.5])
def test_label_fraction_is_drawn_from_the_training_photographs_of_a_file(write, fraction):
    manifest = demo_manifest(120)
    whole = split_table(manifest, SplitSpec(val_fraction=0.15))
    path = write(whole)
    split = split_table(manifest, SplitSpec(file=path, label_fraction=fraction))
    expected = split_table(manifest, SplitSpec(val_fraction=0.15, label_fraction=fraction))
    assert split_hash(split) == split_hash(expected)
    larger = split_table(manifest, SplitSpec(file=path, label_fraction=2 * fraction))
    assert ids(split, "train") < ids(larger, "train") <= ids(whole, "train")


# Subsets


def test_common_spellings_of_subsets_are_accepted(write):
    manifest = thirty()
    words = [
        "Training",
        "train",
        "valid",
        "validation",
        "Testing",
        "test",
        "unlabeled",
        "excluded",
        "external",
    ]
    words += ["train"] * 21
    split = split_table(manifest, SplitSpec(file=write(listed(manifest, words, "split"))))
    expected = ["train", "train", "val", "val", "test", "test", "unlabelled", "excluded", "external"]
    assert split["subset"].tolist() == expected + ["train"] * 21
    assert split["grade"].tolist() == manifest["grade"].tolist()


def test_validation_is_drawn_if_the_file_has_none(write):
    manifest = manifest_of([[row % 5, row % 5] for row in range(40)])
    words = ["test"] * 20 + ["train"] * 60
    split = split_table(manifest, SplitSpec(file=write(listed(manifest, words)), val_fraction=0.2))
    assert split["subset"].tolist()[:20] == ["test"] * 20
    assert counts(split, "val").sum() == pytest.approx(12, abs=2)
    assert split.groupby("group")["subset"].nunique().max() == 1


def test_validation_of_a_file_conflicts_with_val_within_fraction(write):
    manifest = thirty()
    path = write(listed(manifest, ["test"] * 5 + ["val"] * 5 + ["train"] * 20))
    with pytest.raises(ConfigError, match=r"names validation photographs.*val_within_fraction=true"):
        split_table(manifest, SplitSpec(file=path, val_within_fraction=True))


def test_remark_names_the_settings_that_a_file_replaces(write):
    manifest = thirty()
    path = write(listed(manifest, ["test"] * 5 + ["val"] * 5 + ["train"] * 20))
    remarks = make_split(manifest, SplitSpec(file=path, fold=3)).remarks
    assert remarks[0].text == (
        f"{path} splits 30 photographs instead of fold=3, folds=5, protocol.val_fraction=0.05"
    )


def test_ungraded_photograph_is_not_tested_on(write):
    manifest = manifest_of([[row % 5] for row in range(28)] + [[None], [None]])
    path = write(listed(manifest, ["test"] * 5 + ["train"] * 23 + ["test", "train"]))
    found = make_split(manifest, SplitSpec(file=path, val_fraction=0.0))
    assert found.table["subset"].tolist()[-2:] == ["excluded", "unlabelled"]
    assert found.counts["file_ungraded"] == 2


def test_leaks_of_a_file_are_kept_with_a_warning(write):
    manifest = manifest_of([[0, 0], [1, 1], [2, 2]] + [[row % 5] for row in range(24)])
    words = ["train", "test", "val", "train", "train", "train"] + ["test"] * 8 + ["val"] * 8 + ["train"] * 8
    path = write(listed(manifest, words))
    found = make_split(manifest, SplitSpec(file=path))
    assert found.table["subset"].tolist() == words
    leak = next(remark for remark in found.remarks if remark.name == "file_leaking_groups")
    assert (leak.count, leak.serious) == (2, True)
    assert "(patient:p0, patient:p1), 1 of them on the test side" in leak.text


def test_photographs_missing_from_a_file_are_excluded(write):
    manifest = thirty()
    table = listed(manifest, ["test"] * 5 + ["train"] * 25).iloc[:-2]
    found = make_split(manifest, SplitSpec(file=write(table), val_fraction=0.0))
    assert found.table["subset"].tolist()[-3:] == ["train", "excluded", "excluded"]
    assert found.counts["file_unnamed"] == 2
    assert any("not named by" in remark.text and "(i0028, i0029)" in remark.text for remark in found.remarks)


def test_unknown_names_in_a_file_are_counted(write):
    manifest = thirty()
    table = listed(manifest, ["test"] * 5 + ["train"] * 25)
    table = pd.concat([table, pd.DataFrame({"image_id": ["x", "y"], "subset": "train"})])
    found = make_split(manifest, SplitSpec(file=write(table), val_fraction=0.0))
    assert found.counts["file_unknown"] == 2
    assert found.counts["file_named"] == 30


def test_unlabelled_and_external_sets_keep_their_roles_with_a_file(write):
    """Rows: an unlabelled set with a copy of a test photograph; an external set with a copy in training."""
    manifest = with_columns(
        thirty(),
        role=["unlabelled"] * 3 + ["external"] * 3 + [None] * 24,
        duplicate=["t", *[None] * 2, "e", *[None] * 2, "t", *[None] * 22, "e"],
    )
    path = write(listed(manifest, ["test"] * 11 + ["train"] * 19).iloc[6:])
    found = make_split(manifest, SplitSpec(file=path, val_fraction=0.0))
    assert found.table["subset"].tolist()[:6] == ["excluded", *["unlabelled"] * 2, *["external"] * 3]
    assert found.table["subset"].tolist()[6:] == ["test"] * 5 + ["train"] * 18 + ["excluded"]
    assert found.counts["copies_of_external"] == 1


def test_file_that_trains_on_an_external_set_is_refused(write):
    manifest = with_columns(thirty(), role=["external"] + [None] * 29)
    path = write(listed(manifest, ["train"] * 10 + ["test"] * 20))
    with pytest.raises(DataError, match=r"uses photographs of an external data set \(i0000\)"):
        split_table(manifest, SplitSpec(file=path))


def test_file_splits_photographs_without_grades(write):
    manifest = manifest_of([[None]] * 4)
    path = write(listed(manifest, ["test", "train", "val", "unlabelled"]))
    split = split_sides(manifest, SplitSpec(file=path)).table
    assert split["subset"].tolist() == ["excluded", "unlabelled", "excluded", "unlabelled"]


# Folds


def test_file_of_folds_gives_one_test_set_per_fold(write):
    manifest = manifest_of([[row % 5, row % 3] for row in range(60)])
    numbers = np.repeat(np.arange(60) % 3 + 1, 2)
    path = write(listed(manifest, numbers, "fold"))
    for fold in (1, 2, 3):
        split = split_table(manifest, SplitSpec(file=path, fold=fold, folds=3, val_fraction=0.2))
        assert (split["subset"] == "test").tolist() == (numbers == fold).tolist()
        assert set(split["subset"]) == {"test", "train", "val"}
        assert split.groupby("group")["subset"].nunique().max() == 1


@pytest.mark.parametrize("fold", [0, "published"])
def test_fold_missing_from_the_file_is_refused(write, fold):
    path = write(listed(thirty(), [row % 3 + 1 for row in range(30)], "fold"))
    with pytest.raises(DataError, match="has the folds 1, 2, 3: set fold to one of them"):
        split_table(thirty(), SplitSpec(file=path, fold=fold))


# Names


@pytest.mark.parametrize("change", ["{}.png", "{}.JPG", "set/{}", "set/{}.jpeg"])
def test_names_match_without_extension_and_data_set(write, change):
    manifest = thirty().assign(dataset="set")
    table = listed(manifest, ["test"] * 5 + ["train"] * 25)
    expected = split_table(manifest, SplitSpec(file=write(table), val_fraction=0.2))
    other = table.assign(image_id=[change.format(name) for name in table["image_id"]])
    found = split_table(manifest, SplitSpec(file=write(other), val_fraction=0.2))
    assert split_hash(found) == split_hash(expected)
    prefixed = manifest.assign(image_id="set/" + manifest["image_id"])
    found = split_table(prefixed, SplitSpec(file=write(other), val_fraction=0.2))
    assert (found["subset"] == "test").tolist() == [True] * 5 + [False] * 25


def test_ambiguous_name_in_a_file_is_refused(write):
    manifest = thirty().assign(dataset=["a"] * 15 + ["b"] * 15)
    manifest["image_id"] = manifest["dataset"] + "/" + [f"i{row % 15}" for row in range(30)]
    path = write("image_id,subset\na/i1,test\ni3.png,train\n")
    with pytest.raises(DataError, match=r"split.csv:3: i3.png fits several photographs \(a/i3, b/i3\)"):
        split_table(manifest, SplitSpec(file=path))


# Errors


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,subset\ni0000,test\n", "has no column image_id; its columns are image, subset"),
        ("image_id,set\ni0000,test\n", r"has no column subset \(or split, or fold\)"),
        ("image_id,subset,fold\ni0000,test,1\n", "has the columns subset and fold: keep one of them"),
        ("image_id,subset\ni0000,test\ni0001,tset\n", 'split.csv:3: i0001: split "tset" is not one of'),
        ("image_id,subset\ni0000,\n", "split.csv:2: i0000: no subset is given"),
        ("image_id,fold\ni0000,a\n", 'split.csv:2: i0000: fold "a" is not a number'),
        ("image_id,fold\ni0000,1.5\n", "fold 1.5 is not a whole number"),
        (
            "image_id,subset\ni0000,test\ni0000.png,train\n",
            r"names i0000 more than once and differently \(line 2: test; line 3: train\)",
        ),
        ("image_id,subset\nx,test\ny,train\n", r"names none of the photographs: it has \(x, y\)"),
        ("image_id,subset\ni0000,train\ni0001,train\n", "names no test photograph with a grade"),
        ("image_id,subset\ni0000,test\n", "leaves no photograph with a grade to train on"),
        ("image_id,subset\ni0000,test\ni0001,train\n", "val_fraction=0.05 leaves no validation"),
        (
            "image_id,subset,grade\ni0000,test,0\ni0001,train,3\n",
            r"has other grades than the data for 1 of 2 photographs \(i0001: 3 there, 1 in the data\)",
        ),
        ("image_id,subset,grade\ni0000,test,mild\n", 'split.csv:2: i0000: grade "mild" is not a number'),
    ],
)
def test_invalid_files_are_refused_with_a_reason(write, text, message):
    with pytest.raises(DataError, match=message):
        split_table(thirty(), SplitSpec(file=write(text)))


def test_missing_file_is_named():
    with pytest.raises(DataError, match=r"split.file=nowhere.csv does not exist: give a CSV"):
        split_table(thirty(), SplitSpec(file="nowhere.csv"))


def test_split_file_with_more_values_than_columns_is_refused(tmp_path):
    (tmp_path / "split.csv").write_text("image_id,subset\na,train,test\n")
    table = pd.DataFrame({"image_id": ["a"], "dataset": ["x"], "grade": [0], "duplicate": [None]})
    with pytest.raises(DataError, match=r"split\.csv:2 has more values than columns"):
        read_split_file(table, SplitSpec(file=tmp_path / "split.csv"))


def test_split_file_that_is_a_pipe_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "split.csv")
    with pytest.raises(DataError, match="is a pipe, not a file"):
        read_split_file(pd.DataFrame(), SplitSpec(file=tmp_path / "split.csv"))
