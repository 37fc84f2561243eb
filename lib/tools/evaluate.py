"""Evaluate a checkpoint of any of the three models.

    python -m lib.tools.evaluate checkpoint/action/mbert --set data.benchmark=xview --out out/mbert_xview

Prints accuracies and the ten most confused pairs of classes. Writes evaluation.json (metrics, 95 % intervals,
accuracy per class), predictions.npz (ids, labels, logits) and confusion_matrix.png, by default beside the checkpoint,
where they replace the files of the last evaluation. --set may change the data and test-time options.
"""

import argparse
import sys
from collections.abc import Sequence

from lib.cli import add_set
from lib.evaluation import WRITTEN, evaluate_weights
from lib.files import check_writable
from lib.tools.checkpoints import open_checkpoint
from lib.tools.running import add_checkpoint, add_out, check_new, make_parser, run_tool


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(__doc__, 'evaluate')
    add_checkpoint(parser)
    add_out(parser, 'FOLDER', text='folder without an evaluation (default: that of the checkpoint)')
    add_set(parser)
    return run_tool(evaluate, parser, argv)


def evaluate(args: argparse.Namespace) -> None:
    if args.out:
        check_new(args.out, *WRITTEN)
    checkpoint = open_checkpoint(args.checkpoint, args.set)
    folder = args.out or checkpoint.path.parent
    check_writable(folder, 'Choose another folder for --out.')
    evaluate_weights(checkpoint, folder)


if __name__ == '__main__':
    sys.exit(main())
