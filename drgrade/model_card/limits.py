"""Find limits of a run that its metrics do not show."""

from collections.abc import Iterator, Mapping

import numpy as np

from drgrade.grades import NUM_GRADES
from drgrade.model_card.facts import RunFiles
from drgrade.runs.reader import Run
from drgrade.stats import formatting
from drgrade.stats.estimates import Estimate

RARE = 10
"""With fewer test photographs of a grade, one photograph changes recall by more than 10 points."""

PUBLISHED_SIZE = 224
"""Image size in pixels of the published protocols."""

_AT_THE_BOUND = 0.99
"""Share of the logarithm of the highest temperature above which the fit has not converged."""


def find_limits(run: RunFiles, figures: Mapping[str, Estimate]) -> list[str]:
    """List what a reader should know before relying on a run's metrics.

    Args:
        run: Files of the run.
        figures: Return value of :meth:`RunFiles.estimates`.

    Returns:
        Sentences: on the data, the test, the training and the calibration.
    """
    return [
        *_data_limits(run),
        *_test_limits(run, figures),
        *_training_limits(run),
        *_calibration_limits(run),
    ]


def _data_limits(run: RunFiles) -> Iterator[str]:
    own = [each for each in run.data if each.role == "labelled"]
    for each in own:
        if each.about is None:
            yield f"{each.name}: clinics, cameras and patients are not known to drgrade."
            continue
        if each.about.cameras:
            yield f"{each.name}: {each.about.cameras}"
        yield from each.about.limits
    external = [each.name for each in run.data if each.role == "external"]
    if external:
        yield f"Tested also on {formatting.listed(external)}; not on any other clinic, camera or population."
    else:
        yield (
            "Not tested on photographs of another data set: performance in other clinics, with other cameras "
            "and in other populations is not known."
        )
    described = any(each.about and each.about.limits for each in own)
    if run.split is not None and not described and not run.split["group"].str.startswith("patient:").any():
        yield "Patients are not known: both eyes of a patient may be in different subsets."


def _test_limits(run: RunFiles, figures: Mapping[str, Estimate]) -> Iterator[str]:
    if not run.is_tested:
        yield "Not tested (test=false): the checkpoint was chosen on the validation photographs."
        return
    saw = run.record.get("pretraining_saw_test")
    if saw:
        yield "Pre-training saw the test photographs, without their grades: the metrics may be too good."
    elif saw is None:
        yield "It is not known whether the encoder's first weights were trained on the test photographs."
    copies = run.record.get("split/copies_of_test")
    if copies:
        yield (
            "1 copy of a test photograph was found on the training side and removed."
            if copies == 1
            else f"{copies} copies of test photographs were found on the training side and removed."
        )
    if run.tested is not None:
        yield from _prediction_limits(run.tested, figures)


def _prediction_limits(run: Run, figures: Mapping[str, Estimate]) -> Iterator[str]:
    counts = np.bincount(run.grades, minlength=NUM_GRADES)
    rare = [f"{count} of grade {grade}" for grade, count in enumerate(counts) if count < RARE]
    if rare:
        yield f"Few test photographs: {formatting.listed(rare)}; metrics of these grades are uncertain."
    if figures["qwk"].interval.low <= 0:
        yield "The interval of QWK contains 0: the test does not show that the model is better than chance."
    commonest, share = int(counts.argmax()), float(counts.max() / counts.sum())
    if figures["accuracy"].value <= share:
        yield (
            f"Accuracy is not higher than that of always predicting grade {commonest} "
            f"({formatting.percent(share, 1)} of the test photographs)."
        )
    recalled = [((run.predicted == grade) & (run.grades == grade)).any() for grade in range(NUM_GRADES)]
    never = [str(grade) for grade in range(NUM_GRADES) if counts[grade] and not recalled[grade]]
    if never:
        yield f"Recall of grade {formatting.listed(never)} is 0."


def _training_limits(run: RunFiles) -> Iterator[str]:
    config = run.config
    share, size = float(config["label_fraction"]), int(config["photographs"]["image_size"])
    shots = config["protocol"].get("shots")
    if shots is not None:
        yield f"Few labels: {shots} photographs of each grade were used."
    elif share < 1:
        yield f"Few labels: {formatting.fraction(share)} of the training labels were used."
    if run.split is not None:
        counts = run.split[run.split["subset"] == "train"]["grade"].value_counts()
        by_grade = {grade: int(counts.get(grade, 0)) for grade in range(NUM_GRADES)}
        few = [f"{count} of grade {grade}" for grade, count in by_grade.items() if count < 2 * RARE]
        if few:
            yield f"Few training photographs: {formatting.listed(few)}."
    if size < PUBLISHED_SIZE:
        yield (
            f"Photographs are resized to {size} px (published protocols: {PUBLISHED_SIZE}); lesions of a few "
            "pixels, such as microaneurysms, are hardly visible."
        )


def _calibration_limits(run: RunFiles) -> Iterator[str]:
    calibration = run.calibration
    if not calibration.photographs:
        yield f"Not calibrated ({calibration.note}): probabilities are those of the model."
        return
    yield (
        f"Temperature, thresholds and operating points were fitted on {calibration.photographs} validation "
        "photographs; sensitivity and specificity will differ on other photographs."
    )
    if abs(np.log(calibration.temperature)) > _AT_THE_BOUND * np.log(20):
        yield (
            f"The temperature ({calibration.temperature:.1f}) is at the bound of its range: the "
            "probabilities were almost uninformative on the validation photographs."
        )
