from functools import partial

import pytest
import torch

from drgrade.models.encoder import TimmEncoder
from drgrade.pretext.rotation import Rotation
from drgrade.pretext.saliency import Saliency
from drgrade.tasks import PretextTask, constant


@pytest.mark.parametrize("pretext", [Rotation, partial(Saliency, image_size=64)])
def test_all_encoder_methods_used_by_pretexts_are_compiled(monkeypatch, pretext):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: compiled.append("forward"))
    monkeypatch.setattr(torch, "compile", lambda method: compiled.append(method.__name__) or method)
    encoder = TimmEncoder("test_resnet", 64)
    names = set(encoder.state_dict())
    task = PretextTask(encoder, pretext, partial(torch.optim.Adam), constant, compile=True)
    assert compiled == ["forward", "feature_map"]
    loss, _ = task.pretext(task.encoder, [torch.randn(2, 3, 64, 64)])
    assert torch.isfinite(loss)
    assert set(task.encoder.state_dict()) == names
