"""One training, tested with the batch statistics of two momenta."""

import numpy as np
import pandas as pd
import pytest
from pytorch_lightning.callbacks import Callback

from drgrade.errors import ConfigError
from drgrade.models.batch_norm import batch_norms
from drgrade.training.run import train

EXPERIMENT = ("+experiment=batchnorm_momentum", "data.batch_size=8", "scale.published_epochs=3")


class OtherMomentum(Callback):
    def on_fit_start(self, trainer, pl_module):
        for norm in batch_norms(pl_module).values():
            norm.momentum = 0.01


class StopAfter(Callback):
    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 2:
            raise RuntimeError("power cut")


def test_second_momentum_gives_the_results_of_a_training_with_it(compose, tmp_path, train_with):
    both = train(compose(*EXPERIMENT, run="both"))
    own = ("~callbacks.batchnorm_momentum",)
    other = train_with(OtherMomentum(), compose(*EXPERIMENT, *own, run="other"))
    plain = train(compose(*EXPERIMENT, *own, run="plain"))
    names = [name for name in plain if name.startswith("test/")]
    for name in names:
        assert both[name] == plain[name], name
    second = pd.read_csv(tmp_path / "both" / "predictions_momentum_0.01.csv")
    expected = pd.read_csv(tmp_path / "other" / "predictions.csv")
    assert list(second["image_id"]) == list(expected["image_id"])
    probabilities = [table[["p0", "p1", "p2", "p3", "p4"]].to_numpy() for table in (second, expected)]
    np.testing.assert_allclose(*probabilities, atol=1e-4)
    for name in ("qwk", "accuracy", "auroc"):
        assert both[f"momentum_0.01/test/{name}"] == pytest.approx(other[f"test/{name}"], abs=1e-6)
    assert both["test/auroc"] != pytest.approx(other["test/auroc"], abs=1e-3)


def test_statistics_survive_an_interruption(compose, tmp_path, train_with):
    straight = train(compose(*EXPERIMENT, run="straight"))
    with pytest.raises(RuntimeError, match="power cut"):
        train_with(StopAfter(), compose(*EXPERIMENT, run="resumed"))
    assert train(compose(*EXPERIMENT, f"resume={tmp_path / 'resumed'}", run="elsewhere")) == straight


@pytest.mark.parametrize("setting", ["protocol.checkpoint=best", "protocol.ema_decay=0.9", "protocol=tuned"])
def test_weights_of_another_step_are_refused(setting, compose):
    with pytest.raises(ConfigError, match="batchnorm_momentum needs"):
        train(compose(*EXPERIMENT, setting))
