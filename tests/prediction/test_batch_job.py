"""Batches and the database of finished rows: memory, interruption, resuming."""

import shutil
import sqlite3
import weakref
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from drgrade.data.crops import Crop
from drgrade.data.fundus_check import PreparedPhotograph, Verdict
from drgrade.errors import ConfigError, DataError
from drgrade.models.thresholds import ReferralRule
from drgrade.prediction.grader import GradedBatch
from drgrade.prediction.inputs import InputFile, Inputs, InputState
from drgrade.prediction.job_state import DATABASE, ProgressDatabase
from drgrade.prediction.prediction import BatchJob, Predictor
from drgrade.prediction.results import COLUMNS, PredictionRow, ResultWriter


class Stopped(Exception):
    """Simulates the end of a process."""


class FakeGrader:
    """A grader and a preparation in one. They read no file: results follow from the number in its name.

    Every seventh file cannot be read. Grades depend on their batch, like the last digits of real ones.
    """

    device = "cpu"

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.alive = self.most_alive = 0

    @property
    def preparation(self):
        return self

    def referral(self, sensitivity):
        return ReferralRule(0.5, sensitivity)

    def prepare_all(self, paths, workers):
        for path in paths:
            yield self._prepared(int(path.stem))

    def grade(self, pixels) -> GradedBatch:
        numbers = torch.from_numpy(pixels[:, 0, 0, 0].astype(np.int64))
        self.batches.append(len(pixels))
        p = torch.softmax(
            torch.outer(numbers.float(), torch.arange(5.0)) / 99 + numbers.float().mean() / 1e5, dim=1
        )
        scores = p[:, 2:].sum(dim=1) + numbers.float().mean() / 1e3
        return GradedBatch(numbers % 5, p, p, scores, scores, scores, scores, p)

    def _prepared(self, number: int) -> PreparedPhotograph:
        if number % 7 == 0:
            return PreparedPhotograph(
                Crop("", failure="broken"), Verdict("unreadable", "broken", abstains=True)
            )
        pixels = np.full((4, 4, 3), number % 200, np.uint8)
        self.alive += 1
        self.most_alive = max(self.most_alive, self.alive)
        weakref.finalize(pixels, self._gone)
        return PreparedPhotograph(Crop(f"{number:064d}", pixels), Verdict("good"))

    def _gone(self) -> None:
        self.alive -= 1


class Stop(ResultWriter):
    """Ends the job at a batch, before the batch is stored."""

    def __init__(self, at: int) -> None:
        self.left = at

    def add_batch(self, batch) -> None:
        self.left -= 1
        if self.left < 0:
            raise Stopped

    def finish(self, rows) -> None:
        pass


class Lines(ResultWriter):
    """Collects the final rows."""

    def add_batch(self, batch) -> None:
        pass

    def finish(self, rows) -> None:
        self.rows = [row.to_json() for row in rows]


def _list(folder: Path, numbers) -> Inputs:
    for number in numbers:
        if not (folder / f"{number}.jpg").exists():
            (folder / f"{number}.jpg").touch()
    (folder / "list.txt").write_text("".join(f"{number}.jpg\n" for number in numbers))
    return Inputs([str(folder / "list.txt")])


def _run(out: Path, inputs: Inputs, fake: FakeGrader | None = None, stop_at: int = 10**6) -> list[dict]:
    database, lines = ProgressDatabase(out), Lines()
    try:
        BatchJob(Predictor(fake or FakeGrader()), database, batch_size=4).run(inputs, [Stop(stop_at), lines])
    finally:
        database.close()
    return lines.rows


def _graded(out: Path) -> int:
    """Return the number of stored grades."""
    with sqlite3.connect(out / DATABASE) as rows:
        return rows.execute("select count(*) from rows where status = 'graded'").fetchone()[0]


def test_memory_does_not_grow_with_the_number_of_photographs(tmp_path):
    fake = FakeGrader()
    rows = _run(tmp_path / "out", _list(tmp_path, range(300)), fake)
    assert len(rows) == 300
    assert fake.most_alive <= 2 * 4 + 1  # a batch, and the one in preparation


def test_an_interrupted_job_resumes_to_the_same_rows(tmp_path):
    inputs = _list(tmp_path, range(50))
    whole = FakeGrader()
    expected = _run(tmp_path / "whole", inputs, whole)
    assert [row["path"] for row in expected] == [item.path for item in inputs]
    for stop_at in range(11):
        fake, out = FakeGrader(), tmp_path / f"stopped{stop_at}"
        with pytest.raises(Stopped):
            _run(out, inputs, fake, stop_at)
        kept, again = _graded(out), FakeGrader()
        assert kept == 4 * stop_at
        assert _run(out, inputs, again) == expected
        assert sum(again.batches) == sum(whole.batches) - kept  # nothing is graded twice


def test_a_finished_job_grades_nothing_again(tmp_path):
    inputs = _list(tmp_path, range(20))
    expected, again = _run(tmp_path / "out", inputs), FakeGrader()
    assert _run(tmp_path / "out", inputs, again) == expected
    assert again.batches == []


def test_new_and_changed_photographs_are_graded(tmp_path):
    _run(tmp_path / "out", _list(tmp_path, range(20, 40)))
    (tmp_path / "25.jpg").write_bytes(b"another")
    again = FakeGrader()
    rows = _run(tmp_path / "out", _list(tmp_path, range(38, 18, -1)), again)
    assert [Path(row["path"]).stem for row in rows] == [str(number) for number in range(38, 18, -1)]
    assert sum(again.batches) == 2  # 19 and 25


def test_a_path_listed_twice_is_graded_once_and_has_two_rows(tmp_path):
    fake = FakeGrader()
    rows = _run(tmp_path / "out", _list(tmp_path, [1, 2, 1, 3, 7, 7]), fake)
    assert [Path(row["path"]).stem for row in rows] == ["1", "2", "1", "3", "7", "7"]
    assert rows[0] == rows[2]
    assert sum(fake.batches) == 3


def test_unreadable_files_are_tried_again(tmp_path):
    class Repaired(FakeGrader):
        def _prepared(self, number: int) -> PreparedPhotograph:
            return super()._prepared(number + 1 if number % 7 == 0 else number)

    inputs = _list(tmp_path, range(8))
    before = _run(tmp_path / "out", inputs)
    after = _run(tmp_path / "out", inputs, Repaired())
    assert [row["status"] for row in before if "failed" in row["status"]] == ["failed"] * 2
    assert {row["status"] for row in after} == {"graded"}


def test_rows_are_restored_unchanged(tmp_path):
    _list(tmp_path, range(3))
    _run(tmp_path / "out", Inputs([str(tmp_path / "list.txt")]))
    database = ProgressDatabase(tmp_path / "out")
    item, state = InputFile(str(tmp_path / "1.jpg"), "other id"), (tmp_path / "1.jpg").stat()
    assert database.add_input(item, InputState(state.st_size, state.st_mtime_ns))
    (row,) = database.rows()
    database.close()
    assert row.image_id == "other id"
    assert row == PredictionRow.from_content(row.path, row.image_id, row.content())
    assert len(list(row.cells())) == len(COLUMNS)


def test_a_folder_is_locked_by_its_job(tmp_path):
    database = ProgressDatabase(tmp_path)
    with pytest.raises(ConfigError, match="another job is using"):
        ProgressDatabase(tmp_path)
    database.close()
    ProgressDatabase(tmp_path).close()


def test_a_damaged_database_is_an_error_and_can_be_overwritten(tmp_path):
    (tmp_path / DATABASE).write_bytes(b"no database " * 500)
    with pytest.raises(DataError, match="damaged"):
        ProgressDatabase(tmp_path)
    ProgressDatabase(tmp_path, overwrite=True).close()
    with sqlite3.connect(tmp_path / DATABASE) as rows:
        assert rows.execute("select count(*) from rows").fetchone() == (0,)


def test_a_database_is_restored_after_a_killed_transaction(tmp_path):
    """The state after a kill within a transaction: the database with its journal."""
    database = ProgressDatabase(tmp_path / "out")
    database.write([(PredictionRow("kept.jpg", "kept", "abstained"), InputState(1, 1))])
    # Changed pages are then written to disk before they are committed.
    database._connection.execute("pragma cache_size = 1")
    for number in range(2000):
        database.add_input(InputFile(f"{number}.jpg", "x" * 200), InputState())
    shutil.copytree(tmp_path / "out", tmp_path / "killed")
    assert (tmp_path / "killed" / f"{DATABASE}-journal").stat().st_size > 0
    database.close()
    after = ProgressDatabase(tmp_path / "killed")
    assert after.add_input(InputFile("kept.jpg", "kept"), InputState(1, 1))
    assert [row.path for row in after.rows()] == ["kept.jpg"]
    after.close()


def test_a_batch_too_large_for_the_device_is_an_error(tmp_path):
    class Small(FakeGrader):
        def grade(self, pixels):
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(ConfigError, match="batch_size=4 does not fit"):
        _run(tmp_path / "out", _list(tmp_path, range(9)), Small())


def test_progress_is_shown_for_an_unknown_number_of_inputs(tmp_path, monkeypatch, capsys):
    import io

    _list(tmp_path, range(17))
    monkeypatch.chdir(tmp_path)
    listed = (tmp_path / "list.txt").read_bytes()
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(listed)))
    monkeypatch.setattr("drgrade.progress._SECONDS_BETWEEN_LINES", 0.0)
    assert len(_run(tmp_path / "out", Inputs(["-"]))) == 17
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "grading photographs"
    assert lines[-1].startswith("  16 (")
