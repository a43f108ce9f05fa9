"""`lsuv_` on every model of the zoo, checked by a recorder that shares no code with it."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from goodinit import GoodinitWarning, Record, Report, lsuv_
from recorder import Recorder, Use, record
from zoo import Entry, all_entries

TOLERANCE = 1e-2
# Of 16-bit outputs the rounding alone is seen; the weight's factor is rounded too.
TOLERANCE_16_BIT = 3e-2
SEED = 7


def problems_of_weights(report: Report, recorder: Recorder, model: nn.Module, entry: Entry) -> list[str]:
    """What the report says that the recorder does not confirm, and what it leaves out."""
    records = _by_parameter(report)
    found = [problem for use in recorder.uses for problem in _problems_of_use(use, records, model, entry)]
    used = {name for use in recorder.uses for name in use.parameters}
    for r in report:
        found += _problems_of_status(r, recorder, used, model)
    for name, status in entry.statuses.items():
        seen = {r.status for r in records.get(name, ())}
        if seen != {status}:
            found.append(f"status: {name} should be {status}, is {sorted(seen) or 'not in the report'}")
    return found


def _by_parameter(report: Report) -> dict[str, list[Record]]:
    records: dict[str, list[Record]] = {}
    for r in report:
        records.setdefault(r.name.partition("[")[0], []).append(r)
    return records


def _problems_of_use(use: Use, records: dict[str, list[Record]], model: nn.Module, entry: Entry) -> Iterator[str]:
    """A weight at first use is at its target, or the report says why not."""
    if any(fnmatchcase(name, pattern) for name in use.parameters for pattern in entry.not_weights):
        return
    if use.looked_up and all(model.get_parameter(name).dim() == 2 for name in use.parameters):
        return  # a table of which rows are gathered is an embedding; a stack of which matrices are gathered holds experts
    known = [r for name in use.parameters for r in records.get(name, ())]
    exact = [r for r in known if r.name == use.name] or known
    kind = f"{use.operator}{' on a computed weight' if use.computed else ''}"
    if not known:
        yield f"missed: {use.name} {use.shape}, used by {kind}, std {use.std:.4g}"
    elif use.again and len(exact) == 1 and exact[0].name == use.name and exact[0].std_after is not None:
        if abs(use.std - exact[0].std_after) > _tolerance(model, use):
            yield f"off: {use.name} is reported to have std {exact[0].std_after:.4g}, by the recorder {use.std:.4g}"
    elif all(r.status in ("scaled", "shared") for r in exact) and abs(use.std - 1) > _tolerance(model, use):
        yield f"off: {use.name} {use.shape} is reported {exact[0].status}, std by the recorder {use.std:.4g} ({kind})"


def _tolerance(model: nn.Module, use: Use) -> float:
    sixteen_bit = any(p.element_size() == 2 for p in model.parameters()) or use.sixteen_bit
    return TOLERANCE_16_BIT if sixteen_bit else TOLERANCE


def _problems_of_status(r: Record, recorder: Recorder, used: set[str], model: nn.Module) -> Iterator[str]:
    """Every status but scaled is confirmed by what was seen."""
    name = r.name.partition("[")[0]
    parameter = dict(model.named_parameters()).get(name)
    stds = [use.std for use in recorder.uses if name in use.parameters]
    if parameter is None:
        yield f"status: {r.name} is not a parameter of the model"
    elif r.status == "tied" and name not in recorder.embedded:
        yield f"status: {r.name} is reported tied, no embedding read it"
    elif r.status == "frozen" and parameter.requires_grad:
        yield f"status: {r.name} is reported frozen, it requires grad"
    elif r.status == "unused" and any(r.name == use.name or (use.computed and name in use.parameters) for use in recorder.uses):
        yield f"status: {r.name} is reported unused, it was used"
    elif r.status == "no-signal" and stds and min(stds) > 1e-3:
        yield f"status: {r.name} is reported no-signal, its std is {min(stds):.4g}"
    elif r.status in ("scaled", "shared") and name not in used:
        yield f"status: {r.name} is reported {r.status}, the recorder saw no use of it"
    elif r.status in ("bias-dominated", "skipped"):
        yield f"status: {r.name} is reported {r.status}, biases are zero and nothing is skipped"


class Traces:
    """All that a call should leave as it was."""

    def __init__(self, model: nn.Module) -> None:
        self.flags = {name: m.training for name, m in model.named_modules()}
        self.buffers = {name: b.clone() for name, b in model.named_buffers()}
        self.held = {name: sorted(m._buffers) for name, m in model.named_modules()}
        self.grads = {name: p.grad for name, p in model.named_parameters()}
        self.requires_grad = {name: p.requires_grad for name, p in model.named_parameters()}
        self.identities = {name: id(p) for name, p in model.named_parameters()}
        self.hooks = {f"{n}.{k}": len(v) for n, m in model.named_modules() for k, v in vars(m).items() if k.endswith("_hooks")}
        self.fast_path = torch.backends.mha.get_fastpath_enabled()
        self.modes = (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch._C._len_torch_function_stack())

    def differences(self, other: Traces) -> list[str]:
        found = [
            f"trace: {key} changed"
            for key in vars(self)
            if key not in ("buffers", "identities", "hooks") and vars(self)[key] != vars(other)[key]
        ]
        if self.identities != other.identities and not self._lazy(other):
            found.append("trace: parameters were replaced")
        for name, buffer in self.buffers.items():
            if not _same_bits(buffer, other.buffers.get(name)):
                found.append(f"trace: the buffer {name} changed")
        return found

    def _lazy(self, other: Traces) -> bool:
        return set(self.identities) != set(other.identities)


def _same_bits(a: Tensor, b: Tensor | None) -> bool:
    if b is None or a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.equal(a, b) or (torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(), b.nan_to_num()))


@contextmanager
def counted_forwards(model: nn.Module) -> Iterator[list[Tensor]]:
    """For every forward the state of the random numbers at its start: what it draws itself (masks, noise) can be drawn again."""
    calls: list[Tensor] = []
    handle = model.register_forward_pre_hook(lambda *_: calls.append(torch.get_rng_state()))
    try:
        yield calls
    finally:
        handle.remove()


def hooks_after_a_plain_forward(entry: Entry) -> dict[str, int]:
    """Some models install hooks in their first forward, whoever calls it."""
    model = entry.build()
    with torch.no_grad():
        entry.run(model, entry.data())
    return Traces(model).hooks


def initialize(entry: Entry, model: nn.Module, **options: Any) -> Report:
    """`lsuv_` from a fixed seed; it warns if and only if a weight could not be scaled."""
    torch.manual_seed(SEED)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", GoodinitWarning)
        report = lsuv_(model, entry.data(), forward=entry.forward, **options)
    others = [w for w in caught if not issubclass(w.category, GoodinitWarning)]
    assert report.ok == (len(caught) == len(others)), "warns if and only if a weight could not be scaled"
    return report


def problems(entry: Entry) -> list[str]:
    """All that is wrong with `lsuv_` on one model, each in a line."""
    found = []
    model = entry.build()
    before = Traces(model)
    with counted_forwards(model) as calls:
        report = initialize(entry, model)
    drawn = torch.get_rng_state()
    if len(calls) != 1:
        found.append(f"forwards: {len(calls)} instead of 1")
    after = Traces(model)
    found += before.differences(after)
    if after.hooks != before.hooks and after.hooks != hooks_after_a_plain_forward(entry):
        found.append("trace: hooks were added or removed")
    found += _problems_of_repetition(entry, model, drawn)
    data = entry.data()
    torch.set_rng_state(calls[0])
    return found + problems_of_weights(report, record(model, lambda: entry.run(model, data)), model, entry)


def _problems_of_repetition(entry: Entry, model: nn.Module, drawn: Tensor) -> Iterator[str]:
    """The same seed gives the same weights, from torch's generator or from one's own, and only the draws are seen in either."""
    again = entry.build()
    own = torch.Generator().manual_seed(SEED)
    initialize(entry, again, generator=own)
    untouched = torch.Generator().manual_seed(SEED).get_state()
    if not torch.equal(torch.get_rng_state(), untouched):
        yield "rng: the global generator changed though one was given"
    if not torch.equal(own.get_state(), drawn):
        yield "rng: the global generator does not end as if only the matrices had been drawn"
    weights = dict(again.named_parameters())
    different = [name for name, p in model.named_parameters() if not _same_bits(p.detach(), weights[name].detach())]
    if different:
        yield f"repetition: {len(different)} parameters differ, {different[0]} the first"


def _parameters() -> list[Any]:
    return [pytest.param(e, id=e.name, marks=pytest.mark.slow if e.slow else ()) for e in all_entries()]


# torch says so of every reentrant checkpoint under no_grad, where gradients are not asked for.
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True:UserWarning")
@pytest.mark.parametrize("entry", _parameters())
def test_every_weight_is_at_its_target_after_one_forward_or_the_report_says_why(entry: Entry) -> None:
    missing = [package for package in entry.needs if importlib.util.find_spec(package) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed")
    assert problems(entry) == []


def test_the_page_of_the_docs_is_made_from_rows_for_the_whole_zoo() -> None:
    import zoo_table  # which imports this file

    if not zoo_table.ROWS.exists():
        pytest.skip("not in a checkout")
    if not hasattr(torch.nn.functional, "grouped_mm"):
        pytest.skip("the page has models that this version of torch does not run")
    rows = zoo_table.read(zoo_table.ROWS)
    assert zoo_table.page(rows) == zoo_table.PAGE.read_text(encoding="utf-8")
    assert [row["name"] for row in rows] == [entry.name for entry in all_entries()], "run `make zoo`"
    assert not any(row["error"] or row["problems"] for row in rows)


def test_a_weight_changed_after_the_pass_is_found() -> None:
    entry = next(e for e in all_entries() if e.name == "reversed")
    model = entry.build()
    report = initialize(entry, model)
    with torch.no_grad():
        model.get_parameter("b.weight").mul_(1.05)
    found = problems_of_weights(report, record(model, lambda: model(entry.data())), model, entry)
    assert any(line.startswith("off: b.weight") for line in found)
    assert not any(line.startswith("off: a.weight") for line in found)


def test_the_recorder_measures_the_output_of_every_layer_in_call_order() -> None:
    first, last = nn.Linear(8, 16), nn.Linear(16, 4, bias=False)
    net = nn.Sequential(first, nn.ReLU(inplace=True), nn.Dropout(0.5), last)
    x = torch.randn(100, 8)
    hidden = first(x)
    expected = [hidden.std(correction=0).item(), last(hidden.relu()).std(correction=0).item()]
    uses = record(net, lambda: net(x)).uses
    assert [use.name for use in uses] == ["0.weight", "3.weight"]
    assert [use.std for use in uses] == pytest.approx(expected)


def test_the_recorder_finds_weights_computed_from_parameters_alone() -> None:
    net = nn.utils.parametrizations.weight_norm(nn.Linear(8, 16))
    x = torch.randn(100, 8)
    (use,) = record(net, lambda: net(x)).uses
    assert use.computed
    assert use.parameters == ("parametrizations.weight.original0", "parametrizations.weight.original1")
    assert use.std == pytest.approx(net(x).std(correction=0).item())
