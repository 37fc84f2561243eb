"""Pretrain the vanilla transformer without labels: predict the motion of masked joints.

    python -m lib.tools.pretrain --config configs/pretrain/vanilla.yaml --checkpoint checkpoint/pretrain/vanilla
    python train_action_vanilla.py --pretrained checkpoint/pretrain/vanilla --set train.finetune=true ...

The same command resumes a stopped run. `explained` is the share of the motion of the validation clips that the model
predicts: 1 - loss / loss of predicting no motion. Also runs under torchrun.
"""

import argparse
import sys
from collections.abc import Sequence

from lib import cli
from lib.data.batches import make_clips
from lib.errors import UserError
from lib.log import Log
from lib.models import load_config
from lib.recipe import step_seed
from lib.stop import StopSignal

SCRIPT = 'pretrain'  # name in the table of models, lib/models.py
UNUSED = ('label_smoothing', 'partial_train', 'finetune')  # keys of section train that need classes


def train(args: argparse.Namespace) -> None:
    from lib.pytorch import checkpoint, distributed, pretraining, training

    config = load_config(args.config, args.set, SCRIPT)
    options, world = training.TrainOptions(**config.train), distributed.init()
    for key in UNUSED:
        if config.train[key]:
            raise UserError(f'train.{key} has no effect in pretraining. Omit it.')
    options.set_precision(world.device)
    options.check_batch_size(config.data.batch_size, world.size)
    run = checkpoint.Run.open(args.checkpoint, args.resume, config, world.is_main)

    train_clips, val_clips = (make_clips(config, split).for_rank(world.rank, world.size) for split in ('train', 'val'))
    steps, share_size = train_clips.num_steps, config.data.batch_size // world.size
    render, model = training.make_model(config, train_clips.num_joints, world.device)
    model.check_motion(config)
    optimizer = training.make_optimizer(model, **config.optimizer)
    run.restore(model, optimizer)
    if options.activation_checkpointing:
        training.recompute_blocks(model)
    forward = training.make_forward(render, model, options, world)  # (keypoint, score) -> errors
    run.begin(world, len(train_clips))

    with StopSignal() as stop, Log(run, args.print_freq) as log:
        log.start(train_clips, val_clips, training.describe(model), world, [])
        training.log_heatmaps(log, render, val_clips)
        while run.epoch < options.epochs:
            model.train()
            results = []  # per step, on the device
            batches = training.load_batches(train_clips, run.epoch, options, world, first=run.step)
            for step, batch in log.progress(batches, train_clips):
                training.set_learning_rates(optimizer, options, run.epoch, step, len(train_clips))
                seed = step_seed(options.seed, run.epoch, step, world.rank)  # for the masks
                loss = pretraining.motion_loss
                results.append(training.train_step(forward, optimizer, batch, options, share_size, seed, loss))

                to_report, to_save = log.is_due(step, steps), options.saves_after(step)
                if to_report or to_save or (stop.requested and world.is_alone):
                    losses, _, to_exit = world.reduce(results, stop.requested)  # waits for the device
                    run.add_steps(losses, 0, train_clips)
                    results.clear()
                    if to_report:
                        log.report()
                    if to_exit:
                        run.save_and_exit(world)
                    if to_save:
                        run.save()

            pretraining.fix_masks(options.seed, world.rank)
            errors = training.predict(forward, model, val_clips, options, world, lambda: run.exit_if(stop, world))
            run.finish_epoch(pretraining.motion_metrics(errors))
            log.epoch()
            if world.is_main:
                log.figure('motion', pretraining.first_motion(render, model, val_clips, world.device))
        run.wait()
        log.end()


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(train, cli.parse_args(__doc__, SCRIPT, argv))


if __name__ == '__main__':
    sys.exit(main())
