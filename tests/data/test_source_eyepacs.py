import pytest
from source_layouts import files, reasons, rows, text

from drgrade.data.sources.eyepacs import EyePACS
from drgrade.errors import DataError


@pytest.fixture
def eyepacs(tmp_path):
    """Training set, and test photographs without grades."""
    files(tmp_path, *(f"train/{name}.jpeg" for name in ("10_left", "10_right", "13_left")))
    files(tmp_path, "test/1_left.jpeg", "test/1_right.jpeg")
    text(tmp_path / "trainLabels.csv", "image,level", "10_left,0", "10_right,1", "13_left,4")
    return tmp_path


COLUMNS = ("image_id", "path", "grade", "patient_id", "eye", "split")


def test_patient_and_eye_come_from_the_name(eyepacs):
    table = EyePACS(eyepacs).read()
    assert rows(table, *COLUMNS) == [
        ("10_left", "train/10_left.jpeg", 0, "10", "left", "train"),
        ("10_right", "train/10_right.jpeg", 1, "10", "right", "train"),
        ("13_left", "train/13_left.jpeg", 4, "13", "left", "train"),
        ("1_left", "test/1_left.jpeg", None, "1", "left", "test"),
        ("1_right", "test/1_right.jpeg", None, "1", "right", "test"),
    ]
    assert table.problems == ()
    assert EyePACS(eyepacs).unlisted() == []


def test_solution_file_grades_the_test_set(eyepacs):
    text(eyepacs / "retinopathy_solution.csv", "image,level,Usage", "1_left,0,Private", "1_right,2,Public")
    table = EyePACS(eyepacs).read()
    assert rows(table, "image_id", "grade", "split")[3:] == [("1_left", 0, "test"), ("1_right", 2, "test")]


def test_test_photograph_missing_from_the_solution_is_unlisted(eyepacs):
    text(eyepacs / "retinopathy_solution.csv", "image,level,Usage", "1_left,0,Private")
    assert EyePACS(eyepacs).unlisted() == ["test/1_right.jpeg"]


def test_solution_without_photographs_is_one_problem(eyepacs):
    text(eyepacs / "retinopathy_solution.csv", "image,level,Usage", "1_left,0,Private")
    (eyepacs / "test").rename(eyepacs / "elsewhere")
    ((_, path, reason),) = reasons(EyePACS(eyepacs).read())
    assert path == "retinopathy_solution.csv"
    assert "no folder test" in reason


def test_names_without_patient_and_eye_are_left_out(eyepacs):
    files(eyepacs, "train/odd.jpeg", "test/odd2.jpeg")
    text(eyepacs / "trainLabels.csv", "image,level", "10_left,0", "odd,1")
    table = EyePACS(eyepacs).read()
    assert [(id_, where) for id_, where, _ in reasons(table)] == [
        ("odd", "trainLabels.csv:3"),
        ("test/odd2", "test/odd2.jpeg"),
    ]
    assert "does not say patient and eye" in reasons(table)[0][2]


def test_nested_folder_is_read(tmp_path):
    files(tmp_path, "train/train/7_left.png")
    text(tmp_path / "trainLabels.csv", "image,level", "7_left,1")
    assert rows(EyePACS(tmp_path).read(), "path", "grade") == [("train/train/7_left.png", 1)]


@pytest.mark.parametrize("missing", ["trainLabels.csv", "train"])
def test_missing_training_set_explains_how_to_get_it(eyepacs, missing):
    (eyepacs / missing).rename(eyepacs / "elsewhere")
    with pytest.raises(DataError, match=f"{missing} does not exist") as error:
        EyePACS(eyepacs).read()
    assert "kaggle competitions download -c diabetic-retinopathy-detection" in str(error.value)
