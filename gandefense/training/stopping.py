"""Ctrl-C and SIGTERM during a training: the step in hand is finished and saved first."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from typing import Any

from gandefense import distributed


class StopRequest:
    """Whether a signal has asked for the end of a training loop.

    Args:
        nothing_to_save: says whether the last finished step is on disk already; then a signal need not wait.
    """

    def __init__(self, nothing_to_save: Callable[[], bool]) -> None:
        self.asked = False
        self._nothing_to_save = nothing_to_save
        self._agreed = False
        self._handlers: dict[int, Any] = {}

    def listen(self) -> None:
        """From here on signals wait for `agreed`, unless they are ignored, as SIGINT is in a script's background jobs."""
        if threading.current_thread() is not threading.main_thread():
            return  # Python delivers signals to the main thread alone
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._handlers[number] = signal.signal(number, self._signalled)

    def release(self) -> None:
        """Give the signals back to whom they belonged before `listen`."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def agreed(self, *, ask_others: bool) -> bool:
        """Whether to stop after this step.

        Args:
            ask_others: under torchrun, whether this is a step at which the processes tell each other; they must stop after
                the same one. Every process must give the same answer here.
        """
        if distributed.world() == 1:
            return self.asked
        if ask_others:
            self._agreed = any(distributed.from_all(self.asked))
        return self._agreed

    def _signalled(self, *_: object) -> None:
        if self.asked or (self._nothing_to_save() and distributed.world() == 1):
            raise KeyboardInterrupt
        self.asked = True
        if distributed.rank() == 0:  # by the system's own call, because a print may be at work already
            os.write(2, b"\nstopping as soon as this step is saved; a second signal stops at once\n")
