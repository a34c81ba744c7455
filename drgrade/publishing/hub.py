"""Handing a trained run on: ``save_pretrained``, ``from_pretrained`` and ``push_to_hub``.

They follow the conventions of the Hugging Face hub: a folder with ``config.json``, ``model.safetensors`` and
``README.md`` is a model, and so is ``user/name`` on the hub. All but the hub itself works without a network.
"""

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hydra.utils import get_class
from torch import Tensor

from drgrade import __version__
from drgrade.data.normalisation import MEAN, STD
from drgrade.errors import ConfigError
from drgrade.files import file_sha256, write_text
from drgrade.model_card.card import FOLDER, render_model_card
from drgrade.model_card.facts import RunFiles, read_run_files
from drgrade.models.probes import FittedHead, PrototypeProbe
from drgrade.prediction.checkpoint import Trained, checkpoint_tensors, load_trained
from drgrade.prediction.published import (
    CONFIG,
    FILES,
    FORMAT,
    LIBRARY,
    README,
    WEIGHTS,
    is_published,
    published_settings,
    read_header,
)
from drgrade.runs.run_dir import SEEN, read_finished
from drgrade.runs.settings import strip_private
from drgrade.stats.formatting import GRADE_NAMES, plural

HUB = "hf://"
"""How places on the hub begin, as in ``hf://user/name``."""

_LOGIN = "log in (hf auth login) or set HF_TOKEN"


def save_pretrained(
    run: Path | str,
    save_directory: Path | str,
    *,
    overwrite: bool = False,
    seen: bool | None = None,
    training_features: bool = False,
    licence: str | None = None,
    repo_id: str | None = None,
) -> Path:
    """Write a trained run as a folder to hand on, whole or not at all.

    It holds weights without optimiser, settings without places, calibration, preparation and model card; no
    photograph, no name of one, no prediction.

    Args:
        run: Folder of a finished grading run, or a published one, which is copied.
        save_directory: Where.
        overwrite: Replace a folder that was published before.
        seen: Whether ``seen.txt`` goes with it: SHA-256 of the content of the training and validation files,
            by which :command:`drgrade evaluate` refuses them as test photographs. Whoever has a file can tell
            by it that it was trained on. None: where all data sets are public.
        training_features: Publish a probe that holds features of single training photographs.
        licence: Of the weights, as the hub names it; None: after the data set.
        repo_id: ``user/name`` that the card's examples are to show; None: a folder.

    Returns:
        The folder.

    Raises:
        ConfigError: If there is no such run, the folder is there already, or the run cannot be published.
        DrgradeError: If a file of the run is damaged.
    """
    source, target = Path(run), Path(save_directory)
    _check_free(target, overwrite)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as partial:
        fresh = Path(partial) / "new"
        _write(source, fresh, seen, training_features, licence, repo_id)
        if target.exists():
            target.replace(Path(partial) / "old")
        fresh.replace(target)
    return target


def from_pretrained(
    pretrained_model_name_or_path: Path | str,
    *,
    revision: str | None = None,
    cache_dir: Path | str | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
) -> Trained:
    """Load a published grader.

    Args:
        pretrained_model_name_or_path: A published folder (or a run's), or ``user/name`` on the hub.
        revision: Branch, tag or commit on the hub.
        cache_dir: Where what was fetched is kept.
        token: Of the hub; None: the one that is logged in.
        local_files_only: Fetch nothing; what was fetched before is used.
        force_download: Fetch it again.

    Returns:
        What :class:`drgrade.prediction.grader.Grader` takes.

    Raises:
        ConfigError: If there is no such folder or repository, or it cannot be fetched.
        DrgradeError: If it is no grader of drgrade, or damaged.
    """
    place = str(pretrained_model_name_or_path)
    if Path(place).is_dir():
        return load_trained(Path(place))
    from huggingface_hub import snapshot_download

    repository = _repository(place.removeprefix(HUB))
    with _hub_errors(f"{repository} cannot be fetched from the Hugging Face hub, and is no folder here"):
        folder = snapshot_download(
            repository,
            revision=revision,
            cache_dir=cache_dir,
            token=token,
            local_files_only=local_files_only,
            force_download=force_download,
            allow_patterns=list(FILES),
        )
    read_header(Path(folder))
    return load_trained(Path(folder))


def push_to_hub(
    run: Path | str,
    repo_id: str,
    *,
    commit_message: str = "Push model using drgrade",
    private: bool = True,
    token: str | None = None,
    branch: str | None = None,
    create_pr: bool | None = None,
    seen: bool | None = None,
    training_features: bool = False,
    licence: str | None = None,
) -> str:
    """Publish a trained run on the Hugging Face hub, in one commit.

    Args:
        run: Folder of a finished grading run, or a published one.
        repo_id: ``user/name``; it is made if it is not there.
        commit_message: Of the commit.
        private: Whether a repository that is made is private. One that is there stays as it is.
        token: Of the hub; None: the one that is logged in, or ``HF_TOKEN``.
        branch: To push to; None: the main one.
        create_pr: Make a pull request of it.
        seen: As in :func:`save_pretrained`, like all that follow.
        training_features: As there.
        licence: As there.

    Returns:
        Address of the commit.

    Raises:
        ConfigError: If nobody is logged in, the hub cannot be reached or refuses, or the run cannot be
            published.
        DrgradeError: If a file of the run is damaged.
    """
    import huggingface_hub

    repository = _repository(repo_id)
    if token is None and huggingface_hub.get_token() is None:
        raise ConfigError(f"to={HUB}{repository}: nobody is logged in to the Hugging Face hub; {_LOGIN}")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        _write(Path(run), folder, seen, training_features, licence, repository)
        api = huggingface_hub.HfApi(token=token, library_name=LIBRARY, library_version=__version__)
        with _hub_errors(f"{repository} cannot be pushed to the Hugging Face hub"):
            made = api.create_repo(repo_id=repository, private=private, exist_ok=True, repo_type="model")
            done = api.upload_folder(
                repo_id=made.repo_id,
                repo_type="model",
                folder_path=folder,
                commit_message=commit_message,
                revision=branch,
                create_pr=create_pr,
                allow_patterns=list(FILES),
            )
    return str(done)


def _check_free(target: Path, overwrite: bool) -> None:
    if not target.exists():
        return
    if not target.is_dir():
        raise ConfigError(f"to={target} is a file; name a folder")
    if not any(target.iterdir()):
        return
    if not is_published(target):
        raise ConfigError(f"to={target} holds something else than a published grader; name a new folder")
    read_header(target)  # of another library's model it is not ours to throw away
    strange = sorted(each.name for each in target.iterdir() if each.name not in FILES)
    if strange:
        raise ConfigError(f"to={target} holds {strange[0]} beside a published grader; name a new folder")
    if not overwrite:
        raise ConfigError(f"to={target} is there already; overwrite=true replaces it")


def _write(
    source: Path,
    target: Path,
    seen: bool | None,
    training_features: bool,
    licence: str | None,
    repo_id: str | None,
) -> None:
    """Write a published folder into a new one."""
    if is_published(source):
        _copy(source, target, seen, licence)
        return
    cfg, record = read_finished(source)
    settings = published_settings(cfg)
    tensors = _own_tensors(source, record)
    artefacts = read_run_files(source)
    if not training_features:
        _refuse_features(artefacts, settings)
    target.mkdir()
    _save(tensors, target / WEIGHTS)
    described = {
        "library_name": LIBRARY,
        "format": FORMAT,
        "version": __version__,
        "grades": list(GRADE_NAMES),
        "normalisation": {"mean": list(MEAN), "std": list(STD)},
        "settings": settings,
        "calibration": asdict(artefacts.calibration),
        "metrics": strip_private(record),
        "weights": {"sha256": file_sha256(target / WEIGHTS), "tensors": len(tensors)},
    }
    write_text(target / CONFIG, json.dumps(described, indent=2, allow_nan=False) + "\n")
    write_text(target / README, render_model_card(artefacts, repo_id or FOLDER, licence=licence))
    if _with_seen(artefacts, seen):
        shutil.copyfile(source / SEEN, target / SEEN)
    _check_loads(target)


def _copy(source: Path, target: Path, seen: bool | None, licence: str | None) -> None:
    """Copy a folder that was published before; what it does not hold cannot be asked for."""
    if licence is not None:
        raise ConfigError("licence= is set where a run is published; edit the folder's README.md instead")
    if seen and not (source / SEEN).is_file():
        raise ConfigError(f"seen=true: {source} has no {SEEN}; publish the run itself")
    _check_loads(source)
    target.mkdir()
    for name in FILES:
        if (source / name).is_file() and (name != SEEN or seen is not False):
            shutil.copyfile(source / name, target / name)


def _own_tensors(run: Path, record: dict[str, Any]) -> dict[str, Tensor]:
    tensors = checkpoint_tensors(run, record)
    # Copies: safetensors refuses tensors that share their memory, and views of a larger one.
    return {
        name: tensor.detach().clone().contiguous()
        for name, tensor in tensors.items()
        if name.startswith(("encoder.", "head."))
    }


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    from safetensors.torch import save_file

    save_file(tensors, path, metadata={"format": "pt"})
    path.chmod(0o644)  # safetensors makes files that only their owner can read


def _check_loads(folder: Path) -> None:
    """Load what was written, before anybody else has to."""
    load_trained(folder)


def _refuse_features(artefacts: RunFiles, settings: dict[str, Any]) -> None:
    """Refuse a probe that holds single photographs: their features may give away who was trained on."""
    probe = settings["protocol"].get("probe")
    kind = get_class(probe["_target_"]) if probe else None
    if kind is None or not issubclass(kind, FittedHead):
        return
    allow = "training_features=true publishes it all the same"
    if kind.sized_by_data:
        raise ConfigError(
            f"{artefacts.folder}: a {kind.__name__} holds features and grade of every labelled photograph, "
            f"by which these can be recognised; {allow}"
        )
    if issubclass(kind, PrototypeProbe) and artefacts.split is not None:
        train = artefacts.split[artefacts.split["subset"] == "train"]
        single = int((train["grade"].value_counts() == 1).sum())
        if single:
            raise ConfigError(
                f"{artefacts.folder}: its {kind.__name__} holds the features of the only photograph of "
                f"{plural(single, 'grade')}, by which it can be recognised; {allow}"
            )


def _with_seen(artefacts: RunFiles, wanted: bool | None) -> bool:
    there = (artefacts.folder / SEEN).is_file()
    if wanted and not there:
        raise ConfigError(f"seen=true: {artefacts.folder} has no {SEEN}; run it again, or leave it out")
    public = all(each.about is not None and each.about.public for each in artefacts.data)
    return there and (public if wanted is None else wanted)


def _repository(name: str) -> str:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ConfigError(
            f"{name} is no folder, and no repository of the hub (user/name): {error}"
        ) from error
    return name


@contextmanager
def _hub_errors(what: str) -> Iterator[None]:
    """Say in one line what the hub, or the way to it, has against it."""
    try:
        yield
    except _errors() as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        lines = [line for line in str(error).splitlines() if line.strip()]
        reason = " ".join(lines[0].split()) if lines else type(error).__name__
        remedy = f"; {_LOGIN}" if status in (401, 403) else ""
        raise ConfigError(f"{what} ({reason}){remedy}") from error


def _errors() -> tuple[type[Exception], ...]:
    """What the hub's client raises: its own errors, those of its HTTP library, and those of the system."""
    import huggingface_hub.errors as own

    found: list[type[Exception]] = [own.HfHubHTTPError, own.HFValidationError, OSError]
    revision = getattr(own, "RevisionResolutionError", None)  # of later versions
    try:
        import httpx  # versions before 1 use requests, whose errors are OSErrors
    except ImportError:
        return tuple(filter(None, [*found, revision]))
    return tuple(filter(None, [*found, revision, httpx.HTTPError]))
