"""One exception for every mistake that a user can make and mend, and one for a user who stops the work."""

from __future__ import annotations

import re

LONGEST = 1000  # characters of a message; what files hold may be quoted in it
# line ends, what steers a terminal or turns the direction of writing, and halves of characters, which cannot be printed
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]+")


def one_line(text: str, longest: int = LONGEST) -> str:
    """A text that a terminal shows as one line: control characters become spaces, and of a long one the middle is left out."""
    text = CONTROL.sub(" ", text).strip()
    half = (longest - 3) // 2
    return text if len(text) <= longest else f"{text[:half]} … {text[-half:]}"


def reason(error: BaseException) -> str:
    """Why something failed, in a few words for a longer message: the first line of what an exception says, else its type."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return one_line(lines[0], 200) if lines else type(error).__name__


class UserError(ValueError):
    """What was wrong, where, and what to do, in one line; the tools print it and end with exit status 2.

    Whatever the message quotes of a file or a name, it stays one printable line.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(one_line(str(message)))


class StorageError(UserError):
    """The file system refused to write: full, over quota, read-only, forbidden or broken."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM, where it is known how to go on; the message says it in one line."""
