"""Publishing: bit-identical graders, no private names, refused folders, calls of the hub."""

import getpass
import json
import shutil
from pathlib import Path

import huggingface_hub
import numpy as np
import pandas as pd
import pytest
import torch
from huggingface_hub.errors import HfHubHTTPError
from omegaconf import OmegaConf
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from drgrade.artefacts import looks_secret, strip_private
from drgrade.cli.publish import work
from drgrade.config import compose
from drgrade.errors import ConfigError, DataError, DrgradeError
from drgrade.files import file_sha256
from drgrade.prediction.checkpoint import load_model
from drgrade.prediction.grader import Grader
from drgrade.prediction.own_photographs import run_photographs
from drgrade.publishing import hub
from drgrade.publishing.hub import from_pretrained, push_to_hub, save_pretrained

PIXELS = np.random.default_rng(0).integers(0, 255, (3, 32, 32, 3), np.uint8)


@pytest.fixture(scope="session")
def published(finished_run, tmp_path_factory):
    """Publish the plain run to a folder; do not change it."""
    return save_pretrained(finished_run(), tmp_path_factory.mktemp("published") / "grader")


@pytest.fixture
def copied(published, tmp_path):
    """Copy the published folder, to damage it."""
    return Path(shutil.copytree(published, tmp_path / "copied"))


@pytest.fixture
def run_copy(finished_run, tmp_path):
    """Copy the plain run, to change it."""
    return Path(shutil.copytree(finished_run(), tmp_path / "run"))


def _edit(folder, change, name="config.json"):
    record = json.loads((folder / name).read_text())
    change(record)
    (folder / name).write_text(json.dumps(record))


def _one_line(error):
    return "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("overrides", "allowed"),
    [
        ([], False),
        (["encoder=msssl"], False),
        (["head=regression_fitted"], False),
        (["protocol=linear"], False),
        (["protocol=knn"], True),
    ],
)
def test_published_run_is_bit_identical(finished_run, tmp_path, overrides, allowed):
    run = finished_run(*overrides)
    before = load_model(run)
    after = from_pretrained(save_pretrained(run, tmp_path / "out", training_features=allowed))
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(after.model(images), before.model(images))
    assert (after.preparation, after.calibration) == (before.preparation, before.calibration)
    own, other = Grader([before], device="cpu").grade(PIXELS), Grader([after], device="cpu").grade(PIXELS)
    assert torch.equal(own.grades, other.grades)
    assert torch.equal(own.probabilities, other.probabilities)


def test_published_folder_is_a_checkpoint(finished_run, published):
    both = Grader.load([finished_run(), published], device="cpu").grade(PIXELS)
    alone = Grader.load([finished_run()], device="cpu").grade(PIXELS)
    torch.testing.assert_close(both.probabilities, alone.probabilities)


def test_loaded_model_knows_its_files(finished_run, published):
    for folder in (finished_run(), published):
        trained = load_model(folder)
        assert trained.weights_file.is_file()
        assert trained.config_file.is_file()
    assert trained.weights_file == published / "model.safetensors"


def test_published_folder_has_no_photographs(published):
    trained = load_model(published)
    with pytest.raises(DataError, match="does not include its photographs"):
        run_photographs(trained.config, trained.record, trained.folder)


def test_published_folder_can_be_published_again(published, tmp_path):
    again = save_pretrained(published, tmp_path / "again")
    assert {each.name: each.read_bytes() for each in again.iterdir()} == {
        each.name: each.read_bytes() for each in published.iterdir()
    }
    assert not (save_pretrained(published, tmp_path / "third", seen=False) / "seen.txt").exists()


def test_published_folder_contains_no_path_person_or_photograph(finished_run, published):
    run = finished_run()
    cfg, split = OmegaConf.load(run / "config.yaml"), pd.read_csv(run / "split.csv", dtype=str)
    assert {each.name for each in published.iterdir()} == {
        "config.json",
        "model.safetensors",
        "README.md",
        "seen.txt",
    }
    private = [str(run), str(cfg.data.root), str(cfg.paths.stores), str(Path.home()), "/tmp", "pytest"]
    private += [f"/{getpass.getuser()}", *split["image_id"], *split["group"]]
    for name in ("config.json", "README.md", "seen.txt"):
        text = (published / name).read_text()
        assert not [each for each in private if each in text], name
    with safe_open(published / "model.safetensors", "pt") as file:
        assert {name.split(".")[0] for name in file.keys()} == {"encoder", "head"}  # noqa: SIM118
        assert file.metadata() == {"format": "pt"}


def test_paths_in_settings_are_not_published(run_copy, tmp_path):
    cfg = OmegaConf.load(run_copy / "config.yaml")
    cfg.init, cfg.encoder.weights = "/home/alice/encoder", "/home/alice/densenet.safetensors"
    cfg.name = "alice@clinic: ~/eyes"
    OmegaConf.save(cfg, run_copy / "config.yaml")
    _edit(run_copy, lambda record: record.update(init=cfg.init), "metrics.json")
    folder = save_pretrained(run_copy, tmp_path / "out")
    assert "alice" not in (folder / "config.json").read_text()
    assert "alice" not in (folder / "README.md").read_text()
    assert load_model(folder).config.init is None


@pytest.mark.parametrize("name", ["README.md", "seen.txt"])
def test_link_to_a_file_of_the_user_is_not_published(copied, tmp_path, name):
    (tmp_path / "id_rsa").write_text("key")
    (copied / name).unlink()
    (copied / name).symlink_to(tmp_path / "id_rsa")
    with pytest.raises(DataError, match=rf"{name} is a link to a file outside its folder"):
        save_pretrained(copied, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_hashes_behind_a_link_of_a_run_are_not_published(run_copy, tmp_path):
    (run_copy / "seen.txt").rename(tmp_path / "other")
    (run_copy / "seen.txt").symlink_to(tmp_path / "other")
    with pytest.raises(DataError, match=r"seen\.txt is a link"):
        save_pretrained(run_copy, tmp_path / "out", seen=True)


def test_downloaded_folder_of_links_is_published(copied, tmp_path):
    blobs, snapshot = tmp_path / "cache" / "blobs", tmp_path / "cache" / "snapshots" / "1234"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for path in copied.iterdir():
        path.rename(blobs / path.name)
        (snapshot / path.name).symlink_to(f"../../blobs/{path.name}")
    folder = save_pretrained(snapshot, tmp_path / "out")
    assert {each.name: each.read_bytes() for each in folder.iterdir()} == {
        each.name: each.read_bytes() for each in blobs.iterdir()
    }
    assert not [each for each in folder.iterdir() if each.is_symlink()]
    load_model(folder)


TOKENS = [
    "hf_AbCdEfGhIjKlMnOpQrStUvWx12345678",
    "sk-proj-abcdefghijklmnop1234",
    "0123456789abcdef0123456789abcdef01234567",
    "0123456789abcdef" * 4,
    "run with q7Xk2Lm9Zt4Rb8Vw3Ny6Hc1D",
    "correct horse",
]


@pytest.mark.parametrize("token", TOKENS)
def test_secrets_in_settings_are_not_published(run_copy, tmp_path, monkeypatch, caplog, token):
    monkeypatch.setenv("WANDB_API_KEY", "correct horse")
    cfg = OmegaConf.load(run_copy / "config.yaml")
    cfg.name = cfg.method = cfg.data.name = cfg.protocol.name = token
    OmegaConf.save(cfg, run_copy / "config.yaml")
    _edit(run_copy, lambda record: record.update(data=token, protocol=token), "metrics.json")
    _edit(run_copy, lambda record: record["command"].append(f"method={token}"), "provenance.json")
    folder = save_pretrained(run_copy, tmp_path / "out", seen=False)
    for path in folder.iterdir():
        assert token.split()[-1].encode() not in path.read_bytes(), path.name
    warned = caplog.text.split("not published, because it looks like a secret: ")[1].strip().split(", ")
    assert set(warned) == {"data.name", "protocol.name", "name", "method"}
    assert json.loads((folder / "config.json").read_text())["metrics"]["data_hash"]
    load_model(folder)


@pytest.mark.parametrize(
    "name",
    [
        *("idrid", "MsSSL_matched_fold0_seed1", "DenseNet121Rotation10pct", "sk-learn probe", "open_pool"),
        *("published_table-retinamnist-3fa2b1", "vit_small_patch16_224.augreg_in21k_ft_in1k", "2026-11-30"),
    ],
)
def test_ordinary_names_do_not_look_like_secrets(name):
    assert not looks_secret(name)
    assert strip_private({"name": name}) == {"name": name}


def test_optimiser_state_is_not_published(finished_run, published):
    state = torch.load(finished_run() / "checkpoints" / "last.ckpt", weights_only=True)
    assert "optimizer_states" in state
    tensors = load_file(published / "model.safetensors")
    expected = {name for name in state["state_dict"] if name.startswith(("encoder.", "head."))}
    assert tensors.keys() == expected


def test_tensors_that_share_memory_are_published(run_copy, tmp_path):
    (checkpoint,) = (run_copy / "checkpoints").glob("last.ckpt")
    content = torch.load(checkpoint, weights_only=True)
    state = content["state_dict"]
    names = [name for name in state if name.endswith(".weight")]
    first, second = next((a, b) for a in names for b in names if a < b and state[a].shape == state[b].shape)
    state[second] = state[first]
    state["encoder.model.features.norm5.bias"] = torch.arange(1000.0)[
        : len(state["encoder.model.features.norm5.bias"])
    ]
    torch.save(content, checkpoint)
    tensors = load_file(save_pretrained(run_copy, tmp_path / "out") / "model.safetensors")
    assert torch.equal(tensors[first], tensors[second])
    assert torch.equal(tensors["encoder.model.features.norm5.bias"][:3], torch.arange(3.0))


def test_hashes_of_training_files_are_published_for_public_data_only(
    finished_run, run_copy, published, tmp_path
):
    assert (published / "seen.txt").read_text() == (finished_run() / "seen.txt").read_text()
    assert not (save_pretrained(run_copy, tmp_path / "without", seen=False) / "seen.txt").exists()
    cfg = OmegaConf.load(run_copy / "config.yaml")
    cfg.data.source._target_ = "drgrade.data.sources.folder.Folder"
    OmegaConf.save(cfg, run_copy / "config.yaml")
    assert not (save_pretrained(run_copy, tmp_path / "own") / "seen.txt").exists()
    assert (save_pretrained(run_copy, tmp_path / "asked", seen=True) / "seen.txt").exists()
    cfg.data.source._target_ = "clinic.sources.Ours"
    OmegaConf.save(cfg, run_copy / "config.yaml")
    assert not (save_pretrained(run_copy, tmp_path / "unknown") / "seen.txt").exists()


def test_probe_with_features_of_photographs_is_refused(finished_run, tmp_path):
    with pytest.raises(
        ConfigError, match="KnnProbe contains features and grade of every labelled photograph"
    ):
        save_pretrained(finished_run("protocol=knn"), tmp_path / "knn")
    with pytest.raises(ConfigError, match="PrototypeProbe contains the features of the only photograph of"):
        save_pretrained(finished_run("protocol=few_shot", "protocol.shots=1"), tmp_path / "shots")
    assert not list(tmp_path.iterdir())


def test_existing_folder_is_replaced_only_with_overwrite(finished_run, copied):
    with pytest.raises(ConfigError, match="exists already; overwrite=true replaces it"):
        save_pretrained(finished_run(), copied)
    (copied / "seen.txt").unlink()
    save_pretrained(finished_run(), copied, overwrite=True)
    assert (copied / "seen.txt").is_file()
    assert [each.name for each in copied.parent.iterdir()] == ["copied"]


@pytest.mark.parametrize("beside", ["thesis.tex", "config.yaml"])
def test_other_folders_are_never_replaced(finished_run, copied, beside):
    (copied / beside).write_text("ours")
    with pytest.raises(ConfigError, match="name a new folder"):
        save_pretrained(finished_run(), copied, overwrite=True)
    (copied / "config.json").unlink()
    with pytest.raises(ConfigError, match="is not a published model"):
        save_pretrained(finished_run(), copied, overwrite=True)
    assert (copied / beside).read_text() == "ours"


def test_folder_is_written_atomically(finished_run, copied, tmp_path, monkeypatch):
    def broken(*args, **kwargs):
        raise DataError("damaged")

    monkeypatch.setattr(hub, "render_model_card", broken)
    before = {each.name: each.read_bytes() for each in copied.iterdir()}
    for target in (copied, tmp_path / "new"):
        with pytest.raises(DataError, match="damaged"):
            save_pretrained(finished_run(), target, overwrite=True)
    assert {each.name: each.read_bytes() for each in copied.iterdir()} == before
    assert [each.name for each in tmp_path.iterdir()] == ["copied"]


def _other_tensor(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["head.more"] = torch.zeros(1)
    save_file(tensors, folder / "model.safetensors")
    _edit(folder, lambda record: record["weights"].update(sha256=file_sha256(folder / "model.safetensors")))


def _truncated(folder):
    (folder / "model.safetensors").write_bytes(b"\x10\0\0\0")
    _edit(folder, lambda record: record["weights"].update(sha256=file_sha256(folder / "model.safetensors")))


DAMAGES = {
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "model.safetensors is missing"),
    "other weights": (lambda f: (f / "model.safetensors").write_bytes(b"x"), "does not have the hash"),
    "truncated": (_truncated, "not a readable safetensors file"),
    "more tensors": (_other_tensor, "head.more"),
    "no JSON": (lambda f: (f / "config.json").write_text("{"), "cannot be read"),
    "a list": (lambda f: (f / "config.json").write_text("[]"), "not a model published by drgrade"),
    "a BERT": (
        lambda f: (f / "config.json").write_text('{"model_type": "bert"}'),
        "not a model published by drgrade",
    ),
    "the future": (
        lambda f: _edit(f, lambda r: r.update(format=2, version="9.0")),
        "drgrade 9.0 in format 2",
    ),
    "no calibration": (lambda f: _edit(f, lambda r: r.pop("calibration")), "is damaged"),
    "no head": (lambda f: _edit(f, lambda r: r["settings"]["grading"].pop("task")), "it is damaged"),
    "no size": (
        lambda f: _edit(f, lambda r: r["settings"]["photographs"].pop("image_size")),
        "it is damaged",
    ),
    "temperature": (
        lambda f: _edit(f, lambda r: r["calibration"].update(temperature=0)),
        "calibration is damaged",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_or_foreign_folder_is_refused(copied, damage):
    do, message = DAMAGES[damage]
    do(copied)
    with pytest.raises(DrgradeError, match=message) as error:
        load_model(copied)
    assert _one_line(error)


def test_encoder_outside_drgrade_is_not_published(run_copy, tmp_path):
    cfg = OmegaConf.load(run_copy / "config.yaml")
    cfg.encoder._target_ = "clinic.models.Own"
    OmegaConf.save(cfg, run_copy / "config.yaml")
    with pytest.raises(ConfigError, match=r"its encoder is clinic\.models\.Own"):
        save_pretrained(run_copy, tmp_path / "out")


def test_damaged_checkpoint_is_refused_in_one_line(run_copy, tmp_path):
    for each in (run_copy / "checkpoints").iterdir():
        each.write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"\.ckpt is damaged") as error:
        save_pretrained(run_copy, tmp_path / "out")
    assert _one_line(error)
    assert [each.name for each in tmp_path.iterdir()] == ["run"]


class FakeHub:
    """Stub of ``huggingface_hub.HfApi`` that records what is pushed."""

    error: Exception | None = None

    def __init__(self, **settings):
        FakeHub.settings = settings

    def create_repo(self, **settings):
        if FakeHub.error:
            raise FakeHub.error
        FakeHub.made = settings
        return huggingface_hub.RepoUrl(f"https://huggingface.co/{settings['repo_id']}")

    def upload_folder(self, folder_path, **settings):
        FakeHub.pushed = {each.name: each.read_bytes() for each in Path(folder_path).iterdir()}
        FakeHub.uploaded = settings
        return "https://huggingface.co/alice/grader/commit/1"


@pytest.fixture
def fake_hub(monkeypatch):
    """Replace the hub by a stub, with a login."""
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeHub)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_secret")
    monkeypatch.setattr(FakeHub, "error", None)
    return FakeHub


def test_run_is_pushed_private_in_one_commit(fake_hub, finished_run, published):
    assert push_to_hub(finished_run(), "alice/grader").endswith("/commit/1")
    assert fake_hub.made == {
        "repo_id": "alice/grader",
        "private": True,
        "exist_ok": True,
        "repo_type": "model",
    }
    assert fake_hub.uploaded["repo_id"] == "alice/grader"
    own = {each.name: each.read_bytes() for each in published.iterdir()}
    readme = fake_hub.pushed.pop("README.md").decode()
    assert 'from_pretrained("alice/grader")' in readme
    assert "hf download alice/grader" in readme
    assert 'from_pretrained("FOLDER")' in own.pop("README.md").decode()
    assert fake_hub.pushed == own
    push_to_hub(published, "alice/grader", private=False, branch="v1", token="hf_other")
    assert fake_hub.made["private"] is False
    assert fake_hub.uploaded["revision"] == "v1"
    assert fake_hub.settings["token"] == "hf_other"


def test_hub_accepts_the_arguments(finished_run, fake_hub):
    import inspect

    from huggingface_hub.hf_api import HfApi

    push_to_hub(finished_run(), "alice/grader")
    for call, given in (("create_repo", fake_hub.made), ("upload_folder", fake_hub.uploaded)):
        assert given.keys() <= inspect.signature(getattr(HfApi, call)).parameters.keys()
    assert fake_hub.settings.keys() <= inspect.signature(HfApi.__init__).parameters.keys()


def test_push_needs_a_login(monkeypatch, finished_run):
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(ConfigError, match=r"there is no login .* HF_TOKEN"):
        push_to_hub(finished_run(), "alice/grader")


@pytest.mark.parametrize("name", ["a/b/c", "alice/my grader", "alice/..", "alice/x--y", ""])
def test_invalid_repository_names_are_refused(name, finished_run, fake_hub):
    with pytest.raises(ConfigError, match="nor a valid repository of the hub"):
        push_to_hub(finished_run(), name)


def _refusal(status):
    import httpx

    request = httpx.Request("POST", "https://huggingface.co/api/repos/create")
    return HfHubHTTPError(
        f"{status} Client Error.\n\nYou cannot.", response=httpx.Response(status, request=request)
    )


def test_errors_of_the_hub_are_one_line(finished_run, fake_hub, monkeypatch):
    import httpx

    for error, message in (
        (_refusal(401), r"401 Client Error.*log in"),
        (_refusal(500), r"500 Client Error"),
        (httpx.ConnectError("Name or service not known"), "Name or service not known"),
        (ConnectionError("no route"), "no route"),
    ):
        monkeypatch.setattr(FakeHub, "error", error)
        with pytest.raises(ConfigError, match=message) as raised:
            push_to_hub(finished_run(), "alice/grader")
        assert _one_line(raised)


def test_repository_is_downloaded_with_the_given_arguments(published, monkeypatch, tmp_path):
    asked = {}

    def fetch(repository, **settings):
        asked.update(settings, repository=repository)
        return str(published)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    for place in ("alice/grader", "hf://alice/grader"):
        found = from_pretrained(place, revision="v1", cache_dir=tmp_path, local_files_only=True, token="hf_x")
        assert found.folder == published
    assert (asked["repository"], asked["revision"], asked["token"]) == ("alice/grader", "v1", "hf_x")
    assert (asked["cache_dir"], asked["local_files_only"]) == (tmp_path, True)
    assert "model.safetensors" in asked["allow_patterns"]


def test_missing_download_is_one_line_without_network(tmp_path):
    with pytest.raises(ConfigError, match="alice/grader is not a folder and cannot be downloaded") as error:
        from_pretrained("alice/grader", cache_dir=tmp_path, local_files_only=True)
    assert _one_line(error)
    with pytest.raises(ConfigError, match="neither a folder nor a valid repository"):
        from_pretrained(tmp_path / "nowhere")


def test_command_writes_a_folder_a_card_or_a_repository(finished_run, run_copy, tmp_path, capsys, fake_hub):
    work(compose("publish", checkpoint=finished_run(), to=tmp_path / "out"))
    assert capsys.readouterr().out == f"{tmp_path / 'out'}\n"
    assert load_model(tmp_path / "out").record["status"] == "finished"
    work(compose("publish", checkpoint=run_copy, resamples=10))
    assert capsys.readouterr().out == f"{run_copy / 'model_card.md'}\n"
    work(compose("publish", checkpoint=run_copy, to="hf://alice/grader"))
    assert capsys.readouterr().out == "https://huggingface.co/alice/grader/commit/1\n"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "checkpoint is not given"),
        ({"checkpoint": "nowhere"}, "not a run's folder"),
        ({"resamples": 0}, "resamples=0"),
        ({"licence": "my own/one"}, "not a licence of the hub"),
    ],
)
def test_invalid_settings_are_refused(finished_run, settings, message):
    given = {"checkpoint": finished_run(), **settings} if settings else {}
    with pytest.raises(ConfigError, match=message):
        work(compose("publish", **given))
