"""What training the GAN defence is asked for: networks, losses, phases and the loop at test time, and what is refused."""

from __future__ import annotations

from dataclasses import dataclass, field

from gandefense.attacks.cache import AttackedSetConfig
from gandefense.config import DataConfig, RunConfig
from gandefense.errors import UserError
from gandefense.training.distillation import StudentConfig
from gandefense.training.parts import check_parts
from gandefense.training.state import require

ANSWERS = ("teacher", "student")
DETECTORS = ("perturbation", "fused")


@dataclass
class GANNetworkConfig:
    """The networks, see GANNetworks and Discriminator."""

    ismn: str = "full"  # full, or paper: the tables to the letter
    norm: str = "group"  # see layers.NORMS
    width: int = 24  # generator's channels at full resolution
    discriminator_width: int = 32  # channels after its first convolution


@dataclass
class LossConfig:
    """Weights of phase 2's losses."""

    pixel: float = 150.0  # mean absolute error of the regenerated image
    cleaned: float = 50.0  # mean absolute error of the ISMN's output, our reading of eq. (3)
    classifier: float = 0.4  # KL between the defended classifier's answers on clean and on regenerated images
    logits: float = 0.0  # mean absolute difference of that classifier's logits on the two (HGD's guidance, Liao et al. 2018)
    student: float = 0.1  # cross-entropy through the distilled classifier, towards the teacher's class for the clean image
    class_ramp: int = 400  # steps over which the three weights above grow from 0
    adversarial: float = 0.02  # non-saturating GAN loss
    r1: float = 0.1  # gradient penalty of the discriminator on clean images (Mescheder et al. 2018)
    r1_every: int = 16  # steps between two penalties; the weight is multiplied by it
    lpips: float = 0.0  # perceptual loss; off at 32×32, where AlexNet's first layer leaves 7×7 positions; for 64 pixels and up
    sparsity: float = 0.5  # mean of the sparsity map on clean images: where nothing is perturbed the map should be empty
    code_rate: float = 0.1  # DDSA's sparsity rate: how fast the code's bias follows its target activation of 0.1
    detection: float = 1.0  # cross-entropy of "attacked or not"
    level: float = 5.0  # mean absolute error of the attack level


@dataclass
class GANTrainConfig:
    """Phase 2: what a batch is made of, and the optimisers."""

    steps: int = 5000  # batches of phase 2, after the distillation; with `start` 0, too: the networks stay as they were
    batch_size: int = 128  # images per step, over all processes
    accumulate: int = 1  # pieces that a process cuts its share of a batch into, in all phases, to save memory
    learning_rate: float = 1.5e-3  # peak, Adam; ISMN, perturbation classifier, generator
    discriminator_rate: float = 2e-4  # Adam with β₁ = 0
    warmup: int = 100  # steps in which the learning rate rises
    noise_share: float = 0.25  # of a batch: Gaussian noise, level uniform in (0, noise_level]
    noise_level: float = 0.5  # on the [-1, 1] scale
    random_step_share: float = 0.05  # of a batch: eq. (2), a random vector plus a randomised gradient step
    random_step_eps: float = 8 / 255  # budget of that step, in pixel units
    replay_share: float = 0.06  # of a batch: earlier regenerated images, so that a second round does no harm
    ema_decay: float = 0.998  # of the weights that are kept in the end
    gradient_clip: float = 5.0  # largest norm of the gradient


@dataclass
class AdaptConfig:
    """Phase 3: the student learns the teacher's soft labels on what the finished restorer makes of phase 2's batches.

    A restored image is not a clean one: it is smoother, and the generator has habits. Neither the teacher nor the student of
    phase 1 has seen such images.
    """

    steps: int = 0  # 0: no such phase
    batch_size: int = 128  # images per step
    learning_rate: float = 0.005  # peak, SGD with momentum 0.9; the temperature is that of `distil`
    noise_share: float = 0.5  # of a batch: Gaussian noise, as in phase 2; what neither share takes are rows of the attacked set
    own_share: float = 0.0  # of a batch: attacked on the student itself, because who attacks this defence attacks its classifier
    own_eps: float = 12 / 255  # largest budget of that attack, drawn uniformly from 0 for each image
    own_steps: int = 5  # of that attack in every other batch; in the others it takes a single one
    clean_share: float = 0.25  # of the batch: images that the restorer has not seen at all, so that clean accuracy stays


@dataclass
class LoopConfig:
    """The detect → clean → regenerate loop at test time, see GANRestorer."""

    rounds: int = 2  # the most that an image gets
    tolerance: float = 4 / 255  # mean absolute difference under which two rounds agree, in pixel units
    false_positive_rate: float = 0.05  # of the detection threshold, on validation images
    detector: str = "perturbation"  # who flags an image: perturbation (the perturbation classifier), or fused (all signals)


@dataclass
class GANConfig:
    """tools/train_gan.py"""

    data: DataConfig = field(default_factory=DataConfig)
    run: RunConfig = field(default_factory=RunConfig)
    classifier: str = "cifar10/classifier"  # the defended classifier, and the student's teacher
    student: str = "same"  # the student's architecture; "same": the teacher's, started from its weights
    start: str | None = None  # a trained GAN defence whose networks phase 2 goes on from; discriminator and student begin anew
    answers: str = "teacher"  # who classifies restored images: teacher (the classifier above), or student (the distilled one)
    attacked: AttackedSetConfig = field(default_factory=AttackedSetConfig)
    validation_rows: int = 1536  # attacked validation images, to watch the training by
    validation_budgets: list[float] = field(default_factory=lambda: [8 / 255])  # at which they are attacked, in pixel units
    validation_images: int | None = None  # clean ones, for the detector's threshold; None: all
    network: GANNetworkConfig = field(default_factory=GANNetworkConfig)
    distil: StudentConfig = field(default_factory=StudentConfig)
    train: GANTrainConfig = field(default_factory=GANTrainConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    adapt: AdaptConfig = field(default_factory=AdaptConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
    resume: str | None = None  # a run folder to go on with; on the command line, alone


def check(config: GANConfig) -> None:
    """Raise UserError for values that no training of the GAN defence can use, before any work."""
    require(
        counts={
            "train.batch_size": config.train.batch_size,
            "distil.batch_size": config.distil.batch_size,
            "distil.attack_steps": config.distil.attack_steps,
            "distil.noise_every": config.distil.noise_every,
            "adapt.batch_size": config.adapt.batch_size,
            "adapt.own_steps": config.adapt.own_steps,
            "loss.r1_every": config.loss.r1_every,
            "loop.rounds": config.loop.rounds,
            "validation_rows": config.validation_rows,
        },
        positive={
            "train.learning_rate": config.train.learning_rate,
            "train.discriminator_rate": config.train.discriminator_rate,
            "distil.learning_rate": config.distil.learning_rate,
            "adapt.learning_rate": config.adapt.learning_rate,
            "train.random_step_eps": config.train.random_step_eps,
            "distil.temperature": config.distil.temperature,
            "adapt.own_eps": config.adapt.own_eps,
        },
        fractions={"loop.false_positive_rate": config.loop.false_positive_rate},
    )
    budgets = {"distil.eps": config.distil.eps, "train.random_step_eps": config.train.random_step_eps}
    for name, eps in {**budgets, "adapt.own_eps": config.adapt.own_eps}.items():
        if not 0 <= eps <= 1:
            raise UserError(f"{name} is in pixel units of [0, 1] images (write 8/255), got {eps}")
    if config.start is None or config.train.steps:
        require(counts={"train.steps": config.train.steps})  # phase 2 can be left out only by networks that had theirs
    for name, value, known in (("answers", config.answers, ANSWERS), ("loop.detector", config.loop.detector, DETECTORS)):
        if value not in known:
            raise UserError(f"unknown {name} {value!r}; known: {', '.join(known)}")
    require(
        shares={f"adapt.{name}": getattr(config.adapt, name) for name in ("noise_share", "own_share", "clean_share")},
        not_negative={
            f"train.{name}": getattr(config.train, name) for name in ("noise_share", "random_step_share", "replay_share")
        },
    )
    if config.train.noise_share + config.train.random_step_share + config.train.replay_share > 1:
        raise UserError("train.noise_share, random_step_share and replay_share together exceed 1")
    if config.adapt.noise_share + config.adapt.own_share > 1:
        raise UserError("adapt.noise_share and own_share together exceed 1")
    check_parts(
        config.train.accumulate,
        {
            "train.batch_size": min(config.train.batch_size, config.attacked.rows),
            "distil.batch_size": config.distil.batch_size,
            "adapt.batch_size": min(config.adapt.batch_size, config.attacked.rows),
        },
    )
