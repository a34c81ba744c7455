"""Prediction: :class:`Predictor` for photographs in memory or on disk, :func:`predict` for whole folders."""

import json
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps

from drgrade.data.crops import Crop
from drgrade.data.fundus_check import PreparedPhotograph, Verdict
from drgrade.errors import ConfigError
from drgrade.explanation.explainer import AUTO, Explainer
from drgrade.explanation.overlay import draw_overlay
from drgrade.files import special_kind
from drgrade.models.calibration import FEW_PHOTOGRAPHS
from drgrade.prediction.grader import Grader
from drgrade.prediction.inputs import InputFile, Inputs, InputState, file_state
from drgrade.prediction.job_state import (
    JobDescription,
    ProgressDatabase,
    check_output_folder,
    check_same_job,
    describe_job,
    row_provenance,
    write_manifest,
)
from drgrade.prediction.overlay_pages import OVERLAY_SIDE, OverlayPages, delete_overlays, read_reduced
from drgrade.prediction.results import (
    NOTICE,
    CsvTable,
    JsonLines,
    PredictionRow,
    ProcessedFile,
    ResultCounts,
    ResultWriter,
    make_row,
    split_batch,
)
from drgrade.progress import say, track
from drgrade.settings import PredictSettings

ImageLike = Path | str | npt.NDArray[np.uint8] | Image.Image
"""A photograph: path, uint8 array of shape (H, W, 3) or (H, W), or PIL image."""

_BATCH = 16


@dataclass(frozen=True, eq=False)
class ExplainedPhotograph:
    """Prediction and heat map of one photograph.

    Attributes:
        prediction: Its result.
        heat: (S, S) float32 in [0, 1] on the prepared photograph; None if it was not graded.
        overlay: (H, W, 3) uint8 RGB, the photograph with its heat; None if it was not graded.
        map_name: Name of the map.
        meaning: What the heat marks, in words.
    """

    prediction: PredictionRow
    heat: npt.NDArray[np.float32] | None
    overlay: npt.NDArray[np.uint8] | None
    map_name: str
    meaning: str


@dataclass(frozen=True)
class PredictionSummary:
    """Outcome of a prediction job.

    Attributes:
        folder: Output folder.
        counts: Counts of ``prediction.json``.
        lines: Summary for the terminal, ending with the paths of the written files.
    """

    folder: Path
    counts: dict[str, object]
    lines: list[str]


class Predictor:
    """Grades and explains photographs given as paths, arrays or PIL images.

    Photographs are prepared as in training: the disc of the fundus is found and cut out.
    :func:`drgrade.load` builds a predictor from the folder of a run.

    Attributes:
        grader: The grader.
        rule: The referral decision, stated with every result.

    Example:
        >>> predictor = drgrade.load("outputs/runs/NAME/RUN")  # doctest: +SKIP
        >>> result, = predictor.predict("photograph.jpg")  # doctest: +SKIP
        >>> result.grade, result.probabilities, result.uncertainty, result.quality  # doctest: +SKIP
        (2, (0.05, 0.1, 0.62, 0.15, 0.08), 0.71, 'good')
    """

    def __init__(self, grader: Grader, sensitivity: float | None = None, abstain: bool = True) -> None:
        """Wrap a grader.

        Args:
            grader: One model or an ensemble.
            sensitivity: Refer from the P(grade >= 2) that reached this sensitivity on the validation
                photographs; None for the default of the run
                (:func:`drgrade.models.calibration.referral_rule`).
            abstain: Do not grade photographs of insufficient quality.

        Raises:
            ConfigError: If a sensitivity is given and the model has no operating points.
        """
        self.grader, self._abstain = grader, abstain
        self.rule = grader.referral(sensitivity)

    def predict(self, photographs: ImageLike | Sequence[ImageLike]) -> list[PredictionRow]:
        """Grade photographs.

        Args:
            photographs: One photograph, or several.

        Returns:
            One row per photograph, in order. A photograph that cannot be read or judged has no grade, and a
            reason.
        """
        images = _as_list(photographs)
        rows: list[PredictionRow] = []
        for start in range(0, len(images), _BATCH):
            rows += [row for row, _ in self._grade(images[start : start + _BATCH])]
        return rows

    def explain(
        self, photographs: ImageLike | Sequence[ImageLike], map_name: str = AUTO, target: str = "expected"
    ) -> list[ExplainedPhotograph]:
        """Grade photographs and compute their heat maps.

        Args:
            photographs: One photograph, or several.
            map_name: Name of a map, see docs/explanations.md.
            target: Explained quantity: ``expected``, ``referable`` or ``grade``.

        Returns:
            One result per photograph, in order.

        Raises:
            ConfigError: If there is no such map or target, or captum is needed and missing.
        """
        explainer = self.explainer([map_name], target)
        return [self._explain_one(image, explainer) for image in _as_list(photographs)]

    def explainer(self, maps: Sequence[str] = (AUTO,), target: str = "expected") -> Explainer:
        """Build an explainer of the grader's models, a :class:`~drgrade.explanation.explainer.Explainer`."""
        models = [member.model for member in self.grader.members]
        return Explainer(models, self.grader.preparation.image_size, maps, target)

    def grade_prepared(self, files: Sequence[tuple[InputFile, PreparedPhotograph]]) -> list[PredictionRow]:
        """Grade one batch of prepared photographs; the rows of those not to be graded have no grade."""
        pixels = [self.gradable_pixels(prepared) for _, prepared in files]
        crops = [each for each in pixels if each is not None]
        results = split_batch(self.grader.grade(np.stack(crops)), self.rule) if crops else iter(())
        return [
            make_row(item, prepared.verdict, prepared.crop.sha256, None if crop is None else next(results))
            for (item, prepared), crop in zip(files, pixels, strict=True)
        ]

    def gradable_pixels(self, prepared: PreparedPhotograph) -> npt.NDArray[np.uint8] | None:
        """Return the crop, or None if the photograph is not to be graded."""
        return None if prepared.verdict.abstains and self._abstain else prepared.crop.pixels

    def _explain_one(self, image: ImageLike, explainer: Explainer) -> ExplainedPhotograph:
        ((row, crop),) = self._grade([image])
        name = explainer.names[0]
        if row.result is None or crop.pixels is None or crop.facts is None:
            return ExplainedPhotograph(row, None, None, name, explainer.meaning)
        heat = explainer.heat(crop.pixels[None], [row.result.predicted])[name][0]
        with _as_file(image) as path:
            original = read_reduced(path, OVERLAY_SIDE, self.grader.preparation.max_pixels)
        overlay = draw_overlay(original, crop.facts, heat)
        return ExplainedPhotograph(row, heat, overlay, name, explainer.meaning)

    def _grade(self, images: Sequence[ImageLike]) -> list[tuple[PredictionRow, Crop]]:
        """Prepare and grade one batch."""
        files = []
        for image in images:
            path = str(image) if isinstance(image, str | Path) else ""
            with _as_file(image) as file:
                files.append((InputFile(path, Path(path).stem), self.grader.preparation.prepare(file)))
        rows = self.grade_prepared(files)
        return [
            (row if row.path else replace(row, sha256=""), prepared.crop)
            for row, (_, prepared) in zip(rows, files, strict=True)
        ]


PreparedInput = tuple[InputFile, InputState, PreparedPhotograph]


class BatchJob:
    """Grades many files in batches and stores each batch, so that an interrupted job resumes."""

    def __init__(
        self,
        predictor: Predictor,
        database: ProgressDatabase,
        batch_size: int = _BATCH,
        workers: int | None = None,
    ) -> None:
        """Collect the parts of the job; ``workers`` processes decode, by default one per CPU."""
        self._predictor, self._database = predictor, database
        self._batch_size, self._workers = batch_size, workers
        self._writers: Sequence[ResultWriter] = ()
        self._ungraded: list[PreparedInput] = []
        self._finished = 0  # inputs since the last progress update

    def run(self, inputs: Inputs, writers: Sequence[ResultWriter]) -> None:
        """Grade all inputs that have no row yet; writers receive every batch, and all rows at the end.

        Raises:
            DrgradeError: If a list cannot be read, a batch does not fit into memory, a worker process was
                killed, or rows cannot be written.
        """
        self._writers = writers
        for _ in track(self._steps(inputs), inputs.total, "grading", "photographs"):
            pass
        for writer in writers:
            writer.finish(self._database.rows())

    def _steps(self, inputs: Inputs) -> Iterator[None]:
        """Process the inputs; yield once per finished input."""
        batch: list[PreparedInput] = []
        for item, state, prepared in self._prepare(inputs):
            if self._predictor.gradable_pixels(prepared) is None:
                self._add_ungraded(item, state, prepared)
            else:
                batch.append((item, state, prepared))
            if len(batch) == self._batch_size:
                self._record(batch)
                batch = []
            yield from repeat(None, self._take_finished())
        self._record(batch)
        yield from repeat(None, self._take_finished())

    def _prepare(self, inputs: Inputs) -> Iterator[PreparedInput]:
        """Prepare the inputs that have no row yet, a few at a time."""
        waiting: deque[tuple[InputFile, InputState]] = deque()
        paths = self._paths_to_open(inputs, waiting)
        for prepared in self._predictor.grader.preparation.prepare_all(paths, self._workers):
            yield (*waiting.popleft(), prepared)

    def _paths_to_open(self, inputs: Inputs, waiting: deque[tuple[InputFile, InputState]]) -> Iterator[Path]:
        """Yield the paths of files to open, and append the files to ``waiting``."""
        for item in inputs:
            state = InputState() if item.problem else file_state(item.path)
            if self._database.add_input(item, state):
                self._finished += 1
            elif item.problem or not state.opens:
                reason = item.problem or f"{special_kind(item.path)}, not a file"
                verdict = Verdict("unreadable", reason, abstains=True)
                self._add_ungraded(item, state, PreparedPhotograph(Crop(), verdict))
            else:
                waiting.append((item, state))
                yield Path(item.path)

    def _add_ungraded(self, item: InputFile, state: InputState, prepared: PreparedPhotograph) -> None:
        """Collect files without a grade, because each transaction waits for the disk."""
        self._ungraded.append((item, state, prepared))
        if len(self._ungraded) >= self._batch_size:
            self._record([])

    def _record(self, batch: Sequence[PreparedInput]) -> None:
        """Grade a batch, pass it and the collected ungraded files to the writers, then store the rows."""
        files, self._ungraded = [*self._ungraded, *batch], []
        try:
            rows = self._predictor.grade_prepared([(item, prepared) for item, _, prepared in files])
        except torch.cuda.OutOfMemoryError as error:
            raise ConfigError(
                f"batch_size={self._batch_size} does not fit into the memory of "
                f"{self._predictor.grader.device}: set a smaller one; finished photographs are kept"
            ) from error
        processed = [
            ProcessedFile(row, state, prepared) for row, (_, state, prepared) in zip(rows, files, strict=True)
        ]
        for writer in self._writers:
            writer.add_batch(processed)
        self._database.write([(each.row, each.state) for each in processed])
        self._finished += len(processed)

    def _take_finished(self) -> int:
        finished, self._finished = self._finished, 0
        return finished


def predict(settings: PredictSettings) -> PredictionSummary:
    r"""Grade files and write ``predictions.csv``, ``predictions.jsonl`` and ``prediction.json``.

    An interrupted job resumes when it is called again with the same settings.

    Raises:
        DrgradeError: If there is nothing to grade, a model cannot be loaded, or the folder belongs to another
            job.

    Example:
        >>> settings = PredictSettings.compose(checkpoint="RUN", input="photographs/")  # doctest: +SKIP
        >>> print(*predict(settings).lines, sep="\n")  # doctest: +SKIP
    """
    Inputs(settings.input)  # report missing files before the models are loaded
    grader = Grader.load(settings.checkpoint, settings.device, settings.tta, settings.reading)
    if grader.warning:
        say(f"WARNING: {grader.warning}")
    predictor = Predictor(grader, settings.sensitivity, settings.abstain)
    names = ["tta", "reading", "sensitivity", "abstain", "overlays"]
    names += ["map", "target", "overlay_size"] if settings.overlays else []
    job = describe_job(
        grader,
        settings.input,
        **{name: getattr(settings, name) for name in names},
        referral=predictor.rule.describe(),
    )
    folder = settings.out or settings.paths.outputs / "predictions" / _default_name(job)
    inputs = Inputs(settings.input, leave_out=folder)
    if inputs.total == 0:
        others = f" ({skipped})" if (skipped := inputs.describe_skipped()) else ""
        raise ConfigError(f"input={','.join(settings.input)}: no photographs were found{others}")
    if inputs.from_stdin and settings.out is None:
        raise ConfigError("input=-: name the output folder with out=DIR")
    try:
        return _run_job(predictor, inputs, folder, job, settings)
    except KeyboardInterrupt:
        say(f"finished photographs are kept in {folder}; the same command resumes")
        raise


def _run_job(
    predictor: Predictor, inputs: Inputs, folder: Path, job: JobDescription, settings: PredictSettings
) -> PredictionSummary:
    """Run a job in its output folder."""
    grader, rule = predictor.grader, predictor.rule
    pages = _overlay_pages(predictor, folder, settings)
    check_output_folder(folder)
    with closing(ProgressDatabase(folder, settings.overwrite)) as database:
        if settings.overwrite:
            delete_overlays(folder)
        else:
            check_same_job(folder, job)
        facts = {"threshold": rule.threshold, "batch_size": settings.batch_size}
        write_manifest(folder, job, grader, status="unfinished", **facts)
        tables, counts = _tables(folder, job, settings, grader.warning), ResultCounts()
        batches = BatchJob(predictor, database, settings.batch_size, settings.workers)
        batches.run(inputs, [*tables, *pages, counts])
        deleted, all_counts = database.delete_others(), {**counts.to_json(), "skipped": inputs.skipped}
        write_manifest(folder, job, grader, status="finished", **facts, counts=all_counts)
    files = [*(table.path for table in tables), *(each.index for each in pages)]
    remarks = filter(None, [inputs.describe_skipped(), *_remarks(grader, deleted)])
    warning = [f"WARNING: {grader.warning}"] if grader.warning else []
    lines = [*warning, *counts.summary(rule), *remarks, NOTICE, *map(str, files)]
    return PredictionSummary(folder, all_counts, lines)


def _overlay_pages(predictor: Predictor, folder: Path, settings: PredictSettings) -> list[OverlayPages]:
    """Return the writer of overlays, if it is requested."""
    if not settings.overlays:
        return []
    explainer = predictor.explainer([settings.map], settings.target)
    max_pixels = predictor.grader.preparation.max_pixels
    warning = predictor.grader.warning
    return [OverlayPages(folder, explainer, max_pixels, settings.overlay_size, warning=warning)]


def _default_name(job: JobDescription) -> str:
    """Return the same name for the same job, so that it resumes."""
    first = Path(job["inputs"][0])
    digest = sha256(json.dumps(job, sort_keys=True).encode("utf-8", "backslashreplace")).hexdigest()
    return f"{first.stem or 'photographs'}-{digest[:8]}"


def _tables(
    folder: Path, job: JobDescription, settings: PredictSettings, warning: str
) -> list[CsvTable | JsonLines]:
    """Return the writers of the requested tables, and of existing ones, which would become outdated."""
    known: dict[str, CsvTable | JsonLines] = {
        "csv": CsvTable(folder, warning),
        "jsonl": JsonLines(folder, row_provenance(job), warning),
    }
    if settings.overwrite:
        for table in known.values():
            table.path.unlink(missing_ok=True)
    return [table for name, table in known.items() if name in settings.format or table.path.exists()]


def _remarks(grader: Grader, deleted: int) -> list[str]:
    remarks = [
        f"calibration of {member.folder}: {member.calibration.worth()}"
        for member in grader.members
        if member.calibration.photographs < FEW_PHOTOGRAPHS
    ]
    if deleted:
        remarks.append(f"{deleted} rows of an earlier job, whose files are no longer inputs, were removed")
    return remarks


def _as_list(given: Any) -> list[Any]:
    """Wrap a single photograph or path in a list."""
    return [given] if isinstance(given, str | Path | np.ndarray | Image.Image) else list(given)


@contextmanager
def _as_file(image: ImageLike) -> Iterator[Path]:
    """Yield the path of a photograph; arrays and PIL images are written to a temporary PNG."""
    if isinstance(image, str | Path):
        yield Path(image)
        return
    with tempfile.TemporaryDirectory(prefix="drgrade-") as scratch:
        path = Path(scratch) / "photograph.png"
        upright = Image.fromarray(image) if isinstance(image, np.ndarray) else ImageOps.exif_transpose(image)
        upright.save(path, compress_level=1)
        yield path
