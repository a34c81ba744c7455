"""Label files as spreadsheets, pandas and R write them."""

import zipfile

import pandas as pd
import pytest
from source_layouts import files, reasons, rows
from synthetic_photographs import disc_photograph, save

from drgrade.data.sources.folder import Folder
from drgrade.data.sources.label_files import read_label_file
from drgrade.data.store import prepare
from drgrade.errors import DataError

TABLES = {
    "index column of pandas": ",image,grade\n0,a,1\n1,b,2\n",
    "row names of R": '"image","grade"\n"1","a",1\n"2","b",2\n',
    "remark without a name": "image,grade,\na,1,blurred\nb,2,\n",
    "separator line": "sep=;\nimage;grade\na;1\nb;2\n",
    "separator line in quotes": '"sep=;"\r\nimage;grade\r\na;1\r\nb;2\r\n',
    "separator line of a tab": "SEP=\t\nimage\tgrade\na\t1\nb\t2\n",
    "decimal commas": "image;grade\na;1,0\nb;2,00\n",
    "commas in the header": "image;grade;note (camera, eye, date)\na;1;x\nb;2;\n",
    "commas in the header, short rows": "image;grade;note (camera, eye, date)\na;1\nb;2\n",
    "semicolons in the header": 'image,grade,note (a;b;c;d)\na,1,"p;q"\nb,2,r\n',
    "rows in one cell": '"image,grade"\n"a,1"\n"b,2"\n',
    "rows but the header in one cell": 'image,grade,note\n"a,1,""x, y"""\n"b,2,"\n',
    "semicolon rows in one cell": '"image;grade"\n"a;1,0"\n"b;2,0"\n',
    "rows in one of several cells": '"image,grade";\n"a,1";\n"b,2";\n',
    "text as formula": 'image,grade\n="a",1\n"=""b""",2\n',
    "blanks that cannot be seen": "\ufeff\xa0image\xa0,grade\u200b\na\xa0,1\n\u2007b,2\n",
    "trailing separators": "image;grade;;;\na;1;;;\nb;2;;;\n",
    "empty rows first": "\n;;\n\nimage;grade\n\na;1\nb;2\n",
    "bars": "image|grade\na|1\nb|2\n",
    "line ends of old Macs": "image,grade\ra,1\rb,2\r",
}


@pytest.fixture
def photos(tmp_path):
    return files(tmp_path, "a.png", "b.png")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("table", TABLES)
def test_tables_of_other_programs_are_read(photos, table, encoding):
    (photos / "labels.csv").write_bytes(TABLES[table].encode(encoding))
    read = Folder(photos).read()
    assert rows(read, "image_id", "grade") == [("a", 1), ("b", 2)]
    assert read.problems == ()


SHEETS = {
    "index column": [[None, "image", "grade"], [0, "a", 1], [1, "b", 2]],
    "separator line": [["sep=;"], ["image;grade"], ["a;1"], ["b;2"]],
    "rows in one cell": [["image,grade"], ["a,1"], ["b,2"]],
    "decimal commas": [["image", "grade", None], ["a", "1,0", "remark"], ["b", 2.0, None]],
    "empty rows and columns first": [
        [None] * 3,
        [None, "image", "grade"],
        [None, "a", 1],
        [None, "b\xa0", 2],
    ],
    "separators in the header": [["image", "grade", "note; a; b; c"], ["a", 1, "x, y"], ["b", 2, "z"]],
}


@pytest.mark.parametrize("sheet", SHEETS)
def test_spreadsheets_with_the_same_faults_are_read(photos, sheet):
    pytest.importorskip("openpyxl")
    pd.DataFrame(SHEETS[sheet]).to_excel(photos / "labels.xlsx", index=False, header=False)
    read = Folder(photos, csv="labels.xlsx").read()
    assert rows(read, "image_id", "grade") == [("a", 1), ("b", 2)]
    assert read.problems == ()


def test_a_problem_has_the_line_of_the_file(photos):
    (photos / "labels.csv").write_text("sep=;\n\nimage;grade\na;1\n\nb;1,5\n")
    assert reasons(Folder(photos).read()) == [("b", "labels.csv:6", "grade 1,5 is not a whole number")]


def test_more_values_than_columns_are_still_a_problem(photos):
    (photos / "labels.csv").write_text("image,grade\na,1\nb,1,0\n")
    assert reasons(Folder(photos).read()) == [("b", "labels.csv:3", "1 more values than columns")]


def test_remedy_for_rows_with_more_values_is_named(photos, tmp_path, capsys):
    for name in ("a", "b"):
        save(photos / f"{name}.png", disc_photograph((64, 64)))
    (photos / "labels.csv").write_text("image,grade\na,1\nb,1,0\n")
    store = prepare(Folder(photos), tmp_path / "stores", image_size=32, workers=1)
    remedy = "(put values that contain the separator in quotation marks)"
    assert f"1 x 1 more values than columns {remedy}: b (labels.csv:3)" in capsys.readouterr().err
    assert store.problems["reason"].tolist() == ["1 more values than columns"]  # part of the store's key
    (photos / "labels.csv").write_text("image,grade\na,1,2\nb,1,0\n")
    with pytest.raises(DataError, match=r"no photograph .* 1 more values than columns .*quotation marks"):
        prepare(Folder(photos), tmp_path / "stores", image_size=32, workers=1)


def test_decimal_commas_are_not_taken_for_row_numbers(photos):
    (photos / "labels.csv").write_text("image,grade\n1,2,0\n2,3,0\n")
    assert [row.surplus for row in read_label_file(photos / "labels.csv").rows] == [1, 1]


def test_a_photograph_whose_name_contains_the_separator_is_no_row_in_one_cell(tmp_path):
    (files(tmp_path, "a,1.png", "b.png") / "labels.csv").write_text('image,grade\n"a,1.png",1\nb.png,2\n')
    assert rows(Folder(tmp_path).read(), "image_id", "grade") == [("a,1", 1), ("b", 2)]


@pytest.mark.parametrize("more", ["", 'c,2,"x"\n'])
def test_a_quotation_mark_that_is_not_closed_is_refused(photos, more):
    (photos / "labels.csv").write_text(f'image,grade,note\na,1,"blurred\nb,2,\n{more}')
    with pytest.raises(DataError, match=r"labels\.csv:2 .*a quotation mark is not closed"):
        Folder(photos).read()
    (photos / "labels.csv").write_text('image,grade,note\na,1,"two\nlines"\nb,2,5"\n')
    assert rows(Folder(photos).read(), "image_id", "grade") == [("a", 1), ("b", 2)]


@pytest.mark.parametrize("name", ["A.png", "a.PNG", "A", "sub/B", "SUB\\b.png", "./Sub/b.PNG"])
def test_name_that_differs_in_case_is_found_and_reported(tmp_path, name):
    (files(tmp_path, "a.png", "Sub/b.png") / "labels.csv").write_text(f"image,grade\n{name},1\n")
    read = Folder(tmp_path).read()
    path = "Sub/b.png" if "b" in name.lower() else "a.png"
    assert read.manifest["path"].tolist() == [path]
    (problem,) = read.problems
    assert (problem.action, problem.path) == ("converted", "labels.csv:2")
    assert problem.reason == f"found in other upper and lower case: {name} ({path})"


def test_names_that_fit_several_files_in_other_case_are_left_out(tmp_path):
    labels = files(tmp_path, "a.png", "A.png", "b.png", "B.PNG") / "labels.csv"
    labels.write_text("image,grade\na.PNG,1\nb.png,2\n")
    read = Folder(tmp_path).read()
    assert rows(read, "image_id", "grade") == [("b", 2)]
    assert reasons(read) == [("a", "labels.csv:2", "several files fit a.PNG: A.png, a.png")]


def sheet_of(path, rows=""):
    """Write an .xlsx file by hand: the rows of its sheet as XML."""
    pytest.importorskip("openpyxl")
    pd.DataFrame([["image", "grade"], ["a", 1]]).to_excel(path, index=False, header=False)
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    sheet = parts["xl/worksheets/sheet1.xml"].decode()
    parts["xl/worksheets/sheet1.xml"] = sheet.replace("</sheetData>", f"{rows}</sheetData>").encode()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return path


def row_of(number, column="A"):
    return f'<row r="{number}"><c r="{column}{number}"><v>1</v></c></row>'


SHEETS_WITHOUT_END = {
    "a million empty rows": row_of(1_048_577),
    "rows without end": row_of(10**15),
    "wide": row_of(3, "XFD"),
    "wide and high": row_of(3, "XFD") + row_of(1_048_576),
}


@pytest.mark.parametrize("sheet", SHEETS_WITHOUT_END)
def test_sheet_that_is_larger_than_its_file_is_refused(tmp_path, sheet):
    path = sheet_of(tmp_path / "labels.xlsx", SHEETS_WITHOUT_END[sheet])
    message = r"has more than 1,048,576 rows and 1,000 columns; export the sheet as labels\.csv beside it"
    with pytest.raises(DataError, match=message):
        read_label_file(path)


def test_spreadsheet_that_unpacks_to_any_size_is_refused(tmp_path):
    path = sheet_of(tmp_path / "labels.xlsx")
    with (
        zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive,
        archive.open("xl/more.xml", "w") as part,
    ):
        for _ in range(300):
            part.write(bytes(1_000_000))
    assert path.stat().st_size < 1_000_000
    with pytest.raises(DataError, match=r"unpacks to 300,\d{3},\d{3} bytes, at most 200,000,000 are read"):
        read_label_file(path)


def test_spreadsheet_with_empty_rows_is_read_like_pandas_does(tmp_path):
    values = [["image", "grade", "note"], ["0001", 1.0, 2.5], [None] * 3, ["b", None, True], ["c", 2, "x, y"]]
    pytest.importorskip("openpyxl")
    pd.DataFrame(values, dtype=object).to_excel(tmp_path / "l.xlsx", index=False, header=False)
    assert [(row.line, tuple(row.cells.values())) for row in read_label_file(tmp_path / "l.xlsx").rows] == [
        (2, ("0001", "1", "2.5")),
        (4, ("b", "", "True")),
        (5, ("c", "2", "x, y")),
    ]


@pytest.mark.parametrize("ending", ["csv", "xlsx"])
def test_label_file_that_never_ends_is_not_read(tmp_path, ending):
    path = tmp_path / f"labels.{ending}"
    with path.open("wb") as file:
        file.truncate(300_000_000)
    with pytest.raises(DataError, match=r"too large \(300,000,000 bytes"):
        read_label_file(path)
    path.unlink()
    path.symlink_to("/dev/zero")
    with pytest.raises(DataError, match="is a device, not a file"):
        read_label_file(path)
