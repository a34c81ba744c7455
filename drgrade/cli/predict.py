"""``drgrade predict``: photographs graded by a trained run."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from drgrade.cli.arguments import run
from drgrade.errors import ConfigError
from drgrade.progress import say

if TYPE_CHECKING:
    from drgrade.explanation.overlay_writer import Overlays
    from drgrade.prediction.grader import Grader
    from drgrade.prediction.inputs import Inputs
    from drgrade.prediction.job_manifest import Job
    from drgrade.prediction.runner import JsonLines, Table

USAGE = """\
usage: drgrade predict checkpoint=RUN input=PATH [PATH ...] [name=value ...]

Grades photographs with a trained run. For research; no medical device.

  drgrade predict checkpoint=outputs/RUN input=photographs/
  drgrade predict checkpoint=RUN1,RUN2 input=list.csv tta=flips sensitivity=0.9
  find /data -name '*.jpg' | drgrade predict checkpoint=RUN input=- out=results

PATH is a photograph, a folder (with all below it), a list (.txt: a path per line; .csv: a column path or
image; relative to the list's folder), or - for paths on standard input.

Each file is a row of predictions.csv and a line of predictions.jsonl: graded; or abstained, where the
photograph is too dark, out of focus or no fundus photograph; or failed, where the file cannot be read, with
the reason. The probabilities p0..p4 are calibrated on the run's validation photographs.

overlays=true adds overlays/index.html: every photograph, what its grade hangs on, and its probabilities
(docs/explanations.md).

Stopped at any point, the same command goes on: what is graded is not graded again, unless the file has
changed.
Columns, figures and limits: docs/predict.md.
"""


@dataclass(frozen=True)
class Settings:
    """What can be set on the command line."""

    checkpoint: tuple[Path, ...] = field(
        default=(), metadata={"help": "folder of a finished grading run; RUN,RUN is an ensemble"}
    )
    input: str | None = field(default=None, metadata={"help": "photograph, folder, list, or - for stdin"})
    out: Path | None = field(
        default=None, metadata={"help": "folder of the results; else outputs/predictions/NAME-HASH"}
    )
    sensitivity: float | None = field(
        default=None,
        metadata={"help": "refer from the P(grade >= 2) that reached it in validation; else from 0.5"},
    )
    tta: Literal["none", "flips", "dihedral"] = field(
        default="none", metadata={"help": "views that are averaged: none, flips (4), dihedral (8)"}
    )
    reading: Literal["head", "thresholds"] = field(
        default="head", metadata={"help": "of the grade: the head's, or by thresholds fitted in validation"}
    )
    abstain: bool = field(
        default=True, metadata={"help": "false grades what can hardly be judged, too, with its flag"}
    )
    device: str = field(default="auto", metadata={"help": "auto, cpu, cuda, cuda:1, ..."})
    batch_size: int = field(default=16, metadata={"help": "photographs graded at a time"})
    workers: int | None = field(default=None, metadata={"help": "processes that decode; null: one per core"})
    format: tuple[Literal["csv", "jsonl"], ...] = field(
        default=("csv", "jsonl"), metadata={"help": "what is written"}
    )
    overlays: bool = field(
        default=False, metadata={"help": "true: a PNG of each photograph with its heat, and pages of them"}
    )
    map: str = field(
        default="auto", metadata={"help": "of overlays: where heat is looked for; auto, c3, ..."}
    )
    target: Literal["expected", "referable", "grade"] = field(
        default="expected", metadata={"help": "of overlays: what is explained"}
    )
    overlay_size: int = field(
        default=1024, metadata={"help": "of overlays: longer side in pixels; 0: the photograph's"}
    )
    overwrite: bool = field(
        default=False, metadata={"help": "true removes the predictions that are in the folder first"}
    )


def work(paths: list[Path], settings: Settings) -> None:
    """Grade, and say what came out.

    Args:
        paths: Further inputs.
        settings: Of the command line.

    Raises:
        DrgradeError: If there is nothing to grade, or it cannot be done as asked for.
    """
    _check(settings)
    given = [*([] if settings.input is None else [settings.input]), *map(str, paths)]

    from drgrade.prediction.grader import Grader
    from drgrade.prediction.inputs import Inputs
    from drgrade.prediction.job_manifest import describe

    Inputs(given)  # what is not there need not wait for the models to load
    grader = Grader.load(settings.checkpoint, settings.device, settings.tta, settings.reading)
    threshold = None if settings.sensitivity is None else grader.threshold(settings.sensitivity)
    overlays = ("overlays", "map", "target", "overlay_size") if settings.overlays else ("overlays",)
    asked = ("tta", "reading", "sensitivity", "abstain", *overlays)
    job = describe(grader, given, **{name: getattr(settings, name) for name in asked})
    folder = settings.out or _default_folder(job)
    inputs = Inputs(given, leave_out=folder)
    if inputs.total == 0:
        raise ConfigError(f"input={','.join(given)}: no photograph is there")
    if inputs.from_stdin and settings.out is None:
        raise ConfigError("input=-: name the folder of the results with out=DIR")
    try:
        _predict(grader, inputs, folder, job, threshold, settings)
    except KeyboardInterrupt:
        say(f"what is graded is kept in {folder}; the same command goes on")
        raise


def _check(settings: Settings) -> None:
    if not settings.checkpoint:
        raise ConfigError("no run is given: checkpoint=RUN, the folder of a finished grading run")
    if not settings.format:
        raise ConfigError("format= names nothing to write: csv, jsonl or both")
    for name, value in (("batch_size", settings.batch_size), ("workers", settings.workers)):
        if value is not None and value < 1:
            raise ConfigError(f"{name}={value} is below 1")
    if settings.overlay_size < 0:
        raise ConfigError(f"overlay_size={settings.overlay_size} is below 0")


def _default_folder(job: "Job") -> Path:
    """The same one for the same job, so that it goes on there."""
    first = Path(job["inputs"][0])
    digest = sha256(json.dumps(job, sort_keys=True).encode("utf-8", "backslashreplace")).hexdigest()
    return Path("outputs", "predictions", f"{first.stem or 'photographs'}-{digest[:8]}")


def _predict(
    grader: "Grader",
    inputs: "Inputs",
    folder: Path,
    job: "Job",
    threshold: float | None,
    settings: Settings,
) -> None:
    from drgrade.explanation.overlay_writer import clear
    from drgrade.prediction import runner as jobs
    from drgrade.prediction.job_manifest import NOTICE, check_folder, check_job, write_header
    from drgrade.prediction.progress_db import Ledger
    from drgrade.prediction.runner import Tally

    threshold = jobs.REFERABLE_FROM if threshold is None else threshold
    overlays = _overlays(grader, folder, settings)
    check_folder(folder)
    ledger = Ledger(folder, anew=settings.overwrite)
    try:
        if settings.overwrite:
            clear(folder)
        else:
            check_job(folder, job)
        facts = {"threshold": threshold, "batch_size": settings.batch_size}
        write_header(folder, job, grader, status="unfinished", **facts)
        tables, tally = _tables(folder, job, settings), Tally()
        job_done = jobs.Job(
            grader, ledger, threshold, settings.abstain, settings.batch_size, settings.workers
        )
        job_done.run(inputs, [*tables, *overlays, tally])
        gone = ledger.forget_others()
        write_header(folder, job, grader, status="finished", **facts, counts=tally.counts())
    finally:
        ledger.close()
    print("\n".join([*tally.lines(threshold), *_remarks(grader, gone), NOTICE]))
    for table in tables:
        print(table.path)
    for pages in overlays:
        print(pages.index)


def _tables(folder: Path, job: "Job", settings: Settings) -> "Sequence[Table | JsonLines]":
    """Those that are asked for, and those that are there and would be of an earlier state."""
    from drgrade.prediction.job_manifest import provenance
    from drgrade.prediction.runner import JsonLines, Table

    known: dict[str, Table | JsonLines] = {"csv": Table(folder), "jsonl": JsonLines(folder, provenance(job))}
    if settings.overwrite:
        for table in known.values():
            table.path.unlink(missing_ok=True)
    return [table for name, table in known.items() if name in settings.format or table.path.exists()]


def _overlays(grader: "Grader", folder: Path, settings: Settings) -> "Sequence[Overlays]":
    """Those that are asked for: none or one."""
    if not settings.overlays:
        return ()
    from drgrade.explanation.explainer import Explainer
    from drgrade.explanation.overlay_writer import Overlays

    return (Overlays(folder, Explainer(grader, [settings.map], settings.target), settings.overlay_size),)


def _remarks(grader: "Grader", gone: int) -> list[str]:
    """What a reader of the figures should know."""
    remarks = [
        f"the probabilities of {member.folder} are not calibrated: {member.calibration.note}"
        for member in grader.members
        if not member.calibration.photographs
    ]
    if gone:
        remarks.append(f"{gone} rows of an earlier job are of files no longer among the inputs: left out")
    return remarks


def main() -> None:
    """Run from the command line."""
    # Threads that wait for each other would keep the cores busy that the processes who decode need: on two
    # cores a third of the speed. It is read when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    run(work, Settings(), USAGE)


if __name__ == "__main__":
    main()
