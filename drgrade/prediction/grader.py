"""Grades prepared photographs with one trained run, or with several as an ensemble."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from drgrade.data.normalisation import normalise
from drgrade.data.preparation import Preparation
from drgrade.errors import ConfigError
from drgrade.models.calibration import (
    Calibration,
    ensemble_calibration,
    expected_grade,
    normalised_entropy,
    referable_probability,
)
from drgrade.models.grading_model import median_grade, tta_views
from drgrade.prediction.checkpoint import Trained, load_trained

Reading = Literal["head", "thresholds"]
"""How a grade is read: as the head does, or by thresholds on the expected grade that were fitted."""

READINGS: tuple[Reading, ...] = ("head", "thresholds")


@dataclass(frozen=True, eq=False)
class Graded:
    """What is said of B photographs; all on the CPU.

    Attributes:
        grades: (B,) int64.
        probabilities: (B, 5) float32, calibrated, rows with sum 1.
        raw: (B, 5) float32, as the heads give them.
        expected: (B,) float32, the mean of ``probabilities``, in [0, 4].
        referable: (B,) float32, P(grade >= 2).
        uncertainty: (B,) float32, entropy of ``probabilities`` over the highest possible, in [0, 1].
        disagreement: (B,) float32, what of the uncertainty is disagreement of members and views (their
            mutual information with the grade, on the same scale); 0 for a single one.
        logits: (B, K) of the single member without test-time augmentation; None otherwise.
    """

    grades: Tensor
    probabilities: Tensor
    raw: Tensor
    expected: Tensor
    referable: Tensor
    uncertainty: Tensor
    disagreement: Tensor
    logits: Tensor | None

    def __len__(self) -> int:
        return len(self.grades)


class Grader:
    """One trained run or an ensemble, on a device.

    Attributes:
        members: The trained runs.
        preparation: How photographs have to be prepared, for all members alike.
        calibration: Of the run, or of the ensemble.
        device: Where the models are.
    """

    def __init__(
        self,
        members: Sequence[Trained],
        device: str | torch.device = "auto",
        tta: str = "none",
        reading: Reading = "head",
    ) -> None:
        """Bring the models to the device.

        Args:
            members: At least one.
            device: ``auto`` for a GPU if there is one, or any of torch.
            tta: Test-time augmentation, a name of :data:`drgrade.models.grading_model.TTA_VIEWS`.
            reading: How grades are read. Several members or views are read by the median of their mean
                distribution with ``head``.

        Raises:
            ConfigError: If the members want different photographs, a setting is unknown, or fitted thresholds
                are asked for where none were fitted.
        """
        if not members:
            raise ConfigError("no run is given: checkpoint=RUN, or checkpoint=RUN,RUN for an ensemble")
        self.members = tuple(members)
        self.preparation: Preparation = members[0].preparation
        for other in members[1:]:
            if other.preparation != self.preparation:
                raise ConfigError(
                    f"{other.folder} was trained on photographs prepared as {other.preparation}, "
                    f"{members[0].folder} on {self.preparation}: an ensemble shares its photographs"
                )
        self.device = _device(device)
        self._views = tta_views(tta)
        if reading not in READINGS:
            raise ConfigError(f"reading={reading} is none of {', '.join(READINGS)}")
        self.calibration = ensemble_calibration([member.calibration for member in members])
        if reading == "thresholds" and not self.calibration.photographs:
            raise ConfigError(
                f"reading=thresholds: none were fitted ({self.calibration.note}); use reading=head"
            )
        self._reading = reading
        for member in members:
            member.model.to(self.device).eval()

    @classmethod
    def load(
        cls,
        folders: Sequence[Path],
        device: str | torch.device = "auto",
        tta: str = "none",
        reading: Reading = "head",
    ) -> "Grader":
        """Load trained runs.

        Args:
            folders: Of finished grading runs; several are an ensemble.
            device: As in the constructor, like all that follow.
            tta: Test-time augmentation.
            reading: How grades are read.

        Raises:
            DrgradeError: If one cannot be loaded, or they do not go together.
        """
        return cls([load_trained(Path(folder)) for folder in folders], device, tta, reading)

    def threshold(self, sensitivity: float) -> float:
        """From which P(grade >= 2) on a photograph is referred.

        Args:
            sensitivity: Wanted on the validation photographs, in (0, 1].

        Returns:
            The threshold; of an ensemble, whose members were validated on different photographs, the mean of
            theirs.

        Raises:
            ConfigError: If it is out of range, or a member has no operating points.
        """
        return float(np.mean([each.calibration.point(sensitivity).threshold for each in self.members]))

    def grade(self, pixels: npt.NDArray[np.uint8] | Tensor) -> Graded:
        """Grade prepared photographs.

        Args:
            pixels: (B, S, S, 3) uint8 RGB, prepared as :attr:`preparation` says; B at least 1.

        Returns:
            What is said of them, in their order.
        """
        images = torch.as_tensor(pixels).to(self.device).permute(0, 3, 1, 2)
        return self.grade_normalised(normalise(images))[0]

    @torch.inference_mode()
    def grade_normalised(self, images: Tensor) -> tuple[Graded, list[Graded]]:
        """Grade normalised images, together and member by member.

        Args:
            images: (B, 3, S, S) float, on the device of the models; B at least 1.

        Returns:
            What all members say together, and what each of them says alone, in their order.
        """
        said = [(member, member.model(view(images))) for member in self.members for view in self._views]
        together = self._graded(said, self.calibration)
        if len(self.members) == 1:
            return together, [together]
        count = len(self._views)
        own = [said[start : start + count] for start in range(0, len(said), count)]
        each = zip(own, self.members, strict=True)
        return together, [self._graded(part, member.calibration) for part, member in each]

    def _graded(self, said: Sequence[tuple[Trained, Tensor]], calibration: Calibration) -> Graded:
        raw = torch.stack([member.model.head.probabilities(logits) for member, logits in said]).cpu()
        pairs = zip(said, raw, strict=True)
        calibrated = torch.stack([member.calibration.probabilities(own) for (member, _), own in pairs])
        probabilities = calibrated.mean(dim=0)  # (B, 5)
        total = normalised_entropy(probabilities)
        within = torch.stack([normalised_entropy(each) for each in calibrated]).mean(dim=0)
        return Graded(
            self._read(said, raw.mean(dim=0), probabilities, calibration),
            probabilities,
            raw.mean(dim=0),
            expected_grade(probabilities),
            referable_probability(probabilities),
            total,
            (total - within).clamp(min=0) if len(said) > 1 else torch.zeros_like(total),
            said[0][1].cpu() if len(said) == 1 else None,
        )

    def _read(
        self, said: Sequence[tuple[Trained, Tensor]], raw: Tensor, calibrated: Tensor, fitted: Calibration
    ) -> Tensor:
        if self._reading == "thresholds":
            return fitted.predict(calibrated)
        if len(said) > 1:
            return median_grade(raw)
        (member, logits), *_ = said
        return member.model.head.predict(logits).cpu()


def _device(wanted: str | torch.device) -> torch.device:
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(wanted)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
        reason = str(error).splitlines()[0]
        raise ConfigError(f"device={wanted} cannot be used here ({reason}); device=cpu can") from error
    return device
