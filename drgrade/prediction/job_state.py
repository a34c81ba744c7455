"""State of a prediction job in its output folder: ``prediction.json`` and a database of finished rows.

The database (SQLite) stores each batch as one transaction, so that an interrupted job resumes. Rows are
looked up by path, so memory does not grow with their number.
"""

import json
import os
import sqlite3
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from drgrade.artefacts import read_object, shortened
from drgrade.errors import ConfigError, DataError
from drgrade.files import file_sha256, write_text
from drgrade.prediction.checkpoint import TrainedModel
from drgrade.prediction.grader import Grader
from drgrade.prediction.inputs import InputFile, InputState
from drgrade.prediction.results import NOTICE, PredictionRow
from drgrade.runs.run_dir import CALIBRATION, versions

MANIFEST = "prediction.json"
DATABASE = ".progress.sqlite"

JobDescription = Mapping[str, Any]
"""Everything that the rows depend on. A job resumes another one only if all of it is equal."""


def describe_job(grader: Grader, inputs: Sequence[str], **settings: object) -> JobDescription:
    """Describe a job by the settings and files that its rows depend on.

    Device, batch size and number of processes are left out: they change the last digits at most.
    """
    return {
        "inputs": [each if each == "-" else str(Path(each).absolute()) for each in inputs],
        "settings": settings,
        "runs": [_hashes(member) for member in grader.members],
        "preparation": asdict(grader.preparation),
        "drgrade": version("drgrade"),
    }


def _hashes(member: TrainedModel) -> dict[str, str]:
    calibration = member.folder / CALIBRATION
    return {
        "checkpoint_sha256": file_sha256(member.weights_file),
        "config_sha256": file_sha256(member.config_file),
        "calibration_sha256": file_sha256(calibration) if calibration.is_file() else "",
    }


def check_output_folder(folder: Path) -> None:
    """Raise ConfigError if the output folder is a file, or is not empty and has no ``prediction.json``."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"out={folder} is a file: name a folder")
    if folder.is_dir() and not (folder / MANIFEST).exists():
        other = next((each.name for each in folder.iterdir() if not each.name.startswith(".")), None)
        if other is not None:
            raise ConfigError(f"out={folder} contains other files ({other}, ...): name another folder")


def check_same_job(folder: Path, job: JobDescription) -> None:
    """Check that an output folder is new, or belongs to the same job.

    Raises:
        ConfigError: If it contains the predictions of another job.
        DataError: If its ``prediction.json`` is damaged.
    """
    path = folder / MANIFEST
    if not path.exists():
        return
    remedy = "name another folder with out=DIR, or replace them with overwrite=true"
    try:
        manifest = read_object(path, "overwrite=true starts again")
        before, status = manifest["job"], manifest["status"]
        different = [name for name in sorted({*before, *job}) if before.get(name) != job.get(name)]
    except (LookupError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is damaged ({error}); overwrite=true starts again") from error
    if different:
        changes = "; ".join(change for name in different for change in _changes(name, before, job))
        raise ConfigError(f"{folder} contains predictions of another job ({changes}): {remedy}")
    if job["inputs"] == ["-"] and status == "finished":
        raise ConfigError(
            f"{folder} contains the predictions of a finished job, and it is unknown if standard input lists "
            f"the same photographs: {remedy}"
        )


def _changes(name: str, before: JobDescription, now: JobDescription) -> list[str]:
    """Describe the change of one entry of the job description."""
    old, new = before.get(name), now.get(name)
    if name == "runs":
        return ["other checkpoints, or another calibration"]
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(key for key in {*old, *new} if old.get(key) != new.get(key))
        return [
            f"{shortened(key)} was {shortened(old.get(key))} and is {shortened(new.get(key))}" for key in keys
        ]
    if isinstance(old, list):
        return [f"{name} were {shortened(', '.join(map(str, old)), 300)}"]
    return [f"{shortened(name)} was {shortened(old)} and is {shortened(new)}"]


def write_manifest(folder: Path, job: JobDescription, grader: Grader, **more: object) -> None:
    """Write ``prediction.json`` with further entries (status, counts); nothing depends on the clock."""
    record = {
        "notice": NOTICE,
        "warning": grader.warning,
        **more,
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "job": job,
        "runs": [_describe_member(member) for member in grader.members],
        "device": str(grader.device),
        "versions": versions(),
    }
    write_text(folder / MANIFEST, json.dumps(record, indent=2, allow_nan=False) + "\n")


def _describe_member(member: TrainedModel) -> dict[str, Any]:
    facts = (
        "data",
        "data_hash",
        "split_hash",
        "label_fraction",
        "fold",
        "seed",
        "label_seed",
        "init",
        "test/qwk",
    )
    calibration = member.calibration
    return {
        "folder": str(member.folder.absolute()),
        "checkpoint": str(member.record["checkpoint"]),
        **{name: member.record[name] for name in facts if name in member.record},
        "calibration": {
            "temperature": calibration.temperature,
            "weight": calibration.weight,
            "nll_change": calibration.nll_change,
            "photographs": calibration.photographs,
            "note": calibration.note,
        },
    }


def row_provenance(job: JobDescription) -> dict[str, object]:
    """Return the entries of each line of ``predictions.jsonl`` that identify the weights."""
    return {
        "checkpoints": [run["checkpoint_sha256"][:12] for run in job["runs"]],
        "calibrations": [run["calibration_sha256"][:12] for run in job["runs"]],
        "drgrade": job["drgrade"],
    }


_TABLES = (
    "create table if not exists rows "
    "(path blob primary key, size integer, modified integer, status text, content text)",
    "create table if not exists items (position integer primary key, path blob, image_id blob)",
    "create index if not exists paths on items (path)",
)


class ProgressDatabase:
    """Finished rows by path, and the order of the current inputs. Only one job can open it at a time."""

    def __init__(self, folder: Path, overwrite: bool = False) -> None:
        """Open or create the database of a folder.

        Args:
            folder: Output folder; created if necessary.
            overwrite: Delete all rows, also if the database is damaged.

        Raises:
            ConfigError: If another job uses the folder.
            DataError: If the folder is not writable, or the database is damaged.
        """
        self.path = folder / DATABASE
        try:
            self._connection = self._open()
        except DataError:
            if not overwrite or not self.path.is_file():
                raise
            for path in (self.path, self.path.with_name(f"{DATABASE}-journal")):
                path.unlink(missing_ok=True)
            self._connection = self._open()
        with self._errors():
            for table in ("items", "rows") if overwrite else ("items",):
                self._connection.execute(f"delete from {table}")
            self._connection.commit()

    def _open(self) -> sqlite3.Connection:
        with self._errors():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(self.path, timeout=0.2)
            # The lock is held until the connection is closed, or the process ends.
            connection.execute("pragma locking_mode = exclusive")
            connection.execute("begin immediate")
            for table in _TABLES:
                connection.execute(table)
            connection.commit()
        return connection

    def close(self) -> None:
        """Close the database and release the folder; uncommitted changes are discarded."""
        self._connection.close()

    def add_input(self, item: InputFile, state: InputState) -> bool:
        """Append an input, with the state of its file, to the current order.

        Returns:
            True if its row exists, or will exist because the same path has been added before. A file that
            could not be read is always tried again: a network drive may have been restored.
        """
        key = os.fsencode(item.path)
        with self._errors():
            again = self._connection.execute("select 1 from items where path = ?", (key,)).fetchone()
            self._connection.execute(
                "insert into items (path, image_id) values (?, ?)", (key, os.fsencode(item.image_id))
            )
            kept = self._connection.execute(
                "select 1 from rows where path = ? and size = ? and modified = ? and status != 'failed'",
                (key, state.size, state.modified),
            ).fetchone()
        return bool(again or kept)

    def write(self, rows: Sequence[tuple[PredictionRow, InputState]]) -> None:
        """Store rows in one transaction, each with the state of its file before it was read."""
        values = [
            (os.fsencode(row.path), state.size, state.modified, row.status, row.content())
            for row, state in rows
        ]
        with self._errors():
            self._connection.executemany("insert or replace into rows values (?, ?, ?, ?, ?)", values)
            self._connection.commit()

    def rows(self) -> Iterator[PredictionRow]:
        """Yield the rows of the current inputs in order."""
        with self._errors():
            stored = self._connection.execute(
                "select items.path, image_id, content from items join rows using (path) order by position"
            )
            for path, image_id, content in stored:
                yield PredictionRow.from_content(os.fsdecode(path), os.fsdecode(image_id), content)

    def delete_others(self) -> int:
        """Delete the rows of files that are no longer among the inputs; return their number."""
        with self._errors():
            deleted = self._connection.execute("delete from rows where path not in (select path from items)")
            self._connection.commit()
        return deleted.rowcount

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Convert errors of SQLite to ConfigError and DataError."""
        try:
            yield
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                raise ConfigError(
                    f"another job is using {self.path.parent}: wait for it, or name another folder with "
                    "out=DIR"
                ) from error
            raise DataError(
                f"{self.path} cannot be written ({error}); once this is fixed, the same command resumes"
            ) from error
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            raise DataError(f"{self.path} is damaged ({error}); overwrite=true starts again") from error
        except OSError as error:
            raise DataError(f"{self.path.parent} cannot be created ({error.strerror})") from error
