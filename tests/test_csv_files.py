"""CSV files whose text no spreadsheet executes."""

import csv
import io

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drgrade.errors import DataError
from drgrade.files import original_cell, read_csv, safe_cell, to_csv
from drgrade.runs.run_dir import read_split, write_split

FORMULAS = [
    "=1+1",
    "+1+1",
    "-1+1",
    "@SUM(A1)",
    "\t=1+1",
    "\r=1+1",
    "\n=1",
    " =1",
    "\uff1d1+1",
    "a;=1+1",
    "a\t-1+1",
]
STARTS = tuple("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")


@pytest.mark.parametrize("text", FORMULAS)
def test_formula_gets_a_mark_that_is_removed_again(text):
    marked = safe_cell(text)
    for separator in (",", ";", "\t"):
        for line in marked.splitlines() or [marked]:
            assert not any(cell.strip(" ").startswith(STARTS) for cell in line.split(separator))
    assert original_cell(marked) == text


@pytest.mark.parametrize("value", ["IDRiD_001", "IMG-1", "a=b", "1", "", "'quoted", "é", -1, 0.5, None])
def test_other_values_stay(value):
    assert safe_cell(value) is value


@given(st.text("=+-@'\t\r\n; aä\uff1d", max_size=12) | st.text())
def test_every_text_is_read_as_it_was(text):
    assert original_cell(safe_cell(text)) == text
    assert safe_cell(text).lstrip(" ")[:1] not in STARTS or not safe_cell(text)


def test_columns_of_text_are_marked_and_numbers_stay(tmp_path):
    table = pd.DataFrame(
        {
            "image_id": ["=1+1", "a,b", "NA"],
            "grade": pd.array([1, None, -2], dtype="Int64"),
            "logit": [-1.5, 0.0, 2.0],
            "path": pd.Series(["-x.jpg", None, "x.jpg"], dtype="string"),
        }
    )
    (tmp_path / "table.csv").write_text(to_csv(table), encoding="utf-8")
    cells = list(csv.reader(io.StringIO((tmp_path / "table.csv").read_text(encoding="utf-8"))))
    assert cells[1] == ["'=1+1", "1", "-1.5", "'-x.jpg"]
    assert cells[3] == ["NA", "-2", "2.0", "x.jpg"]
    types = {"image_id": "string", "path": "string", "grade": "Int64"}
    back = read_csv(tmp_path / "table.csv", dtype=types, keep_default_na=False, na_values=[""])
    assert back["image_id"].tolist() == ["=1+1", "a,b", "NA"]
    assert back["path"].tolist()[::2] == ["-x.jpg", "x.jpg"]
    assert back["path"].dtype == "string"


def test_ids_that_look_like_formulas_survive_store_and_split(make_photographs, tmp_path):
    def change(manifest):
        return manifest.assign(image_id=["=-+@"[i % 4] + name for i, name in enumerate(manifest["image_id"])])

    photographs = make_photographs(change, val_fraction=0.15)
    assert set(photographs.manifest["image_id"].str[0]) == set("=-+@")
    stored = (photographs.stores[0].folder / "manifest.csv").read_text()
    assert not any(line.startswith(STARTS) for line in stored.splitlines())
    write_split(tmp_path, photographs.split)
    assert not any(line.startswith(STARTS) for line in (tmp_path / "split.csv").read_text().splitlines())
    again = make_photographs(change, file=str(tmp_path / "split.csv"))
    assert again.split[["image_id", "subset"]].equals(photographs.split[["image_id", "subset"]])


@pytest.mark.parametrize("text", ["image_id,grade\na,1,2\nb,1,2\n", "image_id,grade\na,1\nb,1,2\n"])
def test_rows_longer_than_the_header_are_an_error(tmp_path, text):
    with pytest.raises(ValueError, match=r"more values than columns|Expected 2 fields"):
        read_csv(io.StringIO(text))
    (tmp_path / "split.csv").write_text(text.replace("grade", "group,grade,subset").replace("1", "g,1,test"))
    with pytest.raises(DataError, match=r"split\.csv is damaged \(.*\): run it again"):
        read_split(tmp_path)
