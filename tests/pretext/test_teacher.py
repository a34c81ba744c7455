import numpy as np
import pytest
import torch
from lightly.utils.scheduler import cosine_schedule
from tiny import ENCODERS, cnn, views, vit
from torch import nn

from drgrade.errors import ConfigError
from drgrade.models.encoder import TimmEncoder
from drgrade.models.timm_backbone import convert_sync_batchnorm
from drgrade.pretext.teacher import Teacher
from drgrade.tasks import PretextTask, constant


def head(width, normalise=False):
    return nn.Sequential(nn.Linear(width, 6), nn.BatchNorm1d(6) if normalise else nn.Identity())


def made(make=vit, momentum=0.9, normalise=False, seed=0):
    torch.manual_seed(seed)
    encoder = make(32)
    student = head(encoder.num_features, normalise)
    return encoder, student, Teacher(encoder, student, head(encoder.num_features, normalise), momentum)


def moved(*modules, seed=1):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in modules:
            for parameter in module.parameters():
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)


def weights(*modules):
    return torch.cat([each.detach().flatten() for module in modules for each in module.parameters()]).clone()


@pytest.mark.parametrize("name", ENCODERS)
def test_the_teacher_starts_as_a_frozen_copy_of_the_student(name):
    encoder, student, teacher = made(ENCODERS[name])
    own = {**teacher.encoder.state_dict(), **teacher.head.state_dict()}
    its = {**encoder.state_dict(), **student.state_dict()}
    assert own.keys() == its.keys()
    assert all(torch.equal(own[key], its[key]) for key in own)
    places = [{each.untyped_storage().data_ptr() for each in state.values()} for state in (own, its)]
    assert not places[0] & places[1]
    assert not any(each.requires_grad for each in teacher.parameters())
    assert all(each.requires_grad for each in encoder.parameters())


@pytest.mark.parametrize("steps", [2, 7, 100])
def test_momentum_rises_to_1_with_half_a_cosine(steps):
    teacher = made(momentum=0.99)[2]
    for step in range(steps):
        expected = cosine_schedule(step, steps, 0.99, 1.0)
        assert teacher.momentum(step / (steps - 1)) == pytest.approx(expected, abs=1e-12)


def test_the_teacher_is_the_moving_average_of_the_student():
    encoder, student, teacher = made(momentum=0.6)
    average = weights(encoder, student).double().numpy()
    share = 1.0
    for step in range(5):
        moved(encoder, student, seed=step)
        momentum = 1 - 0.4 * (1 + np.cos(np.pi * step / 5)) / 2
        average = momentum * average + (1 - momentum) * weights(encoder, student).double().numpy()
        share *= momentum if step else 1
        assert teacher.update(encoder, student, step / 5)
    np.testing.assert_allclose(weights(teacher.encoder, teacher.head).numpy(), average, atol=1e-5)
    assert teacher.start_share.item() == pytest.approx(share)


def test_a_teacher_equal_to_its_student_stays_identical():
    encoder, student, teacher = made(cnn, momentum=0.7)
    for step in range(5):
        teacher.update(encoder, student, step / 5)
    assert torch.equal(weights(encoder, student), weights(teacher.encoder, teacher.head))


@pytest.mark.parametrize(("momentum", "follows"), [(0.0, True), (1.0, False)])
def test_momentum_0_copies_and_1_keeps_the_teacher(momentum, follows):
    encoder, student, teacher = made(momentum=momentum)
    before = weights(teacher.encoder, teacher.head)
    moved(encoder, student)
    teacher.update(encoder, student, 0.0)
    expected = weights(encoder, student) if follows else before
    assert torch.equal(weights(teacher.encoder, teacher.head), expected)


def test_accumulated_batches_update_the_teacher_once():
    encoder, student, teacher = made(momentum=0.5)
    moved(encoder, student)
    assert [teacher.update(encoder, student, progress) for progress in (0.0, 0.0, 0.1)] == [True, False, True]
    once = made(momentum=0.5)[2]
    once.update(encoder, student, 0.0)
    once.update(encoder, student, 0.1)
    assert torch.equal(weights(once), weights(teacher))


def test_the_teacher_has_its_own_batch_statistics_in_training():
    encoder, student, teacher = made(cnn, normalise=True)
    (images,) = views(1, 8, 32)
    entering = []
    teacher.head[1].register_forward_hook(lambda module, given, made: entering.append(given[0]))
    for _ in range(80):
        outputs = teacher(images * 3 + 1)
    assert outputs.mean(dim=0).abs().max() < 1e-4  # normalised by this batch
    torch.testing.assert_close(teacher.head[1].running_mean, entering[-1].mean(dim=0), atol=1e-3, rtol=1e-3)
    assert torch.equal(student[1].running_mean, torch.zeros(6))  # the student has processed no batch
    teacher.eval()
    assert not torch.allclose(teacher(images).mean(dim=0), torch.zeros(6), atol=0.1)  # not by this one
    before = {name: each.clone() for name, each in teacher.named_buffers()}
    teacher(images)
    assert all(torch.equal(each, before[name]) for name, each in teacher.named_buffers())
    encoder.train()
    for _ in range(3):
        student(encoder(images))
    teacher.train().update(encoder, student, 0.5)
    assert all(torch.equal(each, before[n]) for n, each in teacher.named_buffers() if n != "start_share")


def test_dropout_is_off_in_the_teacher():
    torch.manual_seed(0)
    encoder = TimmEncoder("test_vit", 32, drop_path_rate=0.5, proj_drop_rate=0.5)
    student = nn.Sequential(nn.Dropout(0.5), nn.Linear(encoder.num_features, 4))
    twin = nn.Sequential(nn.Dropout(0.5), nn.Linear(encoder.num_features, 4))
    teacher = Teacher(encoder, student, twin, 0.9)
    (images,) = views(1, 4, 32)
    assert not torch.equal(student(encoder(images)), student(encoder(images)))
    for mode in (True, False, True):
        teacher.train(mode)
        assert torch.equal(teacher(images), teacher(images))
        assert teacher.training == mode


def test_half_precision_parameters_are_refused():
    encoder, student, teacher = made()
    for module in (encoder, student, teacher):
        module.bfloat16()
    with pytest.raises(ConfigError, match="float32"):
        teacher.update(encoder, student, 0.0)


@pytest.mark.parametrize("momentum", [-0.1, 1.1])
def test_a_momentum_out_of_range_is_refused(momentum):
    with pytest.raises(ConfigError, match="momentum"):
        made(momentum=momentum)


def test_synchronised_batch_norm_keeps_the_tensors_of_the_teacher():
    encoder, student, teacher = made(cnn, momentum=0.0, normalise=True)
    names = list(teacher.state_dict())
    teacher, encoder, student = (
        convert_sync_batchnorm(teacher),
        convert_sync_batchnorm(encoder),
        convert_sync_batchnorm(student),
    )
    assert list(teacher.state_dict()) == names
    assert any(isinstance(module, nn.SyncBatchNorm) for module in teacher.encoder.modules())
    assert not any(each.requires_grad for each in teacher.parameters())
    moved(encoder, student)
    teacher.update(encoder, student, 0.0)
    assert torch.equal(weights(teacher.encoder, teacher.head), weights(encoder, student))


def tasks():
    from drgrade.pretext.dino import DINO
    from drgrade.pretext.moco_v3 import MoCoV3

    moco = {"hidden": 16, "dim": 8}
    dino = {"image_size": 32, "local_views": 0, "output_dim": 16, "hidden": 16, "bottleneck": 8}
    return {"moco_v3": (MoCoV3, moco), "dino": (DINO, dino)}


@pytest.mark.parametrize("name", ["moco_v3", "dino"])
def test_the_optimiser_excludes_the_teacher(name, monkeypatch):
    kind, options = tasks()[name]
    encoder = cnn(32)
    task = PretextTask(encoder, lambda e: kind(e, **options), torch.optim.AdamW, constant)
    monkeypatch.setattr(
        PretextTask, "trainer", type("Trainer", (), {"estimated_stepping_batches": 10})(), raising=False
    )
    optimizer = task.configure_optimizers()["optimizer"]
    learning = {id(each) for group in optimizer.param_groups for each in group["params"]}
    assert not learning & {id(each) for each in task.pretext.teacher.parameters()}
    assert learning >= {id(each) for each in encoder.parameters()}
    held = {n.removeprefix("pretext.teacher.encoder.") for n in task.state_dict()}
    assert held >= set(encoder.state_dict())
