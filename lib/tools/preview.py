"""Look at a clip as a network sees it: is the data right, and what becomes of it?

    python -m lib.tools.preview data/action/sample_hrnet.pkl --out clip.png
    python -m lib.tools.preview data/action/sample_hrnet.pkl --clip S009C002P021R001A024 --kind both --out kick.gif
    python -m lib.tools.preview data/action/sample_hrnet.pkl --config configs/action/vivit.yaml --out clip.mp4
    python -m lib.tools.preview data/action/sample_hrnet.pkl --show maps --kind limb --out limbs.png

--out's ending says what is made: a PNG of some frames, a GIF or an MP4 (needs PyAV: pip install av) of all that are
sampled, at the pace of 30 frames a second that NTU RGB+D has. --show chooses:

    page          all of it (the default): skeleton, volume and three epochs of augmentation
    skeleton      joints and limbs on their frame, as bright as their scores, with the box that is cut out for the model
    volume        the maps of a frame in one picture, as in evaluation
    maps          every map by itself
    augmentation  the volume in evaluation and as some epochs of training see it, from --epoch on
    pipeline      from skeletons to tokens, of the models in configs/action: a PNG that explains the project

Left is blue, right orange, the middle white. The maps are the renderer's that trains: TensorFlow's where --config or
--checkpoint is of ViViT, else PyTorch's; without them 48 frames of 56x56 px are drawn as by most of the configs.
"""

import argparse
import copy
import itertools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np
from easydict import EasyDict

from lib.cli import DONE, USER_ERROR
from lib.config import resolve_config
from lib.data.classes import NTU120, class_names
from lib.data.clips import Clips
from lib.data.geometry import compact_box, extent, view
from lib.data.heatmap import MIN_SCORE
from lib.data.sampling import evaluation_frames
from lib.data.store import Store, open_store
from lib.errors import UserError, shown_text
from lib.figures import save_figure
from lib.files import check_writable, make_folder, replacing
from lib.pictures import channel_colours, coloured, enlarged, side_colour, some_of
from lib.tools.checkpoints import load_config_file, open_checkpoint

if TYPE_CHECKING:
    from PIL.Image import Image

SHOWS = ('page', 'skeleton', 'volume', 'maps', 'augmentation', 'pipeline')
ENDINGS = ('.png', '.gif', '.mp4')
RATE = 30  # frames of a clip in a second: NTU RGB+D's
WIDTHS = {'.png': 1760, '.gif': 960, '.mp4': 960}  # of a sheet, at most, in pixels
HEIGHT, SMALL = 280, 112  # of a picture, about, and of one map by itself
PAGE_EPOCHS, EPOCHS = 3, 5
FEW, MANY = 6, 12  # frames of a panel in a still picture
GAP, TEXT, HEADING = 8, 14, 17  # between pictures, and the fonts' sizes
WHITE, INK, FAINT = (255, 255, 255), (34, 34, 34), (110, 110, 110)
MAPS = {'joint': 'joint maps', 'limb': 'limb maps', 'both': 'joint and limb maps'}
BACKDROP, OUTSIDE, BOX = (0.13, 0.13, 0.13), (0.3, 0.3, 0.3), (0.0, 0.62, 0.45)
MARGIN = 0.02  # about image and box, of the greater edge
SHARPNESS = 2  # a skeleton is drawn so many times larger, then made smaller

Draw = Callable[[np.ndarray, np.ndarray], np.ndarray]


class Panel(NamedTuple):
    """Something that is seen of each frame. pictures: (T, 3, h, w), 0 to 1. scale: how much they are to be enlarged.

    frames: (T,) which of the clip's frames these are; None where they are drawn at random.
    """

    caption: str
    pictures: np.ndarray
    scale: int = 1
    frames: np.ndarray | None = None

    def picture(self, t: int) -> np.ndarray:
        """(H, W, 3) uint8."""
        picture = enlarged(self.pictures[t], self.scale).clip(0, 1)
        return (picture * 255).astype(np.uint8).transpose(1, 2, 0)


Strip = tuple[str, list[tuple[str, np.ndarray]]]  # heading, and captions with pictures (H, W, 3)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog='python -m lib.tools.preview'
    )
    parser.add_argument('ann_file', metavar='FILE', help='PYSKL pickle, 2D or 3D')
    parser.add_argument('--out', required=True, type=Path, metavar='FILE', help='.png, .gif or .mp4 to write')
    parser.add_argument('--clip', metavar='NAME', help='frame_dir of a clip (default: the first to validate on)')
    parser.add_argument('--show', default='page', choices=SHOWS, help='(default: %(default)s)')
    parser.add_argument('--epoch', type=int, default=1, metavar='N', help='of training, the first shown (default: 1)')
    config = parser.add_mutually_exclusive_group()
    config.add_argument('--config', metavar='FILE', help='YAML config whose sections data and heatmap are taken')
    config.add_argument('--checkpoint', type=Path, metavar='FOLDER', help='run, or file, whose config is taken')
    parser.add_argument('--benchmark', help='short for --set data.benchmark=...')
    parser.add_argument('--kind', choices=('joint', 'limb', 'both'), help='short for --set heatmap.kind=...')
    parser.add_argument('--clip_len', type=int, metavar='T', help='short for --set data.clip_len=...')
    parser.add_argument('--set', action='append', default=[], metavar='SECTION.KEY=VALUE', help='changes a config key')
    args = parser.parse_args(arguments)
    try:
        print(preview(args))
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        return USER_ERROR
    return DONE


def preview(args: argparse.Namespace) -> str:
    """Writes the picture and returns what it is of. Raises UserError for what cannot be shown."""
    ending = args.out.suffix.lower()
    if ending not in ENDINGS:
        raise UserError(f'--out {args.out}: its ending must be one of {", ".join(ENDINGS)}.')
    if args.show == 'pipeline' and ending != '.png':
        raise UserError(f'--out {args.out}: the pipeline is a still picture; name a .png.')
    if args.epoch < 1:
        raise UserError(f'--epoch {args.epoch}: epochs are counted from 1.')
    if ending == '.mp4':
        require_pyav()
    check_writable(args.out.parent, 'Name another --out.')
    shorts = {'data.benchmark': args.benchmark, 'heatmap.kind': args.kind, 'data.clip_len': args.clip_len}
    overrides = [f'{key}={value}' for key, value in shorts.items() if value is not None] + args.set
    kind, config = config_of(args.config, args.checkpoint, overrides)
    config.data.ann_file = args.ann_file
    subject = find(config, kind, args.clip)

    make_folder(args.out.parent)
    if args.show == 'pipeline':
        from lib.tools.pipeline_figure import pipeline_figure

        volumes = {
            each: replace(subject, draw=renderer(kind, {**config.heatmap, 'kind': each})).volume()
            for each in ('joint', 'limb')
        }
        save_figure(pipeline_figure(subject, volumes), args.out)
    else:
        panels = panels_of(args.show, subject, args.epoch - 1)
        with replacing(args.out) as file:
            if ending == '.png':
                sheet(subject.title, still(panels), WIDTHS[ending]).save(file, 'PNG')
            else:
                write = {'.gif': write_gif, '.mp4': write_mp4}[ending]
                write(file, moving(subject, panels, WIDTHS[ending]), subject)
    return f'{args.out}: {subject.title[0]}. {subject.title[1]}'


def config_of(config: str | None, checkpoint: Path | None, overrides: Sequence[str]) -> tuple[str | None, EasyDict]:
    """Kind of model, if one is named, and config, of which the sections data and heatmap count.

    Raises UserError naming the file, or where its model sees no heatmap.
    """
    if checkpoint is not None:
        opened = open_checkpoint(checkpoint, overrides)
        kind, found = opened.kind, opened.config
    elif config is not None:
        kind, found = load_config_file(config, overrides)
    else:
        from lib.pytorch.heatmap import HeatmapRenderer

        plain = {'ann_file': '', 'benchmark': 'xsub', 'clip_len': 48, 'batch_size': 1, 'seed': 0}
        sections = {'data': Clips, 'heatmap': HeatmapRenderer}
        kind, found = None, resolve_config({'data': plain, 'heatmap': {}}, sections, overrides, 'without --config')
    if 'heatmap' not in found:
        raise UserError(
            f'{config or checkpoint or "--set"}: data.input is {found.data.input}, so that its model sees no heatmap: '
            'name a config or a run on heatmaps, or none.'
        )
    return kind, found


@dataclass(frozen=True)
class Subject:
    """A clip that is looked at. clip: its number in the store. test: its list's clips, as evaluation treats them.

    action: the name of its class. kind: of the maps. draw: (keypoint (1,M,T,V,2), score (1,M,T,V)) -> (1,T,C,H,W).
    """

    clip: int
    test: Clips
    action: str
    kind: str
    draw: Draw

    @cached_property
    def training(self) -> Clips:
        """The list's clips as training treats them, though it may not be trained on, or be too short for it."""
        clips = copy.copy(self.test)
        clips.training = True
        return clips

    @cached_property
    def title(self) -> list[str]:
        test, store = self.test, self.test.store
        persons, total = int(store.num_persons[self.clip]), int(store.total_frames[self.clip])
        more = f', of whom {test.max_persons} are taken' if persons > test.max_persons else ''
        return [
            f'{shown_text(store.name(self.clip))}, {self.action} (label {store.label[self.clip]})',
            f'{test.list_name}, {persons} person{"s" * (persons > 1)}{more}, '
            f'{test.clip_len} samples of {total} frames, {MAPS[self.kind]} of {test.size}x{test.size} px',
        ]

    @cached_property
    def frames(self) -> np.ndarray:
        """(K * T,) the frames that evaluation samples, of which the first T are shown."""
        return evaluation_frames(int(self.test.store.total_frames[self.clip]), self.test.clip_len, self.test.test_clips)

    @cached_property
    def joints(self) -> tuple[np.ndarray, np.ndarray]:
        """Keypoints (M, K * T, V, 2) of these frames in pixels of the image, a 3D pickle's projected, and scores."""
        store, clip = self.test.store, self.clip
        persons = np.arange(min(int(store.num_persons[clip]), self.test.max_persons))
        rows = store.first_row[clip] + persons[:, None] * store.total_frames[clip] + self.frames
        keypoint, score = store.gather(rows)
        if self.test.is_3d:
            keypoint = view(keypoint, np.zeros(len(persons)))
        return keypoint.astype(np.float32), score.astype(np.float32)

    @cached_property
    def box(self) -> np.ndarray:
        """(4,) x1 y1 x2 y2 that is cut out for the model, in pixels of the image."""
        keypoint = self.joints[0]
        img_shape = np.maximum(self.test.store.img_shape[[self.clip]].astype(np.int64), 1)
        return compact_box(*extent(keypoint, np.array([len(keypoint)])), img_shape)[0]

    @cached_property
    def region(self) -> tuple[np.ndarray, np.ndarray]:
        """Two corners (x, y) of what a picture of the skeleton shows: image and box, of a 3D pickle the box."""
        low, high = self.box[:2], self.box[2:]
        if not self.test.is_3d:
            image = self.test.store.img_shape[self.clip][::-1]
            low, high = np.minimum(low, 0), np.maximum(high, image)
        margin = MARGIN * (high - low).max()
        return low - margin, high + margin

    def volume(self, epoch: int | None = None) -> np.ndarray:
        """(T, C, H, W) as evaluation sees the clip (its first view), or an epoch of training, counted from 0."""
        batch = (self.test if epoch is None else self.training).of_clip(self.clip, epoch or 0)
        first = np.s_[:, 0] if batch['score'].ndim == 5 else np.s_[:]
        return self.draw(batch['keypoint'][first], batch['score'][first])[0]


def find(config: EasyDict, kind: str | None, name: str | None) -> Subject:
    """The clip of a name, without one the first to validate on, or the first at all where the file has other lists.

    kind: of the model. Raises UserError, naming lists and clips, where there is none.
    """
    store = open_store(config.data.ann_file, config.data.store_dir)
    benchmark = config.data.benchmark
    wanted = [f'{benchmark}_val', f'{benchmark}_train'] if isinstance(benchmark, str) else benchmark[::-1]
    lists = [name for name in dict.fromkeys([*wanted, *store.splits]) if len(store.splits.get(name, ()))]
    if name is None and lists:
        place, clip = lists[0], int(store.splits[lists[0]][0])
    else:
        places = ((place, int(clip)) for place in lists for clip in store.splits[place])
        place, clip = next((found for found in places if store.name(found[1]) == name), (None, None))
    if place is None:
        some = [shown_text(store.name(clip)) for place in lists[:1] for clip in store.splits[place][:3]]
        raise UserError(
            f'{config.data.ann_file} has no clip {name} in {", ".join(lists) or "any list"}; '
            f'the first has {", ".join(some)}, ...'
        )
    test = Clips('val', config.heatmap.size, **{**config.data, 'benchmark': [place, place]})
    return Subject(clip, test, action_of(config, store, clip), config.heatmap.kind, renderer(kind, config.heatmap))


def action_of(config: EasyDict, store: Store, clip: int) -> str:
    """The name of a clip's class: the config's or, without a model, NTU RGB+D's where the clip is named as theirs."""
    label = int(store.label[clip])
    if 'model' in config or config.data.class_names is not None:
        names = class_names({'model': {'num_classes': label + 1}, **config})
    else:
        names = NTU120 if store.name(clip).endswith(f'A{label + 1:03d}') else ()
    return names[label] if label < len(names) else f'class {label}'


def renderer(kind: str | None, heatmap: Mapping[str, Any]) -> Draw:
    """Draws maps as the model does that is trained on them."""
    if kind == 'vivit':
        from lib.tensorflow.heatmap import HeatmapRenderer

        render = HeatmapRenderer(**heatmap)
        return lambda keypoint, score: np.moveaxis(render(keypoint, score).numpy(), -1, 2)
    from lib.pytorch.heatmap import HeatmapRenderer
    from lib.pytorch.training import draw

    return partial(draw, HeatmapRenderer(**heatmap), 'cpu')


# --- what is seen --------------------------------------------------------------------------------------------------


def panels_of(show: str, subject: Subject, epoch: int) -> list[Panel]:
    """What --show asks for. epoch: the first of training, from 0."""
    clips = subject.test
    colours = channel_colours(clips.skeleton, subject.kind)
    frames = subject.frames[: clips.clip_len]
    scale, small = (max(1, round(height / clips.size)) for height in (HEIGHT, SMALL))
    panels = []
    if show in ('page', 'skeleton'):
        what = 'image and box (green) that is cut out of it' if not clips.is_3d else 'seen from the front, and the box'
        panels.append(Panel(f'Skeleton: {what}', skeleton_pictures(subject, frames), frames=frames))
    if show == 'maps':
        names, volume = channel_names(clips, subject.kind), subject.volume()
        for channel, (name, colour) in enumerate(zip(names, colours, strict=True)):
            maps = volume[:, channel : channel + 1]
            panels.append(Panel(name, coloured(maps, [colour]), small, frames))
    elif show != 'skeleton':
        what = f'Volume in evaluation: {len(colours)} {MAPS[subject.kind]}, all in one picture'
        panels.append(Panel(what, coloured(subject.volume(), colours), scale, frames))
    if show in ('page', 'augmentation'):
        for e in range(epoch, epoch + (PAGE_EPOCHS if show == 'page' else EPOCHS)):
            panels.append(Panel(f'In training, epoch {e + 1}', coloured(subject.volume(e), colours), scale))
    return panels


def channel_names(clips: Clips, kind: str) -> list[str]:
    """A name for each channel of a volume."""
    joints = [joint.replace('_', ' ') for joint in clips.skeleton.joints]
    limbs = [f'{joints[start]} to {joints[end]}' for start, end in clips.skeleton.limbs]
    return {'joint': joints, 'limb': limbs, 'both': joints + limbs}[kind]


def skeleton_pictures(subject: Subject, frames: np.ndarray) -> np.ndarray:
    """Joints and limbs on the image, with the box: (T, 3, h, w), h HEIGHT or less, w twice that or less."""
    from PIL import Image, ImageDraw

    keypoint, score = (array[:, : len(frames)] for array in subject.joints)
    skeleton, (low, high) = subject.test.skeleton, subject.region
    image = subject.test.store.img_shape[subject.clip][::-1].astype(float)
    scale = SHARPNESS * min(HEIGHT / (high - low)[1], 2 * HEIGHT / (high - low)[0])
    w, h = np.maximum((scale * (high - low) / SHARPNESS).round().astype(int), 1).tolist()

    def place(point: np.ndarray) -> tuple[float, float]:
        return tuple((scale * (point - low)).tolist())

    def colour(rgb: Sequence[float], share: float = 1.0) -> tuple[int, ...]:
        share = min(max(float(share), 0.0), 1.0)
        return tuple(round(255 * (share * c + (1 - share) * b)) for c, b in zip(rgb, BACKDROP, strict=True))

    pictures = np.empty((len(frames), 3, h, w), np.float32)
    for t in range(len(frames)):
        picture = Image.new('RGB', (w * SHARPNESS, h * SHARPNESS), colour(OUTSIDE))
        draw = ImageDraw.Draw(picture)
        inside = [0, 0, *picture.size] if subject.test.is_3d else [place(np.zeros(2)), place(image)]
        draw.rectangle(inside, colour(BACKDROP))
        draw.rectangle([place(subject.box[:2]), place(subject.box[2:])], outline=colour(BOX), width=2 * SHARPNESS)
        for points, values in zip(keypoint[:, t], score[:, t], strict=True):
            there = (values >= MIN_SCORE) & (points != 0).any(axis=-1)
            for start, end in skeleton.limbs:
                if there[start] and there[end]:
                    share = min(values[start], values[end])
                    line = [place(points[start]), place(points[end])]
                    draw.line(line, colour(side_colour(skeleton, start, end), share), width=2 * SHARPNESS)
            for joint in np.flatnonzero(there):
                x, y = place(points[joint])
                corners = [x - 2 * SHARPNESS, y - 2 * SHARPNESS, x + 2 * SHARPNESS, y + 2 * SHARPNESS]
                draw.ellipse(corners, colour(side_colour(skeleton, joint), values[joint]))
        pictures[t] = np.asarray(picture.resize((w, h), Image.Resampling.BOX)).transpose(2, 0, 1) / np.float32(255)
    return pictures


# --- how it is laid out --------------------------------------------------------------------------------------------


def still(panels: list[Panel]) -> list[Strip]:
    """Some frames of each panel."""
    strips = []
    for panel in panels:
        is_small = panel.pictures.shape[-1] * panel.scale <= 1.5 * SMALL
        times = some_of(len(panel.pictures), MANY if is_small or len(panels) == 1 else FEW)
        cells = [
            (f't {t}' if panel.frames is None else f't {t}, frame {panel.frames[t]}', panel.picture(t)) for t in times
        ]
        strips.append((panel.caption, cells))
    return strips


def moving(subject: Subject, panels: list[Panel], width: int) -> Iterator['Image']:
    """A sheet of all panels for each of the T frames."""
    for t in range(subject.test.clip_len):
        heading = f't {t}, frame {subject.frames[t]}'
        yield sheet(subject.title, [(heading, [(panel.caption, panel.picture(t)) for panel in panels])], width)


def sheet(title: Sequence[str], strips: Sequence[Strip], width: int) -> 'Image':
    """Strips of pictures under their headings, broken into lines of `width` pixels; its own sizes are even numbers."""
    from matplotlib import font_manager
    from PIL import Image, ImageDraw, ImageFont

    fonts = [ImageFont.truetype(font_manager.findfont('DejaVu Sans'), size) for size in (TEXT, HEADING)]
    texts, pictures = [], []  # (x, y, text, font, colour), (x, y, picture)
    y = GAP
    for line, font in zip(title, (fonts[1], fonts[0]), strict=True):
        texts.append((GAP, y, line, font, INK))
        y += font.size + GAP
    for heading, cells in strips:
        texts.append((GAP, y + GAP, heading, fonts[1], INK))
        y += HEADING + 3 * GAP
        x, bottom = GAP, y
        for caption, picture in cells:
            h, w = picture.shape[:2]
            taken = max(w, round(fonts[0].getlength(caption)))
            if x > GAP and x + taken + GAP > width:
                x, y = GAP, bottom
            pictures.append((x, y, picture))
            texts.append((x, y + h + 2, caption, fonts[0], FAINT))
            x, bottom = x + taken + GAP, max(bottom, y + h + TEXT + 2 * GAP)
        y = bottom
    right = [x + font.getlength(text) for x, _, text, font, _ in texts] + [x + p.shape[1] for x, _, p in pictures]
    w = round(max(right)) + GAP
    page = Image.new('RGB', (w + w % 2, y + y % 2), WHITE)
    for x, top, picture in pictures:
        page.paste(Image.fromarray(picture), (x, top))
    draw = ImageDraw.Draw(page)
    for x, top, text, font, colour in texts:
        draw.text((x, top), text, colour, font)
    return page


# --- films ---------------------------------------------------------------------------------------------------------


def pace(subject: Subject) -> Fraction:
    """Samples in a second."""
    return Fraction(RATE * subject.test.clip_len, int(subject.test.store.total_frames[subject.clip]))


def write_gif(file: BinaryIO, pictures: Iterator['Image'], subject: Subject) -> None:
    """GIFs count in hundredths of a second, and are shown slower where a picture has less than two of them."""
    count = subject.test.clip_len
    ends = np.round(np.arange(count + 1) * 100 / float(pace(subject)))
    durations = (10 * np.maximum(np.diff(ends), 2)).astype(int).tolist()
    first, *others = (picture.quantize(128) for picture in pictures)
    first.save(file, 'GIF', save_all=True, append_images=others, duration=durations, loop=0)


def write_mp4(file: BinaryIO, pictures: Iterator['Image'], subject: Subject) -> None:
    av = require_pyav()
    codec = 'libx264' if 'libx264' in av.codecs_available else 'mpeg4'
    with av.open(file, 'w', format='mp4') as container:
        stream = container.add_stream(codec, rate=pace(subject).limit_denominator(1000))
        first = next(pictures)
        stream.width, stream.height = first.size
        stream.pix_fmt = 'yuv420p'
        for picture in itertools.chain([first], pictures):
            container.mux(stream.encode(av.VideoFrame.from_image(picture)))
        container.mux(stream.encode())


def require_pyav() -> Any:
    """Raises UserError where PyAV is not installed."""
    try:
        import av
    except ImportError:
        raise UserError('writing an MP4 takes PyAV, which is not installed: pip install av. Or name a .gif.') from None
    return av


if __name__ == '__main__':
    sys.exit(main())
