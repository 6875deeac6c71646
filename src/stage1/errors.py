"""Every error that a user can cause, with the exit code of DESIGN.md. One line: the thing, its value, the way out."""

from __future__ import annotations


class Stage1Error(Exception):
    """A run failed for a reason that is named. Exit code 1. Its text is one line, whatever a name in it holds."""

    exit_code = 1

    def __str__(self) -> str:
        return " ".join(super().__str__().splitlines())


class ConfigError(Stage1Error):
    """A wrong option, key or value, or a combination that makes no sense. Exit code 2."""

    exit_code = 2


class DataError(Stage1Error, ValueError):
    """Input data that cannot be used: wrong shape, NaN, unknown label, missing column. Exit code 2."""

    exit_code = 2


class MissingError(Stage1Error):
    """A file, an extra, a backbone or its weights are not there. Exit code 3."""

    exit_code = 3


class NotCertifiable(Stage1Error):
    """The given data cannot certify the target; the message carries the arithmetic. Exit code 4."""

    exit_code = 4


class IntegrityError(Stage1Error):
    """Something that was shipped or certified is not what it was: digest, schema, parity. Exit code 5."""

    exit_code = 5


class SourceChanged(IntegrityError):
    """An image is not what it was at the split, or cannot be read any more. The next split reads every file anew."""


class StoreError(Stage1Error):
    """The event store cannot do what was asked: a full disk, a closed store, tables of another version. Exit code 1."""


class StoreAway(StoreError):
    """The database of the store does not answer, or is locked. What was recorded is safe in the spool; try again."""


class Checkpointed(Stage1Error):
    """Stopped on request with a complete checkpoint; run the same command to go on. Exit code 75."""

    exit_code = 75
