"""Momentum teacher: an exponential moving average of encoder and head (He et al., CVPR 2020, sec. 3.2)."""

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from drgrade.errors import ConfigError, check_range
from drgrade.models.encoder import Encoder
from drgrade.pretext.base import HEAD


class Teacher(nn.Module):
    """A frozen copy of an encoder and its head whose parameters follow theirs.

    Batch normalisation works as in the papers' code (github.com/facebookresearch/moco-v3 and dino): in
    training the teacher normalises by the statistics of its batch, and its running statistics are its own,
    neither copied nor averaged. Dropout and stochastic depth are off.

    The copy is part of the checkpoint but not of the optimiser. All processes start from the same weights and
    take the same steps, so their teachers stay equal without communication.

    Attributes:
        start_share: Weight of the initial parameters in the average, the product of the momenta so far.
    """

    start_share: Tensor

    def __init__(self, encoder: Encoder, head: nn.Module, head_copy: nn.Module, momentum: float) -> None:
        """Copy encoder and head.

        Args:
            encoder: Encoder of the student.
            head: Head of the student.
            head_copy: Another head with the same tensors, which becomes the teacher's. (A head with
                ``weight_norm`` cannot be deep-copied.)
            momentum: Momentum of the first step, in [0, 1]; it rises to 1 with half a cosine.
        """
        super().__init__()
        check_range("[0, 1]", HEAD, momentum=momentum)
        self.encoder, self.head = copy.deepcopy(encoder), head_copy
        self.head.load_state_dict(head.state_dict())
        self.requires_grad_(False)
        self._momentum = momentum
        self._updated_at: float | None = None
        self.register_buffer("start_share", torch.ones(()))

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Map (B, 3, H, W) normalised images to (B, K) outputs of the head, without gradients."""
        # At every call, because trainers switch the modes of all modules.
        for part in (self.encoder, self.head):
            for module in part.modules():
                module.training = self.training and isinstance(module, _BatchNorm)
        outputs: Tensor = self.head(self.encoder(images))
        return outputs

    @torch.no_grad()
    def update(self, encoder: Encoder, head: nn.Module, progress: float) -> bool:
        """Move the parameters towards the student's, w <- m w + (1 - m) w_student, once per optimiser step.

        Returns:
            True for the first batch of an optimiser step, False for further accumulated batches.

        Raises:
            ConfigError: If the parameters are in half precision, where such small steps are lost to rounding.
        """
        if progress == self._updated_at:
            return False
        self._updated_at = progress
        momentum = self.momentum(progress)
        for own, student in ((self.encoder, encoder), (self.head, head)):
            for mine, theirs in zip(own.parameters(), student.parameters(), strict=True):
                if torch.finfo(mine.dtype).bits < 32:
                    raise ConfigError(
                        "trainer.precision: a momentum encoder needs float32 parameters; "
                        "use bf16-mixed or 16-mixed"
                    )
                mine.lerp_(theirs, 1 - momentum)  # equal parameters stay equal bit for bit
        if progress > 0:  # before the first step the student has the initial parameters too
            self.start_share *= momentum
        return True

    def momentum(self, progress: float) -> float:
        """Return the momentum at a progress in [0, 1]: 1 - (1 - m) (1 + cos(pi progress)) / 2."""
        return 1 - (1 - self._momentum) * (1 + math.cos(math.pi * progress)) / 2
