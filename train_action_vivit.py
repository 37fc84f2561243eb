"""Train or evaluate ViViT on heatmap volumes.

    python train_action_vivit.py --config configs/action/vivit.yaml --checkpoint checkpoint/action/vivit
    python train_action_vivit.py --evaluate checkpoint/action/vivit/best_epoch.npz

The same command again goes on from the last finished epoch. On a GPU where there is one, else on the CPU.
"""

import argparse
import sys

from lib import cli
from lib.config import load_config
from lib.data.clips import Clips
from lib.run import make_clips
from lib.tensorflow import checkpoint, engine
from lib.tensorflow.heatmap import HeatmapRenderer
from lib.tensorflow.vivit import ViViT

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
    options = engine.TrainOptions(**config.train)
    run = checkpoint.Run.open(args.checkpoint, args.resume, KIND, config, SECTIONS)

    train_clips, val_clips = (make_clips(config, split) for split in ('train', 'val'))
    render, model = engine.make_model(ViViT, config, train_clips)
    optimizer = engine.make_optimizer(model, **config.optimizer)
    run.restore(model, optimizer)
    train_step = engine.make_train_step(render, model, optimizer, options, train_clips.shape)
    predict_step = engine.make_predict_step(render, model, options, val_clips.shape)
    log = engine.open_log(run, options, train_clips, val_clips, render, model)

    for epoch in range(run.epoch, options.epochs):
        train_metrics = engine.train_one_epoch(
            train_step, optimizer, config.optimizer.lr, train_clips, epoch, options, log, args.print_freq
        )
        val_metrics = engine.validate(predict_step, val_clips)
        run.finish_epoch(model, optimizer, train_metrics, val_metrics)
        log.epoch(run.history, epochs=options.epochs, best=run.best, num_clips=train_clips.clips_per_epoch)
    run.say_end()


def evaluate(args: argparse.Namespace) -> None:
    engine.evaluate(args, KIND, SECTIONS, DEFAULT_CONFIG)


if __name__ == '__main__':
    args = cli.parse_args(__doc__, DEFAULT_CONFIG, finetunes=False)
    sys.exit(cli.run(evaluate if args.evaluate else train, args))
