"""One exception for every mistake that a user can make and mend."""


class UserError(ValueError):
    """What was wrong, where, and what to do, in one line; the tools print it and end with exit status 2."""
