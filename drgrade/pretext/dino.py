"""Self-distillation without labels (DINO: Caron et al., ICCV 2021)."""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from lightly.loss import DINOLoss
from lightly.models.modules import DINOProjectionHead
from torch import Tensor, nn

from drgrade.errors import ConfigError
from drgrade.models.encoder import Encoder
from drgrade.pretext.base import Pretext, require_any_size
from drgrade.pretext.teacher import Teacher

GLOBAL_VIEWS = 2
"""Views of the image's size, which the teacher sees; the student sees all."""


class CentredLoss(DINOLoss):  # type: ignore[misc]  # lightly has no types
    """lightly's loss, whose centre moves once for each optimiser step, and in training only.

    lightly moves it at every call: in validation too, and as often as gradients are accumulated.
    """

    pending: Tensor
    batches: Tensor

    def __init__(
        self, output_dim: int, student_temperature: float, centre_momentum: float, centring: bool
    ) -> None:
        """Set the sizes.

        Args:
            output_dim: K.
            student_temperature: Of the student's softmax.
            centre_momentum: Of the centre's moving average.
            centring: Whether there is a centre.
        """
        super().__init__(
            output_dim,
            warmup_teacher_temp_epochs=1,  # its schedule is not used
            student_temp=student_temperature,
            center_momentum=centre_momentum,
        )
        self._centring = centring
        # Of the batches since the last optimiser step; in the checkpoint, like the centre.
        self.register_buffer("pending", torch.zeros_like(self.center))
        self.register_buffer("batches", torch.zeros(()))

    @torch.no_grad()
    def update_center(self, teacher_out: Tensor) -> None:
        """Take note of a batch; called by lightly.

        Args:
            teacher_out: (views, B, K).
        """
        if self.training and self._centring:
            self.pending += self._center_fn(x=teacher_out, dim=(0, 1))  # the mean over all processes
            self.batches += 1

    @torch.no_grad()
    def move_centre(self) -> None:
        """Move the centre: c <- m c + (1 - m) mean over what the teacher has said."""
        if self.batches > 0:
            self.center.lerp_(self.pending / self.batches, 1 - self.center_momentum)
            self.pending.zero_()
            self.batches.zero_()


class DINO(Pretext):
    """Say of every view of a photograph what a teacher says of another view of it.

    ``start_share`` among its scores is the share of first, random weights in the teacher: where it does not
    come near 0, the run was too short for its momentum.

    Attributes:
        head: Features to K scores; the teacher has its own.
        teacher: Average of encoder and head; its encoder is what pre-training leaves behind.
        loss: Cross-entropy, and the centre of what the teacher says.
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
            encoder: What is to be trained.
            image_size: Side of the two global views in pixels.
            local_views: How many small views there are beside them; 0 for any encoder.
            local_size: Their side in pixels.
            output_dim: K, over which student and teacher give distributions.
            hidden: Width of the head's hidden layers.
            bottleneck: Width before the last layer.
            batch_norm: Batch normalisation in the head.
            norm_last_layer: Keep the rows of the last layer at length 1.
            student_temperature: Of the student's softmax.
            teacher_temperature: Of the teacher's softmax, at the beginning and after the warm-up.
            temperature_warmup: Share of the run in which it rises from the one to the other, linearly.
            centring: Subtract the centre of what the teacher says. Without it, it collapses.
            centre_momentum: Of the centre's moving average.
            momentum: Of the teacher in the first step, in [0, 1]; it rises to 1.
            freeze_last_layer: Share of the run at whose beginning the last layer does not learn.

        Raises:
            ConfigError: If a setting is out of range, or local views are too small for the encoder.
            EncoderError: If there are local views and the encoder takes images of one size only.
        """
        super().__init__()
        _check_counts(
            image_size=image_size,
            local_size=local_size,
            output_dim=output_dim,
            hidden=hidden,
            bottleneck=bottleneck,
        )
        if local_views < 0:
            raise ConfigError(f"pretext.local_views={local_views} is not at least 0")
        _check_shares(
            temperature_warmup=temperature_warmup,
            centre_momentum=centre_momentum,
            freeze_last_layer=freeze_last_layer,
        )
        if len(teacher_temperature) != 2 or not min(student_temperature, *teacher_temperature) > 0:
            raise ConfigError(
                f"pretext.head: student_temperature={student_temperature} and the two numbers "
                f"teacher_temperature={list(teacher_temperature)} have to be above 0"
            )
        if local_views:
            require_any_size("dino", encoder)
            _require_size(encoder, local_size)
        self.num_views = GLOBAL_VIEWS + local_views
        self.encoder_inputs = GLOBAL_VIEWS + local_views * (local_size / image_size) ** 2
        self._sides = [image_size] * GLOBAL_VIEWS + [local_size] * local_views
        size = (encoder.num_features, hidden, bottleneck, output_dim)
        self.head = _head(*size, batch_norm=batch_norm, norm_last_layer=norm_last_layer)
        twin = _head(*size, batch_norm=batch_norm, norm_last_layer=norm_last_layer)
        self.teacher = Teacher(encoder, self.head, twin, momentum)
        self.loss = CentredLoss(output_dim, student_temperature, centre_momentum, centring)
        self._directions_only = norm_last_layer
        self._first, self._last = teacher_temperature
        self._warmup, self._frozen = temperature_warmup, freeze_last_layer
        self._progress = 0.0

    def before_step(self, encoder: Encoder, progress: float) -> None:
        """See :class:`Pretext`; teacher and centre follow, and the last layer begins to learn."""
        if self.teacher.follow(encoder, self.head, progress):
            self.loss.move_centre()
        learns = progress >= self._frozen
        last_layer: Any = self.head.last_layer
        last_layer.weight_v.requires_grad_(learns)
        last_layer.weight_g.requires_grad_(learns and not self._directions_only)
        self._progress = progress

    def temperature(self, progress: float) -> float:
        """Temperature of the teacher's softmax.

        Args:
            progress: Share of the optimiser steps that are done, in [0, 1].

        Returns:
            Rises linearly, then stays.
        """
        done = min(1.0, progress / self._warmup) if self._warmup else 1.0
        return self._first + done * (self._last - self._first)

    def forward(self, encoder: Encoder, views: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """See :class:`Pretext`. The first two views are the global ones.

        Raises:
            ConfigError: If the views are not those that the pretext was made for.
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
        said = self.head(torch.cat(features))  # (views * B, K)
        taught = self.teacher(whole)  # (2B, K)
        # Not in half precision: the loss is a sum over K terms.
        with torch.autocast(said.device.type, enabled=False):
            student = said.to(self.loss.center.dtype).chunk(len(views))
            teacher = taught.to(self.loss.center.dtype).chunk(GLOBAL_VIEWS)
            temperature = self.temperature(self._progress)
            centre = self.loss.center.clone()
            loss: Tensor = self.loss(list(teacher), list(student), teacher_temp=temperature)
            entropy = _entropy(torch.stack(teacher), centre, temperature)
        return loss, {
            "teacher_entropy": entropy,
            "divergence": loss.detach() - entropy,  # Kullback-Leibler, of the student from the teacher
            "start_share": self.teacher.start_share,
        }

    def trained(self, encoder: Encoder) -> Encoder:
        """The teacher's encoder, which the paper evaluates: it is better than the student all along."""
        return self.teacher.encoder


def _entropy(said: Tensor, centre: Tensor, temperature: float) -> Tensor:
    """Mean entropy in nats of what the teacher says.

    Args:
        said: (2, B, K).
        centre: (1, 1, K).
        temperature: Of the softmax.

    Returns:
        A scalar in [0, log K]: 0 and log K are the two kinds of collapse.
    """
    shares = ((said - centre) / temperature).softmax(dim=-1)
    entropies: Tensor = torch.special.entr(shares).sum(dim=-1)  # (2, B)
    return entropies.mean()


def _head(
    width: int, hidden: int, bottleneck: int, output_dim: int, batch_norm: bool, norm_last_layer: bool
) -> nn.Module:
    with warnings.catch_warnings():
        # lightly's head is built on the older of torch's two weight normalisations.
        warnings.filterwarnings("ignore", message=r".*weight_norm` is deprecated", category=FutureWarning)
        made: nn.Module = DINOProjectionHead(
            width, hidden, bottleneck, output_dim, batch_norm=batch_norm, norm_last_layer=norm_last_layer
        )
    return made


def _check_counts(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise ConfigError(f"pretext.head.{name}={count} is not at least 1")


def _check_shares(**shares: float) -> None:
    for name, share in shares.items():
        if not 0 <= share <= 1:
            raise ConfigError(f"pretext.head.{name}={share} is not in [0, 1]")


def _require_size(encoder: Encoder, side: int) -> None:
    """Refuse local views of which the encoder makes nothing: a CNN that halves them until nothing is left."""
    training = encoder.training
    encoder.eval()
    try:
        with torch.no_grad():
            encoder(torch.zeros(1, 3, side, side))
    except RuntimeError as error:
        raise ConfigError(
            f"pretext.local_size={side}: too small for this encoder ({error}); "
            "use a larger data.image_size or pretext.local_size, or pretext.local_views=0"
        ) from error
    finally:
        encoder.train(training)
