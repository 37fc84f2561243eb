"""Evaluate a checkpoint of any of the three models, as its script's --evaluate does.

    python -m lib.tools.evaluate checkpoint/action/mbert
    python -m lib.tools.evaluate checkpoint/action/mbert --out mbert_on_sbu \\
        --set data.ann_file=sbu_hrnet.pkl --set data.class_names=sbu_classes.txt

Prints the metrics and the ten most confused pairs; writes evaluation.json (metrics, per class, 95 % intervals),
predictions.npz (ids, labels, logits) and confusion_matrix.png. Of a folder the best checkpoint is taken.
"""

import argparse
import sys
from pathlib import Path

from lib.cli import run
from lib.data.batches import make_clips
from lib.evaluation import report_evaluation
from lib.log import say_facts
from lib.tools.checkpoints import open_checkpoint


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog='python -m lib.tools.evaluate'
    )
    parser.add_argument('evaluate', type=Path, metavar='CHECKPOINT', help="a run's folder, or a file in it")
    parser.add_argument('--out', type=Path, metavar='FOLDER', help="(default: the checkpoint's)")
    parser.add_argument(
        '--set', action='append', default=[], metavar='SECTION.KEY=VALUE', help='as the scripts take it'
    )
    return run(evaluate, parser.parse_args(arguments))


def evaluate(args: argparse.Namespace) -> None:
    checkpoint = open_checkpoint(args.evaluate, args.set)
    clips = make_clips(checkpoint.config, 'val')
    origin = f'{checkpoint.path}, epoch {checkpoint.epoch}'
    say_facts({'data': clips.description, 'val': clips.split_description, 'checkpoint': origin})
    world = checkpoint.training.distributed.init()
    render, model = checkpoint.model(clips.num_joints)
    scores = checkpoint.training.classify(render, model, checkpoint.config, clips, world)
    about = {
        'checkpoint': str(checkpoint.path),
        'script': checkpoint.script,
        'parameters': checkpoint.training.count_parameters(model),
        'epoch': checkpoint.epoch,
    }
    report_evaluation(args.out or checkpoint.path.parent, about, checkpoint.config, clips, scores, clips.labels)


if __name__ == '__main__':
    sys.exit(main())
