"""Statistics of batch normalisation: estimated anew, for batches of one image, and with another momentum."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def batch_norms(model: nn.Module) -> dict[str, _BatchNorm]:
    """Return the batch normalisations of a model that keep running statistics, by name.

    Example:
        >>> list(batch_norms(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))))
        ['1']
    """
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.track_running_stats
    }


@torch.no_grad()
def estimate_statistics(model: nn.Module, batches: Iterable[Tensor]) -> int:
    """Replace the running statistics of a model by the mean of those of given batches.

    Precise batch normalisation (Wu and Johnson, "Rethinking 'Batch' in BatchNorm", 2021, section 3): every
    batch has the same weight, unlike in a moving average, which forgets. All other layers are in evaluation
    mode, unlike in :func:`torch.optim.swa_utils.update_bn`, where dropout would change the statistics. The
    weights do not change.

    Args:
        model: Maps a batch of normalised images (B, 3, H, W) to features.
        batches: Batches of the model's dtype and on its device, of one size. Without any, nothing changes.

    Returns:
        The number of batches; 0 for a model without batch normalisation.
    """
    norms, count, training = list(batch_norms(model).values()), 0, model.training
    if not norms:
        return 0
    momenta = [norm.momentum for norm in norms]
    model.eval()
    try:
        for batch in batches:
            if not count:
                for norm in norms:
                    norm.reset_running_stats()
                    norm.momentum = None  # cumulative average
                    norm.train()
            model(batch)
            count += 1
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        model.train(training)
    return count


class SecondStatistics:
    """Running statistics that a model would have with another momentum, kept during its training.

    In training mode a batch is normalised by its own statistics, so the weights do not depend on the
    momentum, and one training serves several. The batch's statistics follow from the change of the running
    ones: ``before + (after - before) / momentum``.

    Args:
        model: Model with batch normalisations, in training.
        momentum: Momentum of these statistics in PyTorch's sense: 0.01 is 0.99 in Keras and TensorFlow.
    """

    def __init__(self, model: nn.Module, momentum: float) -> None:
        self._norms, self.momentum = batch_norms(model), momentum
        self.statistics = self._running_copies()
        self._before: dict[str, Tensor] = {}
        for name, norm in self._norms.items():
            norm.register_forward_pre_hook(lambda module, inputs, name=name: self._remember(name))
            norm.register_forward_hook(lambda module, inputs, output, name=name: self._follow(name))

    def _running(self, *names: str) -> dict[str, Tensor]:
        """Return the model's own statistics of the named normalisations, by default of all."""
        return {
            f"{name}.{kind}": getattr(self._norms[name], kind)
            for name in names or self._norms
            for kind in ("running_mean", "running_var")
        }

    def _running_copies(self, *names: str) -> dict[str, Tensor]:
        return {key: tensor.clone() for key, tensor in self._running(*names).items()}

    def _remember(self, name: str) -> None:
        # A single value per channel is normalised in evaluation mode, which ends before the other hook.
        self._before = self._running_copies(name) if self._norms[name].training else {}

    def _follow(self, name: str) -> None:
        momentum, running = self._norms[name].momentum, self._running(name)
        if not momentum:
            return
        for key, before in self._before.items():
            batch = before + (running[key] - before) / momentum
            self.statistics[key] = torch.lerp(self.statistics[key].to(batch), batch, self.momentum)

    @contextmanager
    def used(self) -> Iterator[None]:
        """Evaluate the model with these statistics; its own are restored afterwards."""
        own = self._running_copies()
        try:
            self._write(self.statistics)
            yield
        finally:
            self._write(own)

    @torch.no_grad()
    def _write(self, statistics: dict[str, Tensor]) -> None:
        for key, tensor in self._running().items():
            tensor.copy_(statistics[key])


def use_running_statistics_for_one(model: nn.Module) -> None:
    """Let every batch normalisation of a model accept a single value per channel in training.

    Such an input, as a batch of one photograph gives it to a head, has no variance. It is normalised with the
    running statistics, as in evaluation, and does not change them.
    """
    for module in model.modules():
        # Synchronised normalisations count the values of all processes.
        if isinstance(module, _BatchNorm) and not isinstance(module, nn.SyncBatchNorm):
            module.register_forward_pre_hook(_evaluate_one)
            module.register_forward_hook(_train_again, always_call=True)


def _evaluate_one(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    if module.training and inputs[0].numel() == inputs[0].shape[1]:
        module.training, module.evaluates_one = False, True  # type: ignore[assignment]


def _train_again(module: nn.Module, inputs: tuple[Tensor, ...], output: object) -> None:
    if getattr(module, "evaluates_one", False):
        module.training, module.evaluates_one = True, False  # type: ignore[assignment]
