import pytest
from source_layouts import files, reasons, rows, text

from drgrade.data.sources.messidor2 import Messidor2
from drgrade.data.store import problem_summary
from drgrade.data.store_builder import problem_table
from drgrade.errors import DataError

GRADES = "image_id,adjudicated_dr_grade,adjudicated_dme,adjudicated_gradable"


def of_action(table, action):
    return [(p.image_id, p.path, p.reason) for p in table.problems if p.action == action]


def left_out(table):
    return of_action(table, "left out")


def noted(table):
    """Return the problems of photographs that were kept."""
    return of_action(table, "converted")


@pytest.fixture
def messidor(tmp_path):
    """The layout of the two archives; IM names differ in case between table, pairs and disk."""
    files(tmp_path, *(f"IMAGES/{name}" for name in ("2005_1_PP.png", "2005_2_PP.png", "IM1.JPG", "IM2.JPG")))
    text(
        tmp_path / "messidor_data.csv",
        GRADES,
        "2005_1_PP.png,0,0,1",
        "2005_2_PP.png,,,0",
        "IM1.jpg,2,1,1",
        "IM2.jpg,4,0,1",
    )
    text(tmp_path / "messidor-2.csv", "left;right", "2005_1_PP.png;2005_2_PP.png", "IM2.JPG;IM1.JPG")
    return tmp_path


def test_pairs_are_patients_and_ungradable_photographs_are_left_out(messidor):
    table = Messidor2(messidor).read()
    assert rows(table, "image_id", "path", "grade", "patient_id", "eye", "split") == [
        ("2005_1_PP", "IMAGES/2005_1_PP.png", 0, "2005_1_PP", "left", None),
        ("IM1", "IMAGES/IM1.JPG", 2, "IM2", "right", None),
        ("IM2", "IMAGES/IM2.JPG", 4, "IM2", "left", None),
    ]
    reason = "ungradable (adjudicated_gradable 0)"
    assert reasons(table) == [("2005_2_PP", "messidor_data.csv:3", reason)]
    assert Messidor2(messidor).unlisted() == []


def test_newer_column_names_are_accepted(messidor):
    text(
        messidor / "messidor_data.csv",
        "id_code,diagnosis,adjudicated_dme,adjudicated_gradable",
        "IM1.jpg,2.0,0.0,1.0",
    )
    assert rows(Messidor2(messidor).read(), "image_id", "grade", "patient_id") == [("IM1", 2, "IM2")]


def test_missing_pairs_need_an_explicit_setting(messidor):
    (messidor / "messidor-2.csv").unlink()
    with pytest.raises(DataError, match=r"messidor-2\.csv does not exist.*") as error:
        Messidor2(messidor).read()
    assert "data.pairs=null" in str(error.value)
    table = Messidor2(messidor, pairs=None).read()
    assert rows(table, "image_id", "patient_id", "eye") == [
        (n, None, None) for n in ("2005_1_PP", "IM1", "IM2")
    ]


def test_photographs_as_tiff_and_a_missing_half_of_a_pair(messidor):
    (messidor / "IMAGES/2005_1_PP.png").rename(messidor / "IMAGES/2005_1_PP.tif")
    text(messidor / "messidor-2.csv", "left;right", ";2005_1_PP.png")
    assert rows(Messidor2(messidor).read(), "path", "patient_id", "eye")[0] == (
        "IMAGES/2005_1_PP.tif",
        "2005_1_PP",
        "right",
    )


def test_photograph_in_two_pairs_is_reported(messidor):
    text(messidor / "messidor-2.csv", "left;right", "IM1.JPG;IM2.JPG", "2005_1_PP.png;IM2.JPG")
    table = Messidor2(messidor).read()
    reason = "paired twice: line 2 is kept (right eye of IM1)"
    assert ("IM2", "messidor-2.csv:3", reason) in noted(table)
    assert ("IM2", "IM1") in rows(table, "image_id", "patient_id")


def test_pair_of_a_photograph_with_itself_is_reported(messidor):
    text(
        messidor / "messidor-2.csv",
        "left;right",
        "2005_1_PP.png;2005_2_PP.png",
        "IM2.JPG;im2.jpg",
        "IM1.JPG;",
    )
    table = Messidor2(messidor).read()
    assert noted(table) == [("im2", "messidor-2.csv:3", "paired twice: line 3 is kept (left eye of IM2)")]
    assert [reason[0] for reason in left_out(table)] == ["2005_2_PP"]
    assert ("IM2", "IM2", "left") in rows(table, "image_id", "patient_id", "eye")


def test_pairs_of_other_photographs_are_refused(messidor):
    text(messidor / "messidor-2.csv", "left;right", "A1.jpg;B1.jpg")
    with pytest.raises(DataError, match=r"messidor-2\.csv names no photograph of .*data\.pairs=null"):
        Messidor2(messidor).read()


def test_photographs_without_a_pair_are_kept_and_reported(messidor):
    text(messidor / "messidor-2.csv", "left;right", "2005_1_PP.png;2005_2_PP.png")
    table = Messidor2(messidor).read()
    reason = "in no pair of messidor-2.csv: taken for a patient of its own"
    assert noted(table) == [("IM1", "messidor_data.csv:4", reason), ("IM2", "messidor_data.csv:5", reason)]
    assert rows(table, "image_id", "patient_id")[1:] == [("IM1", None), ("IM2", None)]
    assert f"2 x {reason.partition(':')[0]}: IM1" in problem_summary(problem_table(table.problems), messidor)


def test_pair_names_without_a_photograph_are_reported(messidor):
    text(
        messidor / "messidor-2.csv", "left;right", "2005_1_PP.png;2005_2_PP.png", "IM2.JPG;IM1.JPG", "A1.jpg;"
    )
    table = Messidor2(messidor).read()
    assert left_out(table)[0] == ("A1", "messidor-2.csv:4", "its photograph is not in messidor_data.csv")
    assert len(table.manifest) == 3
    assert noted(table) == []


def test_pairs_file_without_eyes_is_refused(messidor):
    text(messidor / "messidor-2.csv", "a;b", "IM1.JPG;IM2.JPG")
    with pytest.raises(DataError, match="no column for the left eye; its columns are a, b"):
        Messidor2(messidor).read()


@pytest.mark.parametrize("missing", ["messidor_data.csv", "IMAGES"])
def test_missing_part_is_named_with_both_places(messidor, missing):
    (messidor / missing).rename(messidor / "elsewhere")
    with pytest.raises(DataError, match=f"{missing} does not exist") as error:
        Messidor2(messidor).read()
    assert "adcis.net" in str(error.value)
    assert "kaggle datasets download -d google-brain/messidor2-dr-grades" in str(error.value)
