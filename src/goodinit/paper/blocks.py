"""What the networks are built of: layers with their non-linearity and normalization, and ways around them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from goodinit.errors import OptionError

NORMS = ("none", "before", "after")
Make = Callable[[], nn.Module]
# Of maxout: in convolutions, and in linear layers.
_CONV_PIECES, _LINEAR_PIECES = 2, 5


def largest(tensors: Iterable[Tensor]) -> Tensor:
    """The maximum of tensors of one shape, element by element.

    On a CPU max(a, b) of float32 is computed as b + ReLU(a - b), which trains up to seven times as fast there as torch.maximum
    and differs from it by rounding; of narrower numbers the difference would be no small one.
    """
    found, *others = tensors
    for other in others:
        by_relu = found.device.type == "cpu" and found.dtype == other.dtype == torch.float32
        found = other + (found - other).relu() if by_relu else torch.maximum(found, other)
    return found


class Maxout(nn.Module):
    """The largest output of several layers (Goodfellow et al. 2013).

    The pieces are layers of their own, as in the recipes that the authors released: each is initialized by itself.
    """

    def __init__(self, pieces: Iterable[nn.Module]) -> None:
        super().__init__()
        self.pieces = nn.ModuleList(pieces)

    def forward(self, x: Tensor) -> Tensor:
        """The maximum over the pieces."""
        return largest(piece(x) for piece in self.pieces)


# Non-linearities but maxout, which has several layers before it. VLReLU: "very leaky", slope 1/3.
_ELEMENTWISE: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "vlrelu": lambda: nn.LeakyReLU(1 / 3),
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
}
ACTIVATIONS = ("maxout", *_ELEMENTWISE)


@dataclass(frozen=True)
class Style:
    """What the layers of a network have in common."""

    activation: str = "maxout"
    norm: str = "none"

    def convolution(self, inputs: int, outputs: int, kernel: int = 3) -> nn.Sequential:
        """A convolution that keeps the size of the images, with its non-linearity and normalization."""
        make = partial(nn.Conv2d, inputs, outputs, kernel, padding=kernel // 2)
        return self._layer("conv", make, partial(nn.BatchNorm2d, outputs), _CONV_PIECES)

    def linear(self, inputs: int, outputs: int) -> nn.Sequential:
        """A linear layer with its non-linearity and normalization."""
        return self._layer("linear", partial(nn.Linear, inputs, outputs), partial(nn.BatchNorm1d, outputs), _LINEAR_PIECES)

    def _layer(self, name: str, operator: Make, norm: Make, pieces: int) -> nn.Sequential:
        def before() -> OrderedDict[str, nn.Module]:
            """All that comes before the non-linearity."""
            return OrderedDict({name: operator()} | ({"norm": norm()} if self.norm == "before" else {}))

        if self.activation == "maxout":
            layer = OrderedDict[str, nn.Module](maxout=Maxout(nn.Sequential(before()) for _ in range(pieces)))
        else:
            layer = before()
            layer[self.activation] = _ELEMENTWISE[self.activation]()
        if self.norm == "after":
            layer["norm"] = norm()
        return nn.Sequential(layer)


class Residual(nn.Module):
    """x + f(x), f being two convolutions, each with its non-linearity.

    Our reading of the paper's FitResNets: it does not say where exactly the shortcuts lie. They are added after the second
    non-linearity, because maxout halves the number of channels.
    """

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        """The sum."""
        out: Tensor = x + self.branch(x)
        return out


class Prepared(nn.Module):
    """A block whose source prescribes part of its first weights: they are set when all else has been initialized."""

    def prepare_(self, blocks: int, gate_bias: float) -> None:
        """Set them.

        Args:
            blocks: number of such blocks in the network.
            gate_bias: of Highway's transform gates.
        """
        raise NotImplementedError


class SkipInit(Prepared):
    """x + alpha f(x), the scalar alpha beginning at 0 (De & Smith 2020; ReZero, Bachlechner et al. 2020)."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch
        self.alpha = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """The sum."""
        out: Tensor = x + self.alpha * self.branch(x)
        return out

    def prepare_(self, blocks: int, gate_bias: float) -> None:  # noqa: ARG002 - needs neither
        """Alpha is 0."""
        nn.init.zeros_(self.alpha)


class Fixup(Prepared):
    """x + s conv(f(conv(x + b1) + b2) + b3) + b4, then f (Zhang et al. 2019, arXiv 1901.09321); scalars b and s.

    Of L blocks with m = 2 convolutions each, the first convolution's weights are multiplied by L^(-1 / (2 m - 2)) = L^(-1/2), the
    second one's begin at 0.
    """

    def __init__(self, width: int, style: Style) -> None:
        super().__init__()
        if style.activation == "maxout":
            raise OptionError("Fixup's blocks need a non-linearity that keeps the number of channels; got activation='maxout'")
        first = style.convolution(width, width)
        convolution = first[0]
        assert isinstance(convolution, nn.Conv2d)
        self.first: nn.Conv2d = convolution
        self.inner: nn.Module = first[1:]
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.outer: nn.Module = style.convolution(width, width)[1:]
        self.biases = nn.Parameter(torch.zeros(4))
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        """The block."""
        b1, b2, b3, b4 = self.biases
        h = self.inner(self.first(x + b1) + b2)
        out: Tensor = self.outer(x + self.scale * self.second(h + b3) + b4)
        return out

    def prepare_(self, blocks: int, gate_bias: float) -> None:  # noqa: ARG002 - has no gates
        """Scale the first convolution down, and let the second begin at 0."""
        with torch.no_grad():
            self.first.weight.mul_(blocks**-0.5)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.biases)
        nn.init.ones_(self.scale)


class Highway(Prepared):
    """y = H(x) T(x) + x (1 - T(x)), T = sigmoid of a convolution or linear layer (Srivastava et al. 2015, arXiv 1507.06228)."""

    def __init__(self, transform: nn.Module, gate: nn.Conv2d | nn.Linear) -> None:
        super().__init__()
        self.transform = transform
        self.gate = gate

    def forward(self, x: Tensor) -> Tensor:
        """The block."""
        carried: Tensor = torch.lerp(x, self.transform(x), torch.sigmoid(self.gate(x)))
        return carried

    def prepare_(self, blocks: int, gate_bias: float) -> None:  # noqa: ARG002 - all are alike
        """Most of x is carried on in the beginning: the gates' biases are negative."""
        assert self.gate.bias is not None
        nn.init.constant_(self.gate.bias, gate_bias)


def prepare_(model: nn.Module, *, gate_bias: float) -> None:
    """Set what Highway, Fixup and SkipInit prescribe of first weights. To be called after the initialization."""
    blocks = [module for module in model.modules() if isinstance(module, Prepared)]
    for block in blocks:
        block.prepare_(len(blocks), gate_bias)
    if any(isinstance(block, Fixup) for block in blocks):
        classifier = model.get_submodule("classifier")
        assert isinstance(classifier, nn.Linear)
        nn.init.zeros_(classifier.weight)
        nn.init.zeros_(classifier.bias)
