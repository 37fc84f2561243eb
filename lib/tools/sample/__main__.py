"""Generate a small action dataset in the format of PYSKL's NTU60 pickles, for trying out the project without NTU60.

    python -m lib.tools.sample --out data/action --files data/action/sample_files

Articulated figures of 40 persons perform 14 actions of NTU60 in front of three cameras, with simulated errors of a pose
estimator and of a Kinect. Writes sample_hrnet.pkl and sample_3danno.pkl; with --files, also some clips as keypoint
files (MMPose's JSON) with a table labels.csv. Existing files are replaced.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from lib.errors import UserError
from lib.tools.running import log, make_parser, run_tool
from lib.tools.sample.dataset import write_files, write_sample


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(__doc__, 'sample')
    parser.add_argument('--out', type=Path, required=True, metavar='FOLDER', help='folder for the two pickles')
    parser.add_argument(
        '--files', type=Path, metavar='FOLDER', help='folder for JSON files of some clips, and labels.csv'
    )
    parser.add_argument('--seed', type=int, default=0, help='of the random numbers, 0 to 65535 (default: %(default)s)')
    return run_tool(generate, parser, argv)


def generate(args: argparse.Namespace) -> None:
    if not 0 <= args.seed < 2**16:
        raise UserError(f'--seed {args.seed}: give 0 to 65535.')
    written = write_sample(args.out, args.seed)
    for path, content in written.items():
        labels = {annotation['label'] for annotation in content['annotations']}
        counts = ', '.join(f'{name} {len(names)}' for name, names in content['split'].items())
        log.info(f'{path}: {len(content["annotations"])} clips of {len(labels)} classes ({counts})')
    if args.files:
        count = write_files(args.files, written[args.out / 'sample_hrnet.pkl'])
        log.info(f'{args.files}: {count} clips as JSON files, and labels.csv')


if __name__ == '__main__':
    sys.exit(main())
