"""Run a tool on the small CIFAR-10 in GANDEFENSE_DATA:  python -m tests.helpers.with_small_cifar10 TOOL [words …]"""

import os
import runpy
import sys
from pathlib import Path

import pytest

from tests.helpers import small_cifar10

small_cifar10.install(Path(os.environ["GANDEFENSE_DATA"]), pytest.MonkeyPatch())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
