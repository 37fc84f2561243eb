"""Fuse the predictions of several models, for example of joint and limb maps.

    python -m lib.tools.fuse checkpoint/action/joint checkpoint/action/limb --weights 2 1

Prints the accuracy of each model and of the weighted mean of their probabilities. FILE is the predictions.npz of an
evaluation, or its folder; all files must contain the same clips.

--tune searches for the best weight of two models on their predictions for other clips, evaluated with --out and another
data.benchmark. A weight tuned on the scored clips would overstate the accuracy.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lib.errors import UserError, shown_text
from lib.evaluation import accuracy_line, read_predictions
from lib.metrics import classification_metrics, log_probability
from lib.tools.running import log, make_parser, run_tool

STEPS = 100  # of the search


class Stream(NamedTuple):
    """The predictions of a model: ids (N,) text, labels (N,), logits (N, K)."""

    path: Path
    ids: np.ndarray
    labels: np.ndarray
    logits: np.ndarray


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(__doc__, 'fuse')
    parser.add_argument('files', nargs='+', type=Path, metavar='FILE', help='predictions.npz or its folder')
    parser.add_argument('--weights', nargs='+', type=float, metavar='W', help='weight of each FILE (default: equal)')
    parser.add_argument('--tune', nargs=2, type=Path, metavar='FILE', help='the same two models, other clips')
    return run_tool(fuse, parser, argv)


def fuse(args: argparse.Namespace) -> None:
    count, weights = len(args.files), args.weights or [1.0] * len(args.files)
    if count < 2:
        raise UserError('one FILE cannot be fused: give the predictions of two or more models.')
    if len(weights) != count or not all(0 <= weight < np.inf for weight in weights) or not sum(weights):
        raise UserError(f'--weights {" ".join(map(str, weights))}: give {count} numbers, 0 or more, not all 0.')
    if args.tune and count != 2:
        raise UserError(f'--tune searches for the weight of two models, but {count} are given.')
    streams = read_aligned(args.files)
    labels, width = streams[0].labels, max(len(str(stream.path)) for stream in streams)
    rows = [(str(stream.path), stream.logits) for stream in streams]
    shares = np.array(weights) / sum(weights)
    rows.append((f'fused {" ".join(f"{share:.2f}" for share in shares)}', fused(streams, shares)))
    if args.tune:
        others = read_aligned(args.tune)
        check_disjoint(streams[0], others[0])
        best = best_weight(others)
        rows.append((f'tuned {best:.2f} {1 - best:.2f}', fused(streams, (best, 1 - best))))
    log.info('%s clips of %s classes', f'{len(labels):,}', len(np.unique(labels)))
    for name, scores in rows:
        log.info('%s  %s', f'{name:<{width}}', accuracy_line(classification_metrics(scores, labels)))


def read_aligned(files: Sequence[Path]) -> list[Stream]:
    """Reads streams and sorts their clips like the first. Raises UserError if clips, labels or classes differ."""
    files = [file / 'predictions.npz' if file.is_dir() else file for file in files]
    first, *others = (Stream(file, *read_predictions(file)) for file in files)
    if len(np.unique(first.ids)) < len(first.ids):
        raise UserError(f'{first.path} contains a clip twice.')
    aligned = [first]
    for stream in others:
        missing, more = np.setdiff1d(first.ids, stream.ids), np.setdiff1d(stream.ids, first.ids)
        if len(missing) or len(more) or len(stream.ids) != len(first.ids):
            example = f', first {shown_text(str([*missing, *more][0]))}' if len(missing) + len(more) else ''
            raise UserError(
                f'{stream.path} and {first.path} contain different clips ({len(missing)} are missing from the former '
                f'and {len(more)} from the latter{example}). Evaluate both models on the same split.'
            )
        order = np.argsort(stream.ids)[np.argsort(np.argsort(first.ids))]
        stream = Stream(stream.path, *(array[order] for array in stream[1:]))
        if (wrong := stream.labels != first.labels).any():
            clip = wrong.argmax()
            raise UserError(
                f'{stream.path} and {first.path} have different labels for {wrong.sum()} clips, first '
                f'{shown_text(str(first.ids[clip]))}: {stream.labels[clip]} and {first.labels[clip]}.'
            )
        if stream.logits.shape != first.logits.shape:
            raise UserError(
                f'{stream.path} has {stream.logits.shape[1]} classes, but {first.path} has {first.logits.shape[1]}.'
            )
        aligned.append(stream)
    return aligned


def check_disjoint(scored: Stream, tuned: Stream) -> None:
    """Raises UserError if the weight would be tuned on scored clips."""
    shared = np.intersect1d(scored.ids, tuned.ids)
    if len(shared):
        raise UserError(
            f'--tune {tuned.path} contains {len(shared):,} of the {len(scored.ids):,} clips of {scored.path}, first '
            f'{shown_text(str(shared[0]))}. Evaluate both models on another split and tune on that.'
        )


def fused(streams: Sequence[Stream], shares: Sequence[float]) -> np.ndarray:
    """The mean of the probabilities (N, K), float64, weighted by `shares`."""
    return sum(share * np.exp(log_probability(stream.logits)) for share, stream in zip(shares, streams, strict=True))


def best_weight(streams: Sequence[Stream]) -> float:
    """The share of the first of two streams with the most correct clips; the nearest to 0.5 among equals."""
    shares = np.linspace(0, 1, STEPS + 1)
    one, other = (np.exp(log_probability(stream.logits)) for stream in streams)
    correct = [((share * one + (1 - share) * other).argmax(axis=1) == streams[0].labels).sum() for share in shares]
    return float(min(shares, key=lambda share: (-correct[round(share * STEPS)], abs(share - 0.5))))


if __name__ == '__main__':
    sys.exit(main())
