"""Errors that are the user's to mend. The entry points print them as one line and exit with status 1."""


class DrgradeError(Exception):
    """Something outside the code is wrong; the message says what, where, and what to do about it."""


class DataError(DrgradeError):
    """A data set, label file, photograph or store cannot be used."""


class ConfigError(DrgradeError):
    """A setting, or a combination of settings, makes no sense."""


class EncoderError(DrgradeError):
    """A pre-trained encoder is missing or does not fit."""
