"""What a job has done so far: a small SQLite file in the folder of its results.

A batch is in it whole or not at all, whenever the job is killed. Rows are looked up by path, so that memory
does not grow with their number, and come out in the order of the inputs, whichever job graded them.
"""

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from drgrade.errors import ConfigError, DataError
from drgrade.prediction.inputs import Item, State
from drgrade.prediction.rows import Row

NAME = ".rows.sqlite"

_TABLES = (
    "create table if not exists rows "
    "(path blob primary key, size integer, modified integer, status text, content text)",
    "create table if not exists items (position integer primary key, path blob, image_id blob)",
    "create index if not exists paths on items (path)",
)


class Ledger:
    """Rows by path, and the order of this job's inputs. One job at a time has it open."""

    def __init__(self, folder: Path, anew: bool = False) -> None:
        """Open the ledger of a folder, or begin one.

        Args:
            folder: Of the results; it is made.
            anew: Forget what is in it, also if it is damaged.

        Raises:
            ConfigError: If another job works in the folder.
            DataError: If the folder cannot be written to, or the ledger is damaged.
        """
        self.path = folder / NAME
        try:
            self._rows = self._open()
        except DataError:
            if not anew or not self.path.is_file():
                raise
            for path in (self.path, self.path.with_name(f"{NAME}-journal")):
                path.unlink(missing_ok=True)
            self._rows = self._open()
        with self._errors():
            for table in ("items", "rows") if anew else ("items",):
                self._rows.execute(f"delete from {table}")
            self._rows.commit()

    def _open(self) -> sqlite3.Connection:
        with self._errors():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            rows = sqlite3.connect(self.path, timeout=0.2)
            # Held until it is closed; the system lets go of it when the process is killed.
            rows.execute("pragma locking_mode = exclusive")
            rows.execute("begin immediate")
            for table in _TABLES:
                rows.execute(table)
            rows.commit()
        return rows

    def close(self) -> None:
        """Let go of the folder. What was not committed is forgotten."""
        self._rows.close()

    def expect(self, item: Item, state: State) -> bool:
        """Take in the next input.

        A file that could not be read is always tried again: permissions, memory, a network drive may have
        come back.

        Args:
            item: The input; it comes after those before it.
            state: Of its file.

        Returns:
            Whether its row is there, or will be: the same path was expected before.
        """
        key = os.fsencode(item.path)
        with self._errors():
            again = self._rows.execute("select 1 from items where path = ?", (key,)).fetchone()
            self._rows.execute(
                "insert into items (path, image_id) values (?, ?)", (key, os.fsencode(item.image_id))
            )
            kept = self._rows.execute(
                "select 1 from rows where path = ? and size = ? and modified = ? and status != 'failed'",
                (key, state.size, state.modified),
            ).fetchone()
        return bool(again or kept)

    def write(self, rows: Sequence[tuple[Row, State]]) -> None:
        """Keep rows: on disk, all of them, when this returns.

        Args:
            rows: Each with the state that its file had before it was read.
        """
        values = [
            (os.fsencode(row.path), state.size, state.modified, row.status, row.content())
            for row, state in rows
        ]
        with self._errors():
            self._rows.executemany("insert or replace into rows values (?, ?, ?, ?, ?)", values)
            self._rows.commit()

    def rows(self) -> Iterator[Row]:
        """The rows of this job's inputs, in their order."""
        with self._errors():
            found = self._rows.execute(
                "select items.path, image_id, content from items join rows using (path) order by position"
            )
            for path, image_id, content in found:
                yield Row.read(os.fsdecode(path), os.fsdecode(image_id), content)

    def forget_others(self) -> int:
        """Forget the rows of files that are no longer among the inputs.

        Returns:
            How many there were.
        """
        with self._errors():
            done = self._rows.execute("delete from rows where path not in (select path from items)")
            self._rows.commit()
        return done.rowcount

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Say what is wrong with the file."""
        try:
            yield
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                raise ConfigError(
                    f"another job works in {self.path.parent}: wait for it, or name another folder "
                    "with out=DIR"
                ) from error
            raise DataError(
                f"{self.path} cannot be written ({error}); when that is mended, the same command goes on"
            ) from error
        except sqlite3.DatabaseError as error:
            raise DataError(f"{self.path} is damaged ({error}); overwrite=true begins anew") from error
        except OSError as error:
            raise DataError(f"{self.path.parent} cannot be made ({error.strerror})") from error
