"""What a run's figures do not show, as far as its artefacts tell."""

from collections.abc import Iterator

import numpy as np

from drgrade.model_card.facts import Artefacts
from drgrade.runs.reader import Run
from drgrade.stats import formatting as words
from drgrade.stats.estimates import Estimate

RARE = 10
"""Of fewer test photographs of a grade, recall moves by more than 10 points with a single one."""

PUBLISHED_SIZE = 224
"""Pixels of the published protocols (DESIGN.md, section 1)."""

_AT_THE_BOUND = 0.99
"""Share of the logarithm of the highest temperature: a fit that ends there has not ended by itself."""


def limits(artefacts: Artefacts, figures: dict[str, Estimate]) -> list[str]:
    """Everything that a reader should know before he believes the figures.

    Args:
        artefacts: Of the run.
        figures: As :func:`drgrade.model_card.results.estimates` gives them; empty if it was not
            tested.

    Returns:
        Sentences, the gravest first.
    """
    return [
        *_of_the_data(artefacts),
        *_of_the_test(artefacts, figures),
        *_of_training(artefacts),
        *_of_calibration(artefacts),
    ]


def _of_the_data(artefacts: Artefacts) -> Iterator[str]:
    own = [each for each in artefacts.data if each.role == "labelled"]
    for each in own:
        if each.about is None:
            yield f"{each.name}: drgrade knows nothing of its clinics, cameras and patients."
            continue
        if each.about.cameras:
            yield f"{each.name}: {each.about.cameras}"
        yield from each.about.limits
    external = [each.name for each in artefacts.data if each.role == "external"]
    if external:
        yield f"Tested also on {words.listed(external)}; not on any other clinic, camera or population."
    else:
        yield (
            "Not tested on photographs of another data set: nothing is known of other clinics, cameras and "
            "populations."
        )
    if artefacts.split is not None:
        groups = artefacts.split["group"]
        if not groups.str.startswith("patient:").any() and all(
            not (each.about and each.about.limits) for each in own
        ):
            yield "No photograph has a known patient: both eyes of one may stand on two sides of the split."


def _of_the_test(artefacts: Artefacts, figures: dict[str, Estimate]) -> Iterator[str]:
    if not artefacts.is_tested:
        yield "Not tested (test=false): its validation photographs are those that it was chosen on."
        return
    if artefacts.record.get("pretraining_saw_test"):
        yield "Pre-training saw the test photographs, without their grades: the figures may be too good."
    elif artefacts.record.get("pretraining_saw_test") is None:
        yield "It is not known whether the encoder's first weights have seen the test photographs."
    copies = artefacts.record.get("split/copies_of_test")
    if copies:
        counted = (
            "1 copy of a test photograph was" if copies == 1 else f"{copies} copies of test photographs were"
        )
        yield f"{counted} found on the training side, and taken off it."
    if artefacts.run is not None:
        yield from _of_predictions(artefacts.run, figures)


def _of_predictions(run: Run, figures: dict[str, Estimate]) -> Iterator[str]:
    counts = np.bincount(run.grades, minlength=5)
    rare = [f"{count} of grade {grade}" for grade, count in enumerate(counts) if count < RARE]
    if rare:
        yield f"Few test photographs: {words.listed(rare)}; a figure for such a grade says little."
    if figures["qwk"].interval.low <= 0:
        yield "The interval of QWK holds 0: the test does not show that the model is better than chance."
    commonest, most = int(counts.argmax()), float(counts.max() / counts.sum())
    if figures["accuracy"].value <= most:
        yield (
            f"Accuracy is not above that of always saying grade {commonest} ({words.percent(most, 1)} of the "
            "test photographs)."
        )
    never = [
        str(grade)
        for grade, count in enumerate(counts)
        if count and not ((run.predicted == grade) & (run.grades == grade)).any()
    ]
    if never:
        yield f"No test photograph of grade {words.listed(never)} was called so."


def _of_training(artefacts: Artefacts) -> Iterator[str]:
    config = artefacts.config
    share, size = float(config["label_fraction"]), int(config["photographs"]["image_size"])
    shots = config["protocol"].get("shots")
    if shots is not None:
        yield f"Few labels: {shots} photographs of each grade were used."
    elif share < 1:
        yield f"Few labels: {words.fraction(share)} of those of the training side were used."
    if artefacts.split is not None:
        train = artefacts.split[artefacts.split["subset"] == "train"]
        counts = train["grade"].value_counts()
        rare = [f"{int(counts.get(grade, 0))} of grade {grade}" for grade in range(5)]
        few = [text for grade, text in enumerate(rare) if counts.get(grade, 0) < 2 * RARE]
        if few:
            yield f"Few training photographs: {words.listed(few)}."
    if size < PUBLISHED_SIZE:
        yield (
            f"Photographs are shrunk to {size} px (published protocols: {PUBLISHED_SIZE}); lesions of a few "
            "pixels, microaneurysms first of all, are hardly seen."
        )


def _of_calibration(artefacts: Artefacts) -> Iterator[str]:
    calibration = artefacts.calibration
    if not calibration.photographs:
        yield f"Not calibrated ({calibration.note}): probabilities are as the model gives them."
        return
    yield (
        f"Temperature, thresholds and operating points were fitted on {calibration.photographs} validation "
        "photographs; sensitivity and specificity elsewhere will be other ones."
    )
    if abs(np.log(calibration.temperature)) > _AT_THE_BOUND * np.log(20):
        yield (
            f"The temperature ({calibration.temperature:.1f}) stands at the end of its range: the "
            "probabilities said next to nothing of the validation photographs."
        )
