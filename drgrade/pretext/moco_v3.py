"""MoCo v3 (Chen, Xie and He, ICCV 2021): contrastive learning against a momentum encoder."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from drgrade.errors import ConfigError, check_range
from drgrade.models.encoder import Encoder, to_float32
from drgrade.pretext.base import HEAD, accuracy, reject_encoder
from drgrade.pretext.contrastive import ContrastivePretext, projection_head
from drgrade.pretext.teacher import Teacher


class MoCoV3(ContrastivePretext):
    """Find the key of the same photograph among the keys of a batch, which a momentum encoder computes.

    Attributes:
        projector: Maps features to embeddings; the momentum encoder has its own.
        predictor: Maps embeddings to queries; the momentum encoder has none.
        teacher: Momentum encoder and momentum projector.
    """

    scores = ("accuracy", "similarity")

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
        """Build the heads and the momentum encoder.

        Args:
            encoder: Any encoder.
            hidden: Width of the hidden layers of projector and predictor.
            dim: Length of the embeddings.
            projector_layers: Number of layers of the projector; 3 for Transformers and 2 for ResNets in the
                paper. The predictor has 2.
            batch_norm: Normalise every layer of the heads, as in the paper.
            temperature: Temperature of the softmax over keys, above 0.
            momentum: Momentum of the teacher in the first step, in [0, 1]; it rises to 1.
            freeze_patch_embedding: Keep the initial weights of the first layer of a Vision Transformer
                (section 4 of the paper: it prevents instability at batch sizes of thousands).
        """
        super().__init__()
        check_range("[1, inf)", HEAD, projector_layers=projector_layers)
        check_range("(0, inf)", HEAD, temperature=temperature)
        if freeze_patch_embedding:
            _freeze_patch_embedding(encoder)
        widths = [encoder.num_features, *[hidden] * (projector_layers - 1), dim]
        self.projector = projection_head(widths, batch_norm)
        self.predictor = projection_head([dim, hidden, dim], batch_norm)
        self.teacher = Teacher(encoder, self.projector, projection_head(widths, batch_norm), momentum)
        self._temperature = temperature

    def before_step(self, encoder: Encoder, progress: float) -> None:
        """Update the momentum encoder; see :class:`Pretext`."""
        self.teacher.update(encoder, self.projector, progress)

    def forward(self, encoder: Encoder, views: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss, the sum over both directions; see :class:`Pretext`.

        In training the keys of all processes are gathered, in evaluation only those of the process.
        """
        if len(views) != self.num_views or views[0].shape != views[1].shape:
            sides = [view.shape[-1] for view in views]
            raise ConfigError(f"pretext.views gives views of {sides} pixels; moco_v3 needs two of one size")
        both = torch.cat(list(views))  # (2B, 3, H, W)
        queries = self.predictor(self.projector(encoder(both))).chunk(2)  # 2 x (B, dim)
        keys = self.teacher(both).chunk(2)
        losses, scores = zip(
            *(info_nce(queries[k], *self.gather(keys[1 - k]), self._temperature) for k in (0, 1)),
            strict=True,
        )
        means = {name: torch.stack([each[name] for each in scores]).mean() for name in self.scores}
        return torch.stack(losses).sum(), means


def info_nce(
    queries: Tensor, keys: Tensor, start: int, temperature: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute the cross-entropy of finding each query's key among all keys, times 2 tau.

    -2 tau log(exp(q_i k_i / tau) / sum_j exp(q_i k_j / tau)) with unit vectors q (B, D) and k (N, D), which
    receive no gradient (Chen, Xie and He, ICCV 2021, equation 1). The key of query i is key ``start + i``.
    The factor is that of algorithm 1: it makes the gradient depend less on tau, the ``temperature``.

    Returns:
        Mean over the queries, and the scores ``accuracy``, the share of queries whose own key is the nearest,
        and ``similarity``, the mean cosine between a query and its own key.
    """
    with torch.autocast(queries.device.type, enabled=False):  # cosines are divided by tau
        queries, keys = (functional.normalize(to_float32(each), dim=1) for each in (queries, keys.detach()))
        cosines = queries @ keys.T  # (B, N)
        own = torch.arange(start, start + len(queries), device=queries.device)
        loss = 2 * temperature * functional.cross_entropy(cosines / temperature, own)
    similarity = cosines.detach().gather(1, own[:, None]).mean()
    return loss, {"accuracy": accuracy(cosines, own), "similarity": similarity}


def _freeze_patch_embedding(encoder: Encoder) -> None:
    found = [module for name, module in encoder.named_modules() if name.rpartition(".")[2] == "patch_embed"]
    if not found:
        reject_encoder(
            "moco_v3", encoder, "it has no patch embedding to freeze", "use freeze_patch_embedding=false"
        )
    for module in found:
        module.requires_grad_(False)
