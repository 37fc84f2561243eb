"""Train or evaluate ViViT on heatmap volumes.

    python train_action_vivit.py --config configs/action/vivit.yaml --checkpoint checkpoint/action/vivit
    python train_action_vivit.py --evaluate checkpoint/action/vivit/best_epoch.npz

The same command again goes on where the run was stopped. On all GPUs of the host, else on the CPU; on several hosts
where TF_CONFIG names them (see lib/tensorflow/distributed.py). data.batch_size is that of all devices together.
"""

import argparse
import sys

from lib import cli
from lib.config import load_config
from lib.data.clips import Clips
from lib.log import Log
from lib.stop import StopSignal
from lib.tensorflow import checkpoint, distributed, engine
from lib.tensorflow.heatmap import HeatmapRenderer
from lib.tensorflow.vivit import ViViT
from lib.training import make_clips

KIND = 'vivit'
DEFAULT_CONFIG = 'configs/action/vivit.yaml'
SECTIONS = {
    'data': Clips,
    'heatmap': HeatmapRenderer,
    'model': ViViT,
    'optimizer': engine.make_optimizer,
    'train': engine.TrainOptions,
}


def train(args: argparse.Namespace) -> None:
    config = load_config(args.config, SECTIONS, args.set)
    options, world = engine.TrainOptions(**config.train), distributed.init()
    options.check_device()
    options.check_batch_size(config.data.batch_size, world.num_replicas)
    run = checkpoint.Run.open(args.checkpoint, args.resume, KIND, config, SECTIONS, world.is_main)

    train_clips, val_clips = (make_clips(config, split) for split in ('train', 'val'))
    render, model = engine.make_model(ViViT, config, train_clips.num_joints, world)
    optimizer = engine.make_optimizer(model, **config.optimizer)
    run.restore(model, optimizer)
    train_step = engine.make_train_step(render, model, optimizer, options, world)
    predict_step = engine.make_predict_step(render, model, options, world)
    world.check_same('numbers of completed epochs', run.epoch)
    world.check_same('numbers of completed steps', run.step)
    run.begin(len(train_clips))

    with StopSignal() as stop, Log(run, options.epochs, args.print_freq) as log:
        engine.start_log(log, train_clips, val_clips, render, model, world)
        while run.epoch < options.epochs:
            train_metrics = engine.train_one_epoch(
                train_step, optimizer, config.optimizer.lr, train_clips, run, options, world, log, stop
            )
            val_metrics = engine.validate(predict_step, val_clips, run, options, world, stop)
            run.finish_epoch(train_metrics, val_metrics)
            log.epoch()
        run.wait()
        log.end()


def evaluate(args: argparse.Namespace) -> None:
    engine.evaluate(args, KIND, SECTIONS, DEFAULT_CONFIG)


if __name__ == '__main__':
    args = cli.parse_args(__doc__, DEFAULT_CONFIG, finetunes=False)
    sys.exit(cli.run(evaluate if args.evaluate else train, args))
