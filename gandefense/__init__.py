"""gandefense: train restoration defences against adversarial images, and find out honestly whether they hold."""

from __future__ import annotations

import os
from typing import Any

# Before torch is imported: OpenMP threads that spin while they wait slow two busy processes on few cores tenfold.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


from gandefense.errors import UserError
from gandefense.restorers.base import DefendedClassifier, Restoration, Restorer
from gandefense.zoo import defend, load

__version__ = "0.1.0"
__all__ = ["DefendedClassifier", "Restoration", "Restorer", "UserError", "defend", "evaluate", "load"]


def evaluate(config: Any = None, **settings: Any) -> dict[str, Any]:
    """Measure defences; see `gandefense.evaluation.evaluator.evaluate`."""
    from gandefense.evaluation.evaluator import evaluate as run

    return run(config, **settings)
