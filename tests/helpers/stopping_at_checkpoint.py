"""As with_small_cifar10, but the process stops (SIGSTOP) right after its first checkpoint, until it is let go or killed.

usage: python -m tests.helpers.stopping_at_checkpoint TOOL [words …]
"""

import os
import signal

from gandefense.training import checkpoint

_write = checkpoint.write


def _write_and_stop(*words: object) -> None:
    checkpoint.write = _write
    _write(*words)
    os.kill(os.getpid(), signal.SIGSTOP)


checkpoint.write = _write_and_stop

import tests.helpers.with_small_cifar10  # noqa: E402, F401  (runs the tool)
