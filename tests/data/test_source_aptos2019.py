import pytest
from source_layouts import files, reasons, rows, text

from drgrade.data.sources.aptos2019 import APTOS2019
from drgrade.errors import DataError


@pytest.fixture
def aptos(tmp_path):
    """The layout of the competition."""
    files(
        tmp_path,
        "train_images/000c1434d8d7.png",
        "train_images/001639a390f0.png",
        "test_images/0005cfc8afb6.png",
    )
    text(tmp_path / "train.csv", "id_code,diagnosis", "000c1434d8d7,2", "001639a390f0,4")
    text(tmp_path / "test.csv", "id_code", "0005cfc8afb6")
    return tmp_path


def test_test_photographs_have_no_grade(aptos):
    table = APTOS2019(aptos).read()
    assert rows(table, "image_id", "path", "grade", "patient_id", "eye", "split") == [
        ("0005cfc8afb6", "test_images/0005cfc8afb6.png", None, None, None, "test"),
        ("000c1434d8d7", "train_images/000c1434d8d7.png", 2, None, None, "train"),
        ("001639a390f0", "train_images/001639a390f0.png", 4, None, None, "train"),
    ]
    assert table.problems == ()


def test_training_set_alone_can_be_read(aptos):
    (aptos / "test.csv").unlink()
    assert len(APTOS2019(aptos).read().manifest) == 2
    assert APTOS2019(aptos).unlisted() == ["test_images/0005cfc8afb6.png"]


def test_test_list_without_photographs_is_one_problem(aptos):
    (aptos / "test_images/0005cfc8afb6.png").unlink()
    (aptos / "test_images").rmdir()
    table = APTOS2019(aptos).read()
    assert len(table.manifest) == 2
    assert reasons(table) == [("", "test.csv", "none of its photographs is there: no folder test_images")]


def test_common_re_split_has_graded_test_photographs(tmp_path):
    files(tmp_path, *(f"{s}_images/{s}_images/{s}1.png" for s in ("train", "val", "test")))
    for file, split in (("train_1", "train"), ("valid", "val"), ("test", "test")):
        text(tmp_path / f"{file}.csv", "id_code,diagnosis", f"{split}1,3")
    assert rows(APTOS2019(tmp_path).read(), "image_id", "path", "grade", "split") == [
        ("test1", "test_images/test_images/test1.png", 3, "test"),
        ("train1", "train_images/train_images/train1.png", 3, "train"),
        ("val1", "val_images/val_images/val1.png", 3, "val"),
    ]


def test_photographs_converted_to_jpeg_are_found(tmp_path):
    files(tmp_path, "train_images/a.jpg")
    text(tmp_path / "train.csv", "id_code,diagnosis", "a.png,1")
    assert rows(APTOS2019(tmp_path).read(), "image_id", "path") == [("a", "train_images/a.jpg")]


def test_unusable_rows_are_reported_with_file_and_line(aptos):
    text(aptos / "train.csv", "id_code,diagnosis", "000c1434d8d7,5", "nowhere,1", ",1", "001639a390f0,0")
    table = APTOS2019(aptos).read()
    assert reasons(table) == [
        ("000c1434d8d7", "train.csv:2", "grade 5 is not one of 0-4"),
        ("nowhere", "train.csv:3", "the file is not there: nowhere"),
        ("", "train.csv:4", 'empty id (column "id_code")'),
    ]
    assert APTOS2019(aptos).unlisted() == []


def test_conflicting_rows_of_one_file_are_left_out(tmp_path):
    files(tmp_path, "train_images/im0.jpg", "train_images/b.png")
    text(tmp_path / "train.csv", "id_code,diagnosis", "im0,0", "b,2", "IM0,1")
    table = APTOS2019(tmp_path).read()
    assert rows(table, "image_id", "grade") == [("b", 2)]
    reason = "one file under several ids, with conflicting grade (train.csv:2: im0, 0; train.csv:4: IM0, 1)"
    assert reasons(table) == [("im0", "train.csv:2", reason), ("IM0", "train.csv:4", reason)]
    assert APTOS2019(tmp_path).unlisted() == []


def test_first_of_two_equal_rows_of_one_file_is_kept(tmp_path):
    files(tmp_path, "train_images/im0.jpg")
    text(tmp_path / "train.csv", "id_code,diagnosis", "im0,1", "IM0,1", "im0.png,1")
    table = APTOS2019(tmp_path).read()
    assert rows(table, "image_id", "path", "grade") == [("im0", "train_images/im0.jpg", 1)]
    assert reasons(table) == [
        ("IM0", "train.csv:3", "duplicate id: repeats train.csv:2 (im0, the same file)"),
        ("im0", "train.csv:4", "duplicate id: repeats train.csv:2"),
    ]


@pytest.mark.parametrize("missing", ["train.csv", "train_images"])
def test_missing_training_set_explains_how_to_get_it(aptos, missing):
    (aptos / missing).rename(aptos / "elsewhere")
    with pytest.raises(DataError, match=f"{missing} does not exist") as error:
        APTOS2019(aptos).read()
    assert "kaggle competitions download -c aptos2019-blindness-detection" in str(error.value)


def test_training_file_without_the_official_columns_is_refused(aptos):
    text(aptos / "train.csv", "id_code,level", "000c1434d8d7,2")
    with pytest.raises(DataError, match=r'no column "diagnosis"; its columns are id_code, level'):
        APTOS2019(aptos).read()


def test_download_is_refused(tmp_path):
    with pytest.raises(DataError, match="cannot be downloaded by drgrade"):
        APTOS2019(tmp_path / "nowhere").download()
