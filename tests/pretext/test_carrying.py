"""Every file of conf/pretext on a CNN, a Transformer and MsSSL: one step on photographs, or a refusal."""

import pytest
import torch

from drgrade.config import choices
from drgrade.data.datamodules import PretextDataModule
from drgrade.errors import EncoderError
from drgrade.tasks.pretext import PretextTask
from drgrade.training.build import instantiate, make_encoder, make_photographs, seed_everything

PRETEXTS = choices("pretext")
ENCODERS = {"cnn": "densenet", "vit": "vit", "msssl": "msssl"}
SIDE = 64


def refused(pretext, encoder):
    """Only a plain Vision Transformer can leave out patches."""
    return "mae" in pretext.split("_") and encoder != "vit"


CARRIED = [(name, encoder) for name in PRETEXTS for encoder in ENCODERS if not refused(name, encoder)]
REFUSED = [(name, encoder) for name in PRETEXTS for encoder in ENCODERS if refused(name, encoder)]


@pytest.fixture
def configured(compose):
    def make_config(pretext, encoder):
        return compose(f"pretext={pretext}", f"encoder={ENCODERS[encoder]}", f"data.image_size={SIDE}")

    return make_config


def made(cfg):
    """As drgrade.training.pretraining makes them."""
    seed_everything(cfg.pretext.seed)
    task = instantiate(cfg.pretraining.task, encoder=make_encoder(cfg))
    assert isinstance(task, PretextTask)
    return task


@pytest.fixture(scope="module")
def batches():
    """``batches(cfg)``: views to learn from and views to validate on, the same for all encoders."""
    kept = {}

    def of(cfg):
        if cfg.pretext.name not in kept:
            data = instantiate(cfg.pretraining.datamodule, photographs=make_photographs(cfg))
            assert isinstance(data, PretextDataModule)
            data.prepare_data()
            data.setup()
            kept[cfg.pretext.name] = [
                data.on_after_batch_transfer(next(iter(loader)), 0)["views"]
                for loader in (data.train_dataloader(), data.val_dataloader())
            ]
        return kept[cfg.pretext.name]

    return of


@pytest.mark.parametrize(("pretext", "encoder"), CARRIED)
def test_a_step_on_photographs_reaches_every_part_of_the_encoder(pretext, encoder, configured, batches):
    cfg = configured(pretext, encoder)
    task = made(cfg)
    learnt, held_out = batches(cfg)
    assert len(learnt) == task.pretext.num_views
    before = {name: tensor.clone() for name, tensor in task.encoder.state_dict().items()}
    optimizer = instantiate(cfg.pretext.optimizer)([each for each in task.parameters() if each.requires_grad])

    task.pretext.before_step(task.encoder, 0.0)
    loss, scores = task.pretext(task.encoder, learnt)
    loss.backward()
    optimizer.step()

    assert torch.isfinite(loss)
    assert set(scores) == set(task.pretext.scores)
    assert all(torch.isfinite(value) and not value.requires_grad for value in scores.values())
    for name, child in branches(task.encoder):
        assert any(each.grad is not None and each.grad.abs().sum() > 0 for each in child.parameters()), name
    assert any(not torch.equal(before[name], now) for name, now in task.encoder.state_dict().items())
    assert task.pretext.final_encoder(task.encoder).state_dict().keys() == before.keys()

    task.eval()
    with torch.no_grad():
        first, again = (task.pretext(task.encoder, held_out)[0] for _ in range(2))
    assert torch.isfinite(first)
    assert first == again


@pytest.mark.parametrize(("pretext", "encoder"), REFUSED)
def test_what_cannot_be_carried_is_refused_before_training(pretext, encoder, configured):
    with pytest.raises(EncoderError, match=r"pretext=\w+ cannot train this encoder .*; use "):
        made(configured(pretext, encoder))


def test_only_masked_autoencoding_is_refused_and_msssl_carries_all_others():
    assert REFUSED == [("mae", "cnn"), ("mae", "msssl")]
    assert {name for name, encoder in CARRIED if encoder == "msssl"} == set(PRETEXTS) - {"mae"}


def branches(encoder):
    """Parts of an encoder that all have to learn: of MsSSL the branches, of others the whole."""
    return [(name, child) for name, child in encoder.named_children() if list(child.parameters())]
