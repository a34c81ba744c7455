"""Loading a pre-trained encoder matches every tensor or names those that do not fit."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from drgrade.errors import EncoderError
from drgrade.models.encoder import (
    CARD,
    WEIGHTS,
    TimmEncoder,
    is_complete_encoder,
    load_encoder,
    save_encoder,
)


def encoder(seed=0):
    torch.manual_seed(seed)
    return TimmEncoder("test_resnet", image_size=32)


@pytest.fixture
def saved(tmp_path):
    original = encoder(1)
    save_encoder(original, tmp_path, {"pretext": "rotation"})
    return original, tmp_path


@pytest.mark.parametrize("as_file", [False, True])
def test_a_saved_encoder_is_restored(saved, as_file):
    original, folder = saved
    other = encoder(2)
    card = load_encoder(other, folder / WEIGHTS if as_file else folder)
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in original.state_dict().items())
    assert card["matched"] == sum(value.numel() for value in original.state_dict().values())
    assert card["pretext"] == "rotation"


def rewrite(folder, change):
    state = load_file(folder / WEIGHTS)
    change(state)
    save_file(state, folder / WEIGHTS)
    (folder / CARD).unlink()


NAME = "model.conv1.0.weight"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state.pop(NAME), ["1 missing", NAME]),
        (
            lambda state: state.update(renamed=state.pop(NAME)),
            ["1 missing", NAME, "1 not in this encoder: renamed"],
        ),
        (
            lambda state: state.update({NAME: torch.zeros(1, 2)}),
            ["1 of another shape", NAME, "[1, 2] instead of"],
        ),
    ],
)
def test_a_tensor_that_does_not_fit_is_named_and_nothing_is_loaded(saved, change, words):
    _, folder = saved
    rewrite(folder, change)
    other = encoder(2)
    with pytest.raises(EncoderError) as caught:
        load_encoder(other, folder)
    assert all(word in str(caught.value) for word in words)
    assert all(
        torch.equal(value, other.state_dict()[name]) for name, value in encoder(2).state_dict().items()
    )


def test_many_tensors_that_do_not_fit_are_counted(saved):
    _, folder = saved
    with pytest.raises(EncoderError, match=r"and \d+ more"):
        load_encoder(TimmEncoder("resnet10t"), folder)


def test_a_file_with_another_hash_is_refused(saved):
    _, folder = saved
    card = json.loads((folder / CARD).read_text())
    (folder / CARD).write_text(json.dumps({**card, "sha256": "0" * 64}))
    with pytest.raises(EncoderError, match="different hash"):
        load_encoder(encoder(), folder)


@pytest.mark.parametrize("hashed", [True, False])
def test_encoder_is_complete_until_it_is_damaged(hashed, saved, caplog):
    _, folder = saved
    card = json.loads((folder / CARD).read_text())
    if not hashed:  # as early versions wrote it
        card.pop("sha256")
    (folder / CARD).write_text(json.dumps(card))
    assert is_complete_encoder(folder)
    content = (folder / WEIGHTS).read_bytes()
    flipped = content[:-1] + bytes([content[-1] ^ 1])
    for damaged in (b"", content[:-1], *([flipped] if hashed else [])):
        (folder / WEIGHTS).write_bytes(damaged)
        assert not is_complete_encoder(folder)
        assert f"{folder} is damaged" in caplog.text
    for damaged in ("", "[]", "null", '{"sha256": 1}', "[" * 100_000):
        (folder / CARD).write_text(damaged)
        assert not is_complete_encoder(folder)


@pytest.mark.parametrize("content", [b"", b"not safetensors at all"])
def test_a_damaged_file_is_refused(tmp_path, content):
    (tmp_path / WEIGHTS).write_bytes(content)
    with pytest.raises(EncoderError, match="not a readable"):
        load_encoder(encoder(), tmp_path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(EncoderError, match="no encoder at"):
        load_encoder(encoder(), tmp_path)
