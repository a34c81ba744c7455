"""Tests of the common functions of sources: rows, search for photographs, missing data sets, spreadsheets."""

import sys
import unicodedata

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from source_layouts import files, reasons, rows, text

from drgrade.data.sources.base import Entry, Source, SourceTable, collect, parse_grade
from drgrade.data.sources.folder import Folder
from drgrade.data.sources.label_files import PhotoFinder, RowError, read_label_file, read_list_file
from drgrade.errors import DataError


class Bare(Source):
    """A minimal source."""

    how_to_get = "Ask the clinic (terms: yours)."

    def __init__(self, root):
        self.root, self.name = root, "bare"

    def read(self):
        self.need("labels.csv", "old/labels.csv")
        return SourceTable(Folder(self.root).read().manifest)


def test_missing_folder_explains_how_to_get_the_data_set(tmp_path):
    with pytest.raises(DataError, match=r"nope does not exist.*data\.root=DIR") as error:
        Bare(tmp_path / "nope").read()
    assert "Ask the clinic (terms: yours)." in str(error.value)
    assert "download=true" not in str(error.value)


def test_incomplete_data_set_names_the_missing_file(tmp_path):
    with pytest.raises(DataError, match=r"bare is missing or incomplete: .*labels\.csv does not exist"):
        Bare(tmp_path).read()


def test_default_download_explains_how_to_get_the_data_set(tmp_path):
    with pytest.raises(DataError, match=r"data=bare cannot be downloaded by drgrade.*data\.root=DIR\.\nAsk"):
        Bare(tmp_path).download()


def test_default_download_accepts_an_existing_data_set(tmp_path):
    Bare(files(tmp_path, "a.png")).download()
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_unlisted_photographs_have_no_row(tmp_path):
    files(tmp_path, "a.png", "bad.png", "twice.png", "new.png", "sub/new.jpg", ".hidden.png", "notes.txt")
    text(tmp_path / "labels.csv", "image,grade", "a,1", "bad,9", "twice,1", "twice,2", "gone,1")
    assert Folder(tmp_path).unlisted() == ["new.png", "sub/new.jpg"]


def test_include_unlisted_leaves_no_unlisted_photograph(tmp_path):
    files(tmp_path, "a.png", "b.png")
    text(tmp_path / "labels.csv", "image,grade", "a,1")
    assert Folder(tmp_path, include_unlisted=True).unlisted() == []


@pytest.mark.parametrize("name", ["IM1.jpg", "im1", "im1.PNG", "IM1.tif"])
def test_loose_finder_ignores_case_and_extension(tmp_path, name):
    files(tmp_path, "x/IM1.JPG")
    assert PhotoFinder(tmp_path, "x", loose=True).find(name) == "x/IM1.JPG"
    if name in ("im1.PNG", "IM1.tif"):
        with pytest.raises(RowError, match="not there"):
            PhotoFinder(tmp_path, "x").find(name)


def test_loose_finder_prefers_the_exact_name_and_refuses_ambiguity(tmp_path):
    files(tmp_path, "a.png", "A.JPG")
    finder = PhotoFinder(tmp_path, loose=True)
    assert finder.find("a.png") == "a.png"
    with pytest.raises(RowError, match=r"several files fit a\.tif: A\.JPG, a\.png"):
        finder.find("a.tif")


@pytest.mark.parametrize("loose", [False, True])
@pytest.mark.parametrize(("on_disk", "in_file"), [("NFD", "NFC"), ("NFC", "NFD")])
def test_unicode_forms_of_a_name_are_equal(tmp_path, loose, on_disk, in_file):
    stored = unicodedata.normalize(on_disk, "Müller-é.jpg")
    files(tmp_path, stored, "x.jpg")
    finder = PhotoFinder(tmp_path, loose=loose)
    named = unicodedata.normalize(in_file, "Müller-é.jpg")
    assert named != stored
    assert finder.find(named) == finder.find(named.removesuffix(".jpg")) == finder.find(stored) == stored
    with pytest.raises(RowError, match="not there"):
        finder.find("Muller-e.jpg")


def test_files_of_both_unicode_forms_are_found_exactly(tmp_path):
    forms = [unicodedata.normalize(form, "é.jpg") for form in ("NFC", "NFD")]
    files(tmp_path, *forms)
    finder = PhotoFinder(tmp_path)
    assert [finder.find(name) for name in forms] == forms
    with pytest.raises(RowError, match="several files fit"):
        finder.find(forms[0].removesuffix(".jpg"))


def test_folder_of_the_same_name_does_not_hide_the_photograph(tmp_path):
    files(tmp_path, "a/other.png", "a.png")
    assert PhotoFinder(tmp_path).find("a") == "a.png"


def test_broken_links_and_links_out_are_refused(tmp_path):
    outside = files(tmp_path / "outside", "x.png") / "x.png"
    root = files(tmp_path / "root", "in.png")
    (root / "broken.png").symlink_to(root / "nowhere.png")
    (root / "loop.png").symlink_to(root / "loop.png")
    (root / "out.png").symlink_to(outside)
    (root / "link.png").symlink_to(root / "in.png")
    for loose in (False, True):
        finder = PhotoFinder(root, loose=loose)
        for name in ("broken.png", "broken", "loop.png", "out.png", "out"):
            with pytest.raises(RowError, match=r"not there|outside the root"):
                finder.find(name)
        assert finder.find("link") == "link.png"


@pytest.mark.parametrize(
    "name", ["a/" * 1500 + "x.jpg", "x" * 300, "x" * 5000, "a\0b", "a\0/b.jpg", "\ud800/x"]
)
def test_name_that_is_no_path_is_a_reason(tmp_path, name):
    files(tmp_path, "x.jpg")
    for loose in (False, True):
        with pytest.raises(RowError):
            PhotoFinder(tmp_path, loose=loose).find(name)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from("aAbB"), min_size=1, max_size=3).map("".join), st.booleans())
def test_found_files_exist_inside_the_root(tmp_path_factory, name, loose):
    root = tmp_path_factory.mktemp("root")
    files(root, "in/a.png", "in/Ab.jpg", "in/BB.jpeg", "in/aab.JPG")
    try:
        path = PhotoFinder(root, "in", loose=loose).find(name)
    except RowError:
        stems = [file.stem for file in (root / "in").iterdir()]
        assert sum(stem.casefold() == name.casefold() for stem in stems) != 1
    else:
        assert (root / path).is_file()
        assert (root / path).stem.casefold() == name.casefold()


@pytest.mark.parametrize("text_", ["5", "5.0", " 5 "])
def test_ungradable_photographs_have_their_own_reason(text_):
    with pytest.raises(RowError, match=r"^ungradable \(grade 5\)$"):
        parse_grade(text_, ungradable=5)
    with pytest.raises(RowError, match="not one of 0-4"):
        parse_grade(text_)
    assert parse_grade("4", ungradable=5) == 4


def test_list_without_header(tmp_path):
    labels = read_list_file(
        text(tmp_path / "l.txt", "a.jpg 0", "", "b.jpg\t1", "c.jpg", "d e f"), ("image", "g")
    )
    assert [(row.line, row.cells["image"], row.cells["g"], row.surplus) for row in labels.rows] == [
        (1, "a.jpg", "0", 0),
        (3, "b.jpg", "1", 0),
        (4, "c.jpg", "", 0),
        (5, "d e", "f", 0),
    ]


def test_empty_list_is_refused(tmp_path):
    with pytest.raises(DataError, match="is empty"):
        read_list_file(text(tmp_path / "l.txt", " "), ("image",))


def test_column_returns_the_first_existing_name(tmp_path):
    labels = read_label_file(text(tmp_path / "l.csv", "id_code,diagnosis", "a,1"))
    assert labels.column("image_id", "id_code") == "id_code"
    with pytest.raises(DataError, match=r'no column "image" or "x"; its columns are id_code, diagnosis'):
        labels.column("image", "x")


def test_spreadsheet_is_read_like_its_csv(tmp_path):
    pytest.importorskip("openpyxl")
    frame = pd.DataFrame({"image": ["001", "NA", "c"], "grade": [0, 2, None], "note": ["a,b", None, "x"]})
    frame.to_excel(tmp_path / "l.xlsx", index=False)
    read = read_label_file(tmp_path / "l.xlsx")
    text(tmp_path / "l.csv", "image,grade,note", '001,0,"a,b"', "NA,2,", "c,,x")
    assert read.rows == read_label_file(tmp_path / "l.csv").rows
    assert read.columns == ("image", "grade", "note")


def test_damaged_spreadsheet_is_refused(tmp_path):
    pytest.importorskip("openpyxl")
    with pytest.raises(DataError, match="cannot be read as a spreadsheet"):
        read_label_file(text(tmp_path / "l.xlsx", "image,grade"))


def test_spreadsheet_without_openpyxl_names_the_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    (tmp_path / "l.xlsx").touch()
    with pytest.raises(DataError, match=r"needs openpyxl: pip install 'drgrade\[datasets\]'.*l\.csv"):
        read_label_file(tmp_path / "l.xlsx")


def test_conflicting_rows_are_not_unlisted_but_are_problems(tmp_path):
    files(tmp_path, "a.png")
    text(tmp_path / "labels.csv", "image,grade", "a,1", "a,2")
    table = Folder(tmp_path).read()
    assert rows(table, "image_id") == []
    assert len(reasons(table)) == 2
    assert {problem.photograph for problem in table.problems} == {"a.png"}


ENTRIES = st.builds(
    Entry, st.sampled_from("ab"), st.sampled_from(["p", "q"]), st.sampled_from([0, 1]), where=st.just("l:1")
)


@settings(max_examples=200, deadline=None)
@given(st.lists(ENTRIES, max_size=5))
def test_every_row_is_kept_once_or_reported(entries):
    table = collect(entries, "x")
    assert table.manifest["image_id"].is_unique
    assert table.manifest["path"].is_unique
    assert len(table.manifest) + len(table.problems) == len(entries)
    for _, row in table.manifest.iterrows():
        of_file = {entry.grade for entry in entries if entry.path == row["path"]}
        of_id = {entry[1:3] for entry in entries if entry.image_id == row["image_id"]}
        assert of_file == {row["grade"]}
        assert of_id == {(row["path"], row["grade"])}
