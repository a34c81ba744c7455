"""Contrast against a momentum encoder (MoCo v3: Chen, Xie and He, ICCV 2021)."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from drgrade.errors import ConfigError
from drgrade.models.encoder import Encoder
from drgrade.pretext.base import Pretext, refuse
from drgrade.pretext.projection import mlp, of_all_processes
from drgrade.pretext.teacher import Teacher

VIEWS = 2


class MoCoV3(Pretext):
    """Tell which of the keys of the batch is of the same photograph; keys come from a momentum encoder.

    Any encoder can carry it.

    Attributes:
        projector: Features to embeddings; the momentum encoder has its own.
        predictor: Embeddings to queries; only the student has it.
        teacher: Momentum encoder and momentum projector.
    """

    scores = ("accuracy", "similarity")
    num_views = VIEWS
    encoder_inputs = float(VIEWS)
    fewest = 2

    def __init__(
        self,
        encoder: Encoder,
        hidden: int = 4096,
        dim: int = 256,
        projector_layers: int = 3,
        batch_norm: bool = True,
        temperature: float = 0.2,
        momentum: float = 0.99,
        freeze_patch_embedding: bool = False,
    ) -> None:
        """Build heads and momentum encoder.

        Args:
            encoder: What is to be trained.
            hidden: Width of the hidden layers of projector and predictor.
            dim: Length of the embeddings.
            projector_layers: Layers of the projector; the paper has 3 for Transformers and 2 for ResNets. The
                predictor has 2.
            batch_norm: Normalise after every layer of the heads, as the paper does.
            temperature: Of the softmax over keys.
            momentum: Of the momentum encoder in the first step, in [0, 1]; it rises to 1.
            freeze_patch_embedding: Leave the first layer of a Vision Transformer at its first weights
                (section 4 of the paper: a remedy for instability at batches of thousands).

        Raises:
            ConfigError: If a setting is out of range.
            EncoderError: If there is no patch embedding to freeze.
        """
        super().__init__()
        if projector_layers < 1:
            raise ConfigError(f"pretext.head.projector_layers={projector_layers} is not at least 1")
        if not temperature > 0:
            raise ConfigError(f"pretext.head.temperature={temperature} is not above 0")
        if freeze_patch_embedding:
            _freeze_patch_embedding(encoder)
        widths = [encoder.num_features, *[hidden] * (projector_layers - 1), dim]
        self.projector = mlp(widths, batch_norm)
        self.predictor = mlp([dim, hidden, dim], batch_norm)
        self.teacher = Teacher(encoder, self.projector, mlp(widths, batch_norm), momentum)
        self._temperature = temperature

    def before_step(self, encoder: Encoder, progress: float) -> None:
        """See :class:`Pretext`; the momentum encoder follows."""
        self.teacher.follow(encoder, self.projector, progress)

    def forward(self, encoder: Encoder, views: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """See :class:`Pretext`.

        In training the keys of all processes are gathered. In evaluation they are not: processes may have
        different numbers of batches.

        Raises:
            ConfigError: If there are not two views of one size, or not two photographs to tell apart.
        """
        if len(views) != VIEWS or views[0].shape != views[1].shape:
            sides = [view.shape[-1] for view in views]
            raise ConfigError(f"pretext.views gives views of {sides} pixels; moco_v3 takes two of one size")
        both = torch.cat(list(views))  # (2B, 3, H, W)
        queries = self.predictor(self.projector(encoder(both))).chunk(2)  # 2 x (B, dim)
        keys = self.teacher(both).chunk(2)
        losses, scores = zip(
            *(self._contrast(queries[k], keys[1 - k]) for k in range(VIEWS)),
            strict=True,
        )
        means = {name: torch.stack([each[name] for each in scores]).mean() for name in self.scores}
        return torch.stack(losses).sum(), means

    def _contrast(self, queries: Tensor, keys: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """One side of the loss.

        Args:
            queries: (B, dim).
            keys: (B, dim); row i is of the same photograph.

        Returns:
            Loss and scores, as :func:`info_nce`.
        """
        every, start = of_all_processes(keys) if self.training else (keys, 0)
        if self.training and len(every) < self.fewest:
            raise ConfigError("pretext.batch_size=1: moco_v3 needs other photographs to tell a view from")
        return info_nce(queries, every, start, self._temperature)


def info_nce(
    queries: Tensor, keys: Tensor, start: int, temperature: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """Cross-entropy of finding each query's key among all keys, times 2 tau.

    -2 tau log(exp(q_i k_i / tau) / sum_j exp(q_i k_j / tau)) with q and k of length 1 (Chen, Xie and He,
    ICCV 2021, equation 1; the factor is that of algorithm 1, as in BYOL: it makes the scale of the gradient
    depend less on tau).

    Args:
        queries: (B, D).
        keys: (N, D); no gradient flows through them.
        start: The key of query i is number ``start + i``.
        temperature: tau.

    Returns:
        Mean over the queries; ``accuracy``, the share of queries whose own key is the nearest, and
        ``similarity``, the cosine between a query and its own key.
    """
    # Not in half precision: divided by tau, its last bit would be a hundredth.
    with torch.autocast(queries.device.type, enabled=False):
        queries, keys = (functional.normalize(_single(each), dim=1) for each in (queries, keys.detach()))
        cosines = queries @ keys.T  # (B, N)
        own = torch.arange(start, start + len(queries), device=queries.device)
        loss = 2 * temperature * functional.cross_entropy(cosines / temperature, own)
    found = cosines.detach()
    return loss, {
        "accuracy": (found.argmax(dim=1) == own).float().mean(),
        "similarity": found.gather(1, own[:, None]).mean(),
    }


def _single(values: Tensor) -> Tensor:
    """In single precision at least."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _freeze_patch_embedding(encoder: Encoder) -> None:
    found = [module for name, module in encoder.named_modules() if name.rpartition(".")[2] == "patch_embed"]
    if not found:
        refuse("moco_v3", encoder, "it has no patch embedding to freeze", "use freeze_patch_embedding=false")
    for module in found:
        module.requires_grad_(False)
