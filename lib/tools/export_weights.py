"""Write the weights of a checkpoint alone, a third of its size, to share them or to begin other runs with them.

    python -m lib.tools.export_weights checkpoint/action/mbert/best_epoch.bin mbert.bin

OUT keeps the config, so that a script's --evaluate takes it, and of PyTorch models --pretrained and torch.load too. The
optimizer and the history stay behind: no run can go on from it.
"""

import argparse
import importlib
import math
import sys
from pathlib import Path

from lib.cli import DONE, USER_ERROR


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        prog='python -m lib.tools.export_weights',
    )
    parser.add_argument('file', type=Path, metavar='FILE', help='checkpoint: .bin of PyTorch, .npz of ViViT')
    parser.add_argument('out', type=Path, metavar='OUT', help='new file of the same ending')
    args = parser.parse_args(arguments)
    try:
        print(export(args.file, args.out))
    except (ValueError, OSError) as error:
        print(f'error: {error}', file=sys.stderr)
        return USER_ERROR
    return DONE


def export(path: Path, out: Path) -> str:
    """Writes the weights of a checkpoint; returns what was written, in words. Raises OSError or ValueError."""
    if out.suffix != path.suffix:
        raise ValueError(f'{out} must end in {path.suffix or "nothing"}, as {path} does.')
    if out.exists():
        raise ValueError(f'{out} is there already. Name a new file, or remove it.')
    framework = 'tensorflow' if path.suffix == '.npz' else 'pytorch'
    checkpoint = importlib.import_module(f'lib.{framework}.checkpoint')
    content, wanted = checkpoint.read(path), checkpoint.run.TO_EVALUATE
    checkpoint.run.check_content(content, content.get('kind'), path, wanted)
    checkpoint.write(out, {key: content[key] for key in wanted})
    count = sum(math.prod(weight.shape) for weight in content['model'].values())
    sizes = [file.stat().st_size / 1e6 for file in (out, path)]
    return (
        f'{out}: {count:,} numbers of {content["kind"]} after epoch {content["epoch"]}, '
        f'{sizes[0]:,.1f} MB of {sizes[1]:,.1f} MB'
    )


if __name__ == '__main__':
    sys.exit(main())
