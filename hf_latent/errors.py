"""The exceptions for user errors, and the causes that they name."""


class UserError(ValueError):
    """A user error: one line that says what is wrong, where, and how to mend it.

    Every command prints that line on stderr and exits with status 2, without a traceback.
    """


class SharedError(UserError):
    """A user error that every process of a launch raises, so that only the first one prints it."""


def cause_of(error: BaseException) -> str:
    """Return an error's type and the first 200 characters of its text, in one line."""
    text = " ".join(str(error).split())[:200]
    return f"{type(error).__name__}: {text}"
