"""Small networks for the tests, and what is measured on them, independently of goodinit."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

LAYERS = (nn.Linear, nn.Bilinear, nn.modules.conv._ConvNd)


class Residual(nn.Module):
    """x + f(x), the sum of two branches."""

    def __init__(self, *body: nn.Module):
        super().__init__()
        self.body = nn.Sequential(*body)

    def forward(self, x):
        return x + self.body(x)


class Branches(nn.Module):
    """Concatenation of branches along the channels."""

    def __init__(self, *branches: nn.Module):
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x):
        return torch.cat([branch(x) for branch in self.branches], dim=1)


class Functional(nn.Module):
    """Parameters used by functions, in another order than they are registered."""

    def __init__(self):
        super().__init__()
        self.last = nn.Parameter(torch.randn(12, 4))
        self.bias = nn.Parameter(torch.randn(12))
        self.einsummed = nn.Parameter(torch.randn(10, 12))
        self.first = nn.Parameter(torch.randn(10, 6))

    def forward(self, x):
        h = torch.tanh(F.linear(x, self.first))
        h = torch.addmm(self.bias, h, self.einsummed).relu()
        return h @ self.last


class Normalized(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
            nn.Conv2d(8, 8, 3, padding=1, groups=4),
            nn.ReLU(inplace=True),
            nn.ConvTranspose2d(8, 6, 2, stride=2),
            nn.Flatten(),
            nn.Linear(6 * 64, 5),
        )

    def forward(self, x):
        return F.dropout(self.net(x), 0.5, self.training)


def mlp(*widths: int, activation: Callable[[], nn.Module] = nn.Tanh) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in zip(widths, widths[1:], strict=False):
        layers += [nn.Linear(a, b), activation()]
    return nn.Sequential(*layers[:-1])


def attention() -> nn.Module:
    return nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True)


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "mlp": (lambda: mlp(6, 20, 20, 20, 4), lambda: torch.randn(64, 6)),
    "normalized": (Normalized, lambda: torch.randn(16, 3, 4, 4)),
    "residual": (
        lambda: nn.Sequential(nn.Linear(6, 6), Residual(nn.Linear(6, 9), nn.ReLU(True), nn.Linear(9, 6)), nn.Linear(6, 3)),
        lambda: torch.randn(64, 6),
    ),
    "branches": (
        lambda: nn.Sequential(Branches(nn.Conv1d(3, 4, 3, padding=1), nn.Conv1d(3, 5, 1)), nn.GELU(), nn.Conv1d(9, 2, 3)),
        lambda: torch.randn(8, 3, 12),
    ),
    "functional": (Functional, lambda: torch.randn(64, 6)),
    "attention": (attention, lambda: torch.randn(8, 5, 16)),
    "volume": (
        lambda: nn.Sequential(nn.Conv3d(2, 4, 3), nn.ReLU(), nn.ConvTranspose3d(4, 2, 2)),
        lambda: torch.randn(4, 2, 5, 5, 5),
    ),
}


def build(name: str, seed: int = 0) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(seed)
    model, data = MODELS[name]
    return model(), data()


@torch.no_grad()
def first_use_stds(model: nn.Module, forward: Callable[[nn.Module], object]) -> dict[str, float]:
    """Std of the first output of every Linear, Bilinear and convolution module, on a copy of the model, as in the pass."""
    model = copy.deepcopy(model).train(model.training)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.eval()
    stds: dict[str, float] = {}

    def hook(name):
        def measure(_module, _args, output):
            stds.setdefault(name, output.double().std(correction=0).item())

        return measure

    for name, module in model.named_modules():
        if isinstance(module, LAYERS):
            module.register_forward_hook(hook(f"{name}.weight".lstrip(".")))
    forward(model)
    return stds


def snapshot(model: nn.Module) -> dict[str, object]:
    """All that a call may not change, to be compared with `assert_same`."""
    return {
        "state": {k: _content(v) for k, v in model.state_dict().items()},
        "grads": {k: None if p.grad is None else p.grad.clone() for k, p in model.named_parameters()},
        **surroundings(model),
    }


def surroundings(model: nn.Module) -> dict[str, object]:
    """What even a successful call may not change: flags, buffers, hooks, identities, switches, modes."""
    return {
        "flags": [m.training for m in model.modules()],
        "buffers": {k: _content(v) for k, v in model.named_buffers()},
        "ids": [id(t) for m in model.modules() for t in (*m._parameters.values(), *m._buffers.values())],
        "pointers": [None if is_lazy(t) else t.data_ptr() for t in model.parameters()],
        "attributes": [sorted(vars(m)) for m in model.modules()],
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "hooks": [
            sum(len(h) for h in (m._forward_hooks, m._forward_pre_hooks, m._backward_hooks, m._backward_pre_hooks))
            for m in model.modules()
        ],
        "fastpath": torch.backends.mha.get_fastpath_enabled(),
        "grad mode": torch.is_grad_enabled(),
        "modes": torch._C._len_torch_function_stack(),
    }


def _content(tensor: Tensor) -> Tensor | str:
    """A copy; of a lazy tensor, which has no content, what it is."""
    return type(tensor).__name__ if is_lazy(tensor) else tensor.clone()


def assert_same(a: object, b: object, at: str = "") -> None:
    """Bit-identical, through containers of tensors (NaN equal to NaN)."""
    assert type(a) is type(b), at
    if isinstance(a, Tensor):
        assert isinstance(b, Tensor)
        assert a.dtype == b.dtype
        assert a.shape == b.shape, at
        bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
        view = bits[a.element_size()] if not a.is_complex() else None
        same = torch.equal(a.contiguous().view(view), b.contiguous().view(view)) if view else torch.equal(a, b)
        assert same, f"{at} differs"
    elif isinstance(a, dict):
        assert isinstance(b, dict)
        assert a.keys() == b.keys(), at
        for key in a:
            assert_same(a[key], b[key], f"{at}/{key}")
    elif isinstance(a, (list, tuple)):
        assert isinstance(b, (list, tuple))
        assert len(a) == len(b), at
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{at}/{i}")
    else:
        assert a == b, f"{at}: {a!r} != {b!r}"
