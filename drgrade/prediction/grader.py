"""Grading of prepared photographs with one trained model or an ensemble."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from drgrade.data.normalisation import normalise
from drgrade.errors import ConfigError
from drgrade.models.calibration import (
    Calibration,
    ensemble_calibration,
    expected_grade,
    normalised_entropy,
    referable_probability,
)
from drgrade.models.grading_model import median_grade, tta_views
from drgrade.prediction.checkpoint import TrainedModel, load_model

Reading = Literal["head", "thresholds"]
"""Rule that reads a grade: the head's own, or fitted thresholds on the expected grade."""

READINGS: tuple[Reading, ...] = get_args(Reading)


@dataclass(frozen=True, eq=False)
class GradedBatch:
    """Output of a grader for B photographs; all tensors are on the CPU.

    Attributes:
        grades: (B,) int64.
        probabilities: (B, 5) float32, calibrated; rows sum to 1.
        raw: (B, 5) float32, as the heads output them.
        expected: (B,) float32, mean of ``probabilities``, in [0, 4].
        referable: (B,) float32, P(grade >= 2).
        uncertainty: (B,) float32, entropy of ``probabilities`` divided by its maximum, in [0, 1].
        disagreement: (B,) float32, part of the uncertainty that is disagreement of members and views (their
            mutual information with the grade, on the same scale); 0 for a single one.
        logits: (B, K) of a single member without test-time augmentation; None otherwise.
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
    """One trained model or an ensemble, on a device.

    Attributes:
        members: The trained models.
        preparation: Preparation of the photographs, common to all members.
        calibration: Calibration of the model, or of the ensemble
            (:func:`~drgrade.models.calibration.ensemble_calibration`).
        device: Device of the models.
    """

    def __init__(
        self,
        members: Sequence[TrainedModel],
        device: str | torch.device = "auto",
        tta: str = "none",
        reading: Reading = "head",
    ) -> None:
        """Move the models to the device.

        Args:
            members: One model, or the members of an ensemble.
            device: ``auto`` for a GPU if there is one, or any device of torch.
            tta: Test-time augmentation, a name of :data:`drgrade.models.grading_model.TTA_VIEWS`.
            reading: Rule that reads the grades. With ``head``, several members or views are read by the
                median of their mean distribution.

        Raises:
            ConfigError: If the members need differently prepared photographs, a setting is unknown, or
                thresholds are requested and none were fitted.
        """
        if not members:
            raise ConfigError("no run is given: checkpoint=RUN, or checkpoint=RUN,RUN for an ensemble")
        self.members, self.preparation = tuple(members), members[0].preparation
        for other in members[1:]:
            if other.preparation != self.preparation:
                raise ConfigError(
                    f"{other.folder} was trained on photographs prepared as {other.preparation}, "
                    f"{members[0].folder} on {self.preparation}: members of an ensemble need the same "
                    "preparation"
                )
        self.device = _resolve_device(device)
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
        folders: Sequence[Path | str],
        device: str | torch.device = "auto",
        tta: str = "none",
        reading: Reading = "head",
    ) -> "Grader":
        """Load trained models.

        Args:
            folders: Folders of finished grading runs or published models; several form an ensemble.
            device: See the constructor, also for the other arguments.
            tta: Test-time augmentation.
            reading: Rule that reads the grades.

        Raises:
            DrgradeError: If a model cannot be loaded, or they do not fit together.
        """
        return cls([load_model(Path(folder)) for folder in folders], device, tta, reading)

    def threshold(self, sensitivity: float) -> float:
        """Return the P(grade >= 2) from which a photograph is referable.

        Args:
            sensitivity: Required sensitivity on the validation photographs, in (0, 1].

        Returns:
            The threshold; for an ensemble the mean over its members, which have different validation
            photographs.

        Raises:
            ConfigError: If the sensitivity is out of range, or a member has no operating points.
        """
        return float(np.mean([each.calibration.point(sensitivity).threshold for each in self.members]))

    def grade(self, pixels: npt.NDArray[np.uint8] | Tensor) -> GradedBatch:
        """Grade prepared photographs.

        Args:
            pixels: (B, S, S, 3) uint8 RGB, prepared by :attr:`preparation`; B is at least 1.
        """
        images = torch.as_tensor(pixels).to(self.device).permute(0, 3, 1, 2)
        return self.grade_normalised(normalise(images))[0]

    @torch.inference_mode()
    def grade_normalised(self, images: Tensor) -> tuple[GradedBatch, list[GradedBatch]]:
        """Grade normalised images with the ensemble and with each member.

        Args:
            images: (B, 3, S, S) float, on the device of the models; B is at least 1.

        Returns:
            Output of the ensemble, and the outputs of its members in order.
        """
        outputs = [(member, member.model(view(images))) for member in self.members for view in self._views]
        ensemble = self._combine(outputs, self.calibration)
        if len(self.members) == 1:
            return ensemble, [ensemble]
        count = len(self._views)
        parts = [outputs[start : start + count] for start in range(0, len(outputs), count)]
        pairs = zip(parts, self.members, strict=True)
        return ensemble, [self._combine(part, member.calibration) for part, member in pairs]

    def _combine(
        self, outputs: Sequence[tuple[TrainedModel, Tensor]], calibration: Calibration
    ) -> GradedBatch:
        """Average the probabilities of several members or views."""
        raw = torch.stack([member.model.head.probabilities(logits) for member, logits in outputs]).cpu()
        pairs = zip(outputs, raw, strict=True)
        calibrated = torch.stack([member.calibration.probabilities(own) for (member, _), own in pairs])
        probabilities = calibrated.mean(dim=0)  # (B, 5)
        total = normalised_entropy(probabilities)
        within = torch.stack([normalised_entropy(each) for each in calibrated]).mean(dim=0)
        return GradedBatch(
            self._read_grades(outputs, raw.mean(dim=0), probabilities, calibration),
            probabilities,
            raw.mean(dim=0),
            expected_grade(probabilities),
            referable_probability(probabilities),
            total,
            (total - within).clamp(min=0) if len(outputs) > 1 else torch.zeros_like(total),
            outputs[0][1].cpu() if len(outputs) == 1 else None,
        )

    def _read_grades(
        self,
        outputs: Sequence[tuple[TrainedModel, Tensor]],
        raw: Tensor,
        calibrated: Tensor,
        calibration: Calibration,
    ) -> Tensor:
        if self._reading == "thresholds":
            return calibration.predict(calibrated)
        if len(outputs) > 1:
            return median_grade(raw)
        (member, logits), *_ = outputs
        return member.model.head.predict(logits).cpu()


def _resolve_device(wanted: str | torch.device) -> torch.device:
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(wanted)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA raises AssertionError
        reason = str(error).splitlines()[0]
        raise ConfigError(f"device={wanted} is not available ({reason}); use device=cpu") from error
    return device
