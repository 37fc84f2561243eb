"""Command line: arguments of the training scripts, error messages and exit codes of scripts and tools."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from lib import console
from lib.errors import UserError
from lib.models import MODELS
from lib.stop import STOPPED, interrupt_at_once

DONE, FAILED, USER_ERROR = 0, 1, 2  # exit codes, besides STOPPED


def parse_args(doc: str, script: str, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the flags, which follow MotionBERT's. doc: the script's docstring. script: name of the model."""
    default_config, suffix = MODELS[script].default_config, MODELS[script].suffix
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--config', metavar='FILE', help=f'YAML config (default: {default_config})')
    parser.add_argument('-c', '--checkpoint', metavar='FOLDER', help='output folder; a run in it is resumed')
    parser.add_argument('-r', '--resume', metavar='FILE', help='checkpoint to resume from in an empty folder')
    if script == 'pretrain':
        parser.set_defaults(evaluate=None, pretrained=None)
    else:
        parser.add_argument('-e', '--evaluate', metavar='FILE', help='checkpoint or run folder to evaluate')
        parser.add_argument(
            '-p', '--pretrained', metavar='FOLDER', help='folder of pretrained weights, for train.finetune'
        )
        parser.add_argument(
            '-ms',
            '--selection',
            default=f'latest_epoch{suffix}',
            metavar='FILE',
            help='file in the folder of --pretrained (default: %(default)s)',
        )
    parser.add_argument(
        '-freq',
        '--print_freq',
        type=int,
        default=50,
        metavar='STEPS',
        help='steps between reports (default: %(default)s)',
    )
    add_set(parser)
    args = parser.parse_args(argv)
    if args.print_freq < 1:
        parser.error('--print_freq must be at least 1')
    if args.evaluate:
        if args.resume or args.pretrained:
            parser.error('--evaluate cannot be combined with --resume or --pretrained')
    elif not args.checkpoint:
        parser.error('--checkpoint FOLDER is required for training')
    if not args.evaluate:
        args.config = args.config or default_config
    return args


def add_set(parser: argparse.ArgumentParser) -> None:
    """Adds --set, a list of overrides `set`."""
    parser.add_argument(
        '--set', action='append', default=[], metavar='SECTION.KEY=VALUE', help='override a config key; repeatable'
    )


def run(main: Callable[[argparse.Namespace], None], args: argparse.Namespace) -> int:
    """Calls the main function of a training script and returns the exit code, see `exit_code`."""
    return exit_code(lambda: main(args), lambda: f'stopped. {_what_next(args)}')


def _what_next(args: argparse.Namespace) -> str:
    if args.evaluate:
        return 'Nothing was written.'
    latest = sorted(Path(args.checkpoint).glob('latest_epoch.*[nz]'))  # .bin and .npz sort behind older ones
    if not latest:
        return 'Nothing was saved yet: the same command starts from the beginning.'
    return f'The same command resumes from {latest[-1]}.'


def exit_code(main: Callable[[], int | None], when_stopped: Callable[[], str]) -> int:
    """Calls main() with console output and returns the exit code: its result, or 0.

    A UserError prints one line and returns 2, a FloatingPointError (results that are not finite or not equal) prints
    one line and returns 1, a signal prints when_stopped() and returns 75. Other exceptions are bugs and propagate.
    """
    try:
        with console.messages(), interrupt_at_once():
            return main() or DONE
    except KeyboardInterrupt:  # Stopped is one
        print(f'\n{when_stopped()}', file=sys.stderr)
        return STOPPED
    except (UserError, FloatingPointError) as error:
        print(f'error: {error}', file=sys.stderr)
        return USER_ERROR if isinstance(error, UserError) else FAILED
