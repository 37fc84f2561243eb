"""Attention over short sequences against explicit formulas: on a GPU, and on the CPU by Triton's interpreter."""

import contextlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch

from lib.pytorch import layers

pytestmark = pytest.mark.skipif(not importlib.util.find_spec('triton'), reason='PyTorch for Macs has no Triton')
# Sequences, tokens, heads, channels: of DSTformer, and those at the limits.
SHAPES = ((5, 17, 8, 64), (3, 48, 2, 64), (2, 33, 1, 128), (2, 64, 1, 16), (4, 1, 3, 32))


DTYPES = {'cpu': torch.float32, 'cuda': torch.bfloat16}


def errors(shape, device, compiled=False):
    """Relative errors of output and gradient against float64."""
    from lib.pytorch.short_attention import attend

    dtype = DTYPES[device]
    sequences, tokens, heads, channels = shape
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(sequences, tokens, 3, heads, channels, generator=generator).to(device, dtype).requires_grad_()
    grad = torch.randn(sequences, tokens, heads, channels, generator=generator).to(device, dtype)
    exact = qkv.detach().double().requires_grad_()
    q, k, v = exact.permute(2, 0, 3, 1, 4)
    expected = (0.3 * q @ k.mT).softmax(-1) @ v
    expected.transpose(1, 2).backward(grad.double())
    out = (torch.compile(attend, fullgraph=True) if compiled else attend)(qkv, 0.3)
    out.backward(grad)
    return relative_errors((out, qkv.grad), (expected.transpose(1, 2), exact.grad))


def errors_of_layer(qk_scale, device):
    """Relative errors of a layer's output and gradients with short attention (compiled on a GPU), against without."""
    torch.manual_seed(0)
    layer = layers.Attention(64, 2, qk_scale=qk_scale).to(device)
    x = torch.randn(3, 17, 64, device=device)
    results = []
    for short in (True, False):
        forward = torch.compile(layer, fullgraph=True) if short and device == 'cuda' else layer
        chosen = mock.patch.object(layers, 'use_short_attention', lambda qkv, short=short: short)
        layer.zero_grad()
        with (
            torch.autocast(device, torch.bfloat16, enabled=device == 'cuda'),
            chosen if device == 'cpu' else contextlib.nullcontext(),
        ):
            out = forward(x).float()
        out.square().sum().backward()
        results.append([out, *(parameter.grad.clone() for parameter in layer.parameters())])
    return relative_errors(*results)


def relative_errors(found, expected):
    return [((a.double() - b).norm() / b.norm()).item() for a, b in zip(found, expected, strict=True)]


def test_by_the_interpreter():
    """In a process of its own, because Triton reads the variable when kernels are defined."""
    code = """
import torch, torchvision
from tests.pytorch.test_short_attention import SHAPES, errors, errors_of_layer
print(max(max(errors(shape, 'cpu')) for shape in SHAPES))
print(max(max(errors_of_layer(scale, 'cpu')) for scale in (None, 0.4)))
"""
    result = subprocess.run(
        [sys.executable, '-c', code],
        env=os.environ | {'TRITON_INTERPRET': '1'},
        cwd=Path(__file__).parents[2],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert max(map(float, result.stdout.split())) < 1e-5


def test_torch_compile_knows_the_kernels(monkeypatch):
    """That they write to nothing but the result, or it would copy an input; and both, for its cache."""
    import triton
    from torch._higher_order_ops import triton_kernel_wrap
    from torch._library.triton import triton_ops_to_kernels
    from triton.backends.compiler import GPUTarget

    from lib.pytorch import short_attention

    monkeypatch.setattr(
        triton.runtime.driver, '_active', SimpleNamespace(get_current_target=lambda: GPUTarget('cuda', 90, 32))
    )
    qkv, out = torch.zeros(2, 17, 3, 2, 32), torch.zeros(2, 17, 2, 32)
    sizes = {'length': 17, 'scale': 0.2, 'num_heads': 2, 'dim': 32, 'block': 32}
    for kernel, tensors in (
        (short_attention._forward, {'qkv': qkv, 'out': out}),
        (short_attention._backward, {'qkv': qkv, 'grad': out, 'grads': qkv}),
    ):
        accesses = triton_kernel_wrap.identify_accessed_tensors(kernel, tensors | sizes, {})
        assert [access.name for access in accesses.read_writes.writes] == [[*tensors][-1]]
        assert kernel in triton_ops_to_kernels['lib::attend']


@pytest.mark.gpu
@pytest.mark.parametrize('compiled', [False, True])
@pytest.mark.parametrize('shape', SHAPES, ids=str)
def test_on_a_gpu(shape, compiled):
    assert max(errors(shape, 'cuda', compiled)) < 2**-7  # bfloat16 has 8 significant bits


@pytest.mark.gpu
def test_a_compiled_layer_on_a_gpu():
    assert max(errors_of_layer(0.4, 'cuda')) < 2**-6
