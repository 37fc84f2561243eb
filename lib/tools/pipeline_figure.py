"""The picture that explains the whole way from skeletons to class scores, for lib.tools.preview --show pipeline.

All that can be real is: joints, sampled frames, box and maps are a clip's, sizes those of configs in configs/action.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lib.config import read_config
from lib.data.classes import NTU60
from lib.data.heatmap import MIN_SCORE
from lib.figures import BLUE, GREEN, INK, VERMILION, new_figure
from lib.pictures import channel_colours, coloured, side_colour, some_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from lib.tools.preview import Subject

CONFIGS = Path(__file__).parents[2] / 'configs/action'
WIDTH, HEIGHT, DOTS = 1920, 900, 120  # of the figure in pixels, and of these in an inch
TITLE, TEXT, SMALL = 18, 14, 13  # sizes of fonts in points
TOP, BOTTOM = 120, 745  # of what is drawn, between titles and captions
COLUMNS = {'clip': 30, 'sample': 425, 'volume': 705, 'tokens': 1072, 'model': 1388, 'scores': 1672}  # left edges
DARK, FAINT, PALE = '#151515', '#777777', '#f1f3f5'
NUM_FRAMES_SHOWN, CELL = 8, 30  # of the drawings of tokens
LONG = 20  # letters of a name that is written smaller


def pipeline_figure(subject: 'Subject', volumes: dict[str, np.ndarray]) -> 'Figure':
    """volumes: the clip's 'joint' and 'limb' maps, (T, C, H, W). Raises UserError."""
    sizes = {kind: read_config(CONFIGS / name, ()) for kind, name in
             {'mbert': 'MB_train.yaml', 'vanilla': 'vanilla.yaml', 'vivit': 'vivit.yaml'}.items()}  # fmt: skip
    figure = new_figure(WIDTH / DOTS, HEIGHT / DOTS)
    figure.set_layout_engine('none')  # all stands where it is put, in pixels
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, WIDTH), ylim=(HEIGHT, 0))
    axes.axis('off')

    of_clip(axes, subject)
    of_sample(axes, subject)
    of_volume(axes, subject, volumes)
    of_models(axes, subject, volumes['joint'], sizes)
    of_scores(axes, subject, sizes['mbert']['model']['num_classes'])
    return figure


def heading(axes: 'Axes', column: str, number: int, title: str, caption: str) -> None:
    """Title above a column, and what there is to say of it below."""
    x = COLUMNS[column]
    axes.text(x + 17, 58, str(number), size=SMALL, color='white', ha='center', va='center', weight='bold',
              bbox={'boxstyle': 'circle,pad=0.25', 'facecolor': INK, 'edgecolor': 'none'})  # fmt: skip
    axes.text(x + 44, 58, title, size=TITLE, color=INK, va='center', weight='bold')
    axes.text(x, BOTTOM + 30, caption, size=TEXT, color=INK, va='top', linespacing=1.35)


def arrow(axes: 'Axes', start: float, end: float, y: float) -> None:
    style = {'arrowstyle': '-|>,head_width=0.45,head_length=0.7', 'color': FAINT, 'linewidth': 2.5, 'shrinkA': 0}
    axes.annotate('', (end, y), (start, y), arrowprops={**style, 'shrinkB': 0})


def frame(axes: 'Axes', x: float, y: float, w: float, h: float, edge: str = 'white', level: float = 1) -> None:
    """A dark image, of which `edge` is the colour of the border."""
    from matplotlib.patches import Rectangle

    axes.add_patch(Rectangle((x, y), w, h, facecolor=DARK, edgecolor=edge, linewidth=2, zorder=level))


def skeleton(
    axes: 'Axes', subject: 'Subject', points: np.ndarray, score: np.ndarray, width: float, level: float
) -> None:
    """Limbs and joints of all persons, points (M, V, 2) in pixels of the figure, as bright as their scores (M, V)."""
    shape = subject.test.skeleton
    for person, values in zip(points, score.clip(0, 1), strict=True):
        there = values >= MIN_SCORE
        for start, end in shape.limbs:
            if there[start] and there[end]:
                colour, alpha = side_colour(shape, start, end), float(min(values[start], values[end]))
                axes.plot(*person[[start, end]].T, color=colour, alpha=alpha, linewidth=width, zorder=level + 0.1,
                          solid_capstyle='round')  # fmt: skip


def of_clip(axes: 'Axes', subject: 'Subject') -> None:
    """Four frames of the clip, one behind the other, with the box."""
    from matplotlib.patches import Rectangle

    store, clip = subject.test.store, subject.clip
    keypoint, score = subject.joints
    low, high = subject.region
    scale = min(318 / (high - low)[0], 186 / (high - low)[1])
    w, h = scale * (high - low)
    x, step = COLUMNS['clip'], np.array([9, (BOTTOM - TOP - h) / 3])
    for i, t in enumerate(some_of(subject.test.clip_len, 4)):
        corner = np.array([x, TOP]) + i * step
        frame(axes, *corner, w, h, level=2 + i)
        box = (subject.box.reshape(2, 2) - low) * scale + corner
        axes.add_patch(Rectangle(box[0], *(box[1] - box[0]), fill=False, edgecolor=GREEN, linewidth=2, zorder=2 + i))
        skeleton(axes, subject, (keypoint[:, t] - low) * scale + corner, score[:, t], 2, 2 + i)
    arrow(axes, 372, 412, (TOP + BOTTOM) / 2)
    heading(axes, 'clip', 1, 'Skeleton clip',
            f'“{subject.action}”\n{store.total_frames[clip]} frames, {subject.test.num_joints} joints and\n'
            'how sure each of them is')  # fmt: skip


def of_sample(axes: 'Axes', subject: 'Subject') -> None:
    """Which frames are taken, and some joints as they lie in the map."""
    x, side, size = COLUMNS['sample'], 225, subject.test.size
    total, frames = int(subject.test.store.total_frames[subject.clip]), subject.frames[: subject.test.clip_len]
    places = x + (np.arange(total) + 0.5) * side / total
    axes.vlines(places, TOP, TOP + 34, color='#cccccc', linewidth=1.5)
    axes.vlines(places[frames], TOP, TOP + 34, color=BLUE, linewidth=1.5)
    batch = subject.test.of_clip(subject.clip, 0)
    keypoint, score = batch['keypoint'][0], batch['score'][0]
    count = 2
    gap = (BOTTOM - TOP - 60 - count * side) / (count - 1)
    for i, share in enumerate((0.19, 0.45)):
        corner, t = np.array([x, TOP + 60 + i * (side + gap)]), round(share * (len(frames) - 1))
        frame(axes, *corner, side, side, GREEN)
        skeleton(axes, subject, (keypoint[:, t] + 0.5) * side / size + corner, score[:, t], 4, 1)
    arrow(axes, 656, 696, (TOP + BOTTOM) / 2)
    heading(axes, 'sample', 2, 'Sampling', f'{len(frames)} frames,\nin one square box\naround them all')


def of_volume(axes: 'Axes', subject: 'Subject', volumes: dict[str, np.ndarray]) -> None:
    """Joint maps and limb maps, some frames one behind the other."""
    x, side, step, count = COLUMNS['volume'], 235, 71, 4
    for i, kind in enumerate(('joint', 'limb')):
        volume = volumes[kind]
        pictures = coloured(volume[some_of(len(volume), count)], channel_colours(subject.test.skeleton, kind))
        top = TOP + 50 if i == 0 else BOTTOM - side
        for number, picture in enumerate(pictures):
            slanted(axes, picture, x + number * step, top, side)
    arrow(axes, 1026, 1062, (TOP + BOTTOM) / 2)
    frames, channels, size, _ = volumes['joint'].shape
    heading(axes, 'volume', 3, 'Heatmap volume',
            f'{channels} joint or {volumes["limb"].shape[1]} limb maps a\nframe, {frames} x {size} x {size} px: one\n'
            'small Gaussian per joint')  # fmt: skip


def slanted(axes: 'Axes', picture: np.ndarray, x: float, y: float, side: float) -> None:
    """A picture (3, h, w) as it is seen from the left, its upper left corner at (x, y)."""
    from matplotlib.patches import Polygon
    from matplotlib.transforms import Affine2D

    width, rise = 0.44, -0.18  # of what goes to the right, in shares of it
    brightness = picture.max(axis=0, keepdims=True)
    pixels = np.concatenate([picture / np.maximum(brightness, 1e-6), np.maximum(brightness, 0)]).clip(0, 1)
    place = Affine2D.from_values(width * side, rise * side, 0, side, x, y) + axes.transData
    corners = np.array([(0, 0), (1, 0), (1, 1), (0, 1)])
    axes.add_patch(Polygon(corners, transform=place, facecolor=DARK, edgecolor='white', linewidth=1.5, zorder=3))
    axes.imshow(pixels.transpose(1, 2, 0), extent=(0, 1, 1, 0), transform=place, interpolation='nearest', zorder=3)
    axes.set(xlim=(0, WIDTH), ylim=(HEIGHT, 0), aspect='auto')  # imshow changes them


def of_models(axes: 'Axes', subject: 'Subject', volume: np.ndarray, sizes: dict[str, dict]) -> None:
    """What a token is, and the transformer, of each of the three models."""
    mbert, vanilla, vivit = (sizes[kind] for kind in ('mbert', 'vanilla', 'vivit'))
    joints, steps = subject.test.num_joints, vanilla['model']['t_patch_size']
    edges = vivit['model']['tubelet_size']
    blocks = np.array([vivit['data']['clip_len'], *[vivit['heatmap']['size']] * 2]) // edges
    times = mbert['data']['clip_len'], vanilla['data']['clip_len'] // steps
    counts = (
        f'{joints} joints x {times[0]} frames = {joints * times[0]}',
        f'{joints} joints x {times[1]} times = {joints * times[1]}',
        f'{" x ".join(map(str, blocks))} blocks = {blocks.prod()}',
    )
    names = (('MotionBERT', 'space and time'), ('Vanilla', 'transformer'), ('ViViT', 'video transformer'))
    tall = (BOTTOM - TOP) / 3
    for i, (config, count, lines) in enumerate(zip((mbert, vanilla, vivit), counts, names, strict=True)):
        top = TOP + i * tall
        if i < 2:
            of_joint_tokens(axes, subject, COLUMNS['tokens'], top + 22, (1, steps)[i])
        else:
            of_tubelets(axes, subject, volume, COLUMNS['tokens'] + 12, top - 6, edges)
        axes.text(COLUMNS['tokens'], top + 176, count, size=SMALL, color=INK, va='center')
        of_transformer(axes, top + 8, lines, config['model'])
        middle = top + 78
        arrow(axes, 1350, 1381, middle)
        arrow(axes, 1612, 1648, middle)
    heading(
        axes,
        'tokens',
        4,
        'Tokens',
        f'A token is a joint in 1 or\n{steps} frames, or a block of\n{" x ".join(map(str, edges))} in the volume',
    )
    heading(axes, 'model', 5, 'Transformer', 'PyTorch, and for\nViViT TensorFlow\nwith Keras')


def of_joint_tokens(axes: 'Axes', subject: 'Subject', x: float, y: float, steps: int) -> None:
    """Maps of some joints, side by side in time; those of a token touch, and one token is marked."""
    from matplotlib.patches import Rectangle

    batch = subject.test.of_clip(subject.clip, 0)
    shape, size = subject.test.skeleton, subject.test.size
    chosen = [shape.joints.index(name) for name in ('right_wrist', 'right_knee', 'left_knee')]
    times = some_of(subject.test.clip_len // 2, NUM_FRAMES_SHOWN)
    for row, joint in enumerate(chosen):
        for column, t in enumerate(times):
            left = x + column * CELL + (column // steps) * 4
            top = y + row * (CELL + 4)
            axes.add_patch(Rectangle((left, top), CELL, CELL, facecolor=DARK, edgecolor='none'))
            place = batch['keypoint'][0, 0, t, joint] * CELL / size + (left, top)
            axes.plot(*place, 'o', color=side_colour(shape, joint), markersize=4.5, markeredgewidth=0)
    w = steps * CELL
    axes.add_patch(Rectangle((x + (4 // steps) * (w + 4) , y + CELL + 4), w, CELL, fill=False, edgecolor=VERMILION,
                             linewidth=3, zorder=5))  # fmt: skip


def of_tubelets(axes: 'Axes', subject: 'Subject', volume: np.ndarray, x: float, y: float, edges: Sequence[int]) -> None:
    """The volume as a block, cut into smaller ones, of which one is marked."""
    from matplotlib.patches import Polygon, Rectangle

    side, depth = 119, np.array([9.0, -4.0])  # of a step in time
    size, steps = volume.shape[-1], 7
    back = np.array([x, y + 30])
    for i in reversed(range(steps)):
        axes.add_patch(Rectangle(back + i * depth, side, side, facecolor=DARK, edgecolor='white', linewidth=1))
    picture = coloured(volume[[len(volume) * 2 // 5]], channel_colours(subject.test.skeleton, 'joint'))[0]
    axes.imshow(picture.clip(0, 1).transpose(1, 2, 0), extent=(x, x + side, back[1] + side, back[1]), aspect='auto',
                interpolation='nearest', zorder=2)  # fmt: skip
    axes.set(xlim=(0, WIDTH), ylim=(HEIGHT, 0))
    cell = side * edges[1] / size
    for i in range(1, round(side / cell)):
        axes.plot([x + i * cell] * 2, [back[1], back[1] + side], color='#888888', linewidth=0.8, zorder=3)
        axes.plot([x, x + side], [back[1] + i * cell] * 2, color='#888888', linewidth=0.8, zorder=3)
    corner = back + np.array([side - cell, 2 * cell])
    axes.add_patch(Rectangle(corner, cell, cell, facecolor=VERMILION, edgecolor='white', linewidth=1, zorder=4))
    right, down = corner + np.array([cell, 0]), np.array([0, cell])
    wall = [right, right + depth, right + depth + down, right + down]
    axes.add_patch(Polygon(wall, facecolor=VERMILION, edgecolor='white', linewidth=1, zorder=4))


def of_transformer(axes: 'Axes', y: float, lines: Sequence[str], model: dict) -> None:
    from matplotlib.patches import FancyBboxPatch

    x, w, h = COLUMNS['model'], 216, 140
    style = f'round,pad=0,rounding_size={14}'
    axes.add_patch(FancyBboxPatch((x, y), w, h, style, facecolor='#e8f1f8', edgecolor=BLUE, linewidth=2))
    axes.text(x + w / 2, y + 32, lines[0], size=TEXT + 1, color=INK, ha='center', va='center', weight='bold')
    told = f'{lines[1]}\n{model["depth"]} layers, {model["dim_feat"]} wide'
    axes.text(x + w / 2, y + 90, told, size=SMALL - 1, color=INK, ha='center', va='center', linespacing=1.4)


def of_scores(axes: 'Axes', subject: 'Subject', num_classes: int) -> None:
    """Names of some classes, the clip's marked."""
    from matplotlib.patches import FancyBboxPatch

    x, w, h = COLUMNS['scores'], 222, 44
    names = list(NTU60[:num_classes])
    own = names.index(subject.action) if subject.action in names else 0
    shown = sorted({0, 1, *[(own + i) % len(names) for i in (-1, 0, 1)], len(names) - 1})
    rows = []
    for before, number in zip([-1, *shown], shown, strict=False):
        rows += ([None] if number > before + 1 else []) + [number]
    y, step = TOP, (BOTTOM - TOP - h) / (len(rows) - 1)
    for i, number in enumerate(rows):
        top = y + i * step
        if number is None:
            axes.text(x + w / 2, top + h / 2, '⋮', size=TITLE, color=FAINT, ha='center', va='center')
            continue
        is_own, size = number == own, SMALL if len(names[number]) < LONG else SMALL - 3
        style = f'round,pad=0,rounding_size={h / 2}'
        axes.add_patch(FancyBboxPatch((x, top), w, h, style, facecolor=VERMILION if is_own else PALE, edgecolor='none'))
        axes.text(x + w / 2, top + h / 2, names[number], size=size, ha='center', va='center',
                  color='white' if is_own else INK)  # fmt: skip
    heading(axes, 'scores', 6, 'Scores', f'of {num_classes} actions:\nthe highest wins')
