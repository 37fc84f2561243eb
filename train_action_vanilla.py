"""Train or evaluate the vanilla transformer on heatmap volumes or keypoints.

    python train_action_vanilla.py --config configs/action/vanilla.yaml --checkpoint checkpoint/action/vanilla
    python train_action_vanilla.py --evaluate checkpoint/action/vanilla/best_epoch.bin
    torchrun --nproc_per_node=8 train_action_vanilla.py ...     # same config: data.batch_size is global

The same command resumes a stopped run. Runs on a GPU if available, else on the CPU.
"""

import argparse
import sys

from lib import cli
from lib.data.batches import make_clips
from lib.evaluation import evaluate_checkpoint, scores_of, validation_metrics
from lib.log import Log
from lib.metrics import confusion_matrix
from lib.models import load_config
from lib.pytorch import checkpoint, distributed, training
from lib.pytorch.pretrained import load_backbone
from lib.recipe import step_seed
from lib.stop import StopSignal

SCRIPT = 'vanilla'  # name in the table of models, lib/models.py


def train(args: argparse.Namespace) -> None:
    config = load_config(args.config, args.set, SCRIPT)
    options, world = training.TrainOptions(**config.train), distributed.init()
    options.set_precision(world.device)
    options.check_batch_size(config.data.batch_size, world.size)
    run = checkpoint.Run.open(args.checkpoint, args.resume, config, world.is_main)
    pretrained = options.pretrained_file(args, resumes=run.source is not None)

    train_clips, val_clips = (make_clips(config, split).for_rank(world.rank, world.size) for split in ('train', 'val'))
    steps, share_size = train_clips.num_steps, config.data.batch_size // world.size
    render, model = training.make_model(config, train_clips.num_joints, world.device)
    training.check_batch_norm(model, options, config.data.batch_size, world)
    messages = load_backbone(model, pretrained) if pretrained else []
    optimizer = training.make_optimizer(model, **config.optimizer)
    run.restore(model, optimizer)
    if options.activation_checkpointing:
        training.recompute_blocks(model)
    forward = training.make_forward(render, model, options, world)  # (keypoint, score) -> logits
    run.begin(world, len(train_clips))

    with StopSignal() as stop, Log(run, args.print_freq) as log:
        log.start(train_clips, val_clips, training.describe(model), world, messages)
        training.log_heatmaps(log, render, val_clips)
        while run.epoch < options.epochs:
            model.train()
            results = []  # per step, on the device
            batches = training.load_batches(train_clips, run.epoch, options, world, first=run.step)
            for step, batch in log.progress(batches, train_clips):
                training.set_learning_rates(optimizer, options, run.epoch, step, len(train_clips))
                seed = step_seed(options.seed, run.epoch, step, world.rank)  # for dropout
                results.append(training.train_step(forward, optimizer, batch, options, share_size, seed))

                to_report, to_save = log.is_due(step, steps), options.saves_after(step)
                if to_report or to_save or (stop.requested and world.is_alone):
                    losses, num_correct, to_exit = world.reduce(results, stop.requested)  # waits for the device
                    run.add_steps(losses, num_correct, train_clips)
                    results.clear()
                    if to_report:
                        log.report()
                    if to_exit:
                        run.save_and_exit(world)
                    if to_save:
                        run.save()

            logits = training.predict(forward, model, val_clips, options, world, lambda: run.exit_if(stop, world))
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
