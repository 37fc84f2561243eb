"""Draw a clip as a model sees it: skeleton, heatmaps, augmentation.

    python -m lib.tools.preview data/action/sample_hrnet.pkl --clip S009C002P021R001A024 --out out/kick.png
    python -m lib.tools.preview data/action/sample_hrnet.pkl --set heatmap.kind=limb --augmented 3 --out out/clip.gif

A PNG shows some of the sampled frames, a GIF or an MP4 (needs ffmpeg) all of them at the original speed, assuming 30
frames per second. The left side of the body is blue, the right side orange.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from easydict import EasyDict

from lib.cli import add_set
from lib.data.augmentation import Augmentation
from lib.data.classes import NTU120, class_names
from lib.data.clips import Clips
from lib.data.skeletons import Skeleton
from lib.data.store import Store, open_store
from lib.errors import UserError, numbered, shown_text
from lib.files import make_folder, replacing
from lib.models import MODELS, load_config
from lib.plots import GRID, INK, channel_colours, colour_channels, new_figure, save_figure, side_colour
from lib.tools.running import add_out, check_new, listed, log, make_parser, progress, run_tool

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SUFFIXES = ('.png', '.gif', '.mp4')
FRAMES = 8  # in a PNG
RATE = 30  # frames per second of NTU RGB+D

Draw = Callable[[np.ndarray, np.ndarray], np.ndarray]  # (N,M,T,V,2), (N,M,T,V) -> (N,T,C,H,W)


@dataclass(frozen=True)
class View:
    """RGB images (T, 3, H, W) between 0 and 1, and skeletons drawn on them.

    keypoint: (M, T, V, 2) in pixels of the images, or None. score: (M, T, V), the opacity of the limbs.
    """

    title: str
    skeleton: Skeleton
    images: np.ndarray
    keypoint: np.ndarray | None = None
    score: np.ndarray | None = None

    def draw(self, axes: 'Axes', times: Sequence[int]) -> None:
        """Draws the frames `times` side by side."""
        height, width = self.images.shape[-2:]
        axes.imshow(np.concatenate(self.images[times].clip(0, 1), axis=-1).transpose(1, 2, 0), interpolation='nearest')
        if self.keypoint is not None:
            for place, t in enumerate(times):
                self._draw_skeletons(axes, self.keypoint[:, t] + (place * width, 0), self.score[:, t])
        axes.vlines(np.arange(1, len(times)) * width - 0.5, -0.5, height - 0.5, color=GRID, linewidth=1)
        axes.set_xlim(-0.5, len(times) * width - 0.5)
        axes.set_ylim(height - 0.5, -0.5)
        axes.set_xticks(np.arange(len(times)) * width + width / 2, times)
        axes.set_yticks([])
        axes.tick_params(length=0, labelsize=8)
        axes.set_title(self.title, loc='left', fontsize=9)

    def _draw_skeletons(self, axes: 'Axes', keypoint: np.ndarray, score: np.ndarray) -> None:
        from matplotlib.collections import LineCollection

        limbs = np.array(self.skeleton.limbs)
        lines, opacity = keypoint[:, limbs].reshape(-1, 2, 2), score[:, limbs].min(axis=-1).clip(0, 1)
        colours = [
            (*side_colour(self.skeleton, *limb), a) for row in opacity for limb, a in zip(limbs, row, strict=True)
        ]
        axes.add_collection(LineCollection(lines, colors=colours, linewidths=1.5))


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(__doc__, 'preview')
    parser.add_argument('ann_file', metavar='FILE', help='PYSKL pickle')
    add_out(parser, 'FILE', text='new .png, .gif or .mp4', required=True)
    parser.add_argument('--clip', metavar='NAME', help='frame_dir of the clip (default: the first validation clip)')
    parser.add_argument('--augmented', type=int, default=0, metavar='N', help='also show N training epochs')
    parser.add_argument(
        '--config',
        type=Path,
        default=Path('configs/action/MB_train.yaml'),
        metavar='CONFIG',
        help='config, or folder of a run (default: %(default)s)',
    )
    add_set(parser)
    return run_tool(preview, parser, argv)


def preview(args: argparse.Namespace) -> None:
    suffix = args.out.suffix.lower()
    if suffix not in SUFFIXES:
        raise UserError(f'--out {args.out}: the file name must end in {", ".join(SUFFIXES)}.')
    check_new(args.out)
    config = load_config(args.config / 'config.yaml' if args.config.is_dir() else args.config, args.set)
    if 'heatmap' not in config:
        raise UserError(f'{args.config}: data.input is {config.data.input}; use a config with heatmap input.')
    config.data.update(ann_file=args.ann_file, test_clips=1, test_flip=False)
    store = open_store(args.ann_file, config.data.store_dir)
    split, clip = find_clip(store, config.data.benchmark, args.clip)
    config.data.benchmark = [split, split]
    views = make_views(config, renderer(config.script, config.heatmap), clip, args.augmented)

    name, label, total = shown_text(store.name(clip)), int(store.label[clip]), int(store.total_frames[clip])
    title = (
        f'{name} of {split}: {class_name(config, name, label)}, {numbered(int(store.num_persons[clip]), "person")}, '
    )
    title += f'{len(views[0].images)} samples of {numbered(total, "frame")}'
    make_folder(args.out.parent)
    if suffix == '.png':
        save_still(views, title, args.out)
    else:
        save_animation(views, title, total / RATE, args.out)
    log.info(f'{title}\nwrote {args.out}')


def find_clip(store: Store, benchmark: str | list[str], name: str | None) -> tuple[str, int]:
    """Finds a clip by name, or the first validation clip: the first split that contains it, and its index in the store.

    Raises UserError if there is none.
    """
    preferred = [f'{benchmark}_val', f'{benchmark}_train'] if isinstance(benchmark, str) else benchmark[::-1]
    splits = [split for split in dict.fromkeys([*preferred, *store.splits]) if len(store.splits.get(split, ()))]
    for split in splits:
        for clip in map(int, store.splits[split]):
            if name is None or store.name(clip) == name:
                return split, clip
    if not splits:
        raise UserError(f'{store.ann_file}: its splits have no clips.')
    known = listed([store.name(clip) for clip in store.splits[splits[0]][:4]])
    raise UserError(f'{store.ann_file} has no clip {shown_text(name)} in its splits. {splits[0]} has {known}')


def class_name(config: EasyDict, name: str, label: int) -> str:
    """The class name of a clip: NTU RGB+D's for its clip names, otherwise from the file of class names."""
    if label < len(NTU120) and name.endswith(f'A{label + 1:03d}'):
        return NTU120[label]
    return class_names({'data': config.data, 'model': {'num_classes': label + 1}})[label]


def make_views(config: EasyDict, draw: Draw, clip: int, augmented: int) -> list[View]:
    """Skeleton and heatmaps of a clip in evaluation, and its heatmaps in the first training epochs."""
    augmentation, size = Augmentation(**config.augmentation), config.heatmap.size
    clips = Clips('val', augmentation, size, **config.data)
    skeleton, kind = clips.skeleton, config.heatmap.kind
    colours = channel_colours(skeleton, kind)

    def heatmaps(batch: dict[str, np.ndarray]) -> np.ndarray:
        return colour_channels(draw(batch['keypoint'], batch['score'])[0], colours)

    batch = clips.single(clip, 0)
    images = heatmaps(batch)
    views = [
        View('skeleton', skeleton, np.full_like(images, 0.13), batch['keypoint'][0], batch['score'][0]),
        View('joint and limb heatmaps' if kind == 'both' else f'{kind} heatmaps', skeleton, images),
    ]
    if augmented:
        clips = Clips('train', augmentation, size, **config.data)
    for epoch in range(augmented):
        views.append(View(f'training, epoch {epoch + 1}', skeleton, heatmaps(clips.single(clip, epoch))))
    return views


def renderer(script: str, heatmap: Mapping[str, Any]) -> Draw:
    """The renderer of the model's framework."""
    training = MODELS[script].training
    return partial(training.draw, training.HeatmapRenderer(**heatmap))


def save_still(views: list[View], title: str, path: Path) -> None:
    """Saves a PNG with one row per view."""
    times = np.linspace(0, len(views[0].images) - 1, FRAMES).round().astype(int)
    figure = new_figure(1.4 * len(times), 1.75 * len(views) + 0.4)
    for axes, view in zip(figure.subplots(len(views), squeeze=False).flat, views, strict=True):
        view.draw(axes, times)
    figure.suptitle(title, fontsize=10, color=INK, parse_math=False)
    save_figure(figure, path)


def save_animation(views: list[View], title: str, seconds: float, path: Path) -> None:
    """Saves a GIF or an MP4 with one panel per view. Raises UserError if an MP4 needs ffmpeg and it is missing."""
    from matplotlib.animation import FFMpegWriter, PillowWriter

    if path.suffix.lower() == '.mp4' and not FFMpegWriter.isAvailable():
        raise UserError(f'{path}: writing an MP4 needs ffmpeg, which is not installed. Install it, or write a .gif.')
    count = len(views[0].images)
    # GIF frames last whole hundredths of a second, at least two.
    rate = Fraction(100, max(2, round(100 * seconds / count)))
    writer = (FFMpegWriter if path.suffix.lower() == '.mp4' else PillowWriter)(fps=rate)
    columns = min(len(views), 4)
    rows = -(-len(views) // columns)
    figure = new_figure(max(2.8 * columns, 7), 3.2 * rows + 0.4)
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in grid:
        axes.axis('off')
    figure.suptitle(title, fontsize=8, color=INK, parse_math=False)
    with tempfile.TemporaryDirectory() as folder:
        temporary = Path(folder) / path.name
        with writer.saving(figure, temporary, dpi=100):
            for t in progress(range(count), unit='frame'):
                for axes, view in zip(grid, views, strict=False):
                    axes.clear()
                    view.draw(axes, [t])
                writer.grab_frame()
                figure.set_layout_engine('none')  # keep the layout of the first frame
        with replacing(path) as file:
            file.write(temporary.read_bytes())


if __name__ == '__main__':
    sys.exit(main())
