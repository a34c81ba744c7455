"""Inputs of a prediction: folders, lists, standard input."""

import io
import os
import subprocess
from itertools import count, islice
from pathlib import Path
from types import SimpleNamespace

import pytest

from drgrade.data.crops import make_crops
from drgrade.errors import ConfigError, DataError
from drgrade.prediction.inputs import Inputs, file_state


def _touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def _paths(*given: object, **more) -> list[str]:
    return [item.path for item in Inputs([str(each) for each in given], **more)]


def test_a_folder_is_searched_recursively_sorted_without_hidden_files(tmp_path):
    _touch(
        *(tmp_path / name for name in ("b.JPG", "a/2.png", "a/10.tif", "c.jpeg", "notes.txt", "labels.csv"))
    )
    _touch(tmp_path / ".hidden.jpg", tmp_path / ".cache/x.jpg", tmp_path / "a/._2.png")
    assert _paths(tmp_path) == [str(tmp_path / name) for name in ("a/10.tif", "a/2.png", "b.JPG", "c.jpeg")]
    assert [item.image_id for item in Inputs([str(tmp_path)])] == ["a/10", "a/2", "b", "c"]
    assert Inputs([str(tmp_path)]).total == 4


def test_folders_may_be_nested_to_any_depth(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(1500):
        os.mkdir("a")  # noqa: PTH102
        os.chdir("a")
    Path("x.jpg").touch()
    monkeypatch.chdir(tmp_path)
    found = _paths("a")
    subprocess.run(["rm", "-r", "a"], check=True)  # shutil.rmtree cannot
    assert found == ["/".join([*["a"] * 1500, "x.jpg"])]


def test_other_files_in_a_folder_are_counted_and_named(tmp_path):
    names = ("a.jpg", "b.jfif", "c.dcm", "d.jp2", "e.gif", "sub/f.GIF", "notes.txt", "README", ".hidden.gif")
    _touch(*(tmp_path / name for name in names))
    inputs = Inputs([str(tmp_path)])
    assert (inputs.total, len(list(inputs))) == (4, 4)
    assert inputs.skipped == {"": 1, ".gif": 2, ".txt": 1}
    first = tmp_path / "e.gif"
    assert inputs.describe_skipped().startswith(f"4 other files skipped: 2 .gif ({first}, ...), 1 ")
    assert f"1 without ending ({tmp_path / 'README'})" in inputs.describe_skipped()
    assert Inputs([str(first)]).describe_skipped() == ""


def test_paths_keep_their_spelling(tmp_path, monkeypatch):
    _touch(tmp_path / "eyes/x.jpg")
    monkeypatch.chdir(tmp_path)
    assert _paths("eyes") == ["eyes/x.jpg"]
    assert _paths("./eyes/x.jpg", "eyes") == ["./eyes/x.jpg", "eyes/x.jpg"]


def test_a_folder_with_the_ending_of_a_photograph_is_a_row_and_is_searched(tmp_path):
    _touch(tmp_path / "scan.jpg/x.jpg")
    assert _paths(tmp_path) == [str(tmp_path / "scan.jpg"), str(tmp_path / "scan.jpg/x.jpg")]


def test_the_folder_of_the_results_is_not_searched(tmp_path):
    _touch(tmp_path / "x.jpg", tmp_path / "results/overlays/x.png")
    assert _paths(tmp_path, leave_out=tmp_path / "results") == [str(tmp_path / "x.jpg")]


def test_links_to_folders_are_not_followed(tmp_path):
    _touch(tmp_path / "x.jpg")
    (tmp_path / "again").symlink_to(tmp_path)
    assert _paths(tmp_path) == [str(tmp_path / "x.jpg")]


def test_a_list_is_relative_to_its_folder(tmp_path):
    (tmp_path / "list.txt").write_bytes("\ufeffa.jpg\r\n\n/abs/b.jpg\nnot there.jpg".encode())
    assert _paths(tmp_path / "list.txt") == [
        str(tmp_path / "a.jpg"),
        "/abs/b.jpg",
        str(tmp_path / "not there.jpg"),
    ]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("column", ["path", "image"])
def test_a_table_contains_paths_and_ids(tmp_path, column, delimiter):
    rows = [["n", column, "image_id"], ["1", "a, b;c.jpg", "first"], ["2", "d.jpg", ""], ["3", "", ""]]
    lines = [delimiter.join(f'"{cell}"' for cell in row) for row in rows]
    (tmp_path / "list.csv").write_text("\ufeff" + "\n".join(lines) + "\n", encoding="utf-8")
    items = list(Inputs([str(tmp_path / "list.csv")]))
    assert [item.path for item in items[:2]] == [str(tmp_path / "a, b;c.jpg"), str(tmp_path / "d.jpg")]
    assert [item.image_id for item in items[:2]] == ["first", "d"]
    assert items[2].problem == "row 3 of the list names no photograph"


def test_row_of_a_table_with_more_values_than_columns_is_not_graded(tmp_path):
    (tmp_path / "list.csv").write_text("path,image_id\na.jpg,first,\nb.jpg,left,second\nc.jpg,third\n")
    items = list(Inputs([str(tmp_path / "list.csv")]))
    assert [item.image_id for item in items] == ["first", "", "third"]
    assert items[1].problem.startswith("row 2 of the list has more values than columns: put those that")


def test_a_table_without_a_column_of_paths_is_refused(tmp_path):
    (tmp_path / "list.csv").write_text("id_code,diagnosis\nx,1\n")
    with pytest.raises(DataError, match="no column path or image; its columns are: id_code, diagnosis"):
        _ = Inputs([str(tmp_path / "list.csv")]).total


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le"])
def test_lists_of_spreadsheets_and_other_encodings_are_read(tmp_path, encoding):
    table = 'sep=;\n;path;note (eye, date)\n0;"ä, b.jpg";x\n1;c.jpg;\n'
    (tmp_path / "list.csv").write_bytes(table.encode(encoding))
    (tmp_path / "list.txt").write_bytes("ä, b.jpg\r\nc.jpg\r\n".encode(encoding))
    expected = [str(tmp_path / name) for name in ("ä, b.jpg", "c.jpg")]
    assert _paths(tmp_path / "list.csv") == _paths(tmp_path / "list.txt") == expected


def test_file_names_may_contain_any_bytes(tmp_path):
    (tmp_path / "list.txt").write_bytes(b"\xff\xfe.jpg\n")
    (item,) = Inputs([str(tmp_path / "list.txt")])
    assert os.fsencode(item.path).endswith(b"/\xff\xfe.jpg")


def test_standard_input_is_read_line_by_line(monkeypatch):
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(b"a.jpg\nb/c.jpg\n")))
    inputs = Inputs(["-"])
    assert inputs.total is None
    assert [item.path for item in inputs] == ["a.jpg", "b/c.jpg"]


@pytest.mark.parametrize(
    ("given", "message"),
    [([], "no photographs are given"), (["nowhere"], "does not exist"), (["-", "."], "cannot be combined")],
)
def test_invalid_inputs_are_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        Inputs(given)


def test_a_pipe_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "x.jpg")
    assert not file_state(str(tmp_path / "x.jpg")).opens
    assert not file_state("/dev/zero").opens
    assert not file_state("/proc/self/status").opens
    assert file_state("a\0b").size == -1


def test_a_list_that_is_a_pipe_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "list.csv")
    with pytest.raises(DataError, match="is a pipe, not a file"):
        list(Inputs([str(tmp_path / "list.csv")]))


def _name(path: Path) -> str:
    return path.name


@pytest.mark.parametrize("workers", [1, 2])
def test_endless_paths_are_read_a_few_ahead(workers):
    """Paths are read only as far as the processes are ahead."""
    read = []

    def paths():
        for number in count():
            read.append(number)
            yield Path(str(number))

    crops = make_crops(_name, paths(), workers)
    assert list(islice(crops, 40)) == [str(number) for number in range(40)]
    assert len(read) <= 40 + 8 * workers
    del crops  # ends the worker processes
