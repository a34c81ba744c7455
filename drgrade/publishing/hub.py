"""Publish a trained run as a folder or on the Hugging Face hub, and load it again.

As on the hub, a model is a folder with ``config.json``, ``model.safetensors`` and ``README.md``, or
``user/name``. Folders need no network.
"""

import json
import logging
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from drgrade.artefacts import leaves, looks_secret, strip_private
from drgrade.data.transforms import MEAN, STD
from drgrade.errors import ConfigError, DataError
from drgrade.files import (
    file_sha256,
    replacing_folder,
    require_regular,
    restore_folder,
    write_bytes,
    write_text,
)
from drgrade.model_card.card import FOLDER, render_model_card
from drgrade.model_card.facts import RunFiles, read_run_files
from drgrade.models.calibration import referral_rule
from drgrade.models.grading_model import model_class
from drgrade.models.probes import FittedHead, PrototypeProbe
from drgrade.models.thresholds import describe_rule
from drgrade.prediction.checkpoint import TrainedModel, checkpoint_tensors, load_model
from drgrade.prediction.published_folder import (
    CONFIG,
    FILES,
    FORMAT,
    LIBRARY,
    README,
    WEIGHTS,
    is_published,
    published_settings,
    read_published_config,
)
from drgrade.runs.run_dir import SEEN, read_finished
from drgrade.stats.formatting import GRADE_NAMES, plural

HUB = "hf://"
"""Prefix of repositories on the hub, as in ``hf://user/name``."""

log = logging.getLogger(__name__)

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
    """Write a trained run as a folder for publication, atomically.

    The folder holds weights without optimiser state, settings without paths, calibration, preparation and
    model card; no photographs, no file names and no predictions.

    Args:
        run: Folder of a finished grading run, or a published folder, which is copied.
        save_directory: Output folder.
        overwrite: Replace a folder that was published before.
        seen: Include ``seen.txt``: SHA-256 of the training and validation files, with which ``drgrade
            evaluate`` refuses them as test photographs. Anyone who has a file can tell from it that the file
            was used. None includes it if all data sets are public.
        training_features: Publish a probe that contains features of single training photographs.
        licence: Licence of the weights, as the hub names it; None for that of the data set.
        repo_id: ``user/name`` in the examples of the card; None for a folder.

    Returns:
        The folder.

    Raises:
        ConfigError: If there is no such run, the folder exists already, or the run cannot be published.
        DrgradeError: If a file of the run is damaged.

    Example:
        >>> save_pretrained("outputs/runs/RUN", "grader")  # doctest: +SKIP
    """
    source, target = Path(run), Path(save_directory)
    restore_folder(target)
    _check_target(target, overwrite)
    with replacing_folder(target) as fresh:
        _write(source, fresh, seen, training_features, licence, repo_id)
    return target


def from_pretrained(
    pretrained_model_name_or_path: Path | str,
    *,
    revision: str | None = None,
    cache_dir: Path | str | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
) -> TrainedModel:
    """Load a published model.

    Args:
        pretrained_model_name_or_path: A published folder, a run folder, or ``user/name`` on the hub.
        revision: Branch, tag or commit on the hub.
        cache_dir: Folder of downloaded files.
        token: Access token; None for that of the login.
        local_files_only: Use files downloaded before, without network.
        force_download: Download again.

    Returns:
        The model, for :class:`drgrade.prediction.grader.Grader`.

    Raises:
        ConfigError: If there is no such folder or repository, or it cannot be downloaded.
        DrgradeError: If drgrade has not published it, or it is damaged.
    """
    place = str(pretrained_model_name_or_path)
    if Path(place).is_dir():
        return load_model(Path(place))
    from huggingface_hub import snapshot_download

    repository = _repository(place.removeprefix(HUB))
    with _hub_errors(f"{repository} is not a folder and cannot be downloaded from the Hugging Face hub"):
        folder = snapshot_download(
            repository,
            revision=revision,
            cache_dir=cache_dir,
            token=token,
            local_files_only=local_files_only,
            force_download=force_download,
            allow_patterns=list(FILES),
        )
    read_published_config(Path(folder))
    return load_model(Path(folder))


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
    """Publish a trained run on the Hugging Face hub in one commit.

    Args:
        run: Folder of a finished grading run, or a published folder.
        repo_id: ``user/name``; created if it does not exist.
        commit_message: Commit message.
        private: Create a private repository; an existing one is not changed.
        token: Token of the hub; None for that of the login, or ``HF_TOKEN``.
        branch: Target branch; None for the main branch.
        create_pr: Create a pull request.
        seen: See :func:`save_pretrained`, also for the following.
        training_features: See there.
        licence: See there.

    Returns:
        URL of the commit.

    Raises:
        ConfigError: If there is no login, the hub is unreachable or refuses, or the run cannot be published.
        DrgradeError: If a file of the run is damaged.
    """
    import huggingface_hub

    repository = _repository(repo_id)
    if token is None and huggingface_hub.get_token() is None:
        raise ConfigError(f"to={HUB}{repository}: there is no login to the Hugging Face hub; {_LOGIN}")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        _write(Path(run), folder, seen, training_features, licence, repository)
        api = huggingface_hub.HfApi(token=token, library_name=LIBRARY, library_version=version("drgrade"))
        with _hub_errors(f"{repository} cannot be pushed to the Hugging Face hub"):
            created = api.create_repo(repo_id=repository, private=private, exist_ok=True, repo_type="model")
            commit = api.upload_folder(
                repo_id=created.repo_id,
                repo_type="model",
                folder_path=folder,
                commit_message=commit_message,
                revision=branch,
                create_pr=create_pr,
                allow_patterns=list(FILES),
            )
    return str(commit)


def _check_target(target: Path, overwrite: bool) -> None:
    if not target.exists():
        return
    if not target.is_dir():
        raise ConfigError(f"to={target} is a file; name a folder")
    if not any(target.iterdir()):
        return
    if not is_published(target):
        raise ConfigError(f"to={target} is not a published model; name a new folder")
    read_published_config(target)  # refuse to replace a model of another library
    others = sorted(each.name for each in target.iterdir() if each.name not in FILES)
    if others:
        raise ConfigError(f"to={target} contains {others[0]} besides a published model; name a new folder")
    if not overwrite:
        raise ConfigError(f"to={target} exists already; overwrite=true replaces it")


def _write(
    source: Path,
    target: Path,
    seen: bool | None,
    training_features: bool,
    licence: str | None,
    repo_id: str | None,
) -> None:
    """Write a published folder to a new path and load it once."""
    from safetensors.torch import save

    if is_published(source):
        _copy(source, target, seen, licence)
        return
    cfg, record = read_finished(source)
    _warn_of_secrets(cfg)
    settings = published_settings(cfg)
    # Copies: safetensors refuses tensors that share memory, and views.
    tensors = {
        name: tensor.detach().clone().contiguous()
        for name, tensor in checkpoint_tensors(source, record).items()
        if name.startswith(("encoder.", "head."))
    }
    run = read_run_files(source)
    if not training_features:
        _refuse_features(run, settings)
    target.mkdir()
    write_bytes(target / WEIGHTS, save(tensors, metadata={"format": "pt"}))
    description = {
        "library_name": LIBRARY,
        "format": FORMAT,
        "version": version("drgrade"),
        "grades": list(GRADE_NAMES),
        "normalisation": {"mean": list(MEAN), "std": list(STD)},
        "settings": settings,
        "calibration": asdict(run.calibration),
        "referral": describe_rule(referral_rule([run.calibration])),
        "metrics": strip_private(record),
        "weights": {"sha256": file_sha256(target / WEIGHTS), "tensors": len(tensors)},
    }
    write_text(target / CONFIG, json.dumps(description, indent=2, allow_nan=False) + "\n")
    write_text(target / README, render_model_card(run, repo_id or FOLDER, licence=licence))
    if _includes_seen(run, seen):
        _copy_file(source / SEEN, target)
    load_model(target)


def _warn_of_secrets(cfg: DictConfig) -> None:
    """Log the names of settings that look like secrets, which :func:`strip_private` removes."""
    values = leaves(OmegaConf.to_container(cfg, resolve=True))
    secret = [name for name, value in values if isinstance(value, str) and looks_secret(value)]
    if secret:
        log.warning("not published, because it looks like a secret: %s", ", ".join(secret))


def _copy(source: Path, target: Path, seen: bool | None, licence: str | None) -> None:
    """Copy a folder that was published before."""
    if licence is not None:
        raise ConfigError("licence= applies to runs; edit README.md of the published folder instead")
    if seen and not (source / SEEN).is_file():
        raise ConfigError(f"seen=true: {source} has no {SEEN}; publish the run instead")
    load_model(source)
    target.mkdir()
    for name in FILES:
        if (source / name).is_file() and (name != SEEN or seen is not False):
            _copy_file(source / name, target)


def _copy_file(path: Path, target: Path) -> None:
    """Copy a file; refuse a link that leads out of its folder, which could name any file of the user."""
    real, folder = require_regular(path).resolve(), path.parent.resolve()
    cached = folder.parent.parent / "blobs"  # a downloaded folder of the hub consists of links
    if not (real.is_relative_to(folder) or real.parent == cached):
        raise DataError(
            f"{path} is a link to a file outside its folder, which is not published; copy the file"
        )
    shutil.copyfile(path, target / path.name)


def _refuse_features(run: RunFiles, settings: dict[str, Any]) -> None:
    """Refuse a probe with features of single photographs, which may identify training photographs."""
    probe = settings["protocol"].get("probe")
    kind = model_class(probe["_target_"]) if probe else None
    if kind is None or not issubclass(kind, FittedHead):
        return
    allow = "training_features=true publishes it nevertheless"
    if kind.sized_by_data:
        raise ConfigError(
            f"{run.folder}: a {kind.__name__} contains features and grade of every labelled "
            f"photograph, which identify the photographs; {allow}"
        )
    if issubclass(kind, PrototypeProbe) and run.split is not None:
        train = run.split[run.split["subset"] == "train"]
        single = int((train["grade"].value_counts() == 1).sum())
        if single:
            raise ConfigError(
                f"{run.folder}: its {kind.__name__} contains the features of the only photograph of "
                f"{plural(single, 'grade')}, which identify it; {allow}"
            )


def _includes_seen(run: RunFiles, requested: bool | None) -> bool:
    """Return True if ``seen.txt`` is published."""
    exists = (run.folder / SEEN).is_file()
    if requested and not exists:
        raise ConfigError(f"seen=true: {run.folder} has no {SEEN}; train again, or remove seen=true")
    public = all(each.about is not None and each.about.public for each in run.data)
    return exists and (public if requested is None else requested)


def _repository(name: str) -> str:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ConfigError(
            f"{name} is neither a folder nor a valid repository of the hub (user/name): {error}"
        ) from error
    return name


@contextmanager
def _hub_errors(what: str) -> Iterator[None]:
    """Convert errors of the hub to ConfigError of one line."""
    try:
        yield
    except _errors() as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        lines = [line for line in str(error).splitlines() if line.strip()]
        reason = " ".join(lines[0].split()) if lines else type(error).__name__
        remedy = f"; {_LOGIN}" if status in (401, 403) else ""
        raise ConfigError(f"{what} ({reason}){remedy}") from error


def _errors() -> tuple[type[Exception], ...]:
    """Return the exceptions of the hub client, of its HTTP library and of the system."""
    from huggingface_hub import errors

    kinds: list[type[Exception]] = [errors.HfHubHTTPError, errors.HFValidationError, OSError]
    if hasattr(errors, "RevisionResolutionError"):  # in later versions
        kinds.append(errors.RevisionResolutionError)
    with suppress(ImportError):  # versions before 1 use requests, whose errors are OSErrors
        import httpx

        kinds.append(httpx.HTTPError)
    return tuple(kinds)
