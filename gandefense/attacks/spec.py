"""What an attack is asked to do: its description, the names there are, and which setting belongs to which attack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gandefense.attacks.noise import NOISES
from gandefense.errors import UserError

ONE_STEP, MANY_STEPS = ("fgsm", "ffgsm"), ("bim", "pgd", "mim")
COARSE = ("pgd-coarse",)  # many steps on rectangles; bound by its grid, and no measure of what many steps can do
STEPWISE = (*ONE_STEP, *MANY_STEPS, *COARSE)  # one gradient a step; the loss is ours to choose
EUCLIDEAN = ("pgd-l2",)  # the same, within an L2 ball
APGD, FAB = ("apgd-ce", "apgd-dlr", "apgd-t"), ("fab", "fab-t")
MINIMAL = ("deepfool", "cw")  # look for the smallest perturbation, which is then cut to the budget
UNIVERSAL = "universal"  # one perturbation for all images
QUERIES = ("square", "hopskipjump")  # ask for scores (square) or for decisions alone (hopskipjump)
NAMES = (*STEPWISE, *EUCLIDEAN, *APGD, *FAB, "autoattack", *MINIMAL, *QUERIES, UNIVERSAL)

GRADIENT, QUERY, NOISE = "gradient", "query", "noise"  # families: what an attacker needs of a network
LOSSES = ("ce", "margin", "joint")  # see losses.py
STEP_SHARES = {
    "fgsm": 1.0,
    "ffgsm": 1.25,
    "bim": 0.1,
    "pgd": 0.25,
    "mim": 0.1,
    "pgd-coarse": 0.25,
    "pgd-l2": 0.25,
    UNIVERSAL: 0.1,
}  # of eps, where no step size is given
STEPS, QUERY_BUDGET = 20, 1000  # where an attack has no usual number of its own
USUAL_STEPS = {**dict.fromkeys((*APGD, *FAB, "autoattack", "cw", UNIVERSAL), 100), "deepfool": 50}
USUAL_QUERIES = {"autoattack": 5000}

# Which attacks a setting belongs to; with any other it must stay at its default. One-step attacks and noise let `steps`
# pass, because one number of steps is often written for a whole list of attacks.
BELONGS: dict[str, tuple[str, ...]] = {
    "steps": (*STEPWISE, *EUCLIDEAN, *APGD, *FAB, "autoattack", UNIVERSAL, *MINIMAL, *NOISES),
    "step_size": (*STEPWISE, *EUCLIDEAN, UNIVERSAL),
    "restarts": (*STEPWISE, *EUCLIDEAN, *APGD, *FAB, "autoattack", *QUERIES),
    "loss": (*STEPWISE, *EUCLIDEAN),
    "eot": (*STEPWISE, *EUCLIDEAN, *APGD, "autoattack"),
    "queries": (*QUERIES, "autoattack"),
}
DEFAULTS = {"steps": STEPS, "step_size": None, "restarts": 1, "loss": "ce", "eot": 1, "queries": QUERY_BUDGET}

LONGEST = 1000.0  # an L2 budget beyond what any image of up to 577 × 577 pixels in colour can be changed by
LEAST_CLASSES = {"apgd-dlr": 3, "apgd-t": 4, "fab-t": 4}  # the DLR losses compare three and four logits
INSTEAD = {"apgd-dlr": "apgd-ce, or pgd with loss=margin", "apgd-t": "apgd-ce, or pgd with loss=margin", "fab-t": "fab"}


@dataclass(frozen=True)
class AttackSpec:
    """One attack, fully described.

    Attributes:
        attack: one of NAMES, or a key of NOISES.
        eps: budget in pixel units of [0, 1] images: of every pixel (L-infinity), for pgd-l2 of the Euclidean length of the whole
            perturbation; or the noise level.
        steps: gradient steps of the iterative attacks; None takes the attack's usual number (100 for apgd-*, fab-*,
            autoattack, cw and universal, 50 for deepfool, 20 for the rest) and is replaced by it.
        step_size: of one step, in pixel units; None takes the attack's usual one (see STEP_SHARES).
        restarts: random starts; an image counts as broken when one of them breaks it.
        labels: what the attacker pushes away from: "true" labels, the classifier's "predicted" ones, or (fgsm, ffgsm, bim,
            pgd, mim, pgd-coarse and pgd-l2) towards "random_target" classes. The last two are the controls for label leaking.
        loss: of these seven: "ce"; "margin", which no scale of the logits can blunt; or "joint", against
            a classifier and its detector together. The others have a loss of their own.
        eot: passes over which every gradient is averaged, for randomised networks (EOT, Athalye et al. 2018); under
            autoattack those of APGD.
        queries: of square and hopskipjump, per image and restart; None takes the usual number (1,000; 5,000 for
            autoattack's square) and is replaced by it.
    """

    attack: str
    eps: float = 8 / 255
    steps: int | None = None
    step_size: float | None = None
    restarts: int = 1
    labels: str = "true"
    loss: str = "ce"
    eot: int = 1
    queries: int | None = None

    def __post_init__(self) -> None:
        # Both are numbers from here on, so that equal attacks are equal and nobody has to look the usual number up.
        if self.steps is None:
            object.__setattr__(self, "steps", USUAL_STEPS.get(self.attack, STEPS))
        if self.queries is None:
            object.__setattr__(self, "queries", USUAL_QUERIES.get(self.attack, QUERY_BUDGET))

    @property
    def norm(self) -> str:
        """The norm that `eps` bounds, "linf" or "l2"; "noise" has none."""
        if self.attack in EUCLIDEAN:
            return "l2"
        return "noise" if self.attack in NOISES else "linf"

    @property
    def family(self) -> str:
        """What the attacker needs of the network: "gradient", "query" (its answers alone), or "noise" for nothing."""
        return family(self.attack)

    def step(self) -> float | None:
        """The size of one step in pixel units; None where the attack chooses it as it goes, and for noise."""
        if self.attack not in STEP_SHARES:
            return None
        share = STEP_SHARES[self.attack]
        if self.attack in (
            *MANY_STEPS,
            *COARSE,
            *EUCLIDEAN,
            UNIVERSAL,
        ):  # few steps must still reach the budget's edge
            share = max(share, 1 / self.steps)
        return self.step_size or share * self.eps

    def title(self) -> str:
        """A short name for tables, such as "pgd-20 margin eot-10"; "autoattack" alone is the standard one, uncut."""
        name = self.attack
        if name in (*MANY_STEPS, *COARSE, *EUCLIDEAN, *APGD, *FAB, *MINIMAL, UNIVERSAL) or (
            name == "autoattack" and self.steps != USUAL_STEPS[name]
        ):
            name += f"-{self.steps}"
        if self.attack in QUERIES:
            name += f"-{self.queries}"
        words = [
            name,
            f"queries-{self.queries}" if self.attack == "autoattack" and self.queries != USUAL_QUERIES["autoattack"] else "",
            "" if self.loss == "ce" else self.loss,
            "" if self.eot == 1 else f"eot-{self.eot}",
            "" if self.labels == "true" else f"({self.labels})",
        ]
        return " ".join(word for word in words if word)


def family(attack: str) -> str:
    """What an attacker needs of the network: GRADIENT, QUERY (its answers alone), or NOISE for nothing.

    Raises:
        UserError: an unknown attack.
    """
    _check_name(attack)
    return NOISE if attack in NOISES else QUERY if attack in QUERIES else GRADIENT


def _check_name(attack: str) -> None:
    if attack not in NAMES and attack not in NOISES:
        raise UserError(f"unknown attack {attack!r}; known: {', '.join([*NAMES, *NOISES])}")


def check_spec(spec: AttackSpec) -> None:
    """Raise UserError for an unknown attack, a value out of range, or a setting that the attack has no use for."""
    _check_name(spec.attack)
    if spec.norm == "l2" and not 0 <= spec.eps <= LONGEST:
        raise UserError(
            f"{spec.attack}: eps is the L2 length of the perturbation of a [0, 1] image (0.5 is usual), got {spec.eps}"
        )
    if spec.norm != "l2" and not 0 <= spec.eps <= 1:
        raise UserError(f"{spec.attack}: eps is in pixel units of [0, 1] images (write 8/255), got {spec.eps}")
    if spec.step_size is not None and not spec.step_size > 0:
        raise UserError(f"{spec.attack}: step_size must be positive, got {spec.step_size}")
    if spec.steps < 1 or spec.restarts < 1:
        raise UserError(f"{spec.attack}: steps and restarts must be at least 1")
    if spec.eot < 1 or spec.queries < 1:
        raise UserError(f"{spec.attack}: eot and queries must be at least 1")
    _check_choice(spec, "labels", ("true", "predicted", "random_target"))
    _check_choice(spec, "loss", LOSSES)
    for name, attacks in BELONGS.items():
        value = getattr(spec, name)
        if spec.attack not in attacks and value != DEFAULTS[name]:
            known = ", ".join(attack for attack in attacks if attack not in NOISES)
            raise UserError(f"{spec.attack}: {name}={value} has no effect; {name} is for {known}")
    if spec.labels == "random_target" and spec.attack not in (*STEPWISE, *EUCLIDEAN, *NOISES):
        raise UserError(f"{spec.attack}: labels=random_target is for {', '.join((*STEPWISE, *EUCLIDEAN))}")
    if spec.labels == "random_target" and spec.loss == "joint":
        raise UserError(f"{spec.attack}: loss=joint aims at any wrong class; labels=random_target does not go with it")


def _check_choice(spec: AttackSpec, name: str, choices: Sequence[str]) -> None:
    if getattr(spec, name) not in choices:
        known = f"{', '.join(choices[:-1])} or {choices[-1]}"
        raise UserError(f"{spec.attack}: {name} must be {known}, got {getattr(spec, name)!r}")


def check_classes(attack: str, classes: int) -> None:
    """Raise UserError where an attack cannot run on a network of so few classes, naming what to use instead."""
    least = LEAST_CLASSES.get(attack, 1)
    if classes < least:
        raise UserError(f"{attack}: needs at least {least} classes, the network has {classes}; use {INSTEAD[attack]}")


def standard_specs(spec: AttackSpec, classes: int) -> list[AttackSpec]:
    """The attacks that an "autoattack" runs one after another, each on what the others have left standing.

    From four classes on it is the standard version of Croce and Hein (2020). With fewer, where its targeted DLR loss does
    not exist: APGD-CE, FAB, Square and PGD on the margin.
    """
    names = ("apgd-ce", "apgd-t", "fab-t", "square") if classes >= 4 else ("apgd-ce", "fab", "square", "pgd")
    parts = []
    for name in names:
        settings = {key: getattr(spec, key) for key in ("steps", "restarts", "eot", "queries") if name in BELONGS[key]}
        loss = "margin" if name == "pgd" else "ce"
        parts.append(AttackSpec(name, eps=spec.eps, labels=spec.labels, loss=loss, **settings))
    return parts


def standard_suite(classes: int) -> list[str]:
    """The names of what an "autoattack" on so many classes consists of; "pgd margin" is pgd with loss=margin."""
    parts = standard_specs(AttackSpec("autoattack"), classes)
    return [f"{part.attack} margin" if part.loss == "margin" else part.attack for part in parts]
