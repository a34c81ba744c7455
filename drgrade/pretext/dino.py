"""Self-distillation without labels (DINO: Caron et al., ICCV 2021)."""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from lightly.loss import DINOLoss
from lightly.models.modules import DINOProjectionHead
from torch import Tensor, nn

from drgrade.errors import ConfigError, check_range
from drgrade.models.encoder import Encoder
from drgrade.pretext.base import HEAD, Pretext, frozen_evaluation, require_any_size
from drgrade.pretext.teacher import Teacher

GLOBAL_VIEWS = 2
"""Number of views at the full image size. The teacher sees only these, the student sees all views."""


def default_local_size(image_size: int) -> int:
    """Return the side of the local views in pixels: half of the image, at least 32 (a CNN halves it)."""
    return max(image_size // 2, 32)


class DINO(Pretext):
    """Predict the teacher's output for one view of a photograph from another view.

    Attributes:
        head: Maps features to K scores; the teacher has its own.
        teacher: Moving average of encoder and head; its encoder is the result of pre-training.
            ``start_share`` among the scores is the weight of its random initial parameters: if it does not
            approach 0, the run was too short for the momentum.
        loss: Cross-entropy, with the centre of the teacher's outputs.
    """

    scores = ("teacher_entropy", "divergence", "start_share")

    def __init__(
        self,
        encoder: Encoder,
        image_size: int,
        local_views: int = 8,
        local_size: int = 96,
        output_dim: int = 65536,
        hidden: int = 2048,
        bottleneck: int = 256,
        batch_norm: bool = False,
        norm_last_layer: bool = True,
        student_temperature: float = 0.1,
        teacher_temperature: Sequence[float] = (0.04, 0.07),
        temperature_warmup: float = 0.1,
        centring: bool = True,
        centre_momentum: float = 0.9,
        momentum: float = 0.996,
        freeze_last_layer: float = 0.01,
    ) -> None:
        """Build head, teacher and loss.

        Args:
            encoder: The encoder. With local views it must accept images of any size.
            image_size: Side of the two global views in pixels.
            local_views: Number of small views per photograph; 0 works with any encoder.
            local_size: Side of the small views in pixels; the encoder must be able to process it.
            output_dim: Number K of outputs.
            hidden: Width of the hidden layers of the head.
            bottleneck: Width before the last layer.
            batch_norm: Use batch normalisation in the head.
            norm_last_layer: Keep the rows of the last layer at length 1.
            student_temperature: Temperature of the student's softmax.
            teacher_temperature: Temperature of the teacher's softmax at the start and after the warm-up.
            temperature_warmup: Share of the run in which it changes linearly from one to the other.
            centring: Subtract the centre of the teacher's outputs. Without it, the outputs collapse.
            centre_momentum: Momentum of the centre's moving average.
            momentum: Momentum of the teacher in the first step, in [0, 1]; it rises to 1.
            freeze_last_layer: Share of the run, at its start, in which the last layer is frozen.
        """
        super().__init__()
        size = (encoder.num_features, hidden, bottleneck, output_dim)
        check_range("[1, inf)", HEAD, image_size=image_size, local_size=local_size)
        check_range("[1, inf)", HEAD, output_dim=output_dim, hidden=hidden, bottleneck=bottleneck)
        check_range("[0, inf)", "pretext.", local_views=local_views)
        check_range("[0, 1]", HEAD, temperature_warmup=temperature_warmup, centre_momentum=centre_momentum)
        check_range("[0, 1]", HEAD, freeze_last_layer=freeze_last_layer)
        if len(teacher_temperature) != 2 or not min(student_temperature, *teacher_temperature) > 0:
            raise ConfigError(
                f"pretext.head: student_temperature={student_temperature} and the two values of "
                f"teacher_temperature={list(teacher_temperature)} must be above 0"
            )
        if local_views:
            require_any_size("dino", encoder)
            _require_encodable(encoder, local_size)
        self.num_views = GLOBAL_VIEWS + local_views
        self.encoder_inputs = GLOBAL_VIEWS + local_views * (local_size / image_size) ** 2
        self._sides = [image_size] * GLOBAL_VIEWS + [local_size] * local_views
        self.head, head_copy = (_head(*size, batch_norm, norm_last_layer) for _ in range(2))
        self.teacher = Teacher(encoder, self.head, head_copy, momentum)
        self.loss = CentredLoss(output_dim, student_temperature, centre_momentum, centring)
        self._directions_only = norm_last_layer
        self._first, self._last = teacher_temperature
        self._warmup, self._frozen = temperature_warmup, freeze_last_layer
        self._progress = 0.0

    def before_step(self, encoder: Encoder, progress: float) -> None:
        """Update teacher and centre, and unfreeze the last layer in time; see :class:`Pretext`."""
        if self.teacher.update(encoder, self.head, progress):
            self.loss.move_centre()
        unfrozen = progress >= self._frozen
        last_layer: Any = self.head.last_layer
        last_layer.weight_v.requires_grad_(unfrozen)
        last_layer.weight_g.requires_grad_(unfrozen and not self._directions_only)
        self._progress = progress

    def temperature(self, progress: float) -> float:
        """Return the temperature of the teacher's softmax at a progress in [0, 1]."""
        done = min(1.0, progress / self._warmup) if self._warmup else 1.0
        return self._first + done * (self._last - self._first)

    def forward(self, encoder: Encoder, views: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss; see :class:`Pretext`. The first two views are the global ones.

        ``teacher_entropy`` is the mean entropy of the teacher's outputs in nats; both 0 and log K are a
        collapse. ``divergence`` is the Kullback-Leibler divergence of the student from the teacher.

        Raises:
            ConfigError: If number or size of the views differ from the settings.
        """
        sides = [view.shape[-1] for view in views]
        if sides != self._sides:
            raise ConfigError(
                f"pretext.views gives views of {sides} pixels, and pretext.head expects {self._sides} "
                "(two global views, then the local ones): set pretext.local_views and pretext.local_size"
            )
        whole = torch.cat(list(views[:GLOBAL_VIEWS]))  # (2B, 3, S, S)
        features = [encoder(whole)]
        if len(views) > GLOBAL_VIEWS:
            features.append(encoder(torch.cat(list(views[GLOBAL_VIEWS:]))))
        student_outputs = self.head(torch.cat(features))  # (views * B, K)
        teacher_outputs = self.teacher(whole)  # (2B, K)
        with torch.autocast(whole.device.type, enabled=False):  # the loss sums over K terms
            centre = self.loss.center.clone()
            student = student_outputs.to(centre.dtype).chunk(len(views))
            teacher = teacher_outputs.to(centre.dtype).chunk(GLOBAL_VIEWS)
            temperature = self.temperature(self._progress)
            loss: Tensor = self.loss(list(teacher), list(student), teacher_temp=temperature)
            probabilities = ((torch.stack(teacher) - centre) / temperature).softmax(dim=-1)  # (2, B, K)
            entropy = torch.special.entr(probabilities).sum(dim=-1).mean()
        return loss, {
            "teacher_entropy": entropy,
            "divergence": loss.detach() - entropy,
            "start_share": self.teacher.start_share,
        }

    def final_encoder(self, encoder: Encoder) -> Encoder:
        """Return the teacher's encoder, which the paper found to be better than the student's."""
        return self.teacher.encoder


class CentredLoss(DINOLoss):  # type: ignore[misc]  # lightly has no types
    """lightly's loss with a centre that moves once per optimiser step, and in training only.

    lightly moves the centre at every call: also in validation, and for every accumulated batch.
    """

    pending: Tensor
    batches: Tensor

    def __init__(
        self, output_dim: int, student_temperature: float, centre_momentum: float, centring: bool
    ) -> None:
        super().__init__(
            output_dim,
            warmup_teacher_temp_epochs=1,  # its schedule is not used
            student_temp=student_temperature,
            center_momentum=centre_momentum,
        )
        self._centring = centring
        # Sum and number of batches since the last optimiser step; in the checkpoint, like the centre.
        self.register_buffer("pending", torch.zeros_like(self.center))
        self.register_buffer("batches", torch.zeros(()))

    @torch.no_grad()
    def update_center(self, teacher_out: Tensor) -> None:
        """Add a batch (views, B, K) to the pending mean; called by lightly."""
        if self.training and self._centring:
            self.pending += self._center_fn(x=teacher_out, dim=(0, 1))  # the mean over all processes
            self.batches += 1

    @torch.no_grad()
    def move_centre(self) -> None:
        """Move the centre towards the mean of the pending batches: c <- m c + (1 - m) mean."""
        if self.batches > 0:
            self.center.lerp_(self.pending / self.batches, 1 - self.center_momentum)
            self.pending.zero_()
            self.batches.zero_()


def _head(
    width: int, hidden: int, bottleneck: int, output_dim: int, batch_norm: bool, norm_last_layer: bool
) -> nn.Module:
    with warnings.catch_warnings():
        # lightly's head uses the older of torch's two weight normalisations.
        warnings.filterwarnings("ignore", message=r".*weight_norm` is deprecated", category=FutureWarning)
        head: nn.Module = DINOProjectionHead(
            width, hidden, bottleneck, output_dim, batch_norm=batch_norm, norm_last_layer=norm_last_layer
        )
    return head


def _require_encodable(encoder: Encoder, side: int) -> None:
    """Reject local views that are too small for an encoder, such as a CNN that halves them to nothing."""
    try:
        with frozen_evaluation(encoder):
            encoder(torch.zeros(1, 3, side, side))
    except RuntimeError as error:
        raise ConfigError(
            f"pretext.local_size={side}: too small for this encoder ({error}); "
            "use a larger data.image_size or pretext.local_size, or pretext.local_views=0"
        ) from error
