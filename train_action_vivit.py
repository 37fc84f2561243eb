"""Train or evaluate ViViT on heatmap volumes.

    python train_action_vivit.py --config configs/action/vivit.yaml --checkpoint checkpoint/action/vivit
    python train_action_vivit.py --evaluate checkpoint/action/vivit/best_epoch.npz

The same command resumes a stopped run. Runs on all GPUs of the host, else on the CPU; on several hosts with
TF_CONFIG (see lib/tensorflow/distributed.py). data.batch_size is global.
"""

import argparse
import sys

from lib import cli
from lib.data.batches import make_clips
from lib.evaluation import evaluate_checkpoint, scores_of, validation_metrics
from lib.log import Log
from lib.metrics import confusion_matrix
from lib.models import load_config
from lib.stop import StopSignal
from lib.tensorflow import checkpoint, distributed, training
from lib.tensorflow.pretrained import load_backbone

SCRIPT = 'vivit'  # name in the table of models, lib/models.py


def train(args: argparse.Namespace) -> None:
    config = load_config(args.config, args.set, SCRIPT)
    options, world = training.TrainOptions(**config.train), distributed.init()
    options.set_precision()
    options.check_batch_size(config.data.batch_size, world.num_replicas)
    run = checkpoint.Run.open(args.checkpoint, args.resume, config, world.is_main)
    pretrained = options.pretrained_file(args, resumes=run.source is not None)

    train_clips, val_clips = (make_clips(config, split).for_rank(0, world.num_replicas) for split in ('train', 'val'))
    steps = train_clips.num_steps
    render, model = training.make_model(config, train_clips.num_joints, world)
    messages = load_backbone(model, pretrained) if pretrained else []
    optimizer = training.make_optimizer(model, **config.optimizer)
    run.restore(model, optimizer)
    train_step = training.make_train_step(render, model, optimizer, options, world)
    predict_step = training.make_predict_step(render, model, options, world)
    run.begin(world, len(train_clips))

    with StopSignal() as stop, Log(run, args.print_freq) as log:
        log.start(train_clips, val_clips, training.describe(model), world, messages)
        training.log_heatmaps(log, render, val_clips)
        while run.epoch < options.epochs:
            results = []  # per step, on the devices
            batches = training.load_batches(train_clips, run.epoch, options, world, first=run.step)
            for step, shares in log.progress(batches, train_clips):
                optimizer.learning_rate.assign(
                    config.optimizer.lr * options.lr_factor(run.epoch, step, len(train_clips))
                )
                results.append(train_step(world.distribute(shares)))

                to_report, to_save = log.is_due(step, steps), options.saves_after(step)
                if to_report or to_save or (stop.requested and world.is_alone):
                    losses, num_correct, to_exit = world.reduce(results, stop.requested)  # waits for the devices
                    run.add_steps(losses, num_correct, train_clips)
                    results.clear()
                    if to_report:
                        log.report()
                    if to_exit:
                        run.save_and_exit(world)
                    if to_save:
                        run.save()

            logits = training.predict(predict_step, val_clips, options, world, lambda: run.exit_if(stop, world))
            scores = scores_of(logits, val_clips)
            run.finish_epoch(validation_metrics(scores, val_clips.labels))
            log.epoch(confusion_matrix(scores, val_clips.labels))
        run.wait()
        log.end()


def evaluate(args: argparse.Namespace) -> None:
    evaluate_checkpoint(args, SCRIPT)


if __name__ == '__main__':
    args = cli.parse_args(__doc__, SCRIPT)
    sys.exit(cli.run(evaluate if args.evaluate else train, args))
