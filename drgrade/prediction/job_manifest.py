"""``prediction.json``: which job a folder of predictions belongs to, and where its figures come from."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from drgrade import __version__
from drgrade.errors import ConfigError, DataError
from drgrade.files import file_sha256, write_text
from drgrade.prediction.checkpoint import Trained
from drgrade.prediction.grader import Grader
from drgrade.runs.run_dir import CALIBRATION, versions

NOTICE = "For research. No medical device: not to be used to diagnose or treat anybody."


HEADER = "prediction.json"

Job = Mapping[str, Any]
"""What makes a job what it is: all of it has to be equal for one to go on as another."""


def describe(grader: Grader, given: Sequence[str], **settings: object) -> Job:
    """Describe a job by what its rows depend on.

    Device, batch size and number of processes are not in it: they change the last digits at most.

    Args:
        grader: Loaded.
        given: The inputs as the command line names them.
        **settings: Of the command.
    """
    return {
        "inputs": [each if each == "-" else str(Path(each).absolute()) for each in given],
        "settings": settings,
        "runs": [_hashes(member) for member in grader.members],
        "preparation": asdict(grader.preparation),
        "drgrade": __version__,
    }


def _hashes(member: Trained) -> dict[str, str]:
    calibration = member.folder / CALIBRATION
    return {
        "checkpoint_sha256": file_sha256(member.weights_file),
        "config_sha256": file_sha256(member.config_file),
        "calibration_sha256": file_sha256(calibration) if calibration.is_file() else "",
    }


def check_folder(folder: Path) -> None:
    """Refuse a folder that holds other things than predictions.

    Args:
        folder: Where results shall go.

    Raises:
        ConfigError: If it is a file, or holds something and no ``prediction.json``.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"out={folder} is a file: name a folder")
    if folder.is_dir() and not (folder / HEADER).exists():
        found = next((each.name for each in folder.iterdir() if not each.name.startswith(".")), None)
        if found is not None:
            raise ConfigError(f"out={folder} holds other things ({found}, ...): name a folder of its own")


def check_job(folder: Path, job: Job) -> None:
    """Refuse to go on as another job.

    Args:
        folder: Of the results.
        job: That is to go on there, or to begin.

    Raises:
        ConfigError: If the folder holds the predictions of another one.
        DataError: If its ``prediction.json`` is damaged.
    """
    path = folder / HEADER
    if not path.exists():
        return
    try:
        header = json.loads(path.read_text(encoding="utf-8"))
        before, status = header["job"], header["status"]
        different = [name for name in sorted({*before, *job}) if before.get(name) != job.get(name)]
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is damaged ({error}); overwrite=true begins anew") from error
    if different:
        raise ConfigError(
            f"{folder} holds predictions of another job ({'; '.join(_change(before, job, different))}): name "
            "another folder with out=DIR, or remove them with overwrite=true"
        )
    if job["inputs"] == ["-"] and status == "finished":
        raise ConfigError(
            f"{folder} holds the predictions of a finished job, and nobody can tell whether standard input "
            "names the same photographs: name another folder with out=DIR, or remove them with overwrite=true"
        )


def _change(before: Job, now: Job, different: Sequence[str]) -> list[str]:
    """What is different, in words."""
    words = []
    for name in different:
        old, new = before.get(name), now.get(name)
        if name == "runs":
            words.append("of other checkpoints, or calibrated differently")
        elif isinstance(old, dict) and isinstance(new, dict):
            words += [
                f"{key} was {old.get(key)} and is {new.get(key)}"
                for key in sorted({*old, *new})
                if old.get(key) != new.get(key)
            ]
        elif isinstance(old, list) and isinstance(new, list):
            words.append(f"{name} were {', '.join(map(str, old))}")
        else:
            words.append(f"{name} was {old} and is {new}")
    return words


def write_header(folder: Path, job: Job, grader: Grader, **more: object) -> None:
    """Write ``prediction.json``: nothing in it depends on the clock.

    Args:
        folder: Of the results.
        job: As :func:`describe` says.
        grader: Loaded.
        **more: Further facts: status, counts.
    """
    record = {
        "notice": NOTICE,
        **more,
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "job": job,
        "runs": [_run(member) for member in grader.members],
        "device": str(grader.device),
        "versions": versions(),
    }
    write_text(folder / HEADER, json.dumps(record, indent=2, allow_nan=False) + "\n")


def _run(member: Trained) -> dict[str, Any]:
    """A member, and what it was trained on."""
    facts = ("data", "data_hash", "split_hash", "label_fraction", "fold", "seed", "init", "test/qwk")
    return {
        "folder": str(member.folder.absolute()),
        "checkpoint": str(member.record["checkpoint"]),
        **{name: member.record[name] for name in facts if name in member.record},
        "calibration": {
            "temperature": member.calibration.temperature,
            "photographs": member.calibration.photographs,
            "note": member.calibration.note,
        },
    }


def provenance(job: Job) -> dict[str, object]:
    """What goes into every line of ``predictions.jsonl``: enough to tell from which weights a grade came.

    Args:
        job: As :func:`describe` says.
    """
    return {
        "checkpoints": [run["checkpoint_sha256"][:12] for run in job["runs"]],
        "calibrations": [run["calibration_sha256"][:12] for run in job["runs"]],
        "drgrade": job["drgrade"],
    }
