"""How our own small models learn, whatever their family: from nothing, on small images, on CPUs."""

from relook.recipe import KeepRatio, Optimizer, Recipe, Schedule, Selection

NANO_RECIPE = Recipe(
    batch=8,
    optimizer=Optimizer(kind="adamw", lr=2e-3, weight_decay=0.05, clip=35.0),
    schedule=Schedule(kind="onecycle", epochs=12, warmup_steps=100, warmup_reach=100),
    train_size=KeepRatio(short=(128,), long=256),
    test_size=KeepRatio(short=(128,), long=256),
    group_by="none",
    selection=Selection(need="nothing"),
)
