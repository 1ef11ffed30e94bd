"""Every way in which a command of ours can end other than well, each with the exit code it ends with.

A message says what happened, where and why; `mend` is the command or the setting that puts it right. The command line
prints both and no traceback. Inside a room, `ValueError` is raised for an argument that breaks a rule; the classes here
are for what reaches the user from outside: a configuration, data, storage, another process.
"""


class CedmError(Exception):
    """An expected failure. `mend`: what the user can do about it, or None. Exit code 1 would mean a bug of ours."""

    exit_code = 1

    def __init__(self, message: str, *, mend: str | None = None) -> None:
        super().__init__(message)
        self.mend = mend


class ConfigurationError(CedmError):
    """A command line or a YAML file that breaks a rule."""

    exit_code = 2


class InputDataError(CedmError):
    """Images, archives, weights or features that cannot be used."""

    exit_code = 3


class NoUsableResultError(CedmError):
    """The search ended and nothing in it can be trusted: all trials diverged, or no C passed the bound."""

    exit_code = 5


class LockedError(CedmError):
    """Another driver owns the study."""

    exit_code = 6


class StorageError(CedmError):
    """The study's storage is full, read-only or missing."""

    exit_code = 7


class IntegrityError(CedmError):
    """A file that was acknowledged is not the file that is there, and nothing valid stands behind it."""

    exit_code = 8


class SecurityError(CedmError):
    """Something was refused because reading it would run or expose what it should not."""

    exit_code = 9


class TryAgainError(CedmError):
    """The cluster or the storage went away; the same command continues."""

    exit_code = 75
