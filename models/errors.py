"""Errors that a command turns into its exit code (0 done, 1 unexpected, 2 input, 3 quality, 75 transient)."""


class TactfulError(Exception):
    """An error whose message names the offender, what was found and the remedy."""

    exit_code = 1


class InputError(TactfulError):
    """The configuration or the input cannot be used as it is; trying again changes nothing."""

    exit_code = 2


class QualityError(TactfulError):
    """The data broke a critical expectation; the run stops before anything is learned from it."""

    exit_code = 3


class TransientError(TactfulError):
    """Somebody else was faster (a writer, a lock); the same command may succeed later."""

    exit_code = 75
