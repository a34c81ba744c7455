import pandas as pd
import pytest
from source_layouts import files, reasons, rows, text

from drgrade.data.sources.deepdrid import DeepDRiD
from drgrade.errors import DataError

HEADER = (
    "patient_id,image_id,image_path,Overall quality,left_eye_DR_Level,right_eye_DR_Level,"
    "patient_DR_Level,Clarity,Field definition,Artifact"
)
PART = "regular_fundus_images"
TRAINING = f"{PART}/regular-fundus-training"
VALIDATION = f"{PART}/regular-fundus-validation"
EVALUATION = f"{PART}/Online-Challenge1&2-Evaluation"


def line(name, left="", right="", patient=""):
    folder = name.split("_")[0]
    return f"{folder},{name},\\regular-fundus-training\\{folder}\\{name}.jpg,0,{left},{right},{patient},8,8,4"


@pytest.fixture
def deepdrid(tmp_path):
    files(tmp_path, *(f"{TRAINING}/Images/4/4_{view}.jpg" for view in ("l1", "l2", "r1", "r2")))
    files(tmp_path, f"{VALIDATION}/Images/265/265_l1.jpg", f"{EVALUATION}/Images/347/347_r1.jpg")
    views = [line("4_l1", 3, "", 4), line("4_l2", 3, "", 4), line("4_r1", "", 4, 4), line("4_r2", "", 4, 4)]
    text(tmp_path / TRAINING / "regular-fundus-training.csv", HEADER, *views)
    text(tmp_path / VALIDATION / "regular-fundus-validation.csv", HEADER, line("265_l1", 0.0, "", 2))
    text(tmp_path / EVALUATION / "Challenge1_labels.csv", "image_id,DR_Levels", "347_r1,1")
    return tmp_path


@pytest.mark.parametrize("below", [".", PART])
def test_grades_belong_to_eyes_and_photographs_to_patients(deepdrid, below):
    table = DeepDRiD(deepdrid / below).read()
    assert rows(table, "image_id", "grade", "patient_id", "eye", "split") == [
        ("265_l1", 0, "265", "left", "val"),
        ("347_r1", 1, "347", "right", "test"),
        ("4_l1", 3, "4", "left", "train"),
        ("4_l2", 3, "4", "left", "train"),
        ("4_r1", 4, "4", "right", "train"),
        ("4_r2", 4, "4", "right", "train"),
    ]
    assert all((deepdrid / below / path).is_file() for path in table.manifest["path"])
    assert table.problems == ()
    assert DeepDRiD(deepdrid / below).unlisted() == []


def test_eye_is_unknown_if_name_and_column_disagree(deepdrid):
    """As in the published file: 56_r3 has a grade of the left eye, 56_l3 of the right one."""
    files(deepdrid, f"{TRAINING}/Images/56/56_r3.jpg", f"{TRAINING}/Images/56/56_l3.jpg")
    rows_ = [line("56_r3", 1, "", 1), line("56_l3", "", 0, 1)]
    text(deepdrid / TRAINING / "regular-fundus-training.csv", HEADER, *rows_)
    table = DeepDRiD(deepdrid).read()
    assert rows(table, "image_id", "grade", "patient_id", "eye")[2:] == [
        ("56_l3", 0, "56", None),
        ("56_r3", 1, "56", None),
    ]


def test_unusable_rows_are_reported_with_their_reason(deepdrid):
    files(deepdrid, f"{TRAINING}/Images/odd/odd_x.jpg")
    bad = [line("4_l1", 5, "", 5), line("4_l2", 1, 2, 2), line("9_l1", 0, "", 0), line("odd_x", 1)]
    text(deepdrid / TRAINING / "regular-fundus-training.csv", HEADER, *bad)
    assert [reason for *_, reason in reasons(DeepDRiD(deepdrid).read())] == [
        "ungradable (grade 5)",
        "it has a grade of the left and of the right eye",
        "the file is not there: 9/9_l1",
        'the name "odd_x" does not say patient and eye (12_l1, 12_r2)',
    ]


def test_evaluation_labels_are_read_from_the_published_spreadsheet(deepdrid):
    pytest.importorskip("openpyxl")
    (deepdrid / EVALUATION / "Challenge1_labels.csv").unlink()
    frame = pd.DataFrame({"image_id": ["347_r1"], "DR_Levels": [2]})
    frame.to_excel(deepdrid / EVALUATION / "Challenge1_labels.xlsx", index=False)
    assert ("347_r1", 2) in rows(DeepDRiD(deepdrid).read(), "image_id", "grade")


def test_without_labels_the_test_set_is_ungraded(deepdrid):
    (deepdrid / EVALUATION / "Challenge1_labels.csv").unlink()
    text(deepdrid / EVALUATION / "Challenge1_upload.csv", "image_id,DR_Level", "347_r1,")
    assert ("347_r1", None, "test") in rows(DeepDRiD(deepdrid).read(), "image_id", "grade", "split")


@pytest.mark.parametrize("missing", [f"{VALIDATION}/regular-fundus-validation.csv", f"{EVALUATION}/Images"])
def test_missing_part_is_named(deepdrid, missing):
    (deepdrid / missing).rename(deepdrid / "elsewhere")
    with pytest.raises(DataError, match=f"{missing} does not exist") as error:
        DeepDRiD(deepdrid).read()
    assert "git clone https://github.com/deepdrdoc/DeepDRiD" in str(error.value)
