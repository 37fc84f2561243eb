"""Attention over short sequences against explicit formulas: on a GPU, and on the CPU by Triton's interpreter."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

# Sequences, tokens, heads, channels: of DSTformer, and those at the limits.
SHAPES = ((5, 17, 8, 64), (3, 48, 2, 64), (2, 64, 1, 16), (4, 1, 3, 32))


def errors(shape, dtype, device, compiled):
    """Relative errors of output and gradient against float64."""
    from lib.pytorch.short_attention import attend

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
    pairs = ((out, expected.transpose(1, 2)), (qkv.grad, exact.grad))
    return [((found.double() - wanted).norm() / wanted.norm()).item() for found, wanted in pairs]


def test_by_the_interpreter():
    """In a process of its own, because Triton reads the variable when kernels are defined."""
    code = (
        'import torch, torchvision\nfrom tests.pytorch.test_short_attention import SHAPES, errors\n'
        "print(max(max(errors(shape, torch.float32, 'cpu', False)) for shape in SHAPES))"
    )
    env = os.environ | {'TRITON_INTERPRET': '1'}
    result = subprocess.run([sys.executable, '-c', code], env=env, check=True, capture_output=True, text=True)
    assert float(result.stdout) < 1e-5


def test_torch_compile_copies_no_input(monkeypatch):
    """As it would if it found that a kernel may write to one."""
    import triton
    from torch._higher_order_ops import triton_kernel_wrap
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


@pytest.mark.gpu
@pytest.mark.parametrize('compiled', [False, True])
@pytest.mark.parametrize('shape', SHAPES, ids=str)
def test_on_a_gpu(shape, compiled):
    assert max(errors(shape, torch.bfloat16, 'cuda', compiled)) < 2**-7  # bfloat16 has 8 significant bits
