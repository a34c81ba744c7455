"""A kill, a full disk or a damaged file costs at most the work since the last checkpoint."""

import errno
import json
import shutil
import tempfile
import zipfile
from pathlib import Path

import pytest
import torch

from drgrade.errors import DataError
from drgrade.files import checkpoint_fault, replacing
from drgrade.model_card import card
from drgrade.training import pretraining
from drgrade.training.build import CheckpointFiles, save_checkpoint
from drgrade.training.run import train

CONTENT = {
    "state_dict": {"weight": torch.arange(1000.0)},
    "loops": {},
    "callbacks": {},
    "optimizer_states": [],
    "lr_schedulers": [],
    "epoch": 1,
    "global_step": 2,
    "pytorch-lightning_version": "2.5.0",
}
RUN = ("init=random", "resume=auto")
PRETRAINING = ("+experiment=rotation_pretrain", "resume=auto")


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def empty(path):
    path.write_bytes(b"")


DAMAGES = [cut, flip_a_bit, empty]


def test_checkpoint_is_staged_beside_its_target(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))  # as a full $TMPDIR
    monkeypatch.setenv("TMPDIR", str(tmp_path / "missing"))
    CheckpointFiles().save_checkpoint(CONTENT, str(tmp_path / "checkpoints" / "last.ckpt"))
    loaded = CheckpointFiles().load_checkpoint(str(tmp_path / "checkpoints" / "last.ckpt"), weights_only=True)
    assert torch.equal(loaded["state_dict"]["weight"], CONTENT["state_dict"]["weight"])
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["last.ckpt"]


def test_full_disk_keeps_the_previous_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    save_checkpoint(CONTENT, path)
    before = path.read_bytes()

    def fill(content, file):
        file.write(b"PK")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", fill)
    with pytest.raises(OSError, match=str(path)):
        save_checkpoint(CONTENT, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_interrupted_write_keeps_the_previous_file(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text("before")
    with pytest.raises(KeyboardInterrupt), replacing(path) as partial:  # noqa: PT012
        partial.write_text("after")
        raise KeyboardInterrupt
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_checkpoint_is_recognised(damage, tmp_path):
    path = tmp_path / "last.ckpt"
    save_checkpoint(CONTENT, path)
    assert checkpoint_fault(path) is None
    damage(path)
    assert checkpoint_fault(path)
    with pytest.raises(DataError, match=r"last\.ckpt is damaged"):
        CheckpointFiles().load_checkpoint(path, weights_only=True)


@pytest.mark.parametrize(
    "content",
    [
        *([], 5, {}, {**CONTENT, "state_dict": None}, {**CONTENT, "epoch": "1"}, {**CONTENT, "loops": 3}),
        {**CONTENT, "path": Path("code")},
    ],
)
def test_file_of_torch_that_is_no_checkpoint_is_named(content, tmp_path):
    torch.save(content, tmp_path / "last.ckpt")
    with pytest.raises(DataError, match=r"last\.ckpt is damaged"):
        CheckpointFiles().load_checkpoint(tmp_path / "last.ckpt", weights_only=True)


def test_checkpoint_that_unpacks_to_more_than_its_size_is_refused(tmp_path):
    save_checkpoint({**CONTENT, "state_dict": {"weight": torch.zeros(1_000_000)}}, tmp_path / "last.ckpt")
    with (
        zipfile.ZipFile(tmp_path / "last.ckpt") as archive,
        zipfile.ZipFile(tmp_path / "packed.ckpt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in archive.namelist():
            packed.writestr(name, archive.read(name))
    assert checkpoint_fault(tmp_path / "packed.ckpt").startswith("it would unpack to 4,0")


@pytest.fixture
def begun(finished_run, tmp_path):
    """A copy of a run that was killed after its training."""
    folder = tmp_path / "run"
    shutil.copytree(finished_run("init=random", "protocol=matched"), folder)
    (folder / "metrics.json").unlink()
    return folder


@pytest.mark.parametrize("name", ["last", "best"])
def test_damaged_checkpoint_is_named_and_a_cell_starts_afresh(name, begun, compose, caplog):
    cut(begun / "checkpoints" / f"{name}.ckpt")
    (begun / ".metrics.json.1.partial").touch()
    settings = ("init=random", "protocol=matched", "protocol.val_fraction=0.3")
    with pytest.raises(DataError, match=rf"{name}\.ckpt is damaged"):
        train(compose(*settings, f"resume={begun}"))
    assert train(compose(*settings, "resume=auto"))["status"] == "finished"
    assert f"{name}.ckpt is damaged" in caplog.text
    assert not list(begun.rglob("*.partial"))


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("optimizer_states", [{}]),
        ("loops", {"fit_loop": 5}),
        ("lr_schedulers", [5]),
        ("state_dict", {}),
        ("pytorch-lightning_version", "none"),
    ],
)
def test_checkpoint_that_does_not_fit_the_run_is_named(part, value, begun, compose):
    path = begun / "checkpoints" / "last.ckpt"
    torch.save({**torch.load(path, weights_only=True), part: value}, path)
    settings = ("init=random", "protocol=matched", "protocol.val_fraction=0.3")
    with pytest.raises(DataError, match=rf"checkpoint in {begun / 'checkpoints'} does not fit the run"):
        train(compose(*settings, f"resume={begun}"))


def kill(*arguments, **more):
    raise KeyboardInterrupt


def content(path):
    return json.loads(path.read_text())


def test_run_is_finished_only_after_its_model_card(compose, tmp_path, monkeypatch):
    whole = train(compose(*RUN, run="whole"))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):  # noqa: PT012
        patch.setattr(card, "write_model_card", kill)
        train(compose(*RUN))
    assert content(tmp_path / "run" / "metrics.json")["status"] == "interrupted"
    assert train(compose(*RUN)) == whole
    assert (tmp_path / "run" / card.MODEL_CARD).is_file()


def test_pretraining_is_finished_only_after_its_encoder(compose, tmp_path, monkeypatch):
    whole = train(compose(*PRETRAINING, f"paths.encoders={tmp_path}/others", run="whole"))
    for step in ("save_encoder", "_share"):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):  # noqa: PT012
            patch.setattr(pretraining, step, kill)
            train(compose(*PRETRAINING))
        assert content(tmp_path / "run" / "metrics.json")["status"] == "interrupted"
    assert train(compose(*PRETRAINING)) == whole
    (shared,) = (tmp_path / "encoders").glob("*/encoder.json")
    for folder in (tmp_path / "run", shared.parent):
        assert (folder / "encoder.safetensors").is_file()
        assert content(folder / "encoder.json")["sha256"] == content(shared)["sha256"]


def test_damaged_encoder_is_pretrained_again(compose, tmp_path, caplog):
    settings = ("+experiment=rotation_50pct", "protocol.epochs=1")
    first = train(compose(*settings))
    (encoder,) = (tmp_path / "encoders").glob("*/encoder.safetensors")
    before = encoder.read_bytes()
    for also in ("nothing", "checkpoint", "hashes"):
        caplog.clear()
        cut(encoder)
        if also == "checkpoint":
            flip_a_bit(encoder.parent / "checkpoints" / "last.ckpt")
        if also == "hashes":
            empty(encoder.parent / "photographs.json")
        assert train(compose(*settings, run=also)) == first
        assert f"{encoder.parent} is damaged" in caplog.text
        assert encoder.read_bytes() == before
