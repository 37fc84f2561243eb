"""Comparison of PyTorch models with recorded references (tests/goldens/README.md)."""

from typing import Any

import torch
from torch import nn


def config(record: dict) -> dict[str, Any]:
    """Constructor arguments of a recorded model."""
    return {name.removeprefix('cfg_'): value.item() for name, value in record.items() if name.startswith('cfg_')}


def weights(record: dict, prefix: str = 'sd/') -> dict[str, torch.Tensor]:
    """State dict of a recorded model, or of a submodule."""
    return {name.removeprefix(prefix): torch.tensor(w) for name, w in record.items() if name.startswith(prefix)}


def is_close(actual: torch.Tensor, recorded, tolerance: float = 1e-4) -> bool:
    """Whether the largest difference is within `tolerance` of the largest recorded number."""
    recorded = torch.as_tensor(recorded)
    assert actual.shape == recorded.shape
    return bool((actual.detach() - recorded).abs().max() <= tolerance * recorded.abs().max())


def assert_logits_are_recorded(model: nn.Module, record: dict) -> None:
    """Compares logits in float32 and, with a tight tolerance, in float64."""
    x = torch.tensor(record['x'])
    assert is_close(model(x), record['logits'])
    assert is_close(model.double()(x.double()), record['logits_f64'], 1e-10)


def assert_gradients_are_recorded(model: nn.Module, record: dict, least: int = 5) -> None:
    (model(torch.tensor(record['x'])) * torch.tensor(record['fixed'])).sum().backward()
    gradients = {name.removeprefix('grad/'): value for name, value in record.items() if name.startswith('grad/')}
    assert len(gradients) >= least
    for name, gradient in gradients.items():
        assert is_close(model.get_parameter(name).grad, gradient, 1e-3), name


def is_same_twice(model: nn.Module, x: torch.Tensor) -> bool:
    """Whether two forward passes are equal."""
    return torch.equal(model(x), model(x))
