"""The study of a search, as processes reach it that run its trials: through its database."""

import logging
from typing import TYPE_CHECKING, Any

from drgrade.errors import ConfigError

if TYPE_CHECKING:
    from optuna.pruners import BasePruner
    from optuna.trial import Trial

_PATIENCE = 120
"""Seconds that a process waits for its turn to write into a file that others write into as well."""


def open_storage(url: str) -> Any:
    """Open the database of a study.

    Args:
        url: As SQLAlchemy takes it.

    Returns:
        Optuna's storage.

    Raises:
        ConfigError: If there is no such database, or it cannot be used.
    """
    import optuna
    from sqlalchemy.exc import ArgumentError, SQLAlchemyError  # type: ignore[import-untyped]

    # SQLite makes writers wait for each other, but by itself not for long.
    settings = {"connect_args": {"timeout": _PATIENCE}} if url.startswith("sqlite") else None
    try:
        return optuna.storages.RDBStorage(url, engine_kwargs=settings)
    except (ArgumentError, ImportError) as error:
        raise ConfigError(
            f"hydra.sweeper.storage is no URL of a database that can be opened here: {error}"
        ) from error
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError, RuntimeError) as error:
        raise ConfigError(_unreachable(error)) from error


def open_trial(storage: str, study: str, number: int, pruner: "BasePruner | None") -> "Trial":
    """Open a trial of a study that another process has begun.

    Args:
        storage: URL of the database.
        study: Name.
        number: Of the trial.
        pruner: For the trial's ``should_prune``; None: never.

    Returns:
        The trial.

    Raises:
        ConfigError: If there is no such study or trial, or no database.
    """
    import optuna

    optuna.logging.set_verbosity(logging.ERROR)  # an epoch that is repeated after a resume is no news
    try:
        found = optuna.load_study(
            study_name=study, storage=open_storage(storage), pruner=pruner or optuna.pruners.NopPruner()
        )
        trial_id = found._storage.get_trial_id_from_study_id_trial_number(found._study_id, number)
    except KeyError as error:
        raise ConfigError(f"trial {number} of {study}: {_unreachable(error)}") from error
    return optuna.trial.Trial(found, trial_id)


def _unreachable(error: Exception) -> str:
    # The URL is not repeated: it may hold a password.
    return (
        f"the database of the search cannot be used ({type(error).__name__}): every machine that runs trials "
        "has to reach it under the same name, and with the same version of optuna (hydra.sweeper.storage)"
    )
