"""Whether a restorer stands before the classifier that it was trained for."""

from __future__ import annotations

from torch import nn

from gandefense import zoo
from gandefense.attacks.cache import fingerprint
from gandefense.errors import UserError
from gandefense.evaluation.cells import NO_RESTORER


def trained_for(restorers: list[str], classifier: nn.Module, name: str) -> dict[str, str | None]:
    """Of each trained restorer, the classifiers that it was trained for, None where it stands before one of them here.

    Weights tell that for the defended one, wherever its file lies; of `others` that TRN learnt from only names and files do.

    Args:
        restorers: names, as a config has them.
        classifier: what they stand before.
        name: of that classifier, as a config has it.
    """
    found: dict[str, str | None] = {}
    here = fingerprint(classifier)
    for restorer in restorers:
        if restorer == NO_RESTORER or zoo.is_ready(restorer) or zoo.is_own(restorer):
            continue
        description = zoo.describe(restorer)
        if not isinstance(description.get("classifier"), str):
            continue
        defended, others = zoo.classifier_of(restorer), description.get("config", {}).get("others") or []
        expected = description.get("classifier_fingerprint")
        same = expected == here if expected is not None else _same_file(defended, name)
        known = same or any(_same_file(other, name) for other in others)
        found[restorer] = None if known else ", ".join([defended, *others])
    return found


def _same_file(one: str, other: str) -> bool:
    """Whether two names stand for the same weights file; of a part of the user's own, or a file that is gone, only names tell."""
    if one == other:
        return True
    if zoo.is_own(one) or zoo.is_own(other):
        return False
    try:
        return zoo.content_hash(one) == zoo.content_hash(other)
    except (UserError, OSError):
        return False
