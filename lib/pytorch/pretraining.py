"""Masked motion pretraining of the vanilla transformer, without labels.

The method of MAMP (Mao et al., Masked Motion Predictors are Strong 3D Action Representation Learners, ICCV 2023,
https://github.com/maoyunyao/MAMP), on keypoints and on heatmaps: the encoder sees a few tokens of a clip, and a decoder
predicts the motion of the joints in all others.

N clips, M persons, T frames, V joints, C coordinates, D embedding width, L tokens of a clip, F inputs per token. Rows R
are clips for heatmaps, persons for keypoints and heatmaps per person; P persons share a row (and its map).
"""

from itertools import permutations
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from easydict import EasyDict
from einops import rearrange, repeat
from torch import Tensor, nn

from lib.data.clips import Clips
from lib.data.heatmap import MIN_SCORE
from lib.errors import check_values
from lib.plots import motion_figure
from lib.pytorch.heatmap import HeatmapRenderer
from lib.pytorch.layers import as_keypoints, check_model_keys
from lib.pytorch.vanilla import Block, Transformer, check_patches
from lib.recipe import step_seed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEAST_VARIANCE = 1e-6  # of the motion within a token, in squared units of the coordinates


class Motion(NamedTuple):
    """Predicted and true motion of all tokens, see MotionPretraining.predict_motion.

    prediction, target: (R, L, P, t_patch_size * C). known: (R, L, P) bool, whether the joint is present in all frames
    of the target. masked: (R, L) bool.
    """

    prediction: Tensor
    target: Tensor
    known: Tensor
    masked: Tensor


class MotionPretraining(Transformer):
    """The vanilla transformer with a decoder that predicts motion; its arguments are the keys of section `model`.

    The names of the encoder's weights are those of VanillaTransformer, which loads them with --pretrained.

    num_persons: persons that share a row, P: data.max_persons for heatmaps, 1 for keypoints and with
    heatmap.per_person. dim_motion: coordinates of a joint, 2 or 3. decoder_depth: blocks of the decoder. mask_ratio:
    fraction of masked tokens. tau: the larger, the less masks prefer moving joints. For the other arguments see
    VanillaTransformer. Raises UserError, naming the key, for a value out of range.
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
        num_persons: int = 2,
        dim_motion: int = 2,
        decoder_depth: int = 5,
        mask_ratio: float = 0.9,
        tau: float = 0.8,
    ) -> None:
        keys = {key: value for key, value in locals().items() if key != 'self'}
        check_model_keys(keys)
        rules = {'mask_ratio': (mask_ratio < 1, 'below 1'), 'dim_motion': (dim_motion in (2, 3), '2 or 3')}
        check_values('model', keys, rules)
        check_patches(num_frames, t_patch_size)
        super().__init__(
            dim_in,
            dim_feat=dim_feat,
            depth=depth,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            num_frames=num_frames,
            num_joints=num_joints,
            t_patch_size=t_patch_size,
            protocol=None,
        )
        self.num_persons, self.dim_motion, self.mask_ratio, self.tau = num_persons, dim_motion, mask_ratio, tau
        self.decoder_embed = nn.Linear(dim_feat, dim_feat)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim_feat))
        self.decoder_temp_embed = nn.Parameter(torch.zeros_like(self.temp_embed))
        self.decoder_pos_embed = nn.Parameter(torch.zeros_like(self.pos_embed))
        self.decoder_blocks = nn.ModuleList(Block(dim_feat, num_heads, mlp_ratio) for _ in range(decoder_depth))
        self.decoder_norm = nn.LayerNorm(dim_feat)
        self.decoder_pred = nn.Linear(dim_feat, num_persons * t_patch_size * dim_motion)
        self.reset_parameters()

    def check_motion(self, config: EasyDict) -> None:
        """Raises UserError, naming the key, if the motion in the clips of a config does not fit the model."""
        data, is_heatmap = config.data, 'heatmap' in config
        num_persons = data.max_persons if is_heatmap and not config.heatmap.per_person else 1
        dim_motion = 3 if data.input == 'keypoint_3d' else 2
        sharing = 'data.max_persons; 1 for keypoints and with heatmap.per_person'
        rules = {
            'num_persons': (self.num_persons == num_persons, f'{num_persons} ({sharing})'),
            'dim_motion': (self.dim_motion == dim_motion, f'{dim_motion} with data.input {data.input}'),
        }
        check_values('model', vars(self), rules)
        if is_heatmap:
            check_values('heatmap', config.heatmap, {'kind': (config.heatmap.kind == 'joint', 'joint for pretraining')})

    def forward(self, x: Tensor, keypoint: Tensor, score: Tensor | None) -> Tensor:
        """Squared errors of the clips, (N, 2) float32: of the predicted motion, and of zero motion.

        Means over the masked tokens whose motion is known. See `predict_motion` for the arguments.
        """
        motion = self.predict_motion(x, keypoint, score)
        known = motion.known
        error = (motion.prediction[:, :, :, None] - motion.target[:, :, None]).square().mean(-1) * known[:, :, None]
        persons = range(self.num_persons)
        # Persons in one map have no order: the better assignment of predictions to persons counts.
        assigned = torch.stack([sum(error[..., i, order[i]] for i in persons) for order in permutations(persons)])
        zero = (motion.target.square().mean(-1) * known).sum(-1)
        sums = torch.stack([assigned.amin(0), zero, known.sum(-1).float()], -1) * motion.masked[..., None]
        error, zero, count = sums.sum(1).unflatten(0, (len(x), -1)).sum(1).unbind(-1)  # of the clips
        return torch.stack([error, zero], -1) / count.clamp(min=1)[:, None]

    def predict_motion(self, x: Tensor, keypoint: Tensor, score: Tensor | None) -> Motion:
        """Masks most tokens and predicts the motion of all.

        x: a volume (N,T,V,H,W) or keypoints (N,M,T,V,C). keypoint: (N,M,T,V,C), the keypoints in x. score: (N,M,T,V);
        None for keypoint inputs.
        """
        if score is None:
            seen = keypoint[..., 2:] if self.dim_motion == 2 else keypoint  # of 2D keypoints, the score
            position, present = keypoint[..., : self.dim_motion], (seen != 0).any(-1)
        else:
            position, present = keypoint / self.dim_in**0.5, score >= MIN_SCORE  # in widths of the map
        position = position.float() * present[..., None]
        position, present = (
            rearrange(a, 'n (r p) t ... -> (n r) p t ...', p=self.num_persons) for a in (position, present)
        )
        target, known = self._targets(position, present)
        kept = self._visible(position, present)

        patches = self.joints_embed.patches(rearrange(as_keypoints(x, self.dim_in), 'n m t v c -> (n m) c t v'))
        steps = patches.shape[1]
        rows = torch.arange(len(patches), device=x.device)[:, None]
        seen = self.joints_embed.embed(patches.flatten(1, 2)[rows, kept])
        seen = seen + (self.pos_embed + self.temp_embed[:, :steps]).flatten(1, 2)[0, kept]
        for block in self.blocks:
            seen = block(seen)
        seen = self.decoder_embed(self.norm(seen))

        tokens = self.mask_token.to(seen.dtype).repeat(*known.shape[:2], 1)
        tokens = tokens.scatter(1, kept[..., None].expand_as(seen), seen)
        tokens = tokens + (self.decoder_pos_embed + self.decoder_temp_embed[:, :steps]).flatten(1, 2)
        for block in self.decoder_blocks:
            tokens = block(tokens)
        prediction = self.decoder_pred(self.decoder_norm(tokens)).float()
        masked = torch.ones_like(known[..., 0]).scatter(1, kept, False)
        return Motion(rearrange(prediction, 'r l (p f) -> r l p f', p=self.num_persons), target, known, masked)

    def _targets(self, position: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """Target and `known` of a Motion for positions (R,P,T,V,C), present (R,P,T,V).

        The displacement of the joint from each frame to the next, over the patch normalised to mean 0 and variance 1.
        That of the last frame is zero, as in MAMP.
        """
        step = torch.zeros_like(position)
        step[:, :, :-1] = position.diff(dim=2)
        known = present.clone()
        known[:, :, :-1] &= present[:, :, 1:]
        target = self._patches(step)
        target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + LEAST_VARIANCE).sqrt()
        return target, self._patches(known[..., None]).all(-1)

    def _visible(self, position: Tensor, present: Tensor) -> Tensor:
        """Draws the tokens that stay visible, (R, K) int64; tokens with much motion are rarely among them.

        The motion of a token is the mean absolute difference from the previous patch, summed over persons. Divided by
        tau times the largest of the row it gives log-probabilities, which with Gumbel noise rank the tokens.
        """
        patch, has_patch = self._patches(position), self._patches(present[..., None]).all(-1)
        patch, has_patch = (rearrange(a, 'r (t v) ... -> r t v ...', v=position.shape[3]) for a in (patch, has_patch))
        both = has_patch[:, 1:] & has_patch[:, :-1]
        motion = ((patch[:, 1:] - patch[:, :-1]).abs().mean(-1) * both).sum(-1)
        motion = torch.cat([motion[:, :1], motion], 1).flatten(1)  # (R, L)
        log_probability = (motion / (motion.amax(1, keepdim=True) * self.tau + 1e-10)).log_softmax(1)
        gumbel = -torch.log(-torch.log(torch.rand_like(motion) + 1e-10) + 1e-10)
        visible = max(1, round(motion.shape[1] * (1 - self.mask_ratio)))
        return (log_probability + gumbel).argsort(1)[:, :visible]

    def _patches(self, values: Tensor) -> Tensor:
        """(R,P,T,V,C) -> (R, L, P, t_patch_size * C)."""
        return rearrange(values, 'r m (t p) v c -> r (t v) m (p c)', p=self.t_patch_size)


def motion_loss(forward: nn.Module, options: Any, label: Tensor, **inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Mean loss of a batch, and 0 in place of correct clips. The labels are not read."""
    errors = forward(**inputs)
    return errors[:, 0].mean(), errors.new_zeros(())


def motion_metrics(errors: np.ndarray) -> dict[str, float]:
    """Metrics of a split with errors (N, 1, 2): {'loss', 'explained'}, 1 - loss / loss of zero motion."""
    loss, zero = errors.mean(axis=(0, 1), dtype=np.float64).tolist()
    return {'loss': loss, 'explained': 1 - loss / max(zero, 1e-12)}


def fix_masks(seed: int, rank: int) -> None:
    """Seeds the masks of a validation, so that all epochs have the same."""
    torch.manual_seed(step_seed(seed, 0, 0, rank))


@torch.inference_mode()
def first_motion(
    render: HeatmapRenderer | None, model: MotionPretraining, clips: Clips, device: torch.device
) -> 'Figure':
    """Plots true and predicted horizontal motion of the first person in the first clip of a split."""
    batch = {name: torch.from_numpy(array[:1]).to(device) for name, array in clips[0, 0].items()}
    keypoint, score = batch['keypoint'], batch.get('score')
    motion = model.eval().predict_motion(keypoint if render is None else render(keypoint, score), keypoint, score)
    nearest = (motion.prediction[0] - motion.target[0, :, :1]).square().mean((0, 2)).argmin()  # persons have no order
    form = {'pattern': '(t v) (p c) -> c v (t p)', 'v': model.num_joints, 'p': model.t_patch_size}
    truth, predicted = (rearrange(a, **form)[0] for a in (motion.target[0, :, 0], motion.prediction[0, :, nearest]))
    visible = repeat(~motion.masked[0], '(t v) -> v (t p)', v=model.num_joints, p=model.t_patch_size)
    return motion_figure(*(a.cpu().numpy() for a in (truth, predicted, visible)), clips.names(0, 0)[0])
