"""The moving average of the weights, against a naive loop over the weights of every step."""

import filecmp
import json
import subprocess
from types import SimpleNamespace

import hydra
import pytest
import torch
from pytorch_lightning import Callback
from torch import nn

from drgrade.config import CONF
from drgrade.errors import ConfigError
from drgrade.evaluation.evaluation import evaluate
from drgrade.training.build import instantiate, make_encoder
from drgrade.training.callbacks import MovingAverage
from drgrade.training.run import train

DECAY = 0.7
SETTINGS = (
    "init=ssl",
    f"protocol.ema_decay={DECAY}",
    "data.batch_size=16",
    "protocol.epochs=3",
    "protocol.frozen_epochs=1",
    "schedule=cosine",
)


class Witness(Callback):
    """Store the weights after every step and the results of every validation; may stop the run."""

    def __init__(self, stop=None):
        self.weights, self.validated, self.stop = [], [], stop

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.weights.append({name: value.clone() for name, value in pl_module.state_dict().items()})

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == self.stop:
            raise RuntimeError("power cut")

    def on_train_epoch_end(self, trainer, pl_module):
        self.validated.append(float(trainer.callback_metrics["val/loss"]))


@pytest.fixture
def watched(train_with):
    """``watched(cfg, stop)``: train with this callback."""

    def run(cfg, stop=None):
        witness = Witness(stop)
        try:
            return train_with(witness, cfg), witness
        except RuntimeError:
            return None, witness

    return run


def checkpoint(folder, name="last"):
    return torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)


def evaluated(run, folder, tmp_path):
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose(
            "evaluate",
            [
                f"checkpoint={run}",
                "own_run=true",
                f"paths.run={folder}",
                f"paths.outputs={tmp_path}",
                "trainer=cpu",
            ],
        )
    return evaluate(cfg).metrics


def test_checkpoint_holds_average_and_weights_of_a_naive_loop(compose, tmp_path, watched):
    _, witness = watched(compose(*SETTINGS))
    assert len(witness.weights) == 9
    average = {name: value.double() for name, value in witness.weights[0].items()}
    for weights in witness.weights[1:]:
        for name, value in weights.items():
            average[name] = DECAY * average[name] + (1 - DECAY) * value.double()
    found = checkpoint(tmp_path / "run")
    assert found["state_dict"].keys() == average.keys()
    for name, value in found["state_dict"].items():
        last = witness.weights[-1][name]
        assert torch.equal(found["current_model_state"][name], last), name
        want = average[name] if value.is_floating_point() else last.double()
        torch.testing.assert_close(value.double(), want, rtol=1e-4, atol=1e-6, msg=name)
    moved = "encoder.model.features.norm0.running_mean"
    assert not torch.equal(found["state_dict"][moved], witness.weights[-1][moved])


@pytest.mark.parametrize("chosen", ["last", "best"])
def test_average_is_validated_selected_tested_and_evaluated(chosen, compose, tmp_path, watched):
    settings = ("protocol=matched", *SETTINGS, "seed=1", "optimizer.lr=3e-3")
    record, witness = watched(compose(*settings, f"protocol.checkpoint={chosen}"))
    epoch = checkpoint(tmp_path / "run", chosen)["epoch"]
    assert chosen == "last" or epoch < 2, "the best epoch should not be the last one here"
    assert record["val/loss"] == pytest.approx(witness.validated[epoch], rel=1e-6)
    again = evaluated(tmp_path / "run", tmp_path / "again", tmp_path)
    assert {**again, "evaluated": 0} == {**record, "evaluated": 0}
    files = [tmp_path / name / "predictions.csv" for name in ("run", "again")]
    assert filecmp.cmp(*files, shallow=False)
    # The weights without averaging have another loss.
    content = checkpoint(tmp_path / "run", chosen)
    content["state_dict"] = content["current_model_state"]
    torch.save(content, tmp_path / "run" / "checkpoints" / f"{chosen}.ckpt")
    raw = evaluated(tmp_path / "run", tmp_path / "raw", tmp_path)
    assert raw["val/loss"] != pytest.approx(record["val/loss"], rel=1e-4)


def test_resumed_run_ends_with_the_same_average(compose, tmp_path, watched):
    straight, _ = watched(compose(*SETTINGS, run="straight"))
    watched(compose(*SETTINGS, run="resumed"), stop=1)
    resumed = train(compose(*SETTINGS, f"resume={tmp_path / 'resumed'}", run="elsewhere"))
    one, other = (checkpoint(tmp_path / name) for name in ("straight", "resumed"))
    for part in ("state_dict", "current_model_state", "averaging_state"):
        assert one[part].keys() == other[part].keys()
        for name in one[part]:
            assert torch.equal(one[part][name], other[part][name]), name
    assert straight == resumed


def test_average_of_a_frozen_encoder_is_exact(compose, tmp_path):
    train(compose(*SETTINGS, "protocol.frozen_epochs=3"))
    found = checkpoint(tmp_path / "run")
    encoder = [name for name in found["state_dict"] if name.startswith("encoder.")]
    assert encoder
    for name in encoder:
        assert torch.equal(found["state_dict"][name], found["current_model_state"][name]), name


def test_average_keeps_double_precision(compose, tmp_path):
    train(compose(*SETTINGS, "trainer.precision=64-true", "trainer.max_steps=3"))
    assert checkpoint(tmp_path / "run")["state_dict"]["head.layers.0.weight"].dtype == torch.float64


@pytest.mark.parametrize("decay", [0, 1, 1.5, -0.1, True])
def test_decay_out_of_range_is_refused(decay):
    with pytest.raises(ConfigError, match=rf"protocol\.ema_decay={decay} is not in "):
        MovingAverage(decay)


def test_16_bit_weights_are_refused(compose):
    with pytest.raises(ConfigError, match="16-bit weights are not precise enough"):
        train(compose(*SETTINGS, "trainer.precision=bf16-true"))


def test_resuming_from_a_checkpoint_without_average_is_refused():
    trainer = SimpleNamespace(state=SimpleNamespace(fn="fit"))
    with pytest.raises(ConfigError, match="has no average of the weights"):
        MovingAverage(0.9).on_load_checkpoint(trainer, nn.Linear(1, 1), {"state_dict": {}})


@pytest.mark.parametrize(("device", "converted"), [("cuda", True), ("cpu", False)])
def test_sync_batchnorm_is_applied_before_the_average_is_created(compose, device, converted):
    cfg = compose("sync_batchnorm=true")
    task = instantiate(cfg.grading.task, encoder=make_encoder(cfg))
    task._trainer = SimpleNamespace(world_size=2, strategy=SimpleNamespace(root_device=torch.device(device)))
    task.configure_model()
    assert any(isinstance(each, nn.SyncBatchNorm) for each in task.modules()) == converted


@pytest.mark.slow
def test_two_processes_have_the_same_average(command, tmp_path):
    settings = [*SETTINGS, "trainer=ddp_cpu", f"paths.run={tmp_path / 'run'}"]
    done = subprocess.run(command(*settings), capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert {"current_model_state", "averaging_state"} <= checkpoint(tmp_path / "run").keys()
    again = evaluated(tmp_path / "run", tmp_path / "again", tmp_path)
    assert again["test/qwk"] == record["test/qwk"]
    assert again["test/loss"] == pytest.approx(record["test/loss"], rel=1e-5)
