"""The exceptions for user errors."""


class UserError(ValueError):
    """A user error: one line that says what is wrong, where, and how to mend it.

    Every command prints that line on stderr and exits with status 2, without a traceback.
    """


class SharedError(UserError):
    """A user error that every process of a launch raises, so that only the first one prints it."""
