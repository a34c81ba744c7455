"""What an audit is asked to look for, and from where on it is said."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

from drgrade.audit.findings import FINDINGS
from drgrade.config import nearest
from drgrade.errors import ConfigError


@dataclass(frozen=True)
class Settings:
    """Thresholds of an audit. Figures behind the defaults: ``docs/audit.md``.

    Attributes:
        fail_on: Findings, names of :data:`~drgrade.audit.findings.FINDINGS`, that the audit fails on.
        tiny_below: Diameter of the disc, in pixels of the file, below which a photograph is tiny. It is so,
            too, below the size of the prepared photographs.
        blank_below: Contrast (see :class:`~drgrade.data.quality.Quality`) below which it is blank.
        dark_below: Level, 0-255, of the brightest twentieth of the disc below which it is dark.
        over_exposed_above: Share of the disc, 0-1, above which it is over-exposed.
        blurred_below: Focus below which it is out of focus whatever the rest of the data set is like.
        outlying_below: Focus below which it is out of focus if it is an outlier of its data set.
        outlying_deviations: How many (robust) standard deviations below the median an outlier lies.
        folds: Of the cross validation of the shortcut probe.
        permutations: How often the probe is repeated with shuffled grades.
        resamples: Of the bootstrap, for the probe's interval.
        probe_photographs: The probe takes at most so many photographs of a data set.
        shortcut_above: QWK of the probe from which on it is a finding, if it is significant, too.
        seed: Of the probe.
        pairs_on_page: The page shows at most so many pairs; all are in ``pairs.csv``.
    """

    fail_on: Sequence[str] = ()
    tiny_below: float = 128.0
    blank_below: float = 0.004
    dark_below: float = 32.0
    over_exposed_above: float = 0.25
    blurred_below: float = 0.5
    outlying_below: float = 0.6
    outlying_deviations: float = 4.0
    folds: int = 5
    permutations: int = 30
    resamples: int = 500
    probe_photographs: int = 10_000
    shortcut_above: float = 0.2
    seed: int = 0
    pairs_on_page: int = 200

    def __post_init__(self) -> None:
        given: object = self.fail_on  # of a config, so that it may be anything
        if isinstance(given, str):
            raise ConfigError(f"fail_on={given} is not a list: fail_on=[{given}]")
        if not isinstance(given, Sequence):
            value = "null" if given is None else given
            raise ConfigError(
                f"fail_on={value} is not a list: fail_on=[] to pass whatever is found, "
                "or fail_on=[across_splits] and the like"
            )
        for name in self.fail_on:
            if name not in FINDINGS:
                raise ConfigError(
                    f"fail_on: there is no finding {name!r}; {nearest(str(name), list(FINDINGS))}"
                )
        least = {"folds": 2, "permutations": 19, "resamples": 100, "probe_photographs": 100}
        for field in fields(self)[1:]:
            value, lowest = getattr(self, field.name), least.get(field.name, 0)
            whole = isinstance(field.default, int)
            if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
                kind = "whole number" if whole else "number"
                raise ConfigError(f"audit.{field.name}={value} is not a {kind}")
            if value < lowest:
                raise ConfigError(f"audit.{field.name}={value} is too small: {lowest} at least")
