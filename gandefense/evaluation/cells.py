"""The cells of an evaluation: which restorer meets which attack under which threat; and the order in which they are measured."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from gandefense.attacks.suite import ONE_STEP, AttackSpec
from gandefense.attacks.suite import family as family_of

if TYPE_CHECKING:
    from gandefense.evaluation.settings import AttackEntry, EvaluateConfig

NO_RESTORER = "none"  # the restorer that leaves images as they are
TRANSFER = "transfer: "  # begins the view of examples that were made against another classifier
QUERY = "query"  # the view of an attacker who may only ask the whole pipeline
# What an attacker of a threat may also do: who knows the defence can ignore it, and ask it like anybody else.
ALSO = {
    "gray_box": ("gray_box",),
    "black_box": ("black_box",),
    "white_box": ("gray_box", "black_box", "white_box"),
    "curve": ("curve",),
}


@dataclass(frozen=True)
class Cell:
    """One row of the table: whose images, attacked how; `spec` None means clean images.

    `survivors`: only images that stood after the earlier attacks of the same restorer and threat are attacked; the others
    count as broken.
    """

    restorer: str
    threat: str
    view: str
    spec: AttackSpec | None = None
    survivors: bool = False

    @property
    def adversarial(self) -> bool:
        """Whether an adversary searched for the perturbation; noise is no adversary."""
        return self.spec is not None and self.spec.norm != "noise"

    @property
    def counts(self) -> bool:
        """Whether it belongs to worst cases, which are those of a budget of every pixel; an L2 ball is another budget."""
        return self.adversarial and self.spec.norm == "linf"

    @property
    def title(self) -> str:
        """The attack's short name, such as "pgd-20"; "clean" for none."""
        return "clean" if self.spec is None else self.spec.title()

    @property
    def source(self) -> str | None:
        """The other classifier that the examples are made against, or None."""
        return self.view.removeprefix(TRANSFER) if self.view.startswith(TRANSFER) else None

    @property
    def own(self) -> bool:
        """Whether the images are made against this very restorer, and not against a classifier alone."""
        return self.restorer != NO_RESTORER and (self.threat in ("white_box", "curve") or self.view == QUERY)

    @property
    def key(self) -> str:
        """The name of its records."""
        if self.restorer == NO_RESTORER and self.threat == "curve":
            return f"none/curve/{spec_key(self.spec)}"
        if self.restorer == NO_RESTORER and self.source is None and not self.survivors:
            return f"none/{spec_key(self.spec)}"  # the same under every threat
        stands = "/survivors" if self.survivors else ""
        return f"{self.restorer}/{self.threat}/{self.view}/{spec_key(self.spec)}{stands}"

    def bare(self, *, randomised: bool = False) -> Cell:
        """The same attack on the classifier alone; what only a defence has (a detector, randomness) is left out.

        `randomised`: the classifier itself is random, so that averaging over its draws counts.
        """
        spec = self.spec
        if spec is not None:
            spec = replace(spec, loss="ce" if spec.loss == "joint" else spec.loss, eot=spec.eot if randomised else 1)
        view = "oblivious" if self.threat in ("white_box", "curve") else self.view
        return Cell(NO_RESTORER, self.threat, view, spec, self.survivors)

    def identity(self) -> dict[str, Any]:
        """What an entry of results.json says about the attack."""
        spec = self.spec
        where = {"threat": self.threat, "view": self.view, "title": self.title}
        if spec is None:
            none = {"attack": "none", "norm": "linf", "eps": 0.0, "steps": 0, "step_size": None, "restarts": 1}
            return {**where, **none, "labels": "true", "loss": None, "eot_samples": 1, "queries": None, "survivors": False}
        kind = family_of(spec.attack)
        steps = 1 if spec.attack in ONE_STEP else spec.steps if kind == "gradient" or spec.attack == "autoattack" else 0
        return {
            **where,
            "attack": spec.attack,
            "norm": spec.norm,
            "eps": spec.eps,
            "steps": steps,
            "step_size": spec.step(),
            "restarts": spec.restarts,
            "labels": spec.labels,
            "loss": spec.loss,
            "eot_samples": spec.eot,
            "queries": spec.queries if kind == "query" or spec.attack == "autoattack" else None,
            "survivors": self.survivors,
        }


def spec_key(spec: AttackSpec | None) -> str:
    """An attack with all its settings as one word; None is clean images."""
    if spec is None:
        return "clean"
    return (
        f"{spec.attack}_eps{spec.eps:.8g}_steps{spec.steps}_size{spec.step_size}_restarts{spec.restarts}_{spec.labels}"
        f"_{spec.loss}_eot{spec.eot}_queries{spec.queries}"
    )


def table_cells(config: EvaluateConfig, restorer: str, *, randomised: bool, random_classifier: bool = False) -> list[Cell]:
    """The cells of a restorer in their order: clean, gray_box, black_box, white_box (attack by attack, view by view).

    Averaging gradients over random draws changes nothing where nothing is random: there, `eot` is taken as 1.
    """

    def spec_of(entry: AttackEntry, random: bool = random_classifier) -> AttackSpec:
        return entry.spec() if random else replace(entry.spec(), eot=1)

    black, white = config.black_box, config.white_box
    cells = [Cell(restorer, "gray_box", "oblivious", None)]
    cells += [Cell(restorer, "gray_box", "oblivious", spec_of(entry), entry.survivors) for entry in config.gray_box]
    for source in black.sources:
        cells += [Cell(restorer, "black_box", f"{TRANSFER}{source}", spec_of(entry)) for entry in black.transfer]
    cells += [Cell(restorer, "black_box", QUERY, entry.spec(), entry.survivors) for entry in black.queries]
    for entry in white.attacks:
        views = white.views if entry.views is None else entry.views
        cells += [Cell(restorer, "white_box", view, spec_of(entry, randomised), entry.survivors) for view in views]
    return list(dict.fromkeys(cells))


def curve_cells(config: EvaluateConfig, restorer: str, *, randomised: bool) -> dict[str, list[Cell]]:
    """The points of a restorer's curves by what is varied ("eps", "steps", "eot"); "eot" only where something is random."""
    curves = config.curves
    spec = curves.attack.spec()
    varied = {
        "eps": [replace(spec, eps=value) for value in curves.eps],
        "steps": [replace(spec, steps=value) for value in curves.steps],
        "eot": [replace(spec, eot=value) for value in curves.eot] if randomised else [],
    }
    view = "oblivious" if restorer == NO_RESTORER else curves.view
    return {name: [Cell(restorer, "curve", view, point) for point in points] for name, points in varied.items() if points}


def earlier(cell: Cell, cells: Iterable[Cell]) -> list[Cell]:
    """The cells whose survivors a cell attacks: clean images, and those before it that its attacker may use within its eps."""
    before = []
    for other in cells:
        if other == cell:
            break
        allowed = other.adversarial and other.threat in ALSO[cell.threat] and other.spec.eps <= cell.spec.eps
        if other.spec is None or (allowed and cell.spec.norm in (other.spec.norm, "noise")):
            before.append(other)
    return before


def validation_key(restorer: str) -> str:
    """The record of scores of clean validation images."""
    return f"{restorer}/validation"


def universal_key(cell: Cell) -> str:
    """The record of the one perturbation that a cell's attack adds to every image; who attacks the same network shares it."""
    attacked = f"{cell.restorer}/{cell.view}" if cell.own else cell.source or NO_RESTORER
    return f"{attacked}/perturbation/{spec_key(cell.spec)}"


def zero_key(restorer: str, view: str) -> str:
    """The record of how much of a view's gradient is exactly zero, on the first batch."""
    return f"{restorer}/zero_gradient/{view}"
