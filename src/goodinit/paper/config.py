"""Everything that one run depends on. Two runs with equal settings are the same run: on a CPU they end with equal weights."""

from __future__ import annotations

import hashlib
import json
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, fields, replace
from functools import cache
from math import isfinite
from typing import Any, ClassVar, Literal

from goodinit.errors import OptionError, did_you_mean
from goodinit.paper.blocks import ACTIVATIONS, NORMS
from goodinit.paper.networks import NETWORKS, ImageNet, Shape
from goodinit.schemes import LSUV, SCHEMES

# Initializations of goodinit.paper.newer.
NEWER = ("bvlc", "krahenbuhl", "gradinit")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the kinds of runs have in common."""

    choices: ClassVar[Mapping[str, tuple[str, ...]]]
    """The names that a setting may have."""
    positive: ClassVar[tuple[str, ...]]
    """Settings that are numbers above 0."""

    def __post_init__(self) -> None:
        _check_types(self)
        for name, allowed in _allowed(type(self)).items():  # type: ignore[arg-type]  # a class is hashable
            if float in allowed and isinstance(value := getattr(self, name), int):  # 1 and 1.0 are one run
                object.__setattr__(self, name, float(value))
        for key, names in self.choices.items():
            asked = getattr(self, key)
            if asked not in names:
                raise OptionError(f"{key} must be one of {', '.join(names)}; got {asked!r}{did_you_mean(asked, names)}")
        for key in self.positive:
            value = getattr(self, key)
            if value is not None and not 0 < value < float("inf"):
                raise OptionError(f"{key} must be positive; got {value}")

    def plain(self) -> dict[str, Any]:
        """As JSON has it; `run_of` reads it back."""
        settings = {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self).items()}
        return {"kind": type(self).__name__.lower(), **settings}

    @property
    def key(self) -> str:
        """Twelve hexadecimal digits that stand for all settings."""
        # Without defaults, so that a setting that is new in goodinit changes no key.
        chosen = {key: value for key, value in self.plain().items() if value != self.defaults().get(key)}
        return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:12]

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """Settings that need not be given, as JSON has them."""
        return {
            f.name: list(f.default) if isinstance(f.default, tuple) else f.default
            for f in fields(cls)
            if f.default is not MISSING
        }

    def differences(self, other: Mapping[str, Any]) -> list[str]:
        """In which settings a run that was read from a file is not this one: ``"lr was 0.1, is 0.01"``."""
        mine, other = self.plain(), {**self.defaults(), **other}
        keys = [*mine, *(key for key in other if key not in mine)]
        return [f"{key} was {other.get(key)!r}, is {mine.get(key)!r}" for key in keys if mine.get(key) != other.get(key)]


@dataclass(frozen=True, kw_only=True)
class Training(Settings):
    """One training of one network from one initialization."""

    data: str
    """Name of the image set, see `goodinit.paper.data.load`."""
    network: str
    """A key of `goodinit.paper.networks.NETWORKS`."""
    activation: str = "maxout"
    norm: str = "none"
    """Batch normalization ``"before"`` or ``"after"`` the non-linearity, or ``"none"``."""
    depth: int = 0
    """Number of layers of perceptrons; other networks have their own."""
    gate_bias: float = -2.0
    """Of Highway networks' transform gates at the start."""
    init: str = "lsuv"
    """A scheme of `goodinit.init_`, or one of `goodinit.paper.newer`."""
    init_gain: float = 1.0
    """Factor on the weights that the scheme draws."""
    init_batch: int = 128
    """Number of training images that LSUV sees."""
    loss: str = "softmax"
    """``"softmax"``, or ``"hinge"``: the sum over classes of max(0, 1 -+ score), - for the right one (Caffe's, L1)."""
    auxiliary: float = 0.3
    """Weight of the losses of GoogLeNet's auxiliary classifiers."""
    method: str = "plain"
    """``"plain"``; ``"hints"``: first `hint_iterations` in which the student's middle layer learns to predict the teacher's, then
    distillation (Romero et al. 2015); ``"distillation"``: that alone (Hinton et al. 2015)."""
    teacher: str = ""
    """The network of the teacher, trained by the same recipe from `teacher_init`."""
    teacher_init: str = "glorot"
    hint_iterations: int = 0
    temperature: float = 3.0
    """By which scores are divided in distillation."""
    distill_from: float = 4.0
    """Weight of the teacher's scores in distillation in the beginning; it falls linearly to `distill_to`."""
    distill_to: float = 1.0
    optimizer: str = "sgd"
    """``"sgd"`` or ``"rmsprop"``."""
    lr: float = 0.01
    momentum: float = 0.9
    """Of SGD."""
    rms_decay: float = 0.99
    """Of RMSProp's mean square."""
    weight_decay: float = 0.0005
    bias_decay: bool = False
    """Whether the biases of convolutions decay too."""
    linear_bias_decay: bool = True
    """Whether those of linear layers do."""
    bias_lr: float = 1.0
    """What the learning rate of biases is multiplied by; Caffe's ImageNet networks have 2."""
    clip_gradients: float = 0.0
    """L2 norm of all gradients together that they are scaled down to where they have a larger one; 0: they are not."""
    schedule: str = "step"
    """``"step"``, or ``"poly"``: lr (1 - iteration / iterations)^power."""
    power: float = 0.5
    gamma: float = 0.1
    """What the learning rate is multiplied by at each of the milestones."""
    milestones: tuple[int, ...] = ()
    """Iterations."""
    iterations: int = 90_000
    """Of the schedule; without those of the hints."""
    stop: int = 0
    """After how many iterations to stop, whatever the schedule has; 0: at its end."""
    batch: int = 128
    pixels: str = "gcn"
    """``"gcn"``, ``"scaled"``, ``"standardized"`` or ``"centred"``, see `goodinit.paper.pixels.Preprocessing`."""
    image_size: int = 0
    """What images are resized to when they are decoded; 0: not at all."""
    crop: int = 0
    """Height and width of the part of an image that the network sees, at random in training, the middle in tests; 0: all."""
    pad: int = 0
    """Zeros around a training image, of which a crop is taken at random."""
    mirror: bool = False
    """Whether training images are mirrored at random."""
    precision: str = "float32"
    """``"float32"``, or ``"bfloat16"``: autocast."""
    train_images: int | None = None
    """How many of the training images are used; None: all."""
    test_images: int | None = None
    evaluations: int = 30
    """How often the network is tested, evenly spread, the last time at the end."""
    classes: int | None = None
    """Of the network; None: as many as the data has."""
    updates: bool = False
    """Whether the relative sizes of updates are recorded."""
    seed: int = 0

    choices = {  # noqa: RUF012 - declared in Settings
        "network": tuple(NETWORKS),
        "activation": ACTIVATIONS,
        "norm": NORMS,
        "init": (*SCHEMES, *NEWER),
        "loss": ("softmax", "hinge"),
        "optimizer": ("sgd", "rmsprop"),
        "pixels": ("gcn", "scaled", "standardized", "centred"),
        "schedule": ("step", "poly"),
        "method": ("plain", "hints", "distillation"),
        "teacher": ("", *NETWORKS),
        "teacher_init": SCHEMES,
        "precision": ("float32", "bfloat16"),
    }
    positive = (
        *("lr", "init_gain", "gamma", "init_batch", "iterations", "batch", "evaluations", "train_images", "test_images"),
        *("temperature", "bias_lr", "classes"),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.teacher:  # it makes no difference, so runs that differ in it are one
            object.__setattr__(self, "teacher_init", Training.teacher_init)
        if list(self.milestones) != sorted(self.milestones):
            raise OptionError(f"milestones must not fall; got {list(self.milestones)}")
        for key, least in {"pad": 0, "stop": 0, "hint_iterations": 0, "image_size": 0, "crop": 0, "depth": 0, "seed": 0}.items():
            if getattr(self, key) < least:
                raise OptionError(f"{key} must be {least} or more; got {getattr(self, key)}")
        if self.milestones and self.milestones[0] < 0:
            raise OptionError(f"milestones must be 0 or more; got {list(self.milestones)}")
        if not isfinite(self.gate_bias):
            raise OptionError(f"gate_bias must be finite; got {self.gate_bias}")
        for key in ("power", "auxiliary", "distill_from", "distill_to", "weight_decay", "clip_gradients"):
            if not 0 <= getattr(self, key) < float("inf"):
                raise OptionError(f"{key} must be 0 or more; got {getattr(self, key)}")
        for key in ("momentum", "rms_decay"):
            if not 0 <= getattr(self, key) < 1:
                raise OptionError(f"{key} must be 0 or more and less than 1; got {getattr(self, key)}")
        if self.stop > self.iterations:
            raise OptionError(f"stop={self.stop} is behind the end of the schedule, iterations={self.iterations}")
        if self.init_gain != 1 and self.init in ("default", *LSUV, *NEWER):
            raise OptionError(f"init={self.init!r} knows no gain; got init_gain={self.init_gain}")
        if self.method != "plain" and self.loss != "softmax":
            raise OptionError(f"distillation is by softmax; got loss={self.loss!r}")
        if self.schedule == "poly" and self.hint_iterations > self.iterations:
            raise OptionError(
                f"the hints have the schedule of iterations={self.iterations}, which for schedule='poly' ends there; got "
                f"hint_iterations={self.hint_iterations}"
            )
        self._check_network()
        self._check_teacher()

    def _check_network(self) -> None:
        _check_activation(self.network, self.activation)
        if self.init == "bvlc" and not isinstance(NETWORKS[self.network], ImageNet):
            raise OptionError(f"init='bvlc' is CaffeNet's or GoogLeNet's; got network={self.network!r}")
        if self.init == "gradinit" and self.network == "googlenet":
            raise OptionError("init='gradinit' knows no auxiliary classifiers, which googlenet has")

    def _check_teacher(self) -> None:
        if (self.method == "plain") != (self.teacher == ""):
            raise OptionError(
                f"method={self.method!r} and teacher={self.teacher!r}: hints and distillation need a teacher, nothing else"
            )
        if (self.method == "hints") != (self.hint_iterations > 0):
            raise OptionError(f"method={self.method!r} and hint_iterations={self.hint_iterations}: hints need some, nothing else")
        for role, name in (("teacher", self.teacher), ("network", self.network)):
            network = NETWORKS.get(name)
            if self.method == "hints" and not (isinstance(network, Shape) and network.body.count("pool") > 0):
                raise OptionError(f"hints need stages of convolutions; the {role} {name!r} has none")
        if self.teacher:
            _ = self.teacher_run  # is refused now, not when its turn comes

    @property
    def total(self) -> int:
        """All iterations that are done, those of the hints included."""
        return self.hint_iterations + (self.stop or self.iterations)

    @property
    def teacher_run(self) -> Training:
        """The training of the teacher: one for all seeds."""
        changed: dict[str, Any] = {"network": self.teacher, "init": self.teacher_init, "teacher": "", "seed": 0}
        # What makes no difference to the teacher is as it is by default, so that students that differ in it share one.
        by_default = (
            *("method", "hint_iterations", "updates", "temperature", "distill_from", "distill_to", "teacher_init", "stop"),
            "init_gain",
        )
        defaults: dict[str, Any] = {f.name: f.default for f in fields(self) if f.name in by_default}
        return replace(self, **changed, **defaults)

    def __str__(self) -> str:
        some = {
            "depth": self.depth or None,
            "norm-": self.norm if self.norm != "none" else None,
            "": self.method if self.method != "plain" else None,
        }
        named = [f"{word}{value}" for word, value in some.items() if value is not None]
        return "-".join([self.data, self.network, self.activation, *named, self.init, f"{self.iterations}-seed{self.seed}"])


@dataclass(frozen=True, kw_only=True)
class Timing(Settings):
    """One measurement of times. Nothing is trained."""

    measure: str
    """``"init"``: the orthonormal pre-initialization, and LSUV, of a network. ``"iteration"``: training steps with and without
    batch normalization, taking turns."""
    network: str
    activation: str = "relu"
    batch: int = 128
    depth: int = 0
    """Of perceptrons."""
    repeats: int = 5
    """Rounds; the figures are medians."""
    steps: int = 5
    """Training steps a round."""
    precision: str = "float32"
    seed: int = 0

    choices = {  # noqa: RUF012 - declared in Settings
        "measure": ("init", "iteration"),
        "network": tuple(NETWORKS),
        "activation": ACTIVATIONS,
        "precision": ("float32", "bfloat16"),
    }
    positive = ("batch", "repeats", "steps")

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_activation(self.network, self.activation)
        if self.measure == "init":  # is never autocast
            object.__setattr__(self, "precision", Timing.precision)

    def __str__(self) -> str:
        return f"{self.measure}-{self.network}-{self.activation}-seed{self.seed}"


@dataclass(frozen=True, kw_only=True)
class Walk(Settings):
    """One measurement of how the norm of the back-propagated error changes through the layers. Nothing is trained."""

    data: str
    network: str = "mlp"
    activation: str = "relu"
    depth: int = 200
    init: str = "random-walk"
    batch: int = 128
    draws: int = 50
    """How often weights are drawn."""
    pixels: str = "standardized"
    image_size: int = 0
    precision: str = "float32"
    seed: int = 0

    choices = {  # noqa: RUF012 - declared in Settings
        "network": ("mlp", "highway-mlp"),
        "activation": tuple(name for name in ACTIVATIONS if name != "maxout"),  # whose layers are several
        "init": SCHEMES,
        "pixels": ("gcn", "scaled", "standardized", "centred"),
        "precision": ("float32",),
    }
    positive = ("batch", "draws")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.depth < 4:
            raise OptionError(f"a walk needs depth=, the number of layers, of 4 or more; got {self.depth}")

    def __str__(self) -> str:
        return f"walk-{self.network}-{self.depth}-{self.activation}-{self.init}-seed{self.seed}"


def _check_activation(network: str, activation: str) -> None:
    if isinstance(NETWORKS[network], ImageNet) and activation != "relu":
        raise OptionError(f"{network} is published with activation='relu'; got {activation!r}")


def nonlinearity_of(activation: str) -> Literal["linear", "relu"]:
    """What `goodinit.init_` takes it for in schemes with a factor for each: linear where it has slope 1 around 0."""
    return "linear" if activation in ("tanh", "sigmoid") else "relu"


Run = Training | Timing | Walk
KINDS: dict[str, type[Run]] = {"training": Training, "timing": Timing, "walk": Walk}


def run_of(kind: str, settings: Mapping[str, Any], where: str) -> Run:
    """A run from the settings of a file; those that are not given have their defaults.

    Raises:
        OptionError: an unknown setting, or a value that cannot be meant.
    """
    known = fields(KINDS[kind])
    refuse_unknown(settings, [f.name for f in known], where)
    missing = [f.name for f in known if f.default is MISSING and f.name not in settings]
    if missing:
        raise OptionError(f"{where}: {', '.join(missing)} must be given")
    values: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in settings.items()}
    try:
        return KINDS[kind](**values)
    except OptionError as error:
        raise OptionError(f"{where}: {error}") from None


def refuse_unknown(given: Iterable[str], known: Iterable[str], where: str) -> None:
    """No key may be misspelt and so ignored.

    Raises:
        OptionError: says which is unknown, and which is near to it.
    """
    known = list(known)
    for key in given:
        if key not in known:
            raise OptionError(f"{where}: unknown key {key!r}{did_you_mean(key, known)}; known are {', '.join(known)}")


_TYPE_NAMES = {type(None): "nothing", tuple: "a list of whole numbers", float: "a number", int: "a whole number", str: "text"}


def _check_types(run: Settings) -> None:
    """Values are of the types that the fields are declared with; whole numbers will do for fractions."""
    for name, allowed in _allowed(type(run)).items():  # type: ignore[arg-type]  # a class is hashable
        value = getattr(run, name)
        fits = isinstance(value, allowed) or (float in allowed and isinstance(value, int))
        fits = fits and not (isinstance(value, tuple) and any(type(item) is not int for item in value))
        if not fits or (isinstance(value, bool) and bool not in allowed):
            wanted = " or ".join(_TYPE_NAMES.get(kind, kind.__name__) for kind in allowed)
            raise OptionError(f"{name} must be {wanted}; got {value!r}")


@cache  # reading annotations takes milliseconds, and a page of all experiments makes thousands of settings
def _allowed(kind: type[Settings]) -> dict[str, tuple[type, ...]]:
    """The types that each field may have."""
    hints = typing.get_type_hints(kind)
    declared = {field.name: hints[field.name] for field in fields(kind)}
    choices = {name: typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,) for name, hint in declared.items()}
    return {name: tuple(typing.get_origin(each) or each for each in some) for name, some in choices.items()}
