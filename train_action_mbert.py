"""Train or evaluate MotionBERT on heatmap volumes or keypoints.

    python train_action_mbert.py --config configs/action/MB_train.yaml --checkpoint checkpoint/action/mbert
    python train_action_mbert.py --evaluate checkpoint/action/mbert/best_epoch.bin

The same command again goes on where the run was stopped. On a GPU where there is one, else on the CPU.
"""

import argparse
import sys

from lib import cli
from lib.config import load_config
from lib.data.clips import Clips
from lib.log import Log
from lib.pytorch import checkpoint, distributed, engine
from lib.pytorch.heatmap import HeatmapRenderer
from lib.pytorch.mbert import MotionBERT
from lib.stop import StopSignal
from lib.training import make_clips

KIND = 'mbert'
DEFAULT_CONFIG = 'configs/action/MB_train.yaml'
SECTIONS = {
    'data': Clips,
    'heatmap': HeatmapRenderer,
    'model': MotionBERT,
    'optimizer': engine.make_optimizer,
    'train': engine.TrainOptions,
}


def train(args: argparse.Namespace) -> None:
    config = load_config(args.config, SECTIONS, args.set)
    options, world = engine.TrainOptions(**config.train), distributed.init()
    options.check_device(world.device)
    options.check_batch_size(config.data.batch_size, world.size)
    run = checkpoint.Run.open(args.checkpoint, args.resume, KIND, config, SECTIONS, world.is_main)

    train_clips, val_clips = (make_clips(config, split) for split in ('train', 'val'))
    render, model = engine.make_model(MotionBERT, config, train_clips.num_joints, world.device)
    engine.check_batch_norm(model, options, config.data.batch_size)
    pretrained = engine.load_pretrained(model, options, args, run)
    optimizer = engine.make_optimizer(model, **config.optimizer)
    run.restore(model, optimizer)
    forward = engine.make_forward(render, model, options, world)
    world.check_same('numbers of completed epochs', run.epoch)
    world.check_same('numbers of completed steps', run.step)
    run.begin(len(train_clips))

    with StopSignal() as stop, Log(run, options.epochs, args.print_freq) as log:
        engine.start_log(log, train_clips, val_clips, render, model, pretrained, world)
        while run.epoch < options.epochs:
            train_metrics = engine.train_one_epoch(
                forward, model, optimizer, train_clips, run, options, world, log, stop
            )
            val_metrics = engine.validate(forward, model, val_clips, run, options, world, stop)
            run.finish_epoch(train_metrics, val_metrics)
            log.epoch()
        run.wait()
        log.end()


def evaluate(args: argparse.Namespace) -> None:
    engine.evaluate(args, KIND, SECTIONS, DEFAULT_CONFIG)


if __name__ == '__main__':
    args = cli.parse_args(__doc__, DEFAULT_CONFIG)
    sys.exit(cli.run(evaluate if args.evaluate else train, args))
