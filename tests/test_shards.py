"""An initialization written to a folder as it goes, and taken up from there."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from goodinit import OptionError, lsuv_
from goodinit.errors import SaveError, ShardsError
from zoo import transformers_models

X = torch.randn(40, 32, generator=torch.Generator().manual_seed(1))


class Stops(nn.Module):
    """Raises in the forward, if it is asked to."""

    on = False

    def forward(self, x):
        if self.on:
            raise KeyboardInterrupt
        return x


def net(*, meta=True, stop=None):
    torch.manual_seed(0)
    with torch.device("meta" if meta else "cpu"):
        layers = [nn.Sequential(nn.Linear(32, 32), nn.BatchNorm1d(32), nn.Tanh(), Stops()) for _ in range(6)]
        model = nn.Sequential(*layers, nn.LSTM(32, 8))
    if stop is not None:
        model[stop][3].on = True
    return model


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch):
    monkeypatch.setattr("goodinit.shards.SHARD_BYTES", 6000)


def initialize(model, folder, seed=0, x=X, **options):
    return lsuv_(model, x, device="cpu", checkpoint=folder, generator=torch.Generator().manual_seed(seed), **options)


def same_to_rounding(a, b):
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.allclose(x, y, rtol=1e-6, atol=1e-7) for x, y in pairs)


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def held(folder):
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


@pytest.mark.parametrize("meta", [True, False], ids=["meta", "with memory"])
@pytest.mark.parametrize("stop", [1, 4])
def test_an_interrupted_call_goes_on_where_it_was(tmp_path, meta, stop):
    expected = net(meta=meta)
    report = lsuv_(expected, X, device="cpu", generator=torch.Generator().manual_seed(0))
    broken = net(meta=meta, stop=stop)
    before = {name: tensor.clone() for name, tensor in broken.state_dict().items()}
    with pytest.raises(KeyboardInterrupt):
        initialize(broken, tmp_path)
    assert all(p.is_meta == meta for p in broken.parameters())
    assert meta or all(torch.equal(tensor, before[name]) for name, tensor in broken.state_dict().items())
    state = json.loads((tmp_path / "goodinit.json").read_text())
    assert stop <= len(state["scaled"]) <= stop + 1
    resumed = net(meta=meta)
    again = initialize(resumed, tmp_path, seed=9)  # the seed of the interrupted call counts
    # What an earlier call scaled is computed with its final weights, and not with the first ones times their factor.
    assert same_to_rounding(resumed, expected)
    for a, b in zip(again, report, strict=True):
        assert (a.name, a.status) == (b.name, b.status)
        assert a.factor == pytest.approx(b.factor, rel=1e-6)
        assert a.std_before == (None if b.std_before is None else pytest.approx(b.std_before, rel=1e-6))


def test_what_was_finished_is_not_drawn_again(tmp_path, monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        initialize(net(stop=4), tmp_path)
    drawn = []
    draw = torch.randn

    def counted(*shape, **options):
        drawn.append(shape)
        return draw(*shape, **options)

    done = len(json.loads((tmp_path / "goodinit.json").read_text())["scaled"])
    monkeypatch.setattr(torch, "randn", counted)
    initialize(net(), tmp_path)
    assert len(drawn) == 6 - done + 2  # the LSTM has two weights
    drawn.clear()
    finished = net()
    initialize(finished, tmp_path)
    assert not drawn
    assert finished[0][0].weight.std() > 0


def test_the_shards_are_the_model(tmp_path):
    model = net()
    initialize(model, tmp_path / "new" / "folder")
    folder = tmp_path / "new" / "folder"
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(model.state_dict())
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in model.state_dict().values())
    assert len(set(index["weight_map"].values())) > 2
    found = held(folder)
    assert sum(len(load_file(path)) for path in folder.glob("*.safetensors")) == len(found)  # nothing twice
    assert all(torch.equal(found[name], tensor) for name, tensor in model.state_dict().items())
    for name, file in index["weight_map"].items():
        assert name in load_file(folder / file)


def test_transformers_loads_them(tmp_path):
    from transformers import BertForMaskedLM

    entry = next(e for e in transformers_models.ENTRIES if e.name == "BertForMaskedLM")
    with torch.device("meta"):
        model = entry.build()
    lsuv_(model, entry.data(), device="cpu", checkpoint=tmp_path)
    model.config.save_pretrained(tmp_path)
    loaded = BertForMaskedLM.from_pretrained(tmp_path)
    assert same(model, loaded)
    assert loaded.cls.predictions.decoder.weight is loaded.bert.embeddings.word_embeddings.weight


KILLED = """
    import os, signal, torch
    from pathlib import Path
    import goodinit.shards
    from goodinit import lsuv_
    from torch import nn
    goodinit.shards.SHARD_BYTES = 6000
    torch.manual_seed(0)
    with torch.device("meta"):
        model = nn.Sequential(*[nn.Sequential(nn.Linear(32, 32), nn.Tanh()) for _ in range(8)])
    if {kill}:
        model[6].register_forward_hook(lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    x = torch.randn(40, 32, generator=torch.Generator().manual_seed(1))
    lsuv_(model, x, device="cpu", checkpoint={folder!r}, generator=torch.Generator().manual_seed(0))
"""


def test_killed_it_goes_on(tmp_path):
    for folder, kill in ((tmp_path / "a", True), (tmp_path / "a", False), (tmp_path / "b", False)):
        code = textwrap.dedent(KILLED.format(kill=kill, folder=str(folder)))
        if kill:
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
            assert done.returncode == -signal.SIGKILL, done.stderr
        else:
            exec(code, {})
        assert (folder / "model.safetensors.index.json").exists() != kill
        assert not list(folder.glob(".*"))
    a, b = held(tmp_path / "a"), held(tmp_path / "b")
    assert a.keys() == b.keys()
    for name in a:  # to rounding: an operator's output was scaled in the one, and computed with the scaled weight in the other
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=1e-6)


def test_a_full_disk_keeps_what_was_there(tmp_path):
    """Files may not be larger than 30 kB in this process: what a full disk does to a write, done by the kernel."""
    code = textwrap.dedent(f"""
        import resource, torch
        import goodinit.shards
        from goodinit import lsuv_
        from torch import nn
        goodinit.shards.SHARD_BYTES = 6000
        with torch.device("meta"):
            model = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 500), nn.Linear(500, 32))
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
        try:
            lsuv_(model, torch.randn(9, 32), device="cpu", checkpoint={str(tmp_path)!r})
        finally:
            print("on meta:", all(p.is_meta for p in model.parameters()))
    """)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert "goodinit.errors.SaveError: cannot save model-00002.safetensors in" in done.stderr
    assert "on meta: True" in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["goodinit.json", "model-00001.safetensors"]
    assert len(json.loads((tmp_path / "goodinit.json").read_text())["scaled"]) == 2


def test_other_initializations_are_refused(tmp_path):
    initialize(net(), tmp_path)
    with pytest.raises(OptionError, match=r"is of an initialization with another batch; give it the same model, options and"):
        initialize(net(), tmp_path, x=X + 1)
    with pytest.raises(OptionError, match="another set of options"):
        initialize(net(), tmp_path, target_std=0.5)
    with pytest.raises(OptionError, match="another model"), torch.device("meta"):
        initialize(nn.Linear(32, 8), tmp_path)


@pytest.mark.parametrize("how", ["frozen", "skipped", "no pre_init"])
def test_what_is_kept_is_part_of_the_initialization(tmp_path, how):
    """Else a model would get another one's frozen weights from the folder."""

    def initialized(seed):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(32, 8), nn.ReLU(), nn.Linear(8, 4))
        model[0].requires_grad_(how != "frozen")
        kept = model[0].weight.detach().clone()
        options = {"frozen": {}, "skipped": {"skip": "0"}, "no pre_init": {"pre_init": None}}[how]
        try:
            lsuv_(model, X, checkpoint=tmp_path, **options)
        finally:
            assert how == "no pre_init" or torch.equal(model[0].weight, kept)

    initialized(0)
    initialized(0)
    with pytest.raises(OptionError, match="is of an initialization with another set of kept weights; give it the same model"):
        initialized(1)


def test_a_finished_folder_is_no_other_seed_s(tmp_path):
    expected = net()
    initialize(expected, tmp_path, seed=3)
    with pytest.raises(OptionError, match="holds an initialization that was finished, from another state of the generator"):
        initialize(net(), tmp_path, seed=4)
    taken = net()
    lsuv_(taken, X, device="cpu", checkpoint=tmp_path)  # by its name alone
    assert same(taken, expected)


def _drawing(std):
    return lambda w: nn.init.normal_(w, std=std)


def _by_keyword(default):
    def draw(w, *, std=default):
        return nn.init.normal_(w, std=std)

    return draw


class _Drawing:
    def __init__(self, std):
        self.std = std

    def __call__(self, w):
        return nn.init.normal_(w, std=self.std)


def _recursive():
    def draw(w, again=True):
        return draw(w, False) if again else nn.init.normal_(w)

    return draw


def test_a_function_is_the_same_in_every_process(tmp_path):
    """Whose sets are in another order in each."""
    code = (
        "from goodinit.shards import _described\n"
        "def draw(w):\n    return w if w.dim() in {2, 'a', 'b', 'c', 'd'} else None\n"
        "print(_described(draw))\n"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(found) == 1


@pytest.mark.parametrize(
    ("first", "second", "same_"),
    [
        (partial(nn.init.normal_, std=0.5), partial(nn.init.normal_, std=0.5), True),
        (partial(nn.init.normal_, std=0.5), partial(nn.init.normal_, std=0.6), False),
        (lambda w: w.normal_(), lambda w: w.uniform_(), False),
        (_drawing(0.5), _drawing(0.5), True),
        (_by_keyword(0.5), _by_keyword(0.5), True),
        (_by_keyword(0.5), _by_keyword(0.6), False),
        (_Drawing(0.5), _Drawing(0.5), True),
        (_Drawing(0.5), _Drawing(0.6), False),
        (_recursive(), _recursive(), True),
        (_drawing(0.5), _drawing(0.6), False),
    ],
)
def test_functions_that_draw_are_known_by_what_they_do(tmp_path, first, second, same_):
    initialize(net(), tmp_path, pre_init=first)
    with nullcontext() if same_ else pytest.raises(OptionError, match="with another set of options"):
        initialize(net(), tmp_path, pre_init=second)


def test_parameters_in_the_same_memory(tmp_path):
    model = nn.Sequential(nn.Linear(32, 32, bias=False), nn.Tanh(), nn.Linear(32, 32, bias=False))
    model[2].weight = nn.Parameter(model[0].weight.detach())
    initialize(model, tmp_path)
    assert all(torch.equal(held(tmp_path)[name], p) for name, p in model.named_parameters())


def test_folders_that_cannot_be(tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text("{}")
    with pytest.raises(OptionError, match=r"holds 'config.json' and no goodinit.json: it is no beginning of an initialization"):
        initialize(net(), tmp_path / "other")
    (tmp_path / "file").write_text("")
    with pytest.raises(OptionError, match=r"checkpoint='.*file' cannot be used: File exists"):
        initialize(net(), tmp_path / "file")
    with pytest.raises(OptionError, match="a checkpoint is for an initialization by one batch; got batches=2"):
        initialize(net(), tmp_path / "several", x=[X, X], batches=2)
    initialize(net(), tmp_path / "broken")
    shard = next((tmp_path / "broken").glob("model-*"))
    os.truncate(shard, 100)
    model = net()
    with pytest.raises(ShardsError, match=r"'.*model-.*safetensors' is broken \(.*\); delete the folder to begin anew"):
        initialize(model, tmp_path / "broken")
    assert all(p.is_meta for p in model.parameters())
    (tmp_path / "broken" / "goodinit.json").write_text('{"format"')
    with pytest.raises(ShardsError, match=r"goodinit.json' is broken"):
        initialize(net(), tmp_path / "broken")


def test_nothing_is_written_where_it_is_not_asked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lsuv_(net(), X, device="cpu")
    assert not list(tmp_path.iterdir())
    assert issubclass(SaveError, OSError)


def test_a_model_that_differentiates_in_its_forward(tmp_path):
    """Autograd must not notice what is written then, so that versions say nothing of it."""

    class Forces(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.randn(4, 32, 32))

        def forward(self, x):
            with torch.enable_grad():
                x = h = x.detach().requires_grad_()
                for w in self.w:
                    h = torch.tanh(h @ w)
                return torch.autograd.grad(h.sum(), x)[0]

    torch.manual_seed(0)
    model = Forces()
    assert all(record.status == "scaled" for record in initialize(model, tmp_path))
    saved = held(tmp_path)
    assert saved.keys() == dict(model.named_parameters()).keys()
    assert all(torch.equal(saved[name], parameter) for name, parameter in model.named_parameters())


def test_a_state_that_begins_as_zeros(tmp_path, monkeypatch):
    """Interrupted while its matrix has no signal yet, and after that."""
    monkeypatch.setattr("goodinit.shards.SHARD_BYTES", 1)  # all that is finished is written at once

    class Cell(nn.Module):
        def __init__(self, stop=-1):
            super().__init__()
            self.into, self.back, self.out, self.stop = nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 32), stop

        def forward(self, x):
            h = torch.zeros_like(x)
            for step in range(4):
                if step == self.stop:
                    raise KeyboardInterrupt
                h = torch.tanh(self.into(x) + self.back(h))
            return self.out(h)

    torch.manual_seed(0)
    expected = Cell()
    lsuv_(expected, X, generator=torch.Generator().manual_seed(0))
    for stop in (1, 3):
        folder = tmp_path / str(stop)
        with pytest.raises(KeyboardInterrupt):
            initialize(Cell(stop), folder)
        resumed = Cell()
        initialize(resumed, folder)
        for mine, theirs in zip(resumed.parameters(), expected.parameters(), strict=True):
            assert torch.allclose(mine, theirs, rtol=1e-4, atol=1e-6)
        assert held(folder).keys() == dict(expected.named_parameters()).keys()
