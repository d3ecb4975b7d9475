import pytest
import torch

from relook.recipe import Optimizer, Recipe, Schedule
from relook.training.optim import learning_rate, optimizer, plan, scheduler

LINE_A = Schedule(epochs=12, warmup_steps=500, warmup_from=0.001, warmup_reach=500, drops=(8, 11))
LINE_B = Schedule(epochs=12, warmup_steps=500, warmup_from=0.001, warmup_reach=499, drops=(8, 11))
STEPS = 7330  # of an epoch of COCO at 16 images a step


def rate(schedule: Schedule, step: int, steps_per_epoch: int) -> float:
    """What the learning rate is multiplied with at a step of the schedule's own length."""
    return plan(schedule, steps_per_epoch).factor(step)


def test_warm_up_is_the_published_one() -> None:
    """Line A: 1 - 0.999 (1 - i/500); line B: 0.001 + 0.999 i/499; the whole rate from step 500 on."""
    for i in range(500):
        assert rate(LINE_A, i, STEPS) == pytest.approx(1 - 0.999 * (1 - i / 500), rel=1e-12)
        assert rate(LINE_B, i, STEPS) == pytest.approx(0.001 + 0.999 * i / 499, rel=1e-12)
    assert rate(LINE_A, 500, STEPS) == rate(LINE_B, 500, STEPS) == rate(LINE_B, 499, STEPS) == 1


def test_drops_are_the_published_ones() -> None:
    """A tenth after epoch 8, a hundredth after epoch 11, at the very first step of the next epoch."""
    for schedule in (LINE_A, LINE_B):
        assert rate(schedule, 8 * STEPS - 1, STEPS) == 1
        assert rate(schedule, 8 * STEPS, STEPS) == pytest.approx(0.1)
        assert rate(schedule, 11 * STEPS - 1, STEPS) == pytest.approx(0.1)
        assert rate(schedule, 11 * STEPS, STEPS) == pytest.approx(0.01)


def test_one_cycle_falls_to_zero() -> None:
    """After warm-up half a cosine, which reaches 0 when the last epoch is over."""
    schedule = Schedule(kind="onecycle", epochs=10, warmup_steps=10, warmup_reach=10)
    assert rate(schedule, 10, 100) == 1
    assert rate(schedule, 505, 100) == pytest.approx(0.5)
    assert rate(schedule, 1000, 100) == pytest.approx(0, abs=1e-12)
    assert 0 < rate(schedule, 999, 100) < 1e-4


def test_other_epochs_move_the_drops_and_shorten_the_warm_up() -> None:
    """Drops keep their place in proportion; warm-up takes at most a tenth of all steps, and says so."""
    short = plan(LINE_A, 100, 3)
    assert (short.total, short.warmup, short.drops) == (300, 30, (200, 275))
    assert short.factor(29) == pytest.approx(0.001 + 0.999 * 29 / 30)
    assert short.factor(30) == 1
    assert "not 500" in short.describe(0.01)
    assert plan(LINE_B, 100, 3).factor(29) == pytest.approx(1)  # its warm-up ends one step earlier
    assert plan(LINE_A, STEPS, 24).drops == (16 * STEPS, 22 * STEPS)
    assert [plan(LINE_A, 1, 1).factor(i) for i in range(1)] == [1]


def test_learning_rate_follows_the_batch_unless_given() -> None:
    """lr = the recipe's x total batch / the recipe's batch, and the sentence for the log says it."""
    recipe = Recipe(batch=16, optimizer=Optimizer(lr=0.01))
    assert learning_rate(recipe, 16) == (0.01, "learning rate 0.01 for 16 images a step, as in the recipe")
    lr, why = learning_rate(recipe, 4)
    assert lr == 0.0025
    assert "0.01 x 4/16" in why
    assert learning_rate(recipe, 4, 0.3)[0] == 0.3


@pytest.mark.parametrize("fused", [False, True])
def test_sgd_is_the_published_one(fused: bool) -> None:
    """v = 0.9 v + (g + 1e-4 w), w -= lr v: decay on everything, no Nesterov, no dampening."""
    torch.manual_seed(0)
    weight, frozen = (
        torch.nn.Parameter(torch.randn(5)),
        torch.nn.Parameter(torch.ones(2), requires_grad=False),
    )
    w, v = weight.detach().double().clone(), torch.zeros(5, dtype=torch.float64)
    model = torch.nn.ParameterList([weight, frozen])
    over = optimizer(model, Optimizer(kind="sgd", lr=0.01), 0.01, fused=fused)
    steps = scheduler(over, plan(Schedule(epochs=1, warmup_steps=3, warmup_reach=3, drops=()), 30))
    for i in range(6):
        gradient = torch.randn(5)
        weight.grad = gradient.clone()
        over.step()
        steps.step()
        v = 0.9 * v + gradient + 1e-4 * w
        w = w - 0.01 * (0.001 + 0.999 * i / 3 if i < 3 else 1) * v
    torch.testing.assert_close(weight.detach().double(), w, rtol=1e-5, atol=1e-7)
    assert [len(g["params"]) for g in over.param_groups] == [1]


def test_adamw_leaves_frozen_parameters_out() -> None:
    """Only what needs a gradient is optimised."""
    weights = [torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2), requires_grad=False)]
    facts = Optimizer(kind="adamw", lr=1e-3, weight_decay=0.05)
    over = optimizer(torch.nn.ParameterList(weights), facts, 1e-3)
    assert isinstance(over, torch.optim.AdamW)
    assert over.param_groups[0]["weight_decay"] == 0.05
    assert over.param_groups[0]["params"] == weights[:1]


def test_decay_spares_what_the_recipe_names() -> None:
    """Norms, norm weights alone, biases and embeddings; all other parameters keep it, frozen ones are out."""

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = torch.nn.Conv2d(3, 4, 1), torch.nn.GroupNorm(2, 4)
            self.layer_norm, self.pos_embed = torch.nn.LayerNorm(4), torch.nn.Parameter(torch.zeros(1, 4))
            self.fixed = torch.nn.BatchNorm2d(4).requires_grad_(requires_grad=False)

    net = Net()
    names = {parameter: name for name, parameter in net.named_parameters()}

    def spared(*kinds: str) -> set[str]:
        over = optimizer(net, Optimizer(weight_decay=0.1, no_decay=kinds), 0.01)
        groups = {group["weight_decay"]: {names[p] for p in group["params"]} for group in over.param_groups}
        assert set().union(*groups.values()) == {n for p, n in names.items() if p.requires_grad}
        return groups.get(0.0, set())

    assert spared() == set()
    norms = {"norm.weight", "norm.bias", "layer_norm.weight", "layer_norm.bias"}
    assert spared("norms") == norms
    assert spared("norm_weights") == {"norm.weight", "layer_norm.weight"}
    assert spared("biases") == {"conv.bias", "norm.bias", "layer_norm.bias"}
    assert spared("norms", "biases", "embeddings") == norms | {"conv.bias", "pos_embed"}


def test_a_schedule_may_count_iterations() -> None:
    """90,000 steps however long an epoch is; drops at their own steps; asked-for epochs scale all of it."""
    counted = Schedule(iterations=90_000, drops=(60_000, 80_000), warmup_steps=4000, warmup_reach=4000)
    for steps in (100, 7330):
        made = plan(counted, steps)
        assert (made.total, made.drops, made.warmup) == (90_000, (60_000, 80_000), 4000)
        assert made.factor(59_999) == 1
        assert made.factor(60_000) == pytest.approx(0.1)
    assert plan(counted, 100, 9).drops == (600, 800)


def test_a_warm_up_may_start_at_a_rate_of_its_own() -> None:
    """RefineDet's: 1e-6 + (lr - 1e-6) i / n, whatever the learning rate is scaled to."""
    absolute = Schedule(epochs=240, warmup_steps=5180, warmup_reach=5180, warmup_lr=1e-6, drops=(160, 200))
    for lr in (4e-3, 1e-3):
        made = plan(absolute, 518, lr=lr)
        for i in (0, 1, 2590, 5179):
            assert lr * made.factor(i) == pytest.approx(1e-6 + (lr - 1e-6) * i / 5180, rel=1e-12)
        assert made.factor(5180) == 1
