"""The choice of the learning rate: order, ties, divergence, resuming, and what a run records."""

import json
import subprocess
from pathlib import Path

import pytest
import torch
from pytorch_lightning.callbacks import Callback

from drgrade.errors import ConfigError, DivergenceError
from drgrade.training import run as run_module
from drgrade.training.run import train
from drgrade.training.validation import Trial, rates_to_try, try_rates

COST = {"seconds": 1.0, "images": 8, "images_per_second": 8.0, "peak_memory": 1}


def trial(rate, qwk=None, loss=1.0):
    return Trial(rate, {} if qwk is None else {"val/qwk": qwk, "val/loss": loss}, COST, 2)


def outcomes(*trials):
    """Return a function that trains: it writes a checkpoint and returns the outcome of its rate."""
    known, asked = {each.rate: each for each in trials}, []

    def train_with(rate, checkpoints):
        asked.append(rate)
        checkpoints.mkdir(parents=True, exist_ok=True)
        (checkpoints / "last.ckpt").write_text(str(rate))
        if rate not in known:
            raise DivergenceError("not finite")
        return known[rate]

    return train_with, asked


@pytest.mark.parametrize(
    ("trials", "chosen"),
    [
        ([trial(1e-4, 0.2), trial(1e-3, 0.5), trial(1e-2, 0.4)], 1e-3),
        ([trial(1e-4, 0.5, loss=2.0), trial(1e-3, 0.5, loss=1.0), trial(1e-2, 0.5, loss=3.0)], 1e-3),
        ([trial(1e-4, 0.5), trial(1e-3, 0.5), trial(1e-2, 0.5)], 1e-4),
        ([trial(1e-4, -0.1), trial(1e-3, -0.3)], 1e-4),  # 1e-2 diverges
        ([trial(1e-3)], 1e-3),  # nothing was validated
    ],
)
def test_highest_validation_qwk_is_chosen(trials, chosen, tmp_path):
    train_with, _ = outcomes(*trials)
    rates = [1e-4, 1e-3, 1e-2] if len(trials) > 1 else [1e-3]
    best, tried = try_rates(rates, tmp_path, train_with)
    assert best.rate == chosen
    assert [each.rate for each in tried] == rates
    assert (tmp_path / "last.ckpt").read_text() == str(chosen)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.ckpt", "learning_rates.json"]


def test_divergence_with_every_rate_is_an_error(tmp_path):
    with pytest.raises(DivergenceError, match="with every learning rate"):
        try_rates([1.0, 2.0], tmp_path, outcomes()[0])


def test_rates_that_were_tried_are_not_tried_again(tmp_path):
    first, _ = outcomes(trial(0.1, 0.3), trial(0.2, 0.5), trial(0.3, 0.4))

    def interrupted(rate, checkpoints):
        if rate == 0.3:
            raise KeyboardInterrupt
        return first(rate, checkpoints)

    with pytest.raises(KeyboardInterrupt):
        try_rates([0.1, 0.2, 0.3], tmp_path, interrupted)
    again, asked = outcomes(trial(0.3, 0.4))
    best, tried = try_rates([0.1, 0.2, 0.3], tmp_path, again)
    assert asked == [0.3]
    assert best == trial(0.2, 0.5)
    assert (tmp_path / "last.ckpt").read_text() == "0.2"
    # After an interruption of the test that follows, nothing is trained and the checkpoint stays.
    assert try_rates([0.1, 0.2, 0.3], tmp_path, outcomes()[0]) == (best, tried)
    assert (tmp_path / "last.ckpt").read_text() == "0.2"


def test_without_validation_the_middle_rate_is_used(caplog):
    assert rates_to_try([3e-3, 3e-4, 1e-3], validated=True) == [3e-4, 1e-3, 3e-3]
    assert rates_to_try([3e-3, 3e-4, 1e-3], validated=False) == [1e-3]
    assert "no validation photographs to choose a learning rate by: 0.001" in caplog.text
    assert rates_to_try([2.0], validated=False) == [2.0]


TUNED = (
    "protocol=tuned",
    "scale.tuned_steps=4",
    "encoder=timm",
    "encoder.name=test_resnet",
    "protocol.learning_rates=[1e-3,1e-2]",
)


def record_of(folder):
    return json.loads((folder / "metrics.json").read_text())


def test_tuned_run_tests_once_with_the_chosen_rate(compose, tmp_path, monkeypatch):
    tested, original = [], run_module.test
    monkeypatch.setattr(run_module, "test", lambda *given: tested.append(1) or original(*given))
    metrics = train(compose(*TUNED, "init=random"))
    assert tested == [1]
    scores = {0.001: metrics["tuning/lr_0.001/qwk"], 0.01: metrics["tuning/lr_0.01/qwk"]}
    assert scores[metrics["learning_rate"]] == max(scores.values()) == pytest.approx(metrics["val/qwk"])
    provenance = json.loads((tmp_path / "run" / "provenance.json").read_text())
    assert provenance["steps"] == 4
    assert provenance["images"] == 2 * 4 * 8
    assert set(provenance["learning_rates"]) == {"0.001", "0.01"}
    content = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert content["global_step"] == 4
    assert {group["initial_lr"] for group in content["optimizer_states"][0]["param_groups"]} == {
        metrics["learning_rate"]
    }
    assert (
        f"learning rate {metrics['learning_rate']:g}, chosen"
        in (tmp_path / "run" / "model_card.md").read_text()
    )


class StopAfter(Callback):
    def __init__(self, rate, epoch):
        self.rate, self.epoch = rate, epoch

    def on_train_epoch_start(self, trainer, pl_module):
        at = trainer.optimizers[0].param_groups[0]["initial_lr"]
        if (at, trainer.current_epoch) == (self.rate, self.epoch):
            raise RuntimeError("power cut")


def test_interrupted_tuned_run_ends_with_the_same_results(compose, tmp_path, train_with):
    settings = (*TUNED, "init=random", "resume=auto")
    straight = train(compose(*settings, run="straight"))
    for rate, epoch in ((1e-3, 1), (1e-2, 0), (1e-2, 1)):
        run = f"resumed-{rate}-{epoch}"
        with pytest.raises(RuntimeError, match="power cut"):
            train_with(StopAfter(rate, epoch), compose(*settings, run=run))
        assert record_of(tmp_path / run)["status"] == "failed"
        assert train(compose(*settings, run=run)) == straight
        one, other = (
            torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
            for name in ("straight", run)
        )
        assert all(torch.equal(one[name], other[name]) for name in one)


SPY = """
import json, os
from pathlib import Path
from drgrade.training import run

choose, test = run.choose_learning_rate, run.test
found = {}

def choosing(*given):
    chosen = choose(*given)
    found["rate"] = chosen[0].rate
    return chosen

def testing(trainer, task, data, checkpoint, *rest):
    metrics = test(trainer, task, data, checkpoint, *rest)
    found["step"] = trainer.fit_loop.epoch_loop.global_step
    found["weights"] = [float(weight.double().sum()) for weight in task.parameters()]
    Path(f"rank-{trainer.global_rank}.json").write_text(json.dumps(found))
    return metrics

run.choose_learning_rate, run.test = choosing, testing
"""


@pytest.mark.slow
def test_two_processes_choose_the_same_rate_and_test_the_same_weights(command, tmp_path):
    python, script, *overrides = command(*TUNED, "init=random", "trainer=ddp_cpu")
    (tmp_path / "spied.py").write_text(SPY + Path(script).read_text())
    given = [python, "spied.py", *overrides, f"paths.run={tmp_path / 'run'}"]
    done = subprocess.run(given, capture_output=True, text=True, cwd=tmp_path, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    first, second = (json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(2))
    assert first == second
    metrics, folder = record_of(tmp_path / "run"), tmp_path / "run" / "checkpoints"
    assert first["rate"] == metrics["learning_rate"]
    assert metrics["tuning/lr_0.001/qwk"] != metrics["tuning/lr_0.01/qwk"]
    content = torch.load(folder / "last.ckpt", weights_only=True)
    assert content["optimizer_states"][0]["param_groups"][0]["initial_lr"] == first["rate"]
    assert sorted(path.name for path in folder.iterdir()) == ["last.ckpt", "learning_rates.json"]
    provenance = json.loads((tmp_path / "run" / "provenance.json").read_text())
    assert (provenance["devices"], provenance["steps"]) == (2, 4)
    assert provenance["images"] == 2 * 4 * 8  # of both processes
    assert (done.stdout + done.stderr).count("is chosen (validation QWK") == 1


def test_tuned_run_without_validation_uses_the_middle_rate(compose):
    settings = ("protocol.val_fraction=0", "protocol.learning_rates=[1e-3,2e-3,1e-2]")
    metrics = train(compose(*TUNED[:-1], "init=random", *settings))
    assert metrics["learning_rate"] == 2e-3
    assert not any(name.startswith(("tuning/", "val/")) for name in metrics)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["optimizer.lr=1e-4"], r"optimizer\.lr=0\.0001 has no effect with protocol=tuned"),
        (["protocol.learning_rates=[]"], "give different rates above 0"),
        (["protocol.learning_rates=[1e-3,1e-3]"], "give different rates above 0"),
        (["head.hidden=16"], r"head\.hidden=16 is not one"),
        (["+callbacks.search={_target_: x}"], "a search chooses the learning rate itself"),
    ],
)
def test_settings_that_contradict_the_choice_are_refused(settings, message, compose):
    with pytest.raises(ConfigError, match=message):
        train(compose("protocol=tuned", *settings))


def test_probe_refuses_learning_rates(compose):
    with pytest.raises(ConfigError, match=r"learning_rates=\[0\.001\] has no effect with protocol=linear"):
        train(compose("protocol=linear", "protocol.learning_rates=[1e-3]"))


def test_pretrained_weights_start_with_the_head_of_a_linear_probe(compose, tmp_path):
    own = ("init=ssl", "protocol.ema_decay=null", "protocol.precise_bn=true")
    probed = train(compose("protocol=linear", *TUNED[2:4], "init=ssl", run="probe"))
    settings = ("protocol.learning_rates=[1e-12]", "optimizer.weight_decay=0", *own)
    metrics = train(compose(*TUNED[:-1], *settings))
    # At a rate of almost 0 the first head is tested.
    one, other = (
        torch.load(tmp_path / run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for run in ("probe", "run")
    )
    torch.testing.assert_close(one["head.head.layers.0.weight"], other["head.layers.0.weight"])
    torch.testing.assert_close(one["head.head.layers.0.bias"], other["head.layers.0.bias"])
    assert metrics["learning_rate"] == 1e-12
    assert probed["status"] == "finished"
