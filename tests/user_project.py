"""A project of somebody who uses the command line: what its files hold, and calling the command in its folder."""

from __future__ import annotations

import json

from typer.testing import CliRunner

FILES = {
    "net.py": """
from torch import nn

class Net(nn.Module):
    def __init__(self, width=8, depth=2):
        super().__init__()
        layers = [nn.Conv2d(width, width, 3, padding=1) for _ in range(depth)]
        self.body = nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), *(m for layer in layers for m in (layer, nn.ReLU())))
        self.head = nn.Linear(width, 4)

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))

def make_model(width, *, depth):
    return Net(width, depth)

model = Net()

def tied():
    net = nn.Sequential(nn.Embedding(50, 8), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 50, bias=False))
    net[3].weight = net[0].weight
    return net

def with_optimizer():
    return Net(), {"lr": 0.1}

def fails(size=3):
    return nn.Linear(size, -1)

def noisy():
    print("made a net")
    return Net()

class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(5, 6), nn.Linear(7, 6)

    def forward(self, left, right=None):
        return self.a(left) + (0 if right is None else self.b(right))

def log_cosh(output, labels):
    return (output.sum(1) - labels).cosh().log().mean()

def energy(output):
    return output.square().mean()

def dead():
    net = nn.Sequential(nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 5))
    nn.init.constant_(net[0].bias, -100.0)
    return net

SIZE = 3
""",
    "parts/__init__.py": "",
    "parts/deep.py": "from torch import nn\n\nclass Zoo:\n    class Small(nn.Linear):\n        pass\n",
    "broken.py": "import math\n\nanswer = math.sqrt(-1)\n",
    "lacking.py": "import a_package_that_is_not_there\n",
    "leaving.py": "import sys\n\nsys.exit(3)\n",
}


def write(folder):
    for name, text in FILES.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)


def call(*arguments):
    """The command, in this process."""
    from goodinit.cli import app

    return CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}).invoke(app, [str(a) for a in arguments])


def printed_json(*arguments):
    result = call(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def refused(code, *arguments):
    """What the command says when it fails."""
    result = call(*arguments)
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    return result.stderr
