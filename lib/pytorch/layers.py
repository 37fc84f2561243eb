"""Layers and argument checks shared by DSTformer and the vanilla transformer.

N clips, M persons, T frames, V joints, L tokens, C channels, H heads, D channels per head.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lib.errors import UserError, check_values

RATES = ('dropout_ratio', 'drop_path_rate', 'drop_rate', 'attn_drop_rate')


class Linear(nn.Linear):
    """nn.Linear computed by `linear`: (..., in_features) -> (..., out_features)."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """F.linear, but by oneDNN in float32 on CPUs.

    F.linear uses MKL there, which does not use AVX-512 on AMD processors and reaches half the speed.
    """
    by_onednn = (
        x.device.type == 'cpu'
        and x.dtype == weight.dtype == torch.float32
        and x.numel() > 0
        and not torch.is_autocast_enabled('cpu')
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and torch.backends.mkldnn.is_available()
    )
    return _OneDnnLinear.apply(x, weight, bias) if by_onednn else F.linear(x, weight, bias)


class _OneDnnLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad
        rows = grad.flatten(0, -2)
        return (
            _product(grad, weight.t()) if for_x else None,
            _product(rows.t(), x.flatten(0, -2).t()) if for_weight else None,
            rows.sum(0) if for_bias else None,
        )


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, 'none', [], '')


class Mlp(nn.Module):
    """Two linear layers with an exact GELU in between: (..., C) -> (..., C)."""

    def __init__(self, dim: int, hidden_dim: int, drop: float = 0.0) -> None:
        super().__init__()
        self.fc1 = Linear(dim, hidden_dim)
        self.act = nn.GELU()
        self.fc2 = Linear(hidden_dim, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))


class Attention(nn.Module):
    """Multi-head self-attention: (N,L,C) -> (N,L,C).

    qk_scale: factor on the products of queries and keys; None: D**-0.5.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        assert dim % num_heads == 0, f'{dim} channels do not divide into {num_heads} heads'
        self.num_heads = num_heads
        self.qk_scale = qk_scale
        self.attn_drop = attn_drop
        self.qkv = Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        qkv = rearrange(self.qkv(x), 'n l (qkv h d) -> n l qkv h d', qkv=3, h=self.num_heads)
        dropout = self.attn_drop if self.training else 0.0
        if not dropout and use_short_attention(qkv):
            from lib.pytorch.short_attention import attend  # needs Triton, which PyTorch for CPUs may lack

            x = attend(qkv, self.qk_scale or qkv.shape[-1] ** -0.5)
        else:
            q, k, v = rearrange(qkv, 'n l qkv h d -> qkv n h l d').unbind()
            x = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=self.qk_scale)
            x = rearrange(x, 'n h l d -> n l h d')
        return self.proj_drop(self.proj(x.flatten(2)))


def use_short_attention(qkv: Tensor) -> bool:
    """Whether to use lib.pytorch.short_attention for queries, keys and values (N,L,3,H,D).

    Only in compiled code, which needs Triton and a C compiler anyway.
    """
    compiled = torch.compiler.is_compiling() and qkv.is_cuda and qkv.dtype == torch.bfloat16
    return compiled and qkv.shape[1] <= 64 and qkv.shape[-1] in (16, 32, 64, 128)


def check_model_keys(keys: Mapping[str, Any]) -> None:
    """Raises UserError for the first key out of range: numbers must be positive, rates in [0, 1).

    keys: the arguments of a model, in its constructor `locals()`; what is not a number is ignored.
    """
    numbers = {key: value for key, value in keys.items() if isinstance(value, int | float)}
    rules = {
        key: (0 <= value < 1, 'at least 0 and below 1') if key in RATES else (value > 0, 'above 0')
        for key, value in numbers.items()
    }
    check_values('model', keys, rules)
    if 'mlp_ratio' in keys:
        enough = int(keys['dim_feat'] * keys['mlp_ratio']) >= 1
        check_values('model', keys, {'mlp_ratio': (enough, f'at least 1 / model.dim_feat ({keys["dim_feat"]})')})
    if 'num_heads' in keys:
        divides = keys['dim_feat'] % keys['num_heads'] == 0
        check_values('model', keys, {'num_heads': (divides, f'a divisor of model.dim_feat {keys["dim_feat"]}')})


def check_joints(model: nn.Module, num_joints: int, dim_in: int) -> None:
    """Raises UserError, naming the keys, if the input does not have model.num_joints joints of model.dim_in numbers.

    num_joints: joints or maps per frame. dim_in: pixels of a map, or coordinates of a keypoint.
    """
    if num_joints != model.num_joints:
        raise UserError(
            f'model.num_joints is {model.num_joints}, but the input has {num_joints} joints or maps per frame '
            f'(see data.ann_file, data.input and heatmap.kind): set model.num_joints to {num_joints}'
        )
    if dim_in != model.dim_in:
        raise UserError(
            f'model.dim_in is {model.dim_in}, but the input has {dim_in} numbers per joint and frame (heatmap.size '
            f'squared, or 3 for keypoints): set model.dim_in to {dim_in}'
        )


def as_keypoints(x: Tensor, dim_in: int) -> Tensor:
    """A volume (N,T,V,H,W) or (N,M,T,V,H,W), or keypoints (N,M,T,V,C), as keypoints (N,M,T,V,C) with C = dim_in.

    Keypoints if the last axis has dim_in elements, a volume if the last two together have. Raises UserError for any
    other shape.
    """
    if x.ndim not in (5, 6):
        raise UserError(
            f'the input is {tuple(x.shape)}, not a volume (N,T,V,H,W) or (N,M,T,V,H,W) or keypoints (N,M,T,V,C)'
        )
    height, width = x.shape[-2:]
    if x.ndim == 5 and width == dim_in:
        return x
    if height * width == dim_in:
        return (x if x.ndim == 6 else x[:, None]).flatten(4)  # M = 1 if persons share a map
    raise UserError(
        f'the input is {tuple(x.shape)}: neither the last axis (keypoints) nor the product of the last two (a volume) '
        f'is model.dim_in {dim_in}'
    )
