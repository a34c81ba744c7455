import pytest
from source_layouts import files, reasons, rows, text

from drgrade.data.sources.ddr import DDR
from drgrade.errors import DataError


@pytest.fixture
def ddr(tmp_path):
    part = tmp_path / "DR_grading"
    for folder, names in (
        ("train", ("007-0004-000", "t5")),
        ("valid", ("v1",)),
        ("test", ("20170323093305605",)),
    ):
        files(part, *(f"{folder}/{name}.jpg" for name in names))
    text(part / "train.txt", "007-0004-000.jpg 0", "t5.jpg 5")
    text(part / "valid.txt", "v1.jpg 3")
    text(part / "test.txt", "20170323093305605.jpg 4")
    return tmp_path


def test_published_split_is_kept(ddr):
    table = DDR(ddr).read()
    assert rows(table, "image_id", "path", "grade", "patient_id", "split") == [
        ("007-0004-000", "DR_grading/train/007-0004-000.jpg", 0, None, "train"),
        ("20170323093305605", "DR_grading/test/20170323093305605.jpg", 4, None, "test"),
        ("v1", "DR_grading/valid/v1.jpg", 3, None, "val"),
    ]


def test_ungradable_photographs_are_left_out(ddr):
    assert reasons(DDR(ddr).read()) == [("t5", "train.txt:2", "ungradable (grade 5)")]
    files(ddr, "DR_grading/valid/new.jpg")
    assert DDR(ddr).unlisted() == ["DR_grading/valid/new.jpg"]


@pytest.mark.parametrize("below", ["DR_grading", "."])
def test_root_may_be_above_or_the_folder_itself(ddr, below):
    moved = ddr if below == "." else ddr / below
    assert len(DDR(moved).read().manifest) == 3
    (ddr / "x").mkdir()
    (ddr / "DR_grading").rename(ddr / "x/DR_grading")
    (ddr / "x").rename(ddr / "DDR-dataset")
    assert len(DDR(ddr).read().manifest) == 3


def test_name_in_two_sets_is_left_out(ddr):
    files(ddr, "DR_grading/valid/007-0004-000.jpg")
    text(ddr / "DR_grading/valid.txt", "v1.jpg 3", "007-0004-000.jpg 0")
    table = DDR(ddr).read()
    assert "007-0004-000" not in set(table.manifest["image_id"])
    assert sum("conflicting path and split" in reason for *_, reason in reasons(table)) == 2


def test_names_may_have_blanks(ddr):
    files(ddr, "DR_grading/valid/a b.jpg")
    text(ddr / "DR_grading/valid.txt", "v1.jpg 3", "a b.jpg 0")
    table = DDR(ddr).read()
    assert ("a b", "DR_grading/valid/a b.jpg", 0) in rows(table, "image_id", "path", "grade")
    assert [problem.image_id for problem in table.problems] == ["t5"]


@pytest.mark.parametrize("row", ["v1.jpg x", "v1.jpg 3 3", "nowhere.jpg 1", "v1.jpg 6"])
def test_unusable_line_is_reported_with_file_and_line(ddr, row):
    text(ddr / "DR_grading/valid.txt", row)
    problem = DDR(ddr).read().problems[-1]
    assert problem.path == "valid.txt:1"


@pytest.mark.parametrize("missing", ["valid.txt", "test"])
def test_missing_part_is_named(ddr, missing):
    (ddr / "DR_grading" / missing).rename(ddr / "elsewhere")
    with pytest.raises(DataError, match=f"{missing} does not exist") as error:
        DDR(ddr).read()
    assert "github.com/nkicsl/DDR-dataset" in str(error.value)
