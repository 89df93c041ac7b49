"""Importing the package stays cheap."""

from __future__ import annotations

from collections.abc import Callable


def test_importing_the_package_pulls_in_neither_torchvision_nor_lpips(python: Callable) -> None:
    done = python("-c", "import gandefense, sys; print(sorted({'torchvision', 'lpips', 'tensorboard'} & set(sys.modules)))")
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr
