"""A prediction job as a whole: grade photographs, write tables and overlays, resume."""

import json
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from drgrade.errors import ConfigError
from drgrade.explanation.explainer import Explainer
from drgrade.explanation.overlay_writer import Overlays, clear
from drgrade.prediction import runner
from drgrade.prediction.grader import Grader
from drgrade.prediction.inputs import Inputs
from drgrade.prediction.job_manifest import (
    NOTICE,
    Job,
    check_folder,
    check_job,
    describe,
    provenance,
    write_header,
)
from drgrade.prediction.progress_db import Ledger
from drgrade.progress import say
from drgrade.settings import PredictSettings


@dataclass(frozen=True)
class PredictionOutput:
    """What a prediction job has written.

    Attributes:
        folder: Folder of the results.
        files: Tables and pages.
        summary: Counts and remarks, a line each.
    """

    folder: Path
    files: Sequence[Path]
    summary: Sequence[str]


def predict(settings: PredictSettings) -> PredictionOutput:
    """Grade photographs with a trained run and write the results.

    An interrupted job resumes when it is called again with the same settings.

    Args:
        settings: Of ``drgrade predict``.

    Raises:
        DrgradeError: If there is no photograph, a run cannot be loaded, or the folder belongs to another job.
    """
    Inputs(settings.input)  # refuse missing inputs before the models are loaded
    grader = Grader.load(settings.checkpoint, settings.device, settings.tta, settings.reading)
    names = ["tta", "reading", "sensitivity", "abstain", "overlays"]
    names += ["map", "target", "overlay_size"] if settings.overlays else []
    job = describe(grader, settings.input, **{name: getattr(settings, name) for name in names})
    folder = settings.out or settings.paths.outputs / "predictions" / _default_name(job)
    inputs = Inputs(settings.input, leave_out=folder)
    if inputs.total == 0:
        raise ConfigError(f"input={','.join(settings.input)}: no photograph is there")
    if inputs.from_stdin and settings.out is None:
        raise ConfigError("input=-: name the folder of the results with out=DIR")
    try:
        return _run(grader, inputs, folder, job, settings)
    except KeyboardInterrupt:
        say(f"finished photographs are kept in {folder}; the same command resumes")
        raise


def _default_name(job: Job) -> str:
    """Return the same name for the same job, so that it resumes."""
    first = Path(job["inputs"][0])
    digest = sha256(json.dumps(job, sort_keys=True).encode("utf-8", "backslashreplace")).hexdigest()
    return f"{first.stem or 'photographs'}-{digest[:8]}"


def _run(
    grader: Grader, inputs: Inputs, folder: Path, job: Job, settings: PredictSettings
) -> PredictionOutput:
    threshold = runner.REFERABLE_FROM
    if settings.sensitivity is not None:
        threshold = grader.threshold(settings.sensitivity)
    overlays = []
    if settings.overlays:
        explainer = Explainer(grader, [settings.map], settings.target)
        overlays.append(Overlays(folder, explainer, settings.overlay_size))
    check_folder(folder)
    with closing(Ledger(folder, anew=settings.overwrite)) as ledger:
        if settings.overwrite:
            clear(folder)
        else:
            check_job(folder, job)
        facts = {"threshold": threshold, "batch_size": settings.batch_size}
        write_header(folder, job, grader, status="unfinished", **facts)
        tables, tally = _tables(folder, job, settings), runner.Tally()
        runner.Job(grader, ledger, threshold, settings.abstain, settings.batch_size, settings.workers).run(
            inputs, [*tables, *overlays, tally]
        )
        gone = ledger.forget_others()
        write_header(folder, job, grader, status="finished", **facts, counts=tally.counts())
    files = [*(table.path for table in tables), *(pages.index for pages in overlays)]
    return PredictionOutput(folder, files, [*tally.lines(threshold), *_remarks(grader, gone), NOTICE])


def _tables(folder: Path, job: Job, settings: PredictSettings) -> list[runner.Table | runner.JsonLines]:
    """Return the tables to write: the requested ones, and existing ones, which would be out of date."""
    known: dict[str, runner.Table | runner.JsonLines] = {
        "csv": runner.Table(folder),
        "jsonl": runner.JsonLines(folder, provenance(job)),
    }
    if settings.overwrite:
        for table in known.values():
            table.path.unlink(missing_ok=True)
    return [table for name, table in known.items() if name in settings.format or table.path.exists()]


def _remarks(grader: Grader, gone: int) -> list[str]:
    remarks = [
        f"the probabilities of {member.folder} are not calibrated: {member.calibration.note}"
        for member in grader.members
        if not member.calibration.photographs
    ]
    if gone:
        remarks.append(f"{gone} rows of files that are no longer among the inputs are left out")
    return remarks
