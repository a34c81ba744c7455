import os
from pathlib import Path

import pandas as pd
import pytest
from synthetic_photographs import labelled_folder, save, write_labels

from drgrade.data.sources.base import MANIFEST_COLUMNS
from drgrade.data.sources.folder import Folder
from drgrade.data.sources.idrid import IDRiD
from drgrade.errors import DataError

REAL = Path(os.environ.get("DRGRADE_TEST_DATA", Path(__file__).parents[2] / "../shared/data"))


@pytest.fixture
def photos(tmp_path):
    """Photographs a, b and sub/c, no label file."""
    for name in ("a.jpg", "b.PNG", "sub/c.jpeg"):
        save(tmp_path / name)
    return tmp_path


def read(root, *rows, header="image,grade", **options):
    write_labels(root / "labels.csv", *rows, header=header)
    return Folder(root, **options).read()


def rows(table, *columns):
    return [tuple(None if pd.isna(v) else v for v in row) for row in table.manifest[list(columns)].to_numpy()]


def reasons(table):
    return [(p.image_id, p.path, p.reason) for p in table.problems]


def test_names_with_and_without_extension_are_found(photos):
    table = read(photos, "sub/c,4", "b,1", "a.jpg,0")
    assert rows(table, "image_id", "path", "grade") == [
        ("a", "a.jpg", 0),
        ("b", "b.PNG", 1),
        ("sub/c", "sub/c.jpeg", 4),
    ]
    assert table.problems == ()
    assert tuple(table.manifest.columns) == MANIFEST_COLUMNS
    assert str(table.manifest["grade"].dtype) == "Int64"
    assert set(table.manifest["dataset"]) == {"folder"}


def test_patient_eye_and_split_columns_are_read(photos):
    table = read(
        photos,
        "a,2.0,p1,OD,training",
        "b,,,left,",
        "sub/c,0,p1,,Test",
        header="id_code,level,patient,eye,set",
        image_column="id_code",
        grade_column="level",
        patient_column="patient",
        eye_column="eye",
        split_column="set",
        name="mine",
    )
    assert rows(table, "grade", "patient_id", "eye", "dataset", "split") == [
        (2, "p1", "right", "mine", "train"),
        (None, None, "left", "mine", None),
        (0, "p1", None, "mine", "test"),
    ]


def test_photographs_in_a_folder_beside_the_label_file(tmp_path):
    save(tmp_path / "train_images/x.png")
    table = read(tmp_path, "x,3", images="train_images")
    assert rows(table, "image_id", "path", "grade") == [("x", "train_images/x.png", 3)]


def test_label_file_elsewhere(photos, tmp_path_factory):
    labels = write_labels(tmp_path_factory.mktemp("labels") / "mine.csv", "a,1")
    assert rows(Folder(photos, csv=labels).read(), "image_id", "grade") == [("a", 1)]


def test_folder_without_labels(photos):
    (photos / "notes.txt").write_text("no photograph")
    save(photos / ".hidden.png")
    table = Folder(photos, csv=None).read()
    assert rows(table, "image_id", "grade") == [("a", None), ("b", None), ("sub/c", None)]


def test_unlisted_photographs_are_ignored_or_added_without_a_grade(photos):
    assert rows(read(photos, "a,1"), "image_id", "grade") == [("a", 1)]
    table = read(photos, "a,1", include_unlisted=True)
    assert rows(table, "image_id", "grade") == [("a", 1), ("b", None), ("sub/c", None)]


@pytest.mark.parametrize("grade", ["", " ", "NaN", "NA", "null"])
def test_empty_grade_is_a_photograph_without_a_label(photos, grade):
    table = read(photos, f"a,{grade}")
    assert rows(table, "grade") == [(None,)]
    assert table.problems == ()


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("a,7", "grade 7 is not one of 0-4"),
        ("a,-1", "grade -1 is not one of 0-4"),
        ("a,2.5", "grade 2.5 is not a whole number"),
        ("a,inf", "grade inf is not a whole number"),
        ("a,x", 'grade "x" is not a number'),
        ("nowhere,1", "the file is not there: nowhere"),
        ("nowhere.jpg,1", "the file is not there: nowhere.jpg"),
        ("sub,1", "the file is not there: sub"),
        (",1", 'empty id (column "image")'),
        ("a,1,2", "1 more values than columns"),
    ],
)
def test_unusable_row_is_reported_with_its_reason(photos, row, reason):
    table = read(photos, "b,1", row)
    assert rows(table, "image_id") == [("b",)]
    assert reasons(table) == [(row.split(",")[0].removesuffix(".jpg"), "labels.csv:3", reason)]
    assert table.problems[0].action == "left out"


def test_unknown_split_or_eye_is_left_out(photos):
    options = {"header": "image,grade,eye,split", "eye_column": "eye", "split_column": "split"}
    table = read(photos, "a,1,L,train", "b,1,both,train", "sub/c,1,R,extra", **options)
    assert [reason for *_, reason in reasons(table)] == [
        'eye "both" is not one of left, right, L, R, OS, OD',
        'split "extra" is not one of train, val, test',
    ]


def test_paths_outside_the_root_are_left_out(photos, tmp_path_factory):
    outside = save(tmp_path_factory.mktemp("outside") / "secret.png")
    (photos / "link.png").symlink_to(outside)
    (photos / "linked").symlink_to(outside.parent)
    table = read(
        photos,
        f"{outside},1",
        f"../{outside.parent.name}/secret.png,1",
        "link.png,1",
        "linked/secret,1",
        "sub/../../x.png,1",
        "a,1",
    )
    assert rows(table, "image_id") == [("a",)]
    assert len(table.problems) == 5
    assert all(p.reason.startswith("path outside the root") for p in table.problems)


def test_any_spelling_of_a_path_inside_the_root_is_accepted(photos):
    table = read(photos, f"{photos / 'a.jpg'},1", "./sub/../b.PNG,2", "sub\\c.jpeg,3")
    assert rows(table, "image_id", "path") == [("a", "a.jpg"), ("b", "b.PNG"), ("sub/c", "sub/c.jpeg")]


def test_unlisted_link_out_of_the_root_is_left_out(photos, tmp_path_factory):
    (photos / "link.png").symlink_to(save(tmp_path_factory.mktemp("outside") / "x.png"))
    table = Folder(photos, csv=None).read()
    assert reasons(table)[0][0] == "link"
    assert len(table.manifest) == 3


def test_repeated_row_counts_once(photos):
    table = read(photos, "a,1", "b,2", "a.jpg,1.0")
    assert rows(table, "image_id", "grade") == [("a", 1), ("b", 2)]
    assert reasons(table) == [("a", "labels.csv:4", "duplicate id: repeats labels.csv:2")]


def test_conflicting_rows_are_all_left_out(photos):
    table = read(photos, "a,1", "b,2", "a,3")
    assert rows(table, "image_id") == [("b",)]
    reason = "duplicate id with conflicting grade (labels.csv:2: 1; labels.csv:4: 3)"
    assert reasons(table) == [("a", "labels.csv:2", reason), ("a", "labels.csv:4", reason)]


def test_ambiguous_name_is_left_out(photos):
    save(photos / "a.png")
    table = read(photos, "a,1", "b,1")
    assert reasons(table) == [("a", "labels.csv:2", "several files fit a: a.jpg, a.png")]
    table = read(photos, "a.jpg,1", "a.png,1")
    assert "duplicate id with conflicting path" in table.problems[0].reason


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbfimage,grade\r\na,1\r\n",
        b"image;grade\na;1\n",
        b"image\tgrade\na\t1\n",
        b" image , grade ,,,\na,1,,,\n,,,,\n",
        b'"image","grade"\n"a", "1"\n\n',
        "note,image,grade\nÄrger,a,1\n".encode("latin-1"),
        "image,grade\na,1\n".encode("utf-16"),
        b"image,grade\ra,1\r",
    ],
    ids=["bom", "semicolon", "tab", "trailing", "quoted", "latin-1", "utf-16", "mac"],
)
def test_label_files_exported_from_spreadsheets_are_read(photos, content):
    (photos / "labels.csv").write_bytes(content)
    table = Folder(photos).read()
    assert rows(table, "image_id", "grade") == [("a", 1)]
    assert table.problems == ()


def test_missing_column_names_the_columns_and_the_setting(photos):
    with pytest.raises(
        DataError, match=r'no column "image" and "grade"; its columns are id_code, diagnosis'
    ) as error:
        read(photos, "a,1", header="id_code,diagnosis")
    assert "data.image_column=... data.grade_column=..." in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"image,grade\n", "contains no photographs"),
        (b"image,grade,grade\na,1,2\n", "grade more than once"),
        (b"PK\x03\x04\0\0\0", "not a text file"),
        (b'image,grade\n"a,1\n' + b"x" * 200_000, "cannot be read as CSV"),
    ],
)
def test_invalid_label_file_is_refused(photos, content, message):
    (photos / "labels.csv").write_bytes(content)
    with pytest.raises(DataError, match=message):
        Folder(photos).read()


def test_missing_folder_or_label_file_names_the_setting(photos):
    with pytest.raises(DataError, match=r"does not exist.*data\.root=DIR"):
        Folder(photos / "nope").read()
    write_labels(photos / "train.csv", "a,1")
    with pytest.raises(DataError, match=r"the label file .*train\.csv.*data\.csv=FILE"):
        Folder(photos).read()
    with pytest.raises(DataError, match=r"data\.images=DIR"):
        read(photos, "a,1", images="nope")


def test_empty_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match="contains no photographs"):
        Folder(tmp_path, csv=None).read()


def test_order_of_rows_does_not_matter(tmp_path):
    root = labelled_folder(tmp_path)
    one = Folder(root).read().manifest
    lines = (root / "labels.csv").read_text().splitlines()
    write_labels(root / "labels.csv", *reversed(lines[1:]))
    pd.testing.assert_frame_equal(one, Folder(root).read().manifest)


@pytest.fixture
def small_idrid(tmp_path):
    part = tmp_path / "B. Disease Grading"
    for folder, kind, name in (("a. Training Set", "Training", "a"), ("b. Testing Set", "Testing", "b")):
        for number in (1, 2):
            save(part / "1. Original Images" / folder / f"IDRiD_{number:03}.jpg")
        labels = part / "2. Groundtruths" / f"{name}. IDRiD_Disease Grading_{kind} Labels.csv"
        labels.parent.mkdir(exist_ok=True)
        header = "Image name,Retinopathy grade,Risk of macular edema ,,,,"
        write_labels(labels, "IDRiD_001,3,2,,,,", "IDRiD_002,0,0,,,,", header=header)
    return tmp_path


@pytest.mark.parametrize("below", [".", "B. Disease Grading"])
def test_idrid_in_its_official_layout(small_idrid, below):
    table = IDRiD(small_idrid / below).read()
    assert rows(table, "image_id", "grade", "dataset", "split") == [
        ("test/IDRiD_001", 3, "idrid", "test"),
        ("test/IDRiD_002", 0, "idrid", "test"),
        ("train/IDRiD_001", 3, "idrid", "train"),
        ("train/IDRiD_002", 0, "idrid", "train"),
    ]
    assert all((small_idrid / below / path).is_file() for path in table.manifest["path"])
    assert table.problems == ()


def test_missing_idrid_photograph_is_left_out(small_idrid):
    next(small_idrid.rglob("b. Testing Set/IDRiD_002.jpg")).unlink()
    (problem,) = IDRiD(small_idrid).read().problems
    assert problem.image_id == "test/IDRiD_002"
    assert "not there" in problem.reason


def test_missing_idrid_explains_origin_and_layout(tmp_path):
    with pytest.raises(DataError, match="IEEE DataPort") as error:
        IDRiD(tmp_path / "nope").read()
    assert "CC BY 4.0" in str(error.value)
    assert "2. Groundtruths/a. IDRiD_Disease Grading_Training Labels.csv" in str(error.value)


def test_incomplete_idrid_names_the_missing_part(small_idrid):
    next(small_idrid.rglob("b.*Labels.csv")).unlink()
    with pytest.raises(DataError, match=r"incomplete: .*Testing Labels\.csv does not exist"):
        IDRiD(small_idrid).read()


@pytest.mark.skipif(not (REAL / "idrid").is_dir(), reason=f"no IDRiD in {REAL}")
def test_real_idrid_has_the_published_counts():
    table = IDRiD(REAL / "idrid").read()
    counts = table.manifest.groupby(["split", "grade"]).size()
    assert counts["train"].tolist() == [134, 20, 136, 74, 49]
    assert counts["test"].tolist() == [34, 5, 32, 19, 13]
    assert table.problems == ()
