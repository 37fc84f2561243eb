"""Fuse the predictions of several models: the weighted mean of their probabilities, as of joint and limb maps.

    python -m lib.tools.fuse checkpoint/action/joint checkpoint/action/limb
    python -m lib.tools.fuse checkpoint/action/joint checkpoint/action/limb --weights 2 1
    python -m lib.tools.fuse checkpoint/action/joint checkpoint/action/limb --tune out/joint_tune out/limb_tune

A run's folder stands for its predictions.npz, which an evaluation writes; all must be of the same clips. Prints the
accuracy of each and of all together. Of two it also searches the best weight, in steps of 0.01: by --tune on other
clips, the same two models' predictions of another list (`lib.tools.evaluate FOLDER --out out/joint_tune --set
data.benchmark=[xsub_train,LIST]` makes them); without it on the very clips that are scored, which flatters: that figure
is an upper bound and no result.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lib.cli import DONE, USER_ERROR
from lib.errors import UserError
from lib.evaluation import read_predictions
from lib.metrics import classification_metrics, log_probability

STEPS = 100  # of the search


class Stream(NamedTuple):
    """The predictions of a model: ids (N,) text, labels (N,), logits (N, K)."""

    path: Path
    ids: np.ndarray
    labels: np.ndarray
    logits: np.ndarray


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog='python -m lib.tools.fuse'
    )
    parser.add_argument(
        'files', nargs='+', type=Path, metavar='FILE', help='predictions.npz or its folder, two or more'
    )
    parser.add_argument('--weights', nargs='+', type=float, metavar='W', help='one for each file (default: all equal)')
    parser.add_argument('--tune', nargs=2, type=Path, metavar='FILE', help='of the same two models on other clips')
    args = parser.parse_args(arguments)
    try:
        for line in fuse(args.files, args.weights, args.tune):
            print(line)
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        return USER_ERROR
    return DONE


def fuse(files: Sequence[Path], weights: Sequence[float] | None, tune: Sequence[Path] | None) -> list[str]:
    """The lines to print. Raises UserError, naming the file, where predictions cannot be fused."""
    if len(files) < 2:
        raise UserError('one file alone cannot be fused: name the predictions.npz of two or more models.')
    if weights is None:
        weights = [1.0] * len(files)
    if len(weights) != len(files) or not all(0 <= weight < np.inf for weight in weights) or not sum(weights):
        raise UserError(f'--weights {" ".join(map(str, weights))}: give {len(files)} numbers, 0 or more, not all 0.')
    if tune and len(files) != 2:
        raise UserError(f'--tune searches the weight of two models, and {len(files)} are given.')
    streams = read_aligned(files)
    others = read_aligned(tune) if tune else streams  # before anything is told

    share = np.array(weights) / sum(weights)
    labels, width = streams[0].labels, max(len(str(stream.path)) for stream in streams)
    lines = [f'{len(labels):,} clips of {len(np.unique(labels))} classes']
    lines += [f'{stream.path!s:<{width}}  {accuracy(stream.logits, labels)}' for stream in streams]
    told = ' '.join(f'{part:.2f}' for part in share)
    lines += [f'{"fused " + told:<{width}}  {accuracy(fused(streams, share), labels)}']
    if len(streams) == 2:
        best = best_weight(others)
        where = f'on {len(others[0].ids):,} clips of --tune' if tune else 'on these clips, which flatters'
        lines += [
            f'{f"best {best:.2f} {1 - best:.2f}":<{width}}  {accuracy(fused(streams, (best, 1 - best)), labels)}'
            f'  (found {where})'
        ]
    return lines


def read_aligned(files: Sequence[Path]) -> list[Stream]:
    """The streams, their clips in the order of the first. Raises UserError where clips, labels or classes differ."""
    files = [file / 'predictions.npz' if file.is_dir() else file for file in files]
    first, *others = (Stream(file, *read_predictions(file)) for file in files)
    if len(np.unique(first.ids)) < len(first.ids):
        raise UserError(f'{first.path} has predictions of the same clip twice.')
    aligned = [first]
    for stream in others:
        missing, more = np.setdiff1d(first.ids, stream.ids), np.setdiff1d(stream.ids, first.ids)
        if len(missing) or len(more) or len(stream.ids) != len(first.ids):
            example = f'{missing[0]} is missing there' if len(missing) else f'{more[0]} is not in {first.path}'
            if not len(missing) + len(more):
                example = 'it has a clip twice'
            raise UserError(
                f'{stream.path} is of other clips than {first.path} ({len(missing)} are missing, {len(more)} are more; '
                f'{example}). Evaluate both models on the same list.'
            )
        order = np.argsort(stream.ids)[np.argsort(np.argsort(first.ids))]
        stream = Stream(stream.path, *(array[order] for array in stream[1:]))
        if (wrong := stream.labels != first.labels).any():
            clip = wrong.argmax()
            raise UserError(
                f'{stream.path} has other labels than {first.path} for {wrong.sum()} clips, first {first.ids[clip]}: '
                f'{stream.labels[clip]}, there {first.labels[clip]}.'
            )
        if stream.logits.shape != first.logits.shape:
            raise UserError(
                f'{stream.path} has {stream.logits.shape[1]} classes, {first.path} {first.logits.shape[1]}.'
            )
        aligned.append(stream)
    return aligned


def fused(streams: Sequence[Stream], share: Sequence[float]) -> np.ndarray:
    """The mean of the probabilities (N, K), float64, weighted by `share`."""
    return sum(part * np.exp(log_probability(stream.logits)) for part, stream in zip(share, streams, strict=True))


def best_weight(streams: Sequence[Stream]) -> float:
    """The share of the first of two streams at which most clips are right; of equal ones the nearest to a half."""
    shares = np.linspace(0, 1, STEPS + 1)
    one, other = (np.exp(log_probability(stream.logits)) for stream in streams)
    hits = [((share * one + (1 - share) * other).argmax(axis=1) == streams[0].labels).sum() for share in shares]
    return float(min(shares, key=lambda share: (-hits[round(share * STEPS)], abs(share - 0.5))))


def accuracy(scores: np.ndarray, labels: np.ndarray) -> str:
    """Accuracies of scores (N, K), of which the highest wins, in words."""
    found = classification_metrics(scores, labels)
    return f'Acc@1 {100 * found["top1"]:.2f} Acc@5 {100 * found["top5"]:.2f} MeanClass {100 * found["mean_class"]:.2f}'


if __name__ == '__main__':
    sys.exit(main())
