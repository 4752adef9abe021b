"""The one exception for mistakes that a user can mend."""


class UserError(ValueError):
    """A mistake in what the user gave: one line that says what, where, and how to mend it.

    Every command turns it into that line on stderr and exit status 2, without a traceback.
    """
