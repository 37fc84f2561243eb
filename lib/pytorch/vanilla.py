"""A plain transformer over joints and frames: one token per joint and few frames, with full attention.

Transformer and its parts keep the constructor arguments and state-dict names of MAMP (Mao et al., Masked Motion
Predictors are Strong 3D Action Representation Learners, ICCV 2023, https://github.com/maoyunyao/MAMP).

N clips, M persons, T frames, V joints, C channels, H, W height and width of a heatmap (px), D embedding width.
"""

from collections.abc import Callable
from typing import Literal

import torch
from einops import rearrange, reduce
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from lib.errors import UserError
from lib.pytorch.layers import Attention, Mlp, as_keypoints, check_joints, check_model_keys, linear
from lib.pytorch.mbert import ActionHeadClassification


class SkeleEmbed(nn.Module):
    """One token per joint and t_patch_size frames: (N,C,T,V) -> (N,T/t_patch_size,V/patch_size,D)."""

    def __init__(
        self,
        dim_in: int = 3,
        dim_feat: int = 256,
        num_frames: int = 120,
        num_joints: int = 25,
        patch_size: int = 1,
        t_patch_size: int = 4,
    ) -> None:
        super().__init__()
        assert num_frames % t_patch_size == 0, f'{num_frames} frames do not divide into patches of {t_patch_size}'
        assert num_joints % patch_size == 0, f'{num_joints} joints do not divide into patches of {patch_size}'
        self.num_frames = num_frames
        self.num_joints = num_joints
        self.t_patch_size = t_patch_size
        patch = (t_patch_size, patch_size)
        self.proj = nn.Conv2d(dim_in, dim_feat, kernel_size=patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        """Raises UserError, see `patches`."""
        return self.embed(self.patches(x))

    def patches(self, x: Tensor) -> Tensor:
        """The inputs of each token: (N,C,T,V) -> (N,T/t_patch_size,V/patch_size,F), F = t_patch_size * patch_size * C.

        Raises UserError if T exceeds num_frames or is not a multiple of t_patch_size, or C or V differ.
        """
        _, dim_in, num_frames, num_joints = x.shape
        if num_frames > self.num_frames or num_frames % self.t_patch_size:
            raise UserError(
                f'the clip has {num_frames} frames, but the model (num_frames {self.num_frames}, t_patch_size '
                f'{self.t_patch_size}) expects a multiple of {self.t_patch_size} up to {self.num_frames}'
            )
        if (num_joints, dim_in) != (self.num_joints, self.proj.in_channels):
            raise UserError(
                f'the input has {num_joints} joints of {dim_in} channels, but the model has '
                f'num_joints {self.num_joints} and dim_in {self.proj.in_channels}'
            )
        step = dict(zip('pq', self.proj.stride, strict=True))
        return rearrange(x, 'n c (t p) (v q) -> n t v (p q c)', **step)

    def embed(self, patches: Tensor) -> Tensor:
        """Patches (...,F) -> tokens (...,D)."""
        # As a matrix product: on a CPU a convolution is 2 (forward) to 4 (backward) times slower.
        return linear(patches, rearrange(self.proj.weight, 'd c p q -> d (p q c)'), self.proj.bias)


class Block(nn.Module):
    """Attention over all tokens, then an MLP, both pre-norm residuals: (N,L,D) -> (N,L,D).

    drop_path: stochastic depth, drawn per clip and person.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float,
        *,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        drop: float = 0.0,
        attn_drop: float = 0.0,
        drop_path: float = 0.0,
        norm_layer: Callable[[int], nn.Module] = nn.LayerNorm,
    ) -> None:
        super().__init__()
        self.norm1 = norm_layer(dim)
        self.attn = Attention(dim, num_heads, qkv_bias, qk_scale, attn_drop, drop)
        self.norm2 = norm_layer(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop)
        self.drop_path = StochasticDepth(drop_path, mode='row')

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class ActionHeadLinprobe(nn.Module):
    """Class scores from the mean over persons, frames and joints: (N,M,T,V,D) -> (N,num_classes)."""

    def __init__(self, dim_feat: int = 512, num_classes: int = 60) -> None:
        super().__init__()
        self.fc = nn.Linear(dim_feat, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        return self.fc(reduce(features, 'n m t v d -> n d', 'mean'))


class Transformer(nn.Module):
    """A plain transformer with an action head: (N,C,T,V,M) -> (N,num_classes), with T up to num_frames.

    protocol: the head, 'linprobe' (mean of all tokens, one linear layer) or 'finetune' (MotionBERT's head: mean over
    frames and persons, a hidden layer of 2048, dropout_ratio before it); None: no head. Raises UserError for another.
    """

    def __init__(
        self,
        dim_in: int = 3,
        num_classes: int = 60,
        dim_feat: int = 256,
        depth: int = 5,
        num_heads: int = 8,
        mlp_ratio: float = 4,
        num_frames: int = 120,
        num_joints: int = 25,
        patch_size: int = 1,
        t_patch_size: int = 4,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        norm_layer: Callable[[int], nn.Module] = nn.LayerNorm,
        protocol: str | None = 'linprobe',
        dropout_ratio: float = 0.3,
    ) -> None:
        super().__init__()
        self.dim_in, self.num_joints, self.num_frames, self.t_patch_size = dim_in, num_joints, num_frames, t_patch_size
        self.joints_embed = SkeleEmbed(dim_in, dim_feat, num_frames, num_joints, patch_size, t_patch_size)
        self.temp_embed = nn.Parameter(torch.zeros(1, num_frames // t_patch_size, 1, dim_feat))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1, num_joints // patch_size, dim_feat))
        self.pos_drop = nn.Dropout(drop_rate)
        self.blocks = nn.ModuleList(
            Block(
                dim_feat,
                num_heads,
                mlp_ratio,
                qkv_bias=qkv_bias,
                qk_scale=qk_scale,
                drop=drop_rate,
                attn_drop=attn_drop_rate,
                drop_path=drop_path_rate * i / max(depth - 1, 1),  # 0 at the first block, the full rate at the last
                norm_layer=norm_layer,
            )
            for i in range(depth)
        )
        self.norm = norm_layer(dim_feat)
        if protocol is None:
            self.head = nn.Identity()
        elif protocol == 'linprobe':
            self.head = ActionHeadLinprobe(dim_feat, num_classes)
        elif protocol == 'finetune':
            self.head = ActionHeadClassification(dropout_ratio, dim_feat, num_classes, num_joints // patch_size)
        else:
            raise UserError(f"protocol is {protocol!r}, but must be 'linprobe' or 'finetune'")
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws MAMP's initial weights; the patch embedding keeps torch's."""
        for embedding in self.parameters(recurse=False):
            nn.init.trunc_normal_(embedding, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def check_input(self, *, clip_len: int, num_joints: int, dim_in: int) -> None:
        """Raises UserError, naming the keys, if the clips of a config do not fit the model (see check_joints)."""
        next_multiple = clip_len + -clip_len % self.t_patch_size
        if clip_len > self.num_frames:
            raise UserError(
                f'data.clip_len {clip_len} exceeds model.num_frames {self.num_frames}: '
                f'set data.clip_len to {self.num_frames}, or both to {next_multiple}'
            )
        if clip_len != next_multiple:
            raise UserError(
                f'data.clip_len {clip_len} is not a multiple of model.t_patch_size {self.t_patch_size}: '
                f'set data.clip_len to {next_multiple}'
            )
        check_joints(self, num_joints, dim_in)

    def get_features(self, x: Tensor) -> Tensor:
        """(N,C,T,V,M) -> (N,M,T/t_patch_size,V,D). Raises UserError, see SkeleEmbed."""
        num_clips = len(x)
        x = self.joints_embed(rearrange(x, 'n c t v m -> (n m) c t v'))
        num_steps = x.shape[1]
        x = self.pos_drop(x + self.pos_embed + self.temp_embed[:, :num_steps])
        x = rearrange(x, 'n t v d -> n (t v) d')
        for block in self.blocks:
            x = block(x)
        return rearrange(self.norm(x), '(n m) (t v) d -> n m t v d', n=num_clips, t=num_steps)

    def forward(self, x: Tensor) -> Tensor:
        """Raises UserError, see SkeleEmbed."""
        return self.head(self.get_features(x))


def check_patches(num_frames: int, t_patch_size: int) -> None:
    """Raises UserError, naming the keys, if the longest clip cannot be divided into patches."""
    if num_frames % t_patch_size:
        raise UserError(
            f'model.num_frames {num_frames} is not a multiple of model.t_patch_size {t_patch_size}: '
            f'set model.num_frames to {num_frames + -num_frames % t_patch_size}'
        )


class VanillaTransformer(Transformer):
    """The vanilla transformer on heatmap volumes or keypoints; its arguments are the keys of section `model`.

    dim_in: inputs per joint and frame, H * W of its heatmap or C of a keypoint. num_frames: longest clip.
    protocol: the head, see Transformer. dropout_ratio: of the head `finetune`, by default 0.3. drop_path_rate: of the
    blocks. The defaults are those of vanilla.yaml. Raises UserError, naming the key, for a value out of range.
    """

    def __init__(
        self,
        *,
        num_joints: int = 17,
        num_frames: int = 48,
        t_patch_size: int = 4,
        dim_in: int = 3136,
        dim_feat: int = 256,
        depth: int = 8,
        num_heads: int = 8,
        mlp_ratio: float = 4,
        protocol: Literal['linprobe', 'finetune'] = 'linprobe',
        dropout_ratio: float | None = None,
        drop_path_rate: float = 0.0,
        num_classes: int = 60,
    ) -> None:
        if protocol == 'linprobe' and dropout_ratio is not None:
            raise UserError(
                'model.dropout_ratio has no effect with model.protocol linprobe. Omit it, or set it to null.'
            )
        dropout_ratio = 0.3 if dropout_ratio is None else dropout_ratio
        check_model_keys(locals())
        check_patches(num_frames, t_patch_size)
        super().__init__(
            dim_in=dim_in,
            num_classes=num_classes,
            dim_feat=dim_feat,
            depth=depth,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            num_frames=num_frames,
            num_joints=num_joints,
            t_patch_size=t_patch_size,
            drop_path_rate=drop_path_rate,
            protocol=protocol,
            dropout_ratio=dropout_ratio,
        )

    def forward(self, x: Tensor) -> Tensor:
        """A volume (N,T,V,H,W) or keypoints (N,M,T,V,C) -> (N,num_classes).

        Raises UserError, see `as_keypoints` and SkeleEmbed.
        """
        return super().forward(rearrange(as_keypoints(x, self.dim_in), 'n m t v c -> n c t v m'))
