import math

import numpy as np
import pytest

from lib.recipe import Recipe, step_seed


def rates(recipe: Recipe, steps: int = 4) -> list[float]:
    return [recipe.lr_factor(epoch, step, steps) for epoch in range(recipe.epochs) for step in range(steps)]


def test_the_published_schedule_falls_after_each_epoch():
    assert rates(Recipe(epochs=3, lr_decay=0.99), 2) == pytest.approx([1, 1, 0.99, 0.99, 0.9801, 0.9801])


def test_warmup_rises_to_the_full_rate_step_by_step():
    recipe = Recipe(epochs=4, lr_decay=0.5, warmup_epochs=2)
    assert rates(recipe)[:8] == pytest.approx([k / 8 for k in range(1, 9)])
    assert rates(recipe)[8:] == pytest.approx([1] * 4 + [0.5] * 4)


def test_cosine_falls_from_the_full_rate_towards_zero():
    values = rates(Recipe(epochs=5, lr_schedule='cosine', warmup_epochs=1))[4:]
    assert values[0] == 1
    assert values[8] == pytest.approx(0.5)  # halfway after warm-up
    assert values[-1] == pytest.approx((1 + math.cos(math.pi * 15 / 16)) / 2)
    assert values == sorted(values, reverse=True)


def test_cosine_ends_at_lr_end():
    recipe = Recipe(epochs=100, lr_schedule='cosine', lr_end=0.1)
    assert [recipe.lr_factor(epoch, 0, 1) for epoch in (0, 50, 100)] == pytest.approx([1, 0.55, 0.1])


@pytest.mark.parametrize(
    'changes',
    [{'epochs': 0}, {'lr_decay': 0.0}, {'warmup_epochs': 5}, {'label_smoothing': 1.0}, {'max_grad_norm': 0.0}],
)
def test_values_out_of_range_are_refused(changes):
    with pytest.raises(ValueError, match=rf'train\.{next(iter(changes))}'):
        Recipe(**{'epochs': 5, **changes})


def test_seeds_of_steps_are_distinct_and_repeatable():
    seeds = [step_seed(*of) for of in np.ndindex(3, 3, 3, 3)]
    assert len(set(seeds)) == 81
    assert 0 <= min(seeds) < max(seeds) < 2**63
    assert step_seed(-1, 2, 3, 4) == step_seed(-1, 2, 3, 4)
