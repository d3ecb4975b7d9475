"""What golden cases of every family compare: detections, losses, gradients, a few SGD steps."""

import copy
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import relook
from published import Case, difference
from relook.types import ImageDetections
from relook.zoo.entry import Entry

TOLERANCE = 1e-6  # relative, in float64; the cases are stored in float32, 6e-8
Record = Callable[[str, object], None]  # pytest's record_property


class Run:
    """One case, computed once for all its tests."""

    def __init__(self, case: Case, entry: Entry, settings: Mapping[str, Any]) -> None:
        self.case, self.entry = case, entry
        self.detector: Any = relook.create_model(entry.name, **settings).double()
        self.state = case.state()
        self.ours = entry.layout.rename(self.state)
        relook.load_published(self.detector, self.state)
        self.start = copy.deepcopy(self.detector.state_dict())
        self.images, self.sizes = case.images()
        self.targets = case.targets()
        with torch.no_grad():  # what is asked at test time differs where statistics are the batch's
            norms = [m for m in self.detector.train().modules() if isinstance(m, nn.BatchNorm2d)]
            moving = any(norm.training for norm in norms)
            self.seen: Any = self.detector.eval()(self.images) if moving else None
        self.outputs: Any = self.detector.train()(self.images)
        self.seen = self.seen or self.outputs
        self.losses: dict[str, Tensor] = self.detector.loss(self.outputs, self.targets)
        torch.stack(list(self.losses.values())).sum().backward()

    @cached_property
    def found(self) -> list[ImageDetections]:
        """What is detected in each image."""
        return self.detector.predict(self.seen, self.sizes).unpad()

    def check(self, record: Record, what: str, largest: float) -> None:
        """Notes the difference for docs/parity.md and holds it below the tolerance."""
        record("parity", f"{self.case.name} (`{self.entry.name}`)|{what}|{largest}")
        assert largest < TOLERANCE, f"{self.case.name}: {what} differ by {largest:.1e}"

    def worst(self, pairs: Mapping[str, Tensor]) -> float:
        """The largest difference between what is ours and the stored arrays of these names."""
        return max(difference(mine, self.case.tensor(name)) for name, mine in pairs.items())


class Checks:
    """Everything that is compared in one case; each case is a class, so that one process does all of it."""

    name: ClassVar[str]

    @classmethod
    def make(cls) -> Run:
        """The case as its family runs it."""
        raise NotImplementedError

    @pytest.fixture(scope="class")
    @classmethod
    def run(cls) -> Run:
        return cls.make()

    def loss_names(self, stored: set[str]) -> dict[str, tuple[str, ...]]:
        """Our terms -> the published ones that they are the sum of; `stored` are all published ones."""
        return {name: (name,) for name in stored}

    def test_detections(self, run: Run, record_property: Record) -> None:
        """The same boxes with the same scores and classes in the same order."""
        largest = 0.0
        for i, found in enumerate(run.found):
            assert torch.equal(found.labels, run.case.tensor(f"det/{i}/labels"))
            mine = {f"det/{i}/boxes": found.boxes, f"det/{i}/scores": found.scores}
            largest = max(largest, run.worst(mine))
        run.check(record_property, "detections", largest)

    def test_losses(self, run: Run, record_property: Record) -> None:
        """Every term of the loss."""
        prefix = "loss/"
        stored = {k.removeprefix(prefix) for k in run.case.arrays if k.startswith(prefix)} - {"total"}
        names = self.loss_names(stored)
        assert set(run.losses) == set(names)
        assert {one for published in names.values() for one in published} == stored
        sums = {k: torch.stack([run.case.tensor(prefix + one) for one in names[k]]).sum() for k in names}
        largest = max(difference(run.losses[name], value) for name, value in sums.items())
        run.check(record_property, "losses", largest)

    def test_gradients(self, run: Run, record_property: Record) -> None:
        """The gradient's norm of every trained parameter, and no gradient anywhere else."""
        keys = [str(key) for key in run.case.arrays["grad/keys"]]
        parameters = dict(run.detector.named_parameters())
        assert {run.ours[k] for k in keys} == {k for k, p in parameters.items() if p.grad is not None}
        norms = torch.stack([g.norm() for k in keys if (g := parameters[run.ours[k]].grad) is not None])
        run.check(record_property, "gradient norms", difference(norms, run.case.tensor("grad/norms")))

    def training_steps(self, run: Run, record_property: Record, steps: int) -> None:
        """The total loss before each of some SGD steps."""
        run.detector.load_state_dict(run.start)
        facts = run.case.about
        told = (facts.get("optimiser"), facts["train"].get("sgd"), {"lr": facts.get("sgd_lr")})
        lr = next(one["lr"] for one in told if isinstance(one, dict) and "lr" in one)
        decay = next(
            (one["weight_decay"] for one in told if isinstance(one, dict) and "weight_decay" in one), 1e-4
        )
        trained = [p for p in run.detector.parameters() if p.requires_grad]
        sgd = torch.optim.SGD(trained, lr=lr, momentum=0.9, weight_decay=decay)
        totals: list[Tensor] = []
        for step in range(steps):
            total = torch.stack(list(run.detector.loss(run.detector(run.images), run.targets).values())).sum()
            totals.append(total.detach())
            if step + 1 < steps:
                sgd.zero_grad()
                total.backward()
                sgd.step()
        largest = difference(torch.stack(totals), run.case.tensor("trajectory/total")[:steps])
        run.check(record_property, "SGD steps", largest)


def first_steps(steps: int) -> Callable[[Checks, Run, Record], None]:
    """The test of so many steps."""

    def test(self: Checks, run: Run, record_property: Record) -> None:
        """The total loss before each of some SGD steps."""
        self.training_steps(run, record_property, steps)

    return test


ALL_STEPS = 5


def classes(
    base: type[Checks], cases: list[str], *, stepping: dict[str, int], without: set[str]
) -> dict[str, type]:
    """A class of tests for each case.

    Args:
        base: its family's.
        cases: their names.
        stepping: how many SGD steps are taken in the fast suite; all five are slow, but where that many are.
        without: those that have none.
    """
    made: dict[str, type] = {}
    for name in cases:
        own: dict[str, Any] = {"name": name}
        if name in stepping:
            own["test_training_steps"] = first_steps(stepping[name])
        if name not in without and stepping.get(name) != ALL_STEPS:
            own["test_all_training_steps"] = pytest.mark.slow(first_steps(ALL_STEPS))
        made[f"Test_{name}"] = type(f"Test_{name}", (base,), own)
    return made


def manifest_shapes(entry: Entry, stored: list[tuple[str, list[int]]]) -> dict[str, tuple[int, ...]]:
    """A published list of keys and shapes, in our names."""
    names = entry.layout.rename(key for key, _ in stored)
    return {names[key]: tuple(shape) for key, shape in stored}


def our_shapes(entry: Entry) -> dict[str, tuple[int, ...]]:
    """The names and shapes of an entry's tensors."""
    with torch.device("meta"):
        return {k: tuple(v.shape) for k, v in entry.detector.build().state_dict().items()}
