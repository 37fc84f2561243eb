"""Shared parts of the tools: parser, arguments, exit codes, output and progress.

    def main(argv: Sequence[str] | None = None) -> int:
        parser = make_parser(__doc__, 'example')
        add_set(parser)
        add_out(parser, 'FILE', text='new file')
        return run_tool(example, parser, argv)

    def example(args: argparse.Namespace) -> None:
        check_new(args.out)
        ...
        log.info('a line of output')

Frameworks are imported inside functions, so that --help is fast.
"""

import argparse
import contextlib
import importlib
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lib.cli import exit_code
from lib.data.skeletons import LAYOUTS
from lib.errors import UserError, shown_text
from lib.files import check_writable
from lib.formats.clip import LARGEST_COORDINATE

log = logging.getLogger('lib.tools')


def make_parser(doc: str, name: str) -> argparse.ArgumentParser:
    """The parser of lib.tools.`name`. doc: the module's docstring, one example and at most ten lines."""
    return argparse.ArgumentParser(
        prog=f'python -m lib.tools.{name}',
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """Adds the argument CHECKPOINT, a Path `checkpoint`."""
    parser.add_argument('checkpoint', type=Path, metavar='CHECKPOINT', help='folder of a run, or a checkpoint file')


def add_reading(parser: argparse.ArgumentParser) -> None:
    """Adds --layout and --img_shape, options of lib.formats.read_keypoint_file."""
    parser.add_argument('--layout', choices=LAYOUTS, help='order of the joints (default: by their number)')
    parser.add_argument(
        '--img_shape', type=int, nargs=2, metavar=('H', 'W'), help='image size in pixels, if files do not contain it'
    )


def img_shape_of(args: argparse.Namespace) -> tuple[int, int] | None:
    """The value of --img_shape. Raises UserError if it is not an image size."""
    if args.img_shape and not all(1 <= size <= LARGEST_COORDINATE for size in args.img_shape):
        raise UserError(f'--img_shape {args.img_shape[0]} {args.img_shape[1]}: give height and width in pixels.')
    return args.img_shape and tuple(args.img_shape)


def add_out(parser: argparse.ArgumentParser, kind: str, *, text: str, required: bool = False) -> None:
    """Adds --out, a Path `out` or None. kind: 'FILE' or 'FOLDER'. text: the help. The tool calls check_new first."""
    parser.add_argument('--out', type=Path, metavar=kind, required=required, help=text)


def check_new(out: Path, *names: str) -> None:
    """Raises UserError if `out` exists or cannot be written.

    names: glob patterns of new files in the folder `out`, which may exist if they are given.
    """
    there = sorted(path for name in names for path in out.glob(name)) if names else [out] * out.exists()
    if there:
        raise UserError(f'{there[0]} exists and is not overwritten. Choose another output, or remove it.')
    check_writable(out if names else out.parent, 'Choose another output.')


def require_package(name: str, command: str, hint: str = '') -> Any:
    """The imported package. Raises UserError, with the command that installs it, if it cannot be imported."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        if 'libGL' in str(error):
            hint = 'On a server without a display: apt install libgl1.'
        raise UserError(f'{name} cannot be imported ({error}): {command}. {hint}'.rstrip()) from None


def progress(items: Iterable[Any] | None, *, total: int | None = None, desc: str = '', unit: str = 'clip') -> tqdm:
    """A progress bar, shown only on a terminal. Iterate over it, or pass items=None and call update()."""
    return tqdm(items, total=total, desc=desc, unit=unit, leave=False, dynamic_ncols=True, disable=None)


def run_tool(
    main: Callable[[argparse.Namespace], int | None], parser: argparse.ArgumentParser, argv: Sequence[str] | None = None
) -> int:
    """Parses the command line, calls main(args) and returns the exit code, see lib.cli.exit_code."""
    args = parser.parse_args(argv)
    return exit_code(lambda: main(args), lambda: 'stopped before the end.')


@contextlib.contextmanager
def hidden_messages(name: str, level: int) -> Iterator[None]:
    """Context manager that hides log messages of a module up to a level."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(level + 1)
    try:
        yield
    finally:
        logger.setLevel(before)


def listed(names: Sequence[str], most: int = 3) -> str:
    """The first names, with an ellipsis if there are more."""
    return ', '.join(map(shown_text, names[:most])) + (', ...' if len(names) > most else '')
