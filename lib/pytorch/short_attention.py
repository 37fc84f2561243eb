"""Self-attention over short sequences on a GPU, in Triton.

DSTformer attends over 17 joints or 48 frames at a time. The kernels of F.scaled_dot_product_attention work on tiles of
128 tokens, most of which are then empty. Here one program computes one head of one sequence, and reads queries, keys
and values, and writes their gradients, in the layout of the linear layer around it.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton


# No function takes a pointer and returns offsets: torch.compile would copy the tensor, in case the kernel writes to it.
@triton.jit
def _offsets(length, num_heads: tl.constexpr, dim: tl.constexpr, block: tl.constexpr):
    """Offsets of this program's tokens and channels in a tensor (N,L,H,D), and which tokens exist."""
    sequence, head = tl.program_id(0) // num_heads, tl.program_id(0) % num_heads
    token = tl.arange(0, block)[:, None]
    row = (sequence.to(tl.int64) * length + token) * num_heads * dim
    return row, head * dim + tl.arange(0, dim), token < length


@triton.jit
def _load(at, step: tl.constexpr, inside):
    """Queries, keys and values (block, dim)."""
    return tl.load(at, inside, 0.0), tl.load(at + step, inside, 0.0), tl.load(at + 2 * step, inside, 0.0)


@triton.jit
def _weights(q, k, length, scale, block: tl.constexpr):
    """Attention weights (block, block), zero for keys beyond the length."""
    scores = tl.dot(q, tl.trans(k), input_precision='ieee') * scale
    scores = tl.where(tl.arange(0, block) < length, scores, float('-inf'))
    weights = tl.exp(scores - tl.max(scores, 1)[:, None])
    return weights / tl.sum(weights, 1)[:, None]


@triton.jit
def _forward(qkv, out, length, scale: tl.constexpr, num_heads: tl.constexpr, dim: tl.constexpr, block: tl.constexpr):
    row, column, inside = _offsets(length, num_heads, dim, block)
    q, k, v = _load(qkv + 3 * row + column, num_heads * dim, inside)
    weights = _weights(q, k, length, scale, block)
    tl.store(out + row + column, tl.dot(weights.to(v.dtype), v, input_precision='ieee'), inside)


@triton.jit
def _backward(
    qkv, grad, grads, length, scale: tl.constexpr, num_heads: tl.constexpr, dim: tl.constexpr, block: tl.constexpr
):
    row, column, inside = _offsets(length, num_heads, dim, block)
    q, k, v = _load(qkv + 3 * row + column, num_heads * dim, inside)
    weights = _weights(q, k, length, scale, block)
    g = tl.load(grad + row + column, inside, 0.0)
    for_weights = tl.dot(g, tl.trans(v), input_precision='ieee')
    mean = tl.sum(weights * for_weights, 1)[:, None]
    for_scores = (weights * (for_weights - mean) * scale).to(q.dtype)
    at = grads + 3 * row + column
    tl.store(at, tl.dot(for_scores, k, input_precision='ieee'), inside)
    tl.store(at + num_heads * dim, tl.dot(tl.trans(for_scores), q, input_precision='ieee'), inside)
    tl.store(at + 2 * num_heads * dim, tl.dot(tl.trans(weights.to(g.dtype)), g, input_precision='ieee'), inside)


def _run(qkv: Tensor, *others: Tensor, scale: float) -> None:
    # Assigned here, not passed: torch.compile's cache looks for the kernels of `attend` in this source, and compiles
    # it anew if one has changed.
    kernel = _backward if len(others) == 2 else _forward
    n, length, _, num_heads, dim = qkv.shape
    assert length <= 64, f'{length} tokens exceed 64'
    block = 16 if length <= 16 else 32 if length <= 32 else 64
    wrap_triton(kernel)[(n * num_heads,)](qkv, *others, length, scale, num_heads, dim, block, num_warps=block // 16)


@triton_op('lib::attend', mutates_args={})
def attend(qkv: Tensor, scale: float) -> Tensor:
    """Attention of each token to all of its sequence: (N,L,3,H,D) -> (N,L,H,D), L up to 64, D 16, 32, 64 or 128."""
    qkv = qkv.contiguous()
    out = torch.empty_like(qkv[:, :, 0], memory_format=torch.contiguous_format)
    _run(qkv, out, scale=scale)
    return out


@triton_op('lib::attend_backward', mutates_args={})
def attend_backward(qkv: Tensor, grad: Tensor, scale: float) -> Tensor:
    """Gradient for qkv (N,L,3,H,D) from that of the output (N,L,H,D)."""
    qkv = qkv.contiguous()
    grads = torch.empty_like(qkv)
    _run(qkv, grad.contiguous(), grads, scale=scale)
    return grads


def _save(ctx, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(inputs[0])
    ctx.scale = inputs[1]


attend.register_autograd(
    lambda ctx, grad: (attend_backward(*ctx.saved_tensors, grad, ctx.scale), None), setup_context=_save
)
