"""Grading of prepared photographs with one trained model or an ensemble."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from drgrade.data.transforms import normalise
from drgrade.errors import ConfigError, EncoderError
from drgrade.metrics.functional import referable_probability
from drgrade.models.calibration import (
    TARGET_SENSITIVITIES,
    Calibration,
    ensemble_calibration,
    expected_grade,
    normalised_entropy,
    referral_rule,
)
from drgrade.models.thresholds import ReferralRule
from drgrade.prediction.checkpoint import TrainedModel, load_model
from drgrade.settings import Reading


@dataclass(frozen=True, eq=False)
class GradedBatch:
    """Output of a grader for B photographs, on the CPU.

    Attributes:
        grades: (B,) int64.
        probabilities: (B, 5) float32, calibrated; rows sum to 1.
        raw: (B, 5) float32, as the heads output them.
        expected: (B,) float32, mean of ``probabilities``, in [0, 4].
        referable: (B,) float32, P(grade >= 2).
        uncertainty: (B,) float32, entropy of ``probabilities`` divided by its maximum, in [0, 1].
        disagreement: (B,) float32, part of the uncertainty that is disagreement of members and views: their
            mutual information with the grade, on the same scale; 0 for a single one.
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
            tta: Test-time augmentation: ``none``, ``flips`` (4 views) or ``dihedral`` (8 views).
            reading: ``head`` reads a grade by the rule of the head, and from several members or views the
                median of their mean distribution; ``thresholds`` uses those fitted on validation photographs.

        Raises:
            ConfigError: If the members need differently prepared photographs, an argument is unknown, or
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
        if reading not in get_args(Reading):
            raise ConfigError(f"reading={reading} is not one of {', '.join(get_args(Reading))}")
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
        folders: Path | str | Sequence[Path | str],
        device: str | torch.device = "auto",
        tta: str = "none",
        reading: Reading = "head",
    ) -> "Grader":
        """Load trained models and build a grader with the other arguments.

        Args:
            folders: Folder of a finished grading run or of a published model; several form an ensemble.
            device: See the constructor.
            tta: See the constructor.
            reading: See the constructor.

        Raises:
            DrgradeError: If a model cannot be loaded, or the models do not fit together.
        """
        folders = [folders] if isinstance(folders, str | Path) else folders
        return cls([load_model(Path(folder)) for folder in folders], device, tta, reading)

    @property
    def warning(self) -> str:
        """Warning that has to be shown beside every result; empty if there is none."""
        return drawings_warning(self.members)

    def referral(self, sensitivity: float | None = None) -> ReferralRule:
        """Return the referral decision; see :func:`~drgrade.models.calibration.referral_rule`.

        Args:
            sensitivity: Required sensitivity on the validation photographs, in (0, 1]; None for the default
                of the run.

        Raises:
            ConfigError: If a sensitivity is out of range, or is requested and a member has no operating
                points.
        """
        return referral_rule([member.calibration for member in self.members], sensitivity)

    def target_thresholds(self) -> dict[float, float]:
        """Return the thresholds of ``TARGET_SENSITIVITIES``; empty if a member has no operating points."""
        fitted = all(member.calibration.points for member in self.members)
        return {target: self.referral(target).threshold for target in TARGET_SENSITIVITIES if fitted}

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

        Raises:
            EncoderError: If a model outputs numbers that are not finite.
        """
        outputs = [(member, member.model(view(images))) for member in self.members for view in self._views]
        for _, logits in outputs:
            check_outputs(logits)
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
        single = len(outputs) == 1
        each_raw = torch.stack([member.model.head.probabilities(logits) for member, logits in outputs]).cpu()
        pairs = zip(outputs, each_raw, strict=True)
        # In double precision, as in training: float32 logarithms depend on the size of the batch.
        each = [member.calibration.probabilities(own.double()) for (member, _), own in pairs]
        calibrated = torch.stack(each).to(each_raw.dtype)
        raw, probabilities = each_raw.mean(dim=0), calibrated.mean(dim=0)  # (B, 5)
        total = normalised_entropy(probabilities)
        within = torch.stack([normalised_entropy(one) for one in calibrated]).mean(dim=0)
        first, logits = outputs[0]
        if self._reading == "thresholds":
            grades = calibration.predict(probabilities)
        else:
            grades = first.model.head.predict(logits).cpu() if single else median_grade(raw)
        return GradedBatch(
            grades,
            probabilities,
            raw,
            expected_grade(probabilities),
            referable_probability(probabilities),
            total,
            torch.zeros_like(total) if single else (total - within).clamp(min=0),
            logits.cpu() if single else None,
        )


def drawings_warning(members: Sequence[TrainedModel]) -> str:
    """Return a warning if a model was trained on drawings; else an empty text."""
    names = sorted({name for member in members for name in member.drawings})
    if not names:
        return ""
    return (
        f"TRAINED ON DRAWINGS ({', '.join(names)}), not on photographs of eyes: the grades of real "
        "photographs mean nothing."
    )


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


def check_outputs(logits: Tensor) -> None:
    """Raise EncoderError if logits of a batch are NaN or infinite, so that nothing is graded by them."""
    if not bool(torch.isfinite(logits).all()):
        raise EncoderError(
            "the model outputs numbers that are not finite, so nothing is graded: its training has diverged "
            "(lower optimizer.lr), or its weights are damaged"
        )


View = Callable[[Tensor], Tensor]
"""Maps images (B, 3, S, S) to flipped or rotated ones."""


def _view(axes: tuple[int, ...] = (), turns: int = 0) -> View:
    """Return a view that flips along the axes, then rotates by quarter turns."""

    def view(images: Tensor) -> Tensor:
        return torch.rot90(torch.flip(images, axes), turns, (-2, -1))

    return view


TTA_VIEWS: Mapping[str, Sequence[View]] = {
    "none": (_view(),),
    "flips": (_view(), _view((-1,)), _view((-2,)), _view((-2, -1))),
    "dihedral": tuple(_view(axes, turns) for axes in ((), (-1,)) for turns in range(4)),
}
"""Test-time augmentation: views whose probabilities are averaged. All are exact, without interpolation."""


def tta_views(name: str) -> Sequence[View]:
    """Return the views of ``none``, ``flips`` (4 views) or ``dihedral`` (8: flips and quarter turns).

    Raises:
        ConfigError: If the name is unknown.
    """
    if name not in TTA_VIEWS:
        raise ConfigError(f"tta={name} is not one of {', '.join(TTA_VIEWS)}")
    return TTA_VIEWS[name]


def median_grade(probabilities: Tensor) -> Tensor:
    """Read the grade of averaged distributions (B, G): the highest k with P(grade >= k) of at least 0.5.

    No single head can read an average over models or views. For one distribution this is how the cumulative,
    the CORN and the regression head read it.

    Example:
        >>> median_grade(torch.tensor([[0.2, 0.2, 0.3, 0.2, 0.1]]))
        tensor([2])
    """
    at_least = probabilities.double().flip(1).cumsum(dim=1).flip(1)  # (B, G): P(grade >= k)
    return (at_least[:, 1:] >= 0.5).sum(dim=1)
