"""Figures: confusion matrices, heatmap volumes and prediction timelines.

Colours are colour-blind safe (Okabe and Ito, 2008). K classes, T frames, C channels of a
volume, W windows of a timeline.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lib.data.clips import Clips
from lib.data.skeletons import Skeleton
from lib.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Colour = tuple[float, float, float]

BLUE, VERMILION = '#0072b2', '#d55e00'
INK, GRID = '#222222', '#dddddd'
LEFT, RIGHT, MIDDLE = (0.34, 0.71, 0.91), (0.90, 0.62, 0.0), (1.0, 1.0, 1.0)  # sides of the body
MOST_ACTIONS = 12  # in a timeline


def new_figure(width: float, height: float) -> 'Figure':
    """Creates a white figure, independent of pyplot. width, height: in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout='constrained', facecolor='white')


def save_figure(figure: 'Figure', path: Path) -> None:
    """Writes a PNG at 120 dpi. Raises UserError if that fails."""
    with replacing(path) as file:
        figure.savefig(file, format='png', dpi=120)


def confusion_figure(matrix: np.ndarray, names: Sequence[str]) -> 'Figure':
    """Plots a confusion matrix (K, K) in percent of each row (label), without classes that do not occur."""
    from matplotlib.colors import PowerNorm

    shown = np.flatnonzero(matrix.sum(axis=0) + matrix.sum(axis=1))
    matrix, names = matrix[np.ix_(shown, shown)], [names[number] for number in shown]
    share = 100 * matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    cell, size, least = (0.55, 9, 0.5) if len(shown) <= 20 else (0.2, 6.5, 4.5)  # inches, points, smallest number shown
    edge = cell * len(shown) + 0.09 * max(map(len, names)) + 0.8
    figure = new_figure(edge + 0.5, edge)
    axes = figure.subplots()
    image = axes.imshow(share, cmap='Blues', norm=PowerNorm(0.5, 0, 100))  # makes 5 % distinguishable from 0
    for true, predicted in zip(*np.nonzero(share >= least), strict=True):
        value = share[true, predicted]
        colour = 'white' if value > 35 else INK
        axes.text(predicted, true, f'{value:.0f}', ha='center', va='center', color=colour, fontsize=size - 1)
    axes.set_xticks(range(len(shown)), names, rotation=90, fontsize=size, parse_math=False)
    axes.set_yticks(range(len(shown)), names, fontsize=size, parse_math=False)
    axes.tick_params(length=0)
    axes.spines[:].set_color(GRID)
    axes.set_xlabel('predicted', fontsize=size + 2)
    axes.set_ylabel('label', fontsize=size + 2)
    figure.colorbar(image, ax=axes, shrink=0.6, pad=0.02, label='% of the class', ticks=(0, 5, 20, 40, 60, 80, 100))
    return figure


def motion_figure(truth: np.ndarray, prediction: np.ndarray, visible: np.ndarray, title: str) -> 'Figure':
    """Plots the true and the predicted motion of the joints of one person over time, both (V, T).

    visible: (V, T) bool, where the model has seen the joint; black in the prediction.
    """
    figure = new_figure(10, 5)
    upper, lower = figure.subplots(2, sharex=True)
    lower.set_facecolor(INK)
    for axes, values, name in ((upper, truth, 'true'), (lower, np.where(visible, np.nan, prediction), 'predicted')):
        image = axes.imshow(values, cmap='coolwarm', vmin=-2, vmax=2, aspect='auto', interpolation='nearest')
        axes.set_ylabel(f'joint ({name})')
        axes.set_yticks(range(0, len(values), 4))
    lower.set_xlabel('frame (black: visible to the model)')
    upper.set_title(_shorten(title, 60), loc='left', fontsize=11, parse_math=False)
    figure.colorbar(image, ax=[upper, lower], label='horizontal motion, normalised', pad=0.02)
    return figure


def timeline_figure(edges: Sequence[int], probability: np.ndarray, names: Sequence[str], title: str) -> 'Figure':
    """Plots class probabilities over time, one row per action that is the most likely one in some window.

    edges: (W + 1,) window boundaries in frames. probability: (W, K), NaN in windows without persons; at least one
    window must have persons. The most likely action of each window is underlined.
    """
    from matplotlib.colors import LinearSegmentedColormap

    occupied = np.flatnonzero(np.isfinite(probability[:, 0]))
    predicted = probability[occupied].argmax(axis=1)
    actions, first, counts = np.unique(predicted, return_index=True, return_counts=True)
    most_frequent = np.argsort(-counts, kind='stable')[:MOST_ACTIONS]
    shown = actions[most_frequent[np.argsort(first[most_frequent])]].tolist()  # in order of appearance

    figure = new_figure(10, 1.5 + 0.32 * max(len(shown), 3))
    axes = figure.subplots()
    axes.set_facecolor(GRID)
    colours = LinearSegmentedColormap.from_list('probability', ['white', BLUE])
    mesh = axes.pcolormesh(edges, range(len(shown) + 1), 100 * probability[:, shown].T, cmap=colours, vmin=0, vmax=100)
    for window, action in zip(occupied, predicted, strict=True):
        if action in shown:
            line = shown.index(action) + 0.9
            axes.hlines(line, edges[window], edges[window + 1], color=VERMILION, linewidth=3)
    axes.hlines(range(1, len(shown)), edges[0], edges[-1], color=GRID, linewidth=0.6)
    axes.set_yticks(np.arange(len(shown)) + 0.5, [_shorten(names[n], 36) for n in shown], parse_math=False)
    axes.tick_params(axis='y', length=0)
    axes.set_ylim(len(shown), 0)
    axes.set_xlim(edges[0], edges[-1])
    notes = ['underlined: most likely action']
    if len(occupied) < len(probability):
        notes.append('grey: no person')
    if hidden := len(actions) - len(shown):
        notes.append(f'{hidden} rarer actions not shown')
    axes.set_xlabel(f'frame ({", ".join(notes)})')
    axes.set_title(_shorten(title, 60), loc='left', fontsize=11, parse_math=False)
    figure.colorbar(mesh, ax=axes, label='probability, %', pad=0.02)
    return figure


def _shorten(text: str, most: int) -> str:
    return text if len(text) <= most else f'{text[: most - 3]}...'


def clip_image(
    clips: Clips, kind: str, draw: Callable[[np.ndarray, np.ndarray], np.ndarray], frames: int = 12
) -> tuple[str, np.ndarray]:
    """Draws evenly spaced frames of the heatmap volume of a split's first clip.

    draw: renders maps of `kind`, (keypoint, score) -> (N, T, C, H, W). Returns the tag 'heatmap/<frame_dir>' and the
    image (3, H, W) uint8.
    """
    batch = clips[0, 0]
    first = np.s_[:1] if clips.num_views == 1 else np.s_[:1, 0]
    volume = draw(batch['keypoint'][first], batch['score'][first])[0]
    volume = volume[np.linspace(0, len(volume) - 1, min(frames, len(volume))).astype(int)]
    images = colour_channels(volume, channel_colours(clips.skeleton, kind)).repeat(4, -2).repeat(4, -1)
    images = np.pad(images, [(0, 0), (0, 0), (0, 4), (0, 4)], constant_values=0.35)
    rows = [np.concatenate(list(images[start : start + 6]), axis=-1) for start in range(0, len(images), 6)]
    rows[-1] = np.pad(rows[-1], [(0, 0), (0, 0), (0, rows[0].shape[-1] - rows[-1].shape[-1])], constant_values=0.35)
    image = (np.concatenate(rows, axis=-2).clip(0, 1) * 255).astype(np.uint8)
    return f'heatmap/{clips.names(0, 0)[0]}', image


def colour_channels(volume: np.ndarray, colours: Sequence[Colour]) -> np.ndarray:
    """Converts a volume (T, C, H, W) in [0, 1] to RGB images (T, 3, H, W) float32, one colour per channel."""
    return (volume[:, :, None] * np.array(colours, np.float32)[None, :, :, None, None]).max(1)


def channel_colours(skeleton: Skeleton, kind: str) -> list[Colour]:
    """Colour of each channel by side of the body: left blue, right orange, middle white."""
    joints = [side_colour(skeleton, joint) for joint in range(len(skeleton.joints))]
    limbs = [side_colour(skeleton, *limb) for limb in skeleton.limbs]
    return {'joint': joints, 'limb': limbs, 'both': joints + limbs}[kind]


def side_colour(skeleton: Skeleton, *joints: int) -> Colour:
    """Colour of the body side of a joint, or of a limb between two joints."""
    if any(joint in skeleton.left for joint in joints) == any(joint in skeleton.right for joint in joints):
        return MIDDLE
    return LEFT if any(joint in skeleton.left for joint in joints) else RIGHT
