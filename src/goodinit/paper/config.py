"""Everything that one run depends on. Two runs with equal settings are the same run: on a CPU they end with equal weights."""

from __future__ import annotations

import hashlib
import json
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, ClassVar

from goodinit.errors import OptionError, did_you_mean
from goodinit.paper.imagenet import IMAGENET
from goodinit.paper.networks import ACTIVATIONS, NETWORKS, NORMS
from goodinit.schemes import SCHEMES


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the kinds of runs have in common."""

    choices: ClassVar[Mapping[str, tuple[str, ...]]]
    """The names that a setting may have."""
    positive: ClassVar[tuple[str, ...]]
    """Settings that are numbers above 0."""

    def __post_init__(self) -> None:
        _check_types(self)
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
        return hashlib.sha256(json.dumps(self.plain(), sort_keys=True).encode()).hexdigest()[:12]

    def differences(self, other: Mapping[str, Any]) -> list[str]:
        """In which settings a run that was read from a file is not this one: ``"lr was 0.1, is 0.01"``."""
        mine = self.plain()
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
    init: str = "lsuv"
    """A scheme of `goodinit.init_`."""
    init_gain: float = 1.0
    """Factor on the weights that the scheme draws."""
    init_batch: int = 128
    """Number of training images that LSUV sees."""
    loss: str = "softmax"
    """``"softmax"``, or ``"hinge"``: the sum over classes of max(0, 1 -+ score), - for the right one (Caffe's, L1)."""
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
    gamma: float = 0.1
    """What the learning rate is multiplied by at each of the milestones."""
    milestones: tuple[int, ...] = ()
    """Iterations."""
    iterations: int = 90_000
    batch: int = 128
    pixels: str = "gcn"
    """``"gcn"`` or ``"scaled"``, see `goodinit.paper.pixels.Preprocessing`."""
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
        "init": SCHEMES,
        "loss": ("softmax", "hinge"),
        "optimizer": ("sgd", "rmsprop"),
        "pixels": ("gcn", "scaled"),
        "precision": ("float32", "bfloat16"),
    }
    positive = ("lr", "init_gain", "gamma", "init_batch", "iterations", "batch", "evaluations", "train_images", "test_images")

    def __post_init__(self) -> None:
        super().__post_init__()
        if list(self.milestones) != sorted(self.milestones):
            raise OptionError(f"milestones must not fall; got {list(self.milestones)}")

    def __str__(self) -> str:
        parts = [self.data, self.network, self.activation, *([f"norm-{self.norm}"] if self.norm != "none" else []), self.init]
        return "-".join([*parts, f"{self.iterations}-seed{self.seed}"])


@dataclass(frozen=True, kw_only=True)
class Timing(Settings):
    """One measurement of times. Nothing is trained."""

    measure: str
    """``"init"``: the orthonormal pre-initialization, and LSUV, of a network. ``"iteration"``: training steps with and without
    batch normalization, taking turns."""
    network: str
    activation: str = "relu"
    batch: int = 128
    repeats: int = 5
    """Rounds; the figures are medians."""
    steps: int = 5
    """Training steps a round."""
    precision: str = "float32"
    seed: int = 0

    choices = {  # noqa: RUF012 - declared in Settings
        "measure": ("init", "iteration"),
        "network": (*NETWORKS, *IMAGENET),
        "activation": ACTIVATIONS,
        "precision": ("float32", "bfloat16"),
    }
    positive = ("batch", "repeats", "steps")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.measure == "iteration" and self.network in IMAGENET:
            raise OptionError(f"iterations are measured on {', '.join(NETWORKS)}, which have batch normalization on demand")

    def __str__(self) -> str:
        return f"{self.measure}-{self.network}-{self.activation}-seed{self.seed}"


Run = Training | Timing
KINDS: dict[str, type[Training | Timing]] = {"training": Training, "timing": Timing}


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


_TYPE_NAMES = {type(None): "nothing", tuple: "list of int"}


def _check_types(run: Settings) -> None:
    """Values are of the types that the fields are declared with; whole numbers will do for fractions."""
    hints = typing.get_type_hints(type(run))
    for field in fields(run):
        value, declared = getattr(run, field.name), hints[field.name]
        allowed = typing.get_args(declared) if isinstance(declared, types.UnionType) else (declared,)
        allowed = tuple(typing.get_origin(kind) or kind for kind in allowed)
        fits = isinstance(value, allowed) or (float in allowed and isinstance(value, int))
        fits = fits and not (isinstance(value, tuple) and any(type(item) is not int for item in value))
        if not fits or (isinstance(value, bool) and bool not in allowed):
            wanted = " or ".join(_TYPE_NAMES.get(kind, kind.__name__) for kind in allowed)
            raise OptionError(f"{field.name} must be {wanted}; got {value!r}")
