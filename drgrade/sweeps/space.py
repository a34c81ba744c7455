"""What a search may choose from."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.types import Override, RangeSweep
from hydra_plugins.hydra_optuna_sweeper._impl import create_optuna_distribution_from_override
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    DiscreteUniformDistribution,
    IntUniformDistribution,
)

from drgrade.errors import ConfigError

SPACE = "space of"


@dataclass(frozen=True)
class Space:
    """What is searched.

    Attributes:
        distributions: Setting: the values that it may take.
    """

    distributions: dict[str, BaseDistribution]

    @property
    def names(self) -> list[str]:
        """Settings, without the sign of one that is added."""
        return [name.lstrip("+") for name in self.distributions]

    def example(self) -> list[str]:
        """Overrides of one point of the space: each setting's lowest, or first, value."""
        return [f"{name}={_first(each)}" for name, each in self.distributions.items()]

    def described(self) -> dict[str, str]:
        """What the space of each setting is, as text: ``{"space of optimizer.lr": "..."}``."""
        return {f"{SPACE} {name}": str(each) for name, each in sorted(self.distributions.items())}


def read_space(overrides: Sequence[Override]) -> Space:
    """Read the space of a search from the overrides that sweep.

    Args:
        overrides: Of the command; those with one value are left out.

    Returns:
        The space.

    Raises:
        ConfigError: If there is none, or a part of it cannot be read.
    """
    swept = [each for each in overrides if each.is_sweep_override()]
    if not swept:
        raise ConfigError(
            "there is nothing to search: give settings intervals or choices, as in "
            "'optimizer.lr=tag(log, interval(1e-5, 1e-2))' head.dropout=0.2,0.5"
        )
    return Space({each.get_key_element(): _distribution(each) for each in swept})


def _distribution(override: Override) -> BaseDistribution:
    value = override.value()
    try:
        if isinstance(value, RangeSweep) and not value.shuffle:
            # The plugin takes a range's end for one of its values, which nobody else does.
            values = list(value.range())
            low, high, step = min(values), max(values), abs(value.step)
            if isinstance(value.range(), range):
                return IntUniformDistribution(int(low), int(high), int(step))
            return DiscreteUniformDistribution(low, high, step)
        found = create_optuna_distribution_from_override(override)
        assert isinstance(found, BaseDistribution)
        return found
    except (AssertionError, NotImplementedError, TypeError, ValueError) as error:
        raise ConfigError(f"{override.input_line} cannot be searched: {error}") from error


def _first(distribution: BaseDistribution) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[0]
    return distribution.low  # type: ignore[attr-defined]
