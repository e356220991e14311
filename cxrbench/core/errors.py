"""Errors a user can act on, each with the exit code that the command line returns."""

from collections.abc import Collection


class CxrbenchError(Exception):
    """A failure with a message for the user: what, where, and how to repair it."""

    exit_code = 1


class UsageError(CxrbenchError):
    """The command's words do not fit the machine or each other."""

    exit_code = 2


class SweepIncompleteError(CxrbenchError):
    """A sweep finished, but some of its runs failed."""

    exit_code = 4


class DataError(CxrbenchError):
    """Bad images, labels or splits."""

    exit_code = 65


class MissingInputError(CxrbenchError):
    """A file, folder or set of weights that was asked for is not there."""

    exit_code = 66


class CannotWriteError(CxrbenchError):
    """The store cannot be written."""

    exit_code = 73


class ReadFailedError(CxrbenchError):
    """A disk, often a network's, gave a file not even when it was asked again."""

    exit_code = 74


class InterruptedRunError(CxrbenchError):
    """A training that was asked to stop and saved its state; the same command goes on."""

    exit_code = 75


class ConfigError(CxrbenchError):
    """A specification that does not validate, or a plan that leaks."""

    exit_code = 78


def system_error(error: BaseException | None, numbers: Collection[int]) -> OSError | None:
    """The system's error with one of these numbers behind an error, which libraries and readers wrap in their own."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        if isinstance(error, OSError) and error.errno in numbers:
            return error
        seen.append(error)
        error = error.__cause__ or error.__context__
    return None
