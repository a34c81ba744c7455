"""Search for the files that label files name."""

import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from drgrade.data.image_reader import IMAGE_EXTENSIONS


class RowError(Exception):
    """A row of a label file cannot be used; the message is the reason."""


class PhotoFinder:
    """Find the files that label files name, inside one folder.

    Names are compared in Unicode NFC, because files copied from a Mac have decomposed accents (NFD).

    Args:
        root: Folder that resulting paths are relative to. Files outside it are rejected.
        folder: Folder that names are relative to, relative to ``root``.
        extensions: Lower-case extensions of photographs; names may lack them.
        loose: Ignore upper and lower case and the extension if no file matches exactly, as copies of public
            data sets often differ in them. Several loose matches are an error.
    """

    def __init__(
        self,
        root: Path,
        folder: str = ".",
        extensions: tuple[str, ...] = IMAGE_EXTENSIONS,
        loose: bool = False,
    ) -> None:
        self.root = root
        self.folder = folder
        self.extensions = extensions
        self.loose = loose
        self._top = os.path.normpath(root.absolute())
        self._listings: dict[str, _Listing] = {}

    def find(self, name: str) -> str:
        """Return the path of a photograph relative to the root, with forward slashes.

        Args:
            name: File name or path, with or without extension.

        Raises:
            RowError: If it does not exist, is not a file, is ambiguous, or lies outside the root.
        """
        name = name if os.sep == "\\" else name.replace("\\", "/")
        wanted = os.path.normpath(os.path.join(self._top, self.folder, name))  # noqa: PTH118  (30 times faster)
        if not wanted.startswith(os.path.join(self._top, "")):  # noqa: PTH118
            raise RowError(f"path outside the root {self.root}: {name}")
        folder, base = os.path.split(wanted)
        try:
            listing = self._listing(folder)
            known = listing.plain.get(base)
            if known is None or not (known or Path(wanted).is_file()):
                base = self._with_ending(listing, folder, base, name)
            if not (listing.inside and listing.plain.get(base)):
                self._check_link(Path(folder, base), name)
        except ValueError:
            raise RowError(f"path outside the root {self.root}: {name}") from None
        except OSError as error:
            raise RowError(f"the file cannot be used: {name} ({error.strerror})") from None
        return os.path.join(folder, base)[len(self._top) :].lstrip(os.sep).replace(os.sep, "/")  # noqa: PTH118

    def stem(self, path: str) -> str:
        """Remove the extension of a photograph from a path."""
        base, ending = os.path.splitext(path)  # noqa: PTH122  (pathlib drops what may belong to the name)
        return base if ending.lower() in self.extensions else path

    def all_photographs(self) -> Iterator[str]:
        """Yield all photographs in the folder and below, relative to the root, except hidden ones."""
        for folder, subfolders, files in os.walk(self.root / self.folder):
            subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
            below = Path(os.path.relpath(folder, self.root))
            for name in sorted(files):
                if not name.startswith(".") and name.lower().endswith(self.extensions):
                    yield (below / name).as_posix()

    def _with_ending(self, listing: "_Listing", folder: str, base: str, name: str) -> str:
        fitting = listing.by_name.get(self._key(self.stem(base) if self.loose else base), [])
        if len(fitting) > 1:
            raise RowError(f"several files fit {name}: {', '.join(fitting)}")
        # is_file(): the file system may ignore case; if it fails, the error has the reason
        if not fitting and not Path(folder, base).is_file():
            raise RowError(f"the file is not there: {name}")
        return fitting[0] if fitting else base

    def _check_link(self, path: Path, name: str) -> None:
        """Check that a file that is, or lies behind, a symbolic link is inside the root."""
        if not path.is_file():
            raise RowError(f"the file is not there: {name}")
        if not path.resolve().is_relative_to(self.root.resolve()):
            raise RowError(f"path outside the root {self.root} (through a symbolic link): {name}")

    def _listing(self, folder: str) -> "_Listing":
        """List a folder, once, because large data sets have folders of 50,000 files."""
        if folder not in self._listings:
            plain, by_name = dict[str, bool](), dict[str, list[str]]()
            for file, is_plain in _scan(folder):
                stem = self.stem(file)
                if stem != file and not stem.startswith("."):
                    by_name.setdefault(self._key(stem), []).append(file)
                if not (self.loose or file.isascii()):
                    by_name.setdefault(self._key(file), []).append(file)
                plain[file] = is_plain
            inside = Path(folder).resolve().is_relative_to(self.root.resolve())
            self._listings[folder] = _Listing(inside, plain, by_name)
        return self._listings[folder]

    def _key(self, name: str) -> str:
        """Return the normalised form by which names are compared."""
        name = unicodedata.normalize("NFC", name)
        return unicodedata.normalize("NFC", name.casefold()) if self.loose else name


class _Listing(NamedTuple):
    """Content of a folder.

    Attributes:
        inside: Whether the folder is inside the root after resolving links.
        plain: For each name, whether it is a regular file and not a link.
        by_name: File names by normalised name without extension and, for non-ASCII names, with extension.
    """

    inside: bool
    plain: dict[str, bool]
    by_name: dict[str, list[str]]


def _scan(folder: str) -> list[tuple[str, bool]]:
    """Return names in a folder and whether they are regular files; empty if it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return sorted((entry.name, entry.is_file(follow_symlinks=False)) for entry in entries)
    except OSError:
        return []  # find() gets the reason when it accesses a file in it
