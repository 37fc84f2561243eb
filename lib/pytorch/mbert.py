"""MotionBERT for action recognition: DSTformer with an action head.

ActionNet and its heads keep the constructor arguments and state-dict names of
https://github.com/Walter0807/MotionBERT (Apache-2.0; Zhu et al., ICCV 2023).

N clips, M persons, T frames, V joints, C channels, H, W height and width of a heatmap (px).
"""

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from lib.errors import UserError
from lib.pytorch.dstformer import DSTformer
from lib.pytorch.layers import as_keypoints, check_joints, check_model_keys


def pool(features: Tensor) -> Tensor:
    """The mean over persons and frames, with joints concatenated: (N,M,T,V,C) -> (N,V*C).

    Not einops.reduce, which permutes the axes and so the gradient of a dropout; torch.compile with aot_eager then fails
    on a CPU with "view size is not compatible" (pytorch#88761).
    """
    return features.mean(dim=(1, 2)).flatten(1)


class ActionHeadClassification(nn.Module):
    """Class scores from the mean over persons and frames: (N,M,T,V,C) -> (N,num_classes)."""

    def __init__(
        self,
        dropout_ratio: float = 0.0,
        dim_rep: int = 512,
        num_classes: int = 60,
        num_joints: int = 17,
        hidden_dim: int = 2048,
    ) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout_ratio)
        self.fc1 = nn.Linear(num_joints * dim_rep, hidden_dim)
        self.bn = nn.BatchNorm1d(hidden_dim, momentum=0.1)
        self.relu = nn.ReLU(inplace=True)
        self.fc2 = nn.Linear(hidden_dim, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        pooled = pool(self.dropout(features))
        return self.fc2(self.relu(self.bn(self.fc1(pooled))))


class ActionHeadEmbed(nn.Module):
    """Embeddings of unit length from the mean over persons and frames: (N,M,T,V,C) -> (N,hidden_dim)."""

    def __init__(
        self, dropout_ratio: float = 0.0, dim_rep: int = 512, num_joints: int = 17, hidden_dim: int = 2048
    ) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout_ratio)
        self.fc1 = nn.Linear(num_joints * dim_rep, hidden_dim)

    def forward(self, features: Tensor) -> Tensor:
        pooled = pool(self.dropout(features))
        return F.normalize(self.fc1(pooled), dim=-1)


class ActionNet(nn.Module):
    """DSTformer with an action head: (N,M,T,V,C) -> (N,num_classes), or unit vectors (N,hidden_dim) for 'embed'.

    version: 'class' or 'embed'. hidden_dim: width of the embedding; the hidden layer of the class head always has 2048
    units, as in MotionBERT. The pose head of the backbone is frozen. Raises UserError for another version.
    """

    def __init__(
        self,
        backbone: DSTformer,
        dim_rep: int = 512,
        num_classes: int = 60,
        dropout_ratio: float = 0.0,
        version: str = 'class',
        hidden_dim: int = 2048,
        num_joints: int = 17,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        # The pose head gets no gradient: freezing excludes it from optimizer and DDP, but not from the state dict.
        self.backbone.head.requires_grad_(False)
        if version == 'class':
            self.head = ActionHeadClassification(dropout_ratio, dim_rep, num_classes, num_joints)
        elif version == 'embed':
            self.head = ActionHeadEmbed(dropout_ratio, dim_rep, num_joints, hidden_dim)
        else:
            raise UserError(f"version is {version!r}, but must be 'class' or 'embed'")

    def forward(self, x: Tensor) -> Tensor:
        representation = self.backbone.get_representation(rearrange(x, 'n m t v c -> (n m) t v c'))
        return self.head(rearrange(representation, '(n m) t v c -> n m t v c', n=len(x)))


class MotionBERT(ActionNet):
    """MotionBERT on heatmap volumes or keypoints; its arguments are the keys of a config's section `model`.

    dim_in: inputs per joint and frame, H * W of its heatmap or C of a keypoint. maxlen: longest clip in frames.
    dropout_ratio: before the head. drop_path_rate: in the blocks. The defaults are those of MB_train.yaml. Raises
    UserError, naming the key, for a value out of range.
    """

    def __init__(
        self,
        *,
        num_joints: int = 17,
        maxlen: int = 48,
        dim_in: int = 3136,
        dim_feat: int = 512,
        dim_rep: int = 512,
        depth: int = 5,
        num_heads: int = 8,
        mlp_ratio: float = 2,
        dropout_ratio: float = 0.5,
        drop_path_rate: float = 0.0,
        num_classes: int = 60,
    ) -> None:
        check_model_keys(locals())
        backbone = DSTformer(
            dim_in=dim_in,
            dim_out=dim_in,
            dim_feat=dim_feat,
            dim_rep=dim_rep,
            depth=depth,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            num_joints=num_joints,
            maxlen=maxlen,
            drop_path_rate=drop_path_rate,
        )
        super().__init__(backbone, dim_rep, num_classes, dropout_ratio, num_joints=num_joints)
        self.num_joints = num_joints
        self.maxlen = maxlen
        self.dim_in = dim_in

    def check_input(self, *, clip_len: int, num_joints: int, dim_in: int) -> None:
        """Raises UserError, naming the keys, if the clips of a config do not fit the model (see check_joints)."""
        if clip_len > self.maxlen:
            raise UserError(
                f'data.clip_len {clip_len} exceeds model.maxlen {self.maxlen}: '
                f'set data.clip_len to {self.maxlen} or less, or model.maxlen to {clip_len}'
            )
        check_joints(self, num_joints, dim_in)

    def forward(self, x: Tensor) -> Tensor:
        """A volume (N,T,V,H,W) or keypoints (N,M,T,V,C) -> (N,num_classes).

        Raises UserError, see `as_keypoints` and DSTformer.
        """
        return super().forward(as_keypoints(x, self.dim_in))
