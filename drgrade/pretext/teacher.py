"""A teacher: a slowly moving average of an encoder and its head (He et al., CVPR 2020, section 3.2)."""

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from drgrade.errors import ConfigError
from drgrade.models.encoder import Encoder


class Teacher(nn.Module):
    """A frozen copy of an encoder and its head, whose weights follow theirs.

    What is averaged is the parameters. Batch normalisation is treated as in the papers' own code
    (github.com/facebookresearch/moco-v3 and dino): in training the teacher normalises by the statistics of
    the batch that it sees, and its running statistics are its own. They are neither copied nor averaged:
    those of the student belong to other weights. Nothing is dropped in the teacher, no unit and no layer.

    The copy is part of the checkpoint, never of the optimiser. All processes start from the same weights and
    take the same steps, so that their teachers are equal without being told.

    Attributes:
        encoder: The copy; a student and its teacher have no memory in common.
        head: The head's copy.
    """

    start_share: Tensor

    def __init__(self, encoder: Encoder, head: nn.Module, twin: nn.Module, momentum: float) -> None:
        """Copy encoder and head.

        Args:
            encoder: The student's.
            head: The student's.
            twin: Another head with the same tensors, to become the teacher's (a head with ``weight_norm``
                cannot be copied).
            momentum: Of the first step, in [0, 1]; it rises to 1 with half a cosine.

        Raises:
            ConfigError: If the momentum is out of range.
        """
        super().__init__()
        if not 0 <= momentum <= 1:
            raise ConfigError(f"pretext.head.momentum={momentum} is not in [0, 1]")
        self.encoder, self.head = copy.deepcopy(encoder), twin
        self.head.load_state_dict(head.state_dict())
        self.requires_grad_(False)
        self._momentum = momentum
        self._followed_at: float | None = None
        # Share of the first weights in the average, the product of the momenta; in the checkpoint.
        self.register_buffer("start_share", torch.ones(()))

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """What the teacher says.

        Args:
            images: (B, 3, H, W), normalised.

        Returns:
            (B, K), without a gradient.
        """
        # Each time, because trainers switch the modes of all modules, back and forth.
        for part in (self.encoder, self.head):
            for module in part.modules():
                module.training = self.training and isinstance(module, _BatchNorm)
        said: Tensor = self.head(self.encoder(images))
        return said

    @torch.no_grad()
    def follow(self, encoder: Encoder, head: nn.Module, progress: float) -> bool:
        """Go a step towards the student: w <- m w + (1 - m) w_student.

        Once for each optimiser step, however many batches it is accumulated from.

        Args:
            encoder: The student's.
            head: The student's.
            progress: Share of the optimiser steps that are done, in [0, 1).

        Returns:
            Whether this is the first batch of an optimiser step.

        Raises:
            ConfigError: If the weights are in half precision, where so small a step is lost in rounding.
        """
        if progress == self._followed_at:
            return False
        self._followed_at = progress
        momentum = self.momentum(progress)
        for own, student in ((self.encoder, encoder), (self.head, head)):
            for mine, its in zip(own.parameters(), student.parameters(), strict=True):
                if torch.finfo(mine.dtype).bits < 32:
                    raise ConfigError(
                        "trainer.precision: a momentum encoder needs weights in single precision; "
                        "use bf16-mixed or 16-mixed"
                    )
                mine.lerp_(its, 1 - momentum)  # equal weights stay equal, to the last bit
        if progress > 0:  # before the first step the student has the first weights too
            self.start_share *= momentum
        return True

    def momentum(self, progress: float) -> float:
        """Momentum at a point of the run: 1 - (1 - m) (1 + cos(pi progress)) / 2.

        Args:
            progress: Share of the optimiser steps that are done, in [0, 1].

        Returns:
            In [m, 1].
        """
        return 1 - (1 - self._momentum) * (1 + math.cos(math.pi * progress)) / 2
