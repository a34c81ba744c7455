"""Tests of preparation with bad files and rows, which are reported with a reason."""

import os
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from synthetic_photographs import disc_photograph, save, write_labels

from drgrade.data.sources.folder import Folder
from drgrade.data.store import Store, prepare
from drgrade.errors import DataError

RGB = disc_photograph()
GREY = RGB[..., 0]

LEFT_OUT = {
    "truncated": "truncated: ",
    "zero": "empty file (0 bytes)",
    "text": "not an image (it looks like text)",
    "bomb": "too many pixels: 20000 x 20000 is more than the limit of 100,000,000",
    "black": "all black: no fundus to be seen",
    "grade7": "grade 7 is not one of 0-4",
    "gradex": 'grade "x" is not a number',
    "twice": "duplicate id with conflicting grade (labels.csv:13: 1; labels.csv:14: 2)",
    "../outside": "path outside the root ",
    "nowhere": "the file is not there: nowhere.jpg",
}
CONVERTED = {
    "sixteen": "16 bit to 8 bit (16 bits used), greyscale to RGB",
    "grey": "greyscale to RGB",
    "rgba": "alpha dropped",
    "cmyk": "CMYK to RGB",
    "exif": "turned upright by EXIF orientation 6",
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("bad") / "photos"
    for name in ("good", "grade7", "gradex", "twice"):
        save(root / f"{name}.jpg")
    save(root.parent / "outside.jpg")
    whole = save(root / "truncated.jpg").read_bytes()
    (root / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (root / "zero.jpg").write_bytes(b"")
    (root / "text.jpg").write_text("404 not found\n")
    Image.new("1", (20_000, 20_000)).save(root / "bomb.png")
    save(root / "black.png", np.zeros_like(RGB))
    save(root / "sixteen.png", GREY.astype(np.uint16) * 257)
    save(root / "grey.png", GREY)
    save(root / "rgba.png", np.dstack((RGB, np.full_like(GREY, 255))))
    Image.fromarray(RGB).convert("CMYK").save(root / "cmyk.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    save(root / "exif.jpg", RGB, exif=exif)
    names = ("good", "truncated", "zero", "text", "black", "sixteen", "grey", "rgba", "cmyk", "exif")
    write_labels(
        root / "labels.csv",
        *(f"{name},{i % 5}" for i, name in enumerate(names)),
        "bomb.png,1",
        "twice,1",
        "twice.jpg,2",
        "grade7,7",
        "gradex,x",
        "../outside.jpg,1",
        "nowhere.jpg,1",
    )
    return root


@pytest.fixture(scope="module")
def store(root, tmp_path_factory):
    return prepare(Folder(root), tmp_path_factory.mktemp("stores"), image_size=48)


def reason_of(problems, image_id):
    return " | ".join(problems.loc[problems["image_id"] == image_id, "reason"])


@pytest.mark.parametrize(("image_id", "reason"), LEFT_OUT.items())
def test_unusable_photographs_are_left_out_with_a_reason(store, image_id, reason):
    assert reason_of(store.left_out, image_id).startswith(reason)
    assert image_id not in set(store.manifest["image_id"])


@pytest.mark.parametrize(("image_id", "reason"), CONVERTED.items())
def test_converted_photographs_are_kept_and_reported(store, image_id, reason):
    converted = store.problems[store.problems["action"] == "converted"]
    assert reason_of(converted, image_id) == reason
    row = store.manifest.index[store.manifest["image_id"] == image_id][0]
    assert store.images[row, 24, 24].max() > 80
    expected = (120, 160) if image_id == "exif" else (160, 120)
    assert tuple(store.manifest.loc[row, ["width", "height"]]) == expected


def test_other_photographs_are_stored_and_not_reported(store):
    assert set(store.manifest["image_id"]) == {"good", *CONVERTED}
    assert set(store.problems["image_id"]) == {*LEFT_OUT, *CONVERTED}
    assert store.info["left_out"] == len(LEFT_OUT) + 1  # both rows of "twice"
    assert store.info["converted"] == len(CONVERTED)
    assert len(store.images) == 6


def test_summary_has_counts_examples_and_path_of_the_report(root, tmp_path, capsys):
    store = prepare(Folder(root), tmp_path, image_size=48)
    out, err = capsys.readouterr()
    assert out == ""
    assert "11 rows left out:" in err
    assert "2 x duplicate id with conflicting grade: twice (labels.csv:13), twice (labels.csv:14)" in err
    assert "1 x empty file (0 bytes): zero (zero.jpg)" in err
    assert "5 rows converted:" in err
    assert str(store.folder / "problems.csv") in err


def test_strict_leaves_no_store_but_a_report(root, tmp_path):
    with pytest.raises(DataError, match=r"11 rows cannot be used and data\.strict=true: ") as error:
        prepare(Folder(root), tmp_path, image_size=48, strict=True)
    (report,) = tmp_path.glob("*.problems.csv")
    assert str(report) in str(error.value)
    assert len(pd.read_csv(report)) == 16
    assert not list(tmp_path.glob("folder-*/"))


def test_strict_refuses_an_existing_store_with_left_out_rows(root, store):
    with pytest.raises(DataError, match="11 rows cannot be used") as error:
        prepare(Folder(root), store.folder.parent, image_size=48, strict=True)
    assert str(store.folder / "problems.csv") in str(error.value)
    assert len(Store.open(store.folder)) == 6


def test_strict_accepts_conversions(tmp_path):
    save(tmp_path / "grey.png", GREY)
    write_labels(tmp_path / "labels.csv", "grey,1")
    assert len(prepare(Folder(tmp_path), tmp_path / "stores", image_size=48, strict=True)) == 1


@pytest.mark.parametrize("strict", [False, True])
def test_error_without_usable_photographs_gives_reasons(tmp_path, strict):
    (tmp_path / "zero.jpg").write_bytes(b"")
    write_labels(tmp_path / "labels.csv", "zero,1", "nowhere,2", "zero,9")
    stores = tmp_path / "stores"
    with pytest.raises(
        DataError, match=r"no photograph of .* can be used.*nowhere.*not there.*problems\.csv"
    ):
        prepare(Folder(tmp_path), stores, image_size=48, strict=strict)
    assert [path.name for path in stores.iterdir() if path.is_dir()] == [".index"]
    assert len(list(stores.glob("*.problems.csv"))) == 1


def test_missing_column_writes_nothing(root, tmp_path):
    with pytest.raises(
        DataError, match=r'no column "label"; its columns are image, grade.*data\.grade_column'
    ):
        prepare(Folder(root, grade_column="label"), tmp_path / "stores", image_size=48)
    assert not (tmp_path / "stores").exists()


def test_preparation_writes_nothing_into_the_data_set(root, store):
    assert sorted(path.suffix for path in root.iterdir()).count(".csv") == 1
    assert not list(root.glob("*.lock"))


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not allow such names")
def test_undecodable_file_name_is_left_out(tmp_path):
    content = save(tmp_path / "good.png").read_bytes()
    Path(os.fsdecode(bytes(tmp_path) + b"/caf\xe9.png")).write_bytes(content)
    store = prepare(Folder(tmp_path, csv=None), tmp_path / "stores", image_size=48)
    assert store.manifest["image_id"].tolist() == ["good"]
    assert reason_of(store.left_out, "caf\\udce9.png") == "the file's name is not UTF-8: rename it"
