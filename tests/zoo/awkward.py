"""Hand-made models, each awkward in one way. A new one: a class, or a function that returns a module, and a line in `ENTRIES`."""

# mypy: disable-error-code="no-any-return, no-untyped-call"
# (modules called in a forward return Any)
from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.utils.checkpoint import checkpoint

from zoo import Entry

WIDTH = 32


def features() -> Tensor:
    return torch.randn(64, WIDTH)


def images() -> Tensor:
    return torch.randn(8, 3, 16, 16)


def tokens() -> Tensor:
    return torch.randint(0, 50, (8, 12))


def sequences() -> Tensor:
    return torch.randn(8, 12, WIDTH)


def weight(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape) * 0.3)


def mlp(*between: nn.Module, depth: int = 3) -> nn.Sequential:
    """Linear layers with ``between`` after each."""
    return nn.Sequential(*(m for _ in range(depth) for m in (nn.Linear(WIDTH, WIDTH), *between)))


class Formula(nn.Module):
    """One function of the input and of weights given by name: for operators, each alone."""

    def __init__(self, function: Callable[..., Any], **weights: nn.Parameter) -> None:
        super().__init__()
        self.function = function
        self.names = tuple(weights)
        self.first = nn.Linear(WIDTH, WIDTH)
        for name, parameter in weights.items():
            self.register_parameter(name, parameter)

    def forward(self, x: Tensor) -> Any:
        return self.function(self.first(x), *(getattr(self, name) for name in self.names))


class Reversed(nn.Module):
    """Registered from last to first."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.c, self.b, self.a = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.c(self.b(self.a(x).tanh()).relu()).tanh())


class Functional(nn.Module):
    """No module inside; convolutions, products and a bias of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel, self.shift = weight(8, 3, 3, 3), nn.Parameter(torch.randn(8))
        self.up, self.w, self.v = weight(8, 4, 2, 2), weight(4, 16), weight(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, self.kernel, self.shift, padding="same").relu()
        x = F.conv_transpose2d(x, weight=self.up, stride=2).tanh().mean((2, 3))
        return torch.einsum("bi,io->bo", x @ self.w, self.v)


class Shared(nn.Module):
    """One layer three times, one module under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)
        self.again = self.layer
        self.head = nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.again(self.layer(self.layer(x).tanh()).tanh()).tanh())


class Unrolled(nn.Module):
    """A recurrence of linear layers, from a state of zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.back, self.out = nn.Linear(WIDTH, 16), nn.Linear(16, 16, bias=False), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        state = torch.tanh(self.into(x[:, 0]))
        for t in range(1, x.shape[1]):
            state = torch.tanh(self.into(x[:, t]) + self.back(state))
        return self.out(state)


class Tied(nn.Module):
    """The head reads the embedding's table."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.body = nn.Embedding(50, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, 50, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.embedding(x)).relu())


class TiedFunctional(nn.Module):
    """As `Tied`, without a module for the table, which is used by the head first and by the embedding later."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.body = weight(50, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(F.embedding(x, self.table)) @ self.table.t()


class TwoInputs(nn.Module):
    """Keyword arguments only."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.vector, self.join = nn.Conv2d(3, 8, 3), nn.Linear(WIDTH, 8), nn.Bilinear(8, 8, 6)

    def forward(self, *, picture: Tensor, vector: Tensor) -> Tensor:
        return self.join(self.image(picture).relu().mean((2, 3)), self.vector(vector))

    @staticmethod
    def batch() -> dict[str, Tensor]:
        return {"vector": torch.randn(8, WIDTH), "picture": images()}


class Outputs(NamedTuple):
    logits: Tensor
    extras: dict[str, Any]


class Nested(nn.Module):
    """Outputs in tuples, mappings and lists, at every level."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.a, self.b = mlp(nn.ReLU()), nn.Linear(WIDTH, 3), nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Outputs:
        hidden = self.body(x)
        return Outputs(self.a(hidden), {"states": [hidden, {"b": self.b(hidden)}], "none": None})


class UnusedBranch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.auxiliary = mlp(nn.ReLU()), nn.Sequential(nn.Linear(WIDTH, 8), nn.Conv1d(8, 8, 3, groups=2))
        self.attention = nn.MultiheadAttention(WIDTH, 2)

    def forward(self, x: Tensor, *, auxiliary: bool = False) -> Tensor:
        return self.auxiliary(self.used(x)) if auxiliary else self.used(x)


def in_place() -> nn.Module:
    """An activation that overwrites after every layer."""
    layers = (nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True), nn.Conv2d(8, 8, 3), nn.SiLU(inplace=True), nn.Dropout(0.5, inplace=True))
    return nn.Sequential(
        *layers, nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.LeakyReLU(inplace=True), nn.Flatten(), nn.Linear(800, 4)
    )


class InPlaceFunctional(nn.Module):
    """Operators that write into the output of a layer, and into a buffer made for it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        out = torch.zeros(x.shape[0], 2 * WIDTH)
        out[:, :WIDTH] = self.a(x).relu_().mul_(2)
        out[:, WIDTH:] = F.relu(self.b(x), inplace=True)
        return self.c(out[:, :WIDTH] + out[:, WIDTH:]).clamp_(min=0)


def weight_norm() -> nn.Module:
    return nn.Sequential(*(parametrizations.weight_norm(nn.Linear(WIDTH, WIDTH)) if i % 2 == 0 else nn.ReLU() for i in range(5)))


def weight_norm_convolution() -> nn.Module:
    layers = (
        parametrizations.weight_norm(nn.Conv2d(3, 8, 3)),
        nn.ReLU(),
        parametrizations.weight_norm(nn.Conv2d(8, 8, 3), dim=None),
    )
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * 144, 4))


def weight_norm_old() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # deprecated, still everywhere
        return nn.Sequential(*(nn.utils.weight_norm(nn.Linear(WIDTH, WIDTH)) if i % 2 == 0 else nn.ReLU() for i in range(5)))


def spectral_norm() -> nn.Module:
    return nn.Sequential(parametrizations.spectral_norm(nn.Linear(WIDTH, WIDTH)), nn.ReLU(), nn.Linear(WIDTH, WIDTH))


def spectral_norm_old() -> nn.Module:
    return nn.Sequential(nn.utils.spectral_norm(nn.Conv2d(3, 8, 3)), nn.ReLU(), nn.Conv2d(8, 8, 3))


def orthogonal() -> nn.Module:
    return nn.Sequential(parametrizations.orthogonal(nn.Linear(WIDTH, WIDTH)), nn.Tanh(), nn.Linear(WIDTH, 2 * WIDTH))


class Symmetric(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.triu() + x.triu(1).mT


def symmetric() -> nn.Module:
    """A parametrization that is linear in the weight, without right_inverse."""
    layers = mlp(nn.Tanh())
    parametrize.register_parametrization(layers[0], "weight", Symmetric())
    return layers


def pruned() -> nn.Module:
    layers = mlp(nn.ReLU())
    prune.random_unstructured(layers[2], "weight", amount=0.5)
    return layers


class StandardizedConv(nn.Conv2d):
    """Weight standardization (Qiao et al. 2019): the output does not depend on the weight's scale."""

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, w / w.std((1, 2, 3), keepdim=True), self.bias)


def standardized() -> nn.Module:
    return nn.Sequential(StandardizedConv(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))


class EqualizedLinear(nn.Linear):
    """Equalized learning rate (Karras et al. 2018): the weight is multiplied by a constant when used."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * 0.125, self.bias)


class CastLinear(nn.Linear):
    """Master weights in float64, products in float32."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype), self.bias.to(x.dtype))


class LowRank(nn.Module):
    """The weight is a product of two."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = weight(WIDTH, 4), weight(4, WIDTH), nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.linear(x, self.a @ self.b).relu())


class LoRA(nn.Module):
    """A frozen layer with a trained low-rank addition that starts at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.base, self.down, self.up = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 4, bias=False), nn.Linear(4, WIDTH, bias=False)
        self.base.requires_grad_(False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


def frozen() -> nn.Module:
    """A frozen stem with its BatchNorm in eval, as in fine-tuning."""
    stem = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).requires_grad_(False).eval()
    return nn.Sequential(stem, nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 144, 4))


class Checkpointed(nn.Module):
    def __init__(self, *, use_reentrant: bool) -> None:
        super().__init__()
        self.blocks, self.use_reentrant = nn.ModuleList(mlp(nn.ReLU()) for _ in range(2)), use_reentrant

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + checkpoint(block, x, use_reentrant=self.use_reentrant)
        return x


class LayerScale(nn.Module):
    """Residual branches times a gain of zero: nothing of them arrives, and they are scaled all the same."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.gains = nn.ModuleList(mlp(nn.GELU()) for _ in range(2)), nn.Parameter(torch.zeros(2, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        for block, gain in zip(self.blocks, self.gains, strict=True):
            x = x + gain * block(x)
        return x


class DeadBranch(nn.Module):
    """A layer behind a gate that is zero: no weight could give its output a variance."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.before, self.behind = nn.Parameter(torch.zeros(())), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x + self.behind(self.gate * self.before(x)))


class DataDependent(nn.Module):
    """Branches and loops that depend on values."""

    def __init__(self) -> None:
        super().__init__()
        self.rare, self.common, self.step = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = self.rare(x) if x.mean() > 100 else self.common(x)
        for _ in range(5):
            x = self.step(x).tanh()
            if x.abs().max() < 1:
                break
        return x


class LinearBlock(nn.Module):
    """Two layers and a norm, with a name that says otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(WIDTH)), nn.Parameter(torch.zeros(WIDTH))
        self.a, self.b = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.layer_norm(self.a(x), (WIDTH,), self.weight, self.bias).relu())


class Conv1D(nn.Module):
    """GPT-2's: a linear layer that stores its matrix transposed."""

    def __init__(self, n_out: int, n_in: int) -> None:
        super().__init__()
        self.weight, self.bias = weight(n_in, n_out), nn.Parameter(torch.randn(n_out))

    def forward(self, x: Tensor) -> Tensor:
        shape = (*x.shape[:-1], self.weight.shape[1])
        return torch.addmm(self.bias, x.view(-1, x.shape[-1]), self.weight).view(shape)


def misleading() -> nn.Module:
    return nn.Sequential(LinearBlock(), nn.ReLU(), Conv1D(64, WIDTH), nn.Tanh(), Conv1D(WIDTH, 64), LinearBlock())


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        return x.mm(w.t())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, w = ctx.saved_tensors
        return grad.mm(w), grad.t().mm(x)


class CustomFunction(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w, self.head = weight(16, WIDTH), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(_Product.apply(x, self.w).relu())


class CalledFunctionally(nn.Module):
    """torch.func.functional_call with the inner module's own parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = mlp(nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return torch.func.functional_call(self.inner, dict(self.inner.named_parameters()), (x,))


def functional_call(model: nn.Module, x: Tensor) -> Any:
    return torch.func.functional_call(model, {name: p.detach() for name, p in model.named_parameters()}, (x,))


class Vmapped(nn.Module):
    """An ensemble by torch.vmap over stacked weights."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.head = weight(3, WIDTH, WIDTH), nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.vmap(lambda w: torch.tanh(x @ w))(self.w).mean(0))


class VmappedSamples(nn.Module):
    """torch.vmap over the samples of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.vmap(lambda row: self.b(self.a(row).tanh()))(x)


class Differentiating(nn.Module):
    """The output is a derivative by the input (energies and forces, physics-informed networks)."""

    def __init__(self) -> None:
        super().__init__()
        self.energy = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 1))

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            (force,) = torch.autograd.grad(self.energy(x).sum(), x, create_graph=self.training)
        return -force


class EinsumExperts(nn.Module):
    """All experts at once: a dense mixture."""

    def __init__(self) -> None:
        super().__init__()
        self.router, self.up, self.down = nn.Linear(WIDTH, 3), weight(3, WIDTH, 48), weight(3, 48, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.einsum("bi,eih->ebh", x, self.up).relu()
        return torch.einsum("ebo,be->bo", torch.einsum("ebh,eho->ebo", hidden, self.down), self.router(x).softmax(-1))


class ThreeOperands(nn.Module):
    """An einsum of weight, data and data, which sums over the experts."""

    def __init__(self) -> None:
        super().__init__()
        self.router, self.experts = nn.Linear(WIDTH, 3), weight(3, WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bh,eho,be->bo", x, self.experts, self.router(x).softmax(-1))


class RoutedExperts(nn.Module):
    """Every token through one expert, indexed from a stack; one expert gets none."""

    def __init__(self) -> None:
        super().__init__()
        self.router, self.experts = nn.Linear(WIDTH, 3), weight(4, WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        expert = self.router(x).argmax(-1)
        out = torch.zeros_like(x)
        for e in range(4):
            out[expert == e] = x[expert == e] @ self.experts[e]
        return out


class GatheredExperts(nn.Module):
    """Every token gathers the matrix of its expert."""

    def __init__(self) -> None:
        super().__init__()
        self.router, self.experts = nn.Linear(WIDTH, 3), weight(3, WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return torch.bmm(x.unsqueeze(1), self.experts[self.router(x).argmax(-1)]).squeeze(1)


class GroupedExperts(nn.Module):
    """Tokens sorted by expert, one grouped product."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = weight(4, WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return F.grouped_mm(x, self.experts, offs=torch.tensor([16, 24, 24, 64], dtype=torch.int32))


class Attention(nn.Module):
    """nn.MultiheadAttention on three inputs of different widths."""

    def __init__(self) -> None:
        super().__init__()
        self.same = nn.MultiheadAttention(WIDTH, 4, batch_first=True, dropout=0.2, add_bias_kv=True)
        self.cross = nn.MultiheadAttention(WIDTH, 4, kdim=16, vdim=24, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.same(x, x, x, need_weights=False)[0]
        return self.cross(x, x[..., :16], x[..., :24])[0]


class CrossAttention(nn.Module):
    """Queries from elsewhere: in_proj_weight is used in two pieces."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x[:, :3], x, x)[0]


def transformer() -> nn.Module:
    return nn.Transformer(WIDTH, 4, 1, 1, 64, batch_first=True)


def transformer_encoder() -> nn.Module:
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(WIDTH, 4, 64, batch_first=True), 2)


class Recurrent(nn.Module):
    def __init__(self, kind: Callable[..., nn.RNNBase]) -> None:
        super().__init__()
        self.recurrent, self.head = kind(WIDTH, 24, num_layers=2, batch_first=True), nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.recurrent(x)[0][:, -1])


class Cells(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRUCell(WIDTH, 24), nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        state = torch.zeros(x.shape[0], 24)
        for t in range(x.shape[1]):
            state = self.cell(x[:, t], state)
        return self.head(state)


def convolutions() -> nn.Module:
    """Grouped, dilated, transposed, 1-d to 3-d; a lazy layer at the end."""
    flat = (
        nn.Conv2d(3, 12, 3, groups=3, padding_mode="circular", padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(12, 6, 2, stride=2, groups=2),
    )
    deep = (
        nn.Unflatten(1, (2, 3)),
        nn.Conv3d(2, 4, 3, dilation=(1, 2, 2)),
        nn.Flatten(2),
        nn.Conv1d(4, 8, 5, stride=4),
        nn.Flatten(),
    )
    return nn.Sequential(*flat, *deep, nn.LazyLinear(4))


class Unfolded(nn.Module):
    """A convolution as a matrix product over patches."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = weight(8, 3, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.kernel.view(8, -1) @ F.unfold(x, 3)


class Complex(nn.Module):
    """Complex weights after a Fourier transform."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.head = nn.Parameter(torch.randn(17, 17, dtype=torch.complex64)), nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.fft.irfft(torch.fft.rfft(x) @ self.w, n=WIDTH))


class Spectral(nn.Module):
    """Complex modes from pairs of real numbers (Fourier neural operators)."""

    def __init__(self) -> None:
        super().__init__()
        self.modes, self.head = weight(8, 8, 5, 2), nn.Conv1d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x_ft = torch.fft.rfft(x.view(-1, 8, 4))[..., :3]
        modes = torch.view_as_complex(self.modes)[..., :3]
        return self.head(torch.fft.irfft(torch.einsum("bix,iox->box", x_ft, modes), n=8))


class Autocast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.w = mlp(nn.ReLU()), weight(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return self.body(x) @ self.w


def bfloat16() -> nn.Module:
    return mlp(nn.ReLU()).bfloat16()


def double() -> nn.Module:
    return mlp(nn.ReLU()).double()


def channels_last() -> nn.Module:
    net = in_place()
    for parameter in net.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.to(memory_format=torch.channels_last)
    return net


class Lists(nn.Module):
    """ParameterList, ParameterDict, and modules in a plain list kept by attribute as well."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.ParameterList([weight(WIDTH, WIDTH) for _ in range(2)])
        self.named = nn.ParameterDict({"a": weight(WIDTH, WIDTH), "weight": weight(WIDTH, 3)})

    def forward(self, x: Tensor) -> Tensor:
        for w in self.weights:
            x = torch.relu(x @ w)
        return x.matmul(self.named["a"]).tanh() @ self.named["weight"]


class Sliced(nn.Module):
    """Rows of one matrix in turns: queries, keys, values; then a transposed copy, then a chunk."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.mix = weight(3 * WIDTH, WIDTH), weight(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (F.linear(x, self.qkv[i * WIDTH : (i + 1) * WIDTH]) for i in range(3))
        return (torch.sigmoid(q + k) * v) @ self.mix.t().contiguous()


class Slimmable(nn.Module):
    """The first half of a matrix, later all of it."""

    def __init__(self) -> None:
        super().__init__()
        self.w = weight(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.w[:16]).mean() + F.linear(x, self.w)


class Concatenated(nn.Module):
    """Two matrices in one product: the operator gets a copy of both."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = weight(16, WIDTH), weight(16, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, torch.cat([self.a, self.b]))


class LearnedQueries(nn.Module):
    """Latents of the model's own go through a layer and attend to the input."""

    def __init__(self) -> None:
        super().__init__()
        self.latents, self.q, self.k = weight(4, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return (self.q(self.latents) @ self.k(x).mT).softmax(-1) @ x


class Bags(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bag, self.head = nn.EmbeddingBag(50, WIDTH), nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.bag(x))


class Buffering(nn.Module):
    """Changes its buffers in place and by assignment, and draws noise."""

    count: Tensor
    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 4)
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        self.mean = 0.9 * self.mean + 0.1 * x.mean(0)
        x = self.a(x - self.mean) + 0 * torch.randn_like(x)
        return self.b(F.dropout(x.relu(), 0.5, self.training))


class Graph(nn.Module):
    """Sparse adjacency times features times weights."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = weight(WIDTH, WIDTH), weight(WIDTH, 4)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        return torch.sparse.mm(adjacency, torch.sparse.mm(adjacency, x @ self.a).relu() @ self.b)

    @staticmethod
    def batch() -> tuple[Tensor, Tensor]:
        return features(), (torch.rand(64, 64) < 0.2).float().to_sparse()


class SparseFeatures(nn.Module):
    """Bags of words, sparse, as the first layer's input."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.head = weight(64, WIDTH), nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.sparse.mm(x, self.w).relu())

    @staticmethod
    def batch() -> Tensor:
        return (torch.rand(40, 64) < 0.2).float().to_sparse()


def w2() -> nn.Parameter:
    return weight(WIDTH, WIDTH)


RECURRENT = {f"recurrent.weight_{kind}_l{layer}": "recurrent" for kind in ("ih", "hh") for layer in (0, 1)}

ENTRIES = [
    Entry("reversed", Reversed, features),
    Entry("functional", Functional, images),
    Entry("shared", Shared, features, statuses={"layer.weight": "shared"}),
    Entry("unrolled", Unrolled, sequences, statuses={"into.weight": "shared", "back.weight": "shared"}),
    Entry("tied", Tied, tokens, statuses={"embedding.weight": "tied"}),
    Entry("tied_functional", TiedFunctional, tokens, statuses={"table": "tied"}),
    Entry("two_inputs", TwoInputs, TwoInputs.batch),
    Entry("nested_outputs", Nested, features),
    Entry("unused_branch", UnusedBranch, features, statuses={"auxiliary.0.weight": "unused", "auxiliary.1.weight": "unused"}),
    Entry("in_place", in_place, images),
    Entry("in_place_functional", InPlaceFunctional, features),
    Entry("weight_norm", weight_norm, features),
    Entry("weight_norm_convolution", weight_norm_convolution, images),
    Entry("weight_norm_old", weight_norm_old, features),
    Entry("spectral_norm", spectral_norm, features, statuses={"0.parametrizations.weight.original": "scale-invariant"}),
    Entry("spectral_norm_old", spectral_norm_old, images, statuses={"0.weight_orig": "scale-invariant"}),
    Entry("orthogonal", orthogonal, features),
    Entry("symmetric", symmetric, features),
    Entry("pruned", pruned, features),
    Entry("standardized", standardized, images, statuses={"0.weight": "scale-invariant"}),
    Entry("equalized", lambda: nn.Sequential(EqualizedLinear(WIDTH, WIDTH), nn.ReLU(), EqualizedLinear(WIDTH, 4)), features),
    Entry("cast", lambda: nn.Sequential(CastLinear(WIDTH, WIDTH), nn.ReLU(), CastLinear(WIDTH, 4)).double(), features),
    Entry("low_rank", LowRank, features),
    Entry("lora", LoRA, features, statuses={"base.weight": "frozen"}),
    Entry("frozen", frozen, images, statuses={"0.0.weight": "frozen"}),
    Entry("checkpointed", lambda: Checkpointed(use_reentrant=False), features),
    Entry("checkpointed_reentrant", lambda: Checkpointed(use_reentrant=True), features),
    Entry("layer_scale", LayerScale, features),
    Entry("dead_branch", DeadBranch, features, statuses={"behind.weight": "no-signal", "before.weight": "scaled"}),
    Entry("data_dependent", DataDependent, features, statuses={"rare.weight": "unused"}),
    Entry("misleading_names", misleading, features),
    Entry("custom_function", CustomFunction, features),
    Entry("called_functionally", CalledFunctionally, features),
    Entry("functional_call", mlp, features, forward=functional_call),
    Entry("vmapped", Vmapped, features, statuses={"w": "unsupported"}),
    Entry("vmapped_samples", VmappedSamples, features),
    Entry("differentiating", Differentiating, features),
    Entry("einsum_experts", EinsumExperts, features),
    Entry(
        "three_operands",
        ThreeOperands,
        features,
        not_weights={"experts": "torch computes it as two products, of which one is seen"},
    ),
    Entry("routed_experts", RoutedExperts, features),
    Entry("gathered_experts", GatheredExperts, features),
    *([Entry("grouped_experts", GroupedExperts, features)] if hasattr(F, "grouped_mm") else []),
    Entry("attention", Attention, sequences),
    Entry("cross_attention", CrossAttention, sequences),
    Entry("transformer", transformer, lambda: (sequences(), sequences()[:, :5])),
    Entry("transformer_encoder", transformer_encoder, sequences),
    Entry("lstm", lambda: Recurrent(nn.LSTM), sequences, statuses=RECURRENT),
    Entry("gru", lambda: Recurrent(nn.GRU), sequences, statuses=RECURRENT),
    Entry("rnn", lambda: Recurrent(nn.RNN), sequences, statuses=RECURRENT),
    Entry("gru_cell", Cells, sequences, statuses={"cell.weight_ih": "recurrent", "cell.weight_hh": "recurrent"}),
    Entry("convolutions", convolutions, images),
    Entry("unfolded", Unfolded, images),
    Entry("complex", Complex, features),
    Entry("spectral", Spectral, features),
    Entry("autocast", Autocast, features),
    Entry("bfloat16", bfloat16, lambda: features().bfloat16()),
    Entry("double", double, lambda: features().double()),
    Entry("channels_last", channels_last, lambda: images().to(memory_format=torch.channels_last)),
    Entry("lists", Lists, features),
    Entry("sliced", Sliced, features),
    Entry("slimmable", Slimmable, features),
    Entry("concatenated", Concatenated, features),
    Entry("learned_queries", LearnedQueries, sequences),
    Entry("embedding_bag", Bags, tokens),
    Entry("buffering", Buffering, features),
    Entry("graph", Graph, Graph.batch),
    Entry("sparse_features", SparseFeatures, SparseFeatures.batch),
    Entry("inner", lambda: Formula(torch.inner, w=w2()), features),
    Entry("tensordot", lambda: Formula(lambda x, w: torch.tensordot(x, w, 1), w=w2()), features),
    Entry("multi_dot", lambda: Formula(lambda x, v, w: torch.linalg.multi_dot((x, v, w)), v=w2(), w=w2()), features),
    Entry("chain", lambda: Formula(lambda x, v, w: x @ v.t() @ w, v=w2(), w=w2()), features),
    Entry("matmul_out", lambda: Formula(lambda x, w: torch.mm(x, w, out=torch.empty_like(x)), w=w2()), features),
    Entry("addmm_in_place", lambda: Formula(lambda x, w: torch.zeros_like(x).addmm_(x, w), w=w2()), features),
    Entry("residual_addmm", lambda: Formula(lambda x, w: torch.addmm(x, x, w), w=w2()), features),
    Entry("right_operand", lambda: Formula(lambda x, w: w @ x.mT, w=w2()), features),
    Entry("vector", lambda: Formula(lambda x, w: x @ w, w=weight(WIDTH)), features),
    Entry("imported_operator", lambda: Formula(torch.ops.aten.linear.default, w=w2()), features),
    Entry("broadcast_product", lambda: Formula(lambda x, w: (x.unsqueeze(2) * w).sum(1), w=w2()), features),
    Entry("sum_of_weights", lambda: Formula(lambda x, v, w: x @ (v + w), v=w2(), w=w2()), features),
    Entry("scaled_after_t", lambda: Formula(lambda x, w: x @ w.t().flip(0), w=w2()), features),
    Entry("data_alias", lambda: Formula(lambda x, w: x @ w.data, w=w2()), features),
    Entry("einsum_lists", lambda: Formula(lambda x, w: torch.einsum(x, [0, 1], w, [1, 2], [0, 2]), w=w2()), features),
    Entry("heads_einsum", lambda: Formula(lambda x, w: torch.einsum("bi,iho->bho", x, w), w=weight(WIDTH, 4, 8)), features),
    Entry("batched_matmul", lambda: Formula(lambda x, w: x.view(-1, 4, 1, 8) @ w, w=weight(4, 8, 8)), features),
    Entry("expanded_weight", lambda: Formula(lambda x, w: torch.bmm(w.expand(64, -1, -1), x.unsqueeze(2)), w=w2()), features),
    Entry("repeated_weight", lambda: Formula(lambda x, w: torch.bmm(w.repeat(64, 1, 1), x.unsqueeze(2)), w=w2()), features),
]
