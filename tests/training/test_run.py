"""A fine-tuning run on the smallest models: artefacts, metrics, resuming, settings."""

import itertools
import json
import math
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from filelock import FileLock
from omegaconf import OmegaConf
from pytorch_lightning.callbacks import Callback, EarlyStopping
from sklearn.metrics import accuracy_score, cohen_kappa_score, f1_score, roc_auc_score

from drgrade.cli.command import explain
from drgrade.data.datamodules import GradingDataModule
from drgrade.data.splits.split import split_hash
from drgrade.data.transforms import FundusAugmentation
from drgrade.errors import ConfigError, DataError, DrgradeError
from drgrade.models.encoder import save_encoder
from drgrade.models.heads import CumulativeHead
from drgrade.runs.reader import RunLocation, read_run
from drgrade.runs.run_dir import read_finished, read_metrics
from drgrade.training.build import instantiate, make_encoder, make_trainer, seed_everything
from drgrade.training.run import train


def weights_of(folder):
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


@pytest.fixture
def finished(finished_run):
    folder = finished_run()
    return json.loads((folder / "metrics.json").read_text()), folder


def test_run_writes_all_artefacts(finished):
    metrics, folder = finished
    assert metrics["status"] == "finished"
    assert {"test/qwk", "test/accuracy", "test/auroc", "val/qwk", "train/loss", "data_hash"} <= metrics.keys()
    predictions = pd.read_csv(folder / "predictions.csv")
    assert list(predictions) == ["image_id", "grade", "predicted", "p0", "p1", "p2", "p3", "p4"]
    split = pd.read_csv(folder / "split.csv")
    assert list(split) == ["image_id", "group", "grade", "subset"]
    assert split_hash(split) == metrics["split_hash"]
    assert sorted(predictions["image_id"]) == sorted(split["image_id"][split["subset"] == "test"])
    assert (folder / "config.yaml").is_file()
    assert (
        json.loads((folder / "provenance.json").read_text())["versions"]["torch"]
        == torch.__version__.split("+")[0]
    )
    assert (folder / "checkpoints" / "last.ckpt").is_file()


def test_metrics_follow_from_predictions(finished):
    metrics, folder = finished
    table = pd.read_csv(folder / "predictions.csv")
    truth, predicted, scores = (
        table["grade"],
        table["predicted"],
        table[["p0", "p1", "p2", "p3", "p4"]].to_numpy(),
    )
    assert metrics["test/qwk"] == pytest.approx(
        cohen_kappa_score(truth, predicted, weights="quadratic"), abs=1e-6
    )
    assert metrics["test/accuracy"] == pytest.approx(accuracy_score(truth, predicted), abs=1e-6)
    assert metrics["test/mae"] == pytest.approx((truth - predicted).abs().mean(), abs=1e-6)
    assert metrics["test/macro_f1"] == pytest.approx(
        f1_score(truth, predicted, average="macro", labels=sorted({*truth, *predicted}), zero_division=0),
        abs=1e-6,
    )
    referable = roc_auc_score(truth >= 2, scores[:, 2:].sum(axis=1))
    assert metrics["test/referable_auroc"] == pytest.approx(
        referable, abs=1e-3
    )  # the CSV rounds, which can make ties
    confusion = pd.read_csv(folder / "confusion.csv", index_col="grade").to_numpy()
    for grade in range(5):
        for guess in range(5):
            assert confusion[grade, guess] == ((truth == grade) & (predicted == guess)).sum()


def test_same_seed_and_config_give_bit_identical_metrics(compose, finished_run, tmp_path):
    train(compose("protocol.val_fraction=0.3"))
    first, second = (folder / "metrics.json" for folder in (finished_run(), tmp_path / "run"))
    assert first.read_bytes() == second.read_bytes()


def test_seed_changes_the_run_but_not_the_split(compose, finished):
    one, two = finished[0], train(compose("protocol.val_fraction=0.3", "seed=1"))
    assert one["split_hash"] == two["split_hash"]
    assert one["train/loss"] != two["train/loss"]


class StopAfter(Callback):
    def __init__(self, epoch):
        self.epoch = epoch

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == self.epoch:
            raise RuntimeError("power cut")


@pytest.mark.parametrize(
    ("experiment", "layer_decay", "epoch"), [("rotation_100pct", 0.7, 1), ("msssl_50pct", "null", 2)]
)
def test_resumed_run_ends_with_the_same_weights(
    experiment, layer_decay, epoch, compose, tmp_path, train_with
):
    # Dropout, a schedule over the whole run, frozen epochs, and Adam's moments all have to be taken up again.
    settings = (
        f"+experiment={experiment}",
        f"protocol.layer_decay={layer_decay}",
        "init=ssl",
        "schedule=cosine",
        "protocol.epochs=3",
        "protocol.frozen_epochs=1",
        "data.batch_size=8",
    )
    straight = train(compose(*settings, run="straight"))
    with pytest.raises(RuntimeError, match="power cut"):
        train_with(StopAfter(epoch), compose(*settings, run="resumed"))
    assert json.loads((tmp_path / "resumed" / "metrics.json").read_text())["status"] == "failed"
    resumed = train(compose(*settings, f"resume={tmp_path / 'resumed'}", run="elsewhere"))
    before, after = weights_of(tmp_path / "straight"), weights_of(tmp_path / "resumed")
    assert before.keys() == after.keys()
    for name in before:
        assert torch.equal(before[name], after[name]), name
    assert {**straight, "checkpoint": 0} == {**resumed, "checkpoint": 0}


def test_cost_covers_all_parts_of_a_resumed_run(compose, tmp_path, train_with):
    # protocol=matched may test an early epoch; all 3 epochs of 2 steps of 8 photographs count.
    settings = ("+experiment=msssl_100pct", "init=random", "protocol.epochs=3", "data.batch_size=8")
    with pytest.raises(RuntimeError, match="power cut"):
        train_with(StopAfter(1), compose(*settings, "resume=auto"))
    record = train(compose(*settings, "resume=auto"))
    cost = json.loads((tmp_path / "run" / "provenance.json").read_text())
    assert record["checkpoint"] == "best.ckpt"
    assert cost["images"] == 3 * 2 * 8
    assert cost["images_per_second"] == pytest.approx(cost["images"] / cost["seconds"])
    assert cost["peak_memory"] > 2**20


def test_finished_run_is_not_repeated_refuses_other_settings_and_is_tested_again_if_named(compose, tmp_path):
    settings, named = ("+experiment=rotation_100pct", "init=random"), f"resume={tmp_path / 'run'}"
    first = train(compose(*settings))
    written = (tmp_path / "run" / "predictions.csv").stat().st_mtime_ns
    assert train(compose(*settings, "resume=auto")) == first
    assert (tmp_path / "run" / "predictions.csv").stat().st_mtime_ns == written
    with pytest.raises(ConfigError, match=r"holds another run .*label_fraction was 1"):
        train(compose("+experiment=rotation_50pct", "init=random", "resume=auto"))
    with pytest.raises(ConfigError, match=r"label_fraction was 1 and is 0\.5"):
        train(compose("+experiment=rotation_50pct", "init=random", named, run="other"))
    again = train(compose(*settings, named, run="elsewhere"))
    assert (tmp_path / "run" / "predictions.csv").stat().st_mtime_ns > written
    assert {**again, "train/loss": 0} == {**first, "train/loss": 0}


def test_locked_run_folder_is_refused(compose, tmp_path):
    (tmp_path / "run").mkdir()
    with FileLock(tmp_path / "run" / ".lock"), pytest.raises(ConfigError, match="another process is using"):
        train(compose("init=random"))


class ValidatedOnItsTrainingPhotographs(GradingDataModule):
    def val_dataloader(self):
        return self._evaluation_loader(self._datasets["train"])


def test_eight_images_are_overfitted(compose, tmp_path, make_photographs):
    photographs = make_photographs(val_fraction=0.15)
    split = photographs.split
    chosen = pd.concat([split[split["grade"] == grade].head(2) for grade in range(5)]).head(8).index
    split["subset"] = np.where(split.index.isin(chosen), "train", "excluded")
    cfg = compose("head.dropout=0", "optimizer.lr=3e-3", "trainer.max_epochs=10", "protocol.frozen_epochs=0")
    torch.manual_seed(0)
    data = ValidatedOnItsTrainingPhotographs(
        photographs, FundusAugmentation(), batch_size=8, seed=0, steps_per_epoch=20
    )
    task = instantiate(cfg.grading.task, encoder=make_encoder(cfg))
    stop = EarlyStopping("val/qwk", mode="max", stopping_threshold=0.999, patience=10)
    make_trainer(cfg, tmp_path, [stop])[0].fit(task, datamodule=data)
    assert task.results["val"]["val/qwk"] == 1.0


def test_label_fraction_limits_the_training_photographs(compose, tmp_path):
    metrics = train(compose("init=random", "label_fraction=0.25"))
    split = pd.read_csv(tmp_path / "run" / "split.csv")
    counts = split["subset"].value_counts()
    side = counts["train"] + counts["unlabelled"]
    assert abs(counts["train"] / side - 0.25) < 0.1
    images = json.loads((tmp_path / "run" / "provenance.json").read_text())["images"]
    batch = min(8, counts["train"])
    assert images == 2 * batch * math.ceil(counts["train"] / batch)
    assert metrics["label_fraction"] == 0.25


def test_matched_protocol_takes_equal_steps_at_every_fraction(compose, finished_run, tmp_path):
    train(compose("protocol=matched", "label_fraction=0.1"))
    for folder in (tmp_path / "run", finished_run("init=random", "protocol=matched")):
        checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
        assert checkpoint["global_step"] == 2 * 2


def test_frozen_epochs_apply_to_pretrained_weights_only(compose, tmp_path, caplog):
    base = ("encoder=timm", "encoder.name=test_resnet", "trainer.max_epochs=1", "protocol.frozen_epochs=1")
    cfg = compose(*base)
    seed_everything(cfg.seed)
    encoder = make_encoder(cfg)
    save_encoder(encoder, tmp_path, {})
    caplog.set_level("INFO", logger="drgrade")
    train(compose(*base, f"init={tmp_path}", "pretrain_on=all", run="frozen"))
    assert "random weights learn in every epoch" not in caplog.text
    train(compose(*base, "init=random", run="random"))
    assert "random weights learn in every epoch" in caplog.text
    start, frozen = encoder.state_dict(), weights_of(tmp_path / "frozen")
    assert all(torch.equal(start[name], frozen[f"encoder.{name}"]) for name in start)
    random = weights_of(tmp_path / "random")
    assert not any(
        torch.equal(value, random[f"encoder.{name}"])
        for name, value in start.items()
        if name.endswith(("weight", "running_mean"))
    )


@pytest.mark.parametrize(
    ("head", "extras"),
    [
        ("cumulative", "trainer.precision=bf16-mixed"),
        ("softmax", "channels_last=true"),
        ("regression", "data.balanced=true"),
        ("corn", "trainer.precision=bf16-mixed channels_last=true data.balanced=true"),
    ],
)
def test_heads_precisions_and_memory_formats_combine(head, extras, compose):
    metrics = train(compose(f"head={head}", *extras.split(), "trainer.max_steps=2"))
    assert all(math.isfinite(value) for name, value in metrics.items() if name.startswith("test/"))


def test_last_epoch_is_tested_without_validation_photographs(compose, caplog):
    metrics = train(compose("protocol=matched", "protocol.val_fraction=0"))
    assert metrics["checkpoint"] == "last.ckpt"
    assert not any(name.startswith("val/") for name in metrics)
    assert "the last one is tested" in caplog.text


def test_epoch_with_the_highest_qwk_is_tested(compose, tmp_path):
    metrics = train(compose("protocol=matched", "protocol.epochs=4", "logger=csv"))
    curve = pd.read_csv(tmp_path / "run" / "csv" / "version_0" / "metrics.csv").dropna(
        subset=["val/qwk", "epoch"]
    )
    during = curve[curve["epoch"] < 4].drop_duplicates("epoch")["val/qwk"].to_numpy()
    best = torch.load(tmp_path / "run" / "checkpoints" / "best.ckpt", weights_only=True)
    assert metrics["checkpoint"] == "best.ckpt"
    assert best["epoch"] == during.argmax()
    assert metrics["val/qwk"] == pytest.approx(during.max(), abs=1e-6)


def test_checkpoint_of_an_earlier_run_is_not_tested(compose, finished_run, tmp_path):
    shutil.copytree(finished_run("init=random", "protocol=matched"), tmp_path / "run")
    assert read_metrics(tmp_path / "run")["checkpoint"] == "best.ckpt"
    assert train(compose("protocol=matched", "trainer.max_steps=1"))["checkpoint"] == "last.ckpt"


def test_failed_run_records_its_error(compose, tmp_path):
    with pytest.raises(DataError):
        train(
            compose(
                f"data.root={tmp_path / 'nowhere'}",
                "data.source._target_=drgrade.data.sources.idrid.IDRiD",
                "~data.source.count",
                "~data.source.size",
                "~data.source.seed",
                "~data.source.workers",
            )
        )
    record = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert record["status"] == "failed"
    assert "nowhere" in record["error"]


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("init=nowhere.safetensors", "no such file"),
        ("label_fraction=10", "label_fraction=10 is not allowed: number > 0 and ≤ 1"),
        ("fold=5", "counted from 0"),
        ("fold=published", "no published test set"),
        ("task=grade", "did you mean grading"),
        ("protocol.checkpoint=first", "protocol.checkpoint=first is not allowed: last, best"),
        ("trainer.devices=2", "trainer=ddp"),
        ("trainer.precision=bf16-mix", "bf16-mix"),
        ("optimizer.lr=-1", "learning rate"),
        ("head.dropout=2", "dropout"),
        ("encoder=timm encoder.name=resnet_18", "did you mean"),
    ],
)
def test_inconsistent_settings_are_refused(override, hint, compose):
    with pytest.raises(Exception) as caught:  # noqa: PT011 - the explanation is what counts
        train(compose(*override.split()))
    assert hint in (explain(caught.value) or "")


def test_resumed_run_keeps_the_curves_of_its_first_part(compose, tmp_path):
    settings = ("+experiment=rotation_100pct", "init=random", "logger=csv")
    train(compose(*settings, "trainer.max_epochs=1"))
    train(compose(*settings, f"resume={tmp_path / 'run'}", run="elsewhere"))
    parts = [tmp_path / "run" / "csv" / f"version_{part}" / "metrics.csv" for part in (0, 1)]
    epochs = [set(pd.read_csv(part).dropna(subset=["train/loss"])["epoch"]) for part in parts]
    assert epochs == [{0}, {1}]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("+trainer.fast_dev_run=true", "trainer.fast_dev_run would give figures of a part"),
        ("+trainer.overfit_batches=1", "trainer.overfit_batches would give"),
        ("+trainer.limit_train_batches=2", "trainer.limit_train_batches would give"),
        ("+trainer.limit_val_batches=0", "trainer.limit_val_batches would give"),
        ("+trainer.limit_test_batches=0.5", "trainer.limit_test_batches would give"),
        ("+trainer.max_time=00:00:10:00", "trainer.max_time would give"),
        ("trainer.max_epochs=0", "trainer.max_epochs=0, trainer.max_steps=-1: nothing would be trained"),
        ("trainer.max_steps=0", "nothing would be trained"),
        ("trainer.max_epochs=-1", "would not end"),
        ("trainer.max_epochs=null", "would not end"),
        ("init=ssl pretext.epochs=0", "pretext.epochs=0, pretext.max_steps=-1: nothing would be trained"),
        ("task=pretext pretext.epochs=0", "nothing would be trained"),
        ("+trainer.logger=true", "trainer.logger=True is not allowed: use logger=NAME"),
        ("+trainer.val_check_interval=0.5", "an epoch ends with a validation"),
        ("trainer.sync_batchnorm=true", "the top-level sync_batchnorm=true"),
        ("trainer.use_distributed_sampler=true", "distributed already"),
        ("+trainer.strategy=ddp", "use trainer=ddp or trainer=ddp_cpu"),
        ("+trainer.num_nodes=2", "trainer.num_nodes=2: for several devices use"),
        ("+trainer.check_val_every_n_epoch=0", "check_val_every_n_epoch=0 is not allowed"),
        ("trainer.accelerator=tpu", "trainer.accelerator=tpu is not allowed; did you mean"),
        ("seed=9223372036854775808", "is not below 2^63"),
        ("+trainer.limit_tests=1", "no such argument; did you mean limit_test_batches"),
    ],
)
def test_argument_of_lightning_that_cannot_be_used_is_refused_before_anything_starts(
    override, message, compose, tmp_path
):
    with pytest.raises(ConfigError) as error:
        train(compose(*override.split()))
    assert message in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("+encoder.checkpoint_path=a.pth", "its encoder has checkpoint_path=a.pth"),
        ("+encoder.pretrained_cfg={url:x}", "its encoder has pretrained_cfg="),
        ("encoder.growth_rate=100000", "its encoder has growth_rate=100000"),
        ("encoder=msssl +encoder.cnn_options.cache_dir=a", "its encoder has cnn_options: cache_dir=a"),
        ("encoder=timm encoder.name=hf-hub:a/b", "its encoder has name=hf-hub:a/b, not a model of timm"),
        ("task=pretext +encoder.checkpoint_path=a.pth", "its encoder has checkpoint_path="),
        ("protocol=knn protocol.probe.k=2000000", "its head has k=2000000"),
    ],
)
def test_model_that_could_not_be_loaded_is_refused_before_anything_starts(
    override, message, compose, tmp_path
):
    with pytest.raises(ConfigError, match="the run could be trained, but not be loaded afterwards") as error:
        train(compose(*override.split()))
    assert message in str(error.value)
    assert not (tmp_path / "run").exists()


def test_class_outside_drgrade_is_trained_with_a_warning(compose, tmp_path, monkeypatch, caplog):
    (tmp_path / "own_heads.py").write_text("from drgrade.models.heads import CumulativeHead as Own\n")
    monkeypatch.syspath_prepend(tmp_path)
    metrics = train(compose("head._target_=own_heads.Own", "trainer.max_epochs=1"))
    assert metrics["status"] == "finished"
    assert "own_heads.Own: predict, evaluate, export and publish will refuse this run" in caplog.text


@pytest.mark.parametrize("overrides", [("init=ssl",), ("protocol=linear",)])
def test_debug_run_is_a_trial_and_no_result(overrides, compose, tmp_path):
    metrics = train(compose("debug=default", *overrides))
    folder = tmp_path / "run"
    assert metrics["status"] == read_metrics(folder)["status"] == "trial"
    assert "test/qwk" in metrics
    assert read_run(RunLocation(folder)).why == "trial runs (debug=default)"
    with pytest.raises(
        ConfigError, match=r"not a finished grading run \(status: trial\); run it again without"
    ):
        read_finished(folder)
    again = train(compose("debug=default", *overrides, "resume=auto"))
    assert again == metrics


def test_debug_pretraining_is_a_trial(compose):
    assert train(compose("debug=default", "task=pretext"))["status"] == "trial"


def test_lightnings_environment_variables_are_refused(compose, monkeypatch):
    monkeypatch.setenv("PL_TRAINER_LIMIT_TEST_BATCHES", "1")
    with pytest.raises(ConfigError, match=r"PL_TRAINER_LIMIT_TEST_BATCHES: unset this variable"):
        train(compose())


@pytest.mark.parametrize(
    "arguments",
    [
        ("trainer.num_sanity_val_steps=2", "+trainer.profiler=simple", "+trainer.check_val_every_n_epoch=2"),
        ("trainer.max_epochs=-1", "trainer.max_steps=3", "+trainer.min_epochs=2", "+trainer.benchmark=true"),
    ],
)
def test_other_arguments_of_lightning_work(arguments, compose):
    assert train(compose(*arguments))["status"] == "finished"


def test_earlier_trial_run_cannot_be_loaded(finished, tmp_path):
    trial = shutil.copytree(finished[1], tmp_path / "trial")
    cfg = OmegaConf.load(trial / "config.yaml")
    OmegaConf.update(cfg, "trainer.limit_test_batches", 1, force_add=True)
    OmegaConf.save(cfg, trial / "config.yaml")
    with pytest.raises(ConfigError, match=r"trial run on a part of its photographs .*limit_test_batches"):
        read_finished(trial)


@pytest.mark.parametrize("encoder", [(), ("encoder=timm", "encoder.name=test_resnet"), ("encoder=vit",)])
def test_batches_of_one_photograph_are_trained(encoder, compose, tmp_path):
    one = ("data.batch_size=1", "trainer.accumulate_grad_batches=4", "label_fraction=0.25")
    metrics = train(compose(*encoder, *one, "protocol.frozen_epochs=0", "trainer.max_epochs=1"))
    assert metrics["status"] == "finished"
    state = weights_of(tmp_path / "run")
    assert torch.equal(state["head.layers.2.running_mean"], torch.zeros(16))


@pytest.mark.parametrize(
    "override", ["optimizer.lr=1e30", "optimizer.lr=1e30 protocol.val_fraction=0 test=false"]
)
def test_diverged_training_stops_before_it_is_validated_or_stored(override, compose, tmp_path):
    with pytest.raises(
        DrgradeError, match=r"diverged in epoch 1 \((loss|weights) not finite\): lower optimizer.lr"
    ):
        train(compose(*override.split(), "protocol.frozen_epochs=0"))
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["status"] == "failed"
    assert not list((tmp_path / "run" / "checkpoints").glob("*.ckpt"))


def test_one_infinite_loss_stops_a_training(compose, monkeypatch):
    losses = itertools.count()
    usual = CumulativeHead.loss

    def loss(head, logits, grades):
        return usual(head, logits, grades) + (math.inf if next(losses) == 2 else 0)

    monkeypatch.setattr(CumulativeHead, "loss", loss)
    with pytest.raises(DrgradeError, match="diverged in epoch 1"):
        train(compose())
