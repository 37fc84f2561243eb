"""Measures how fast the parts of this project run on this machine.

python -m lib.tools.benchmark render                      # heatmap drawing: compiled, eager, NumPy, against a fill
python -m lib.tools.benchmark render --batch 64 --persons 1 --kind both --device cuda --json
python -m lib.tools.benchmark data                        # training clips/s of Clips on one core, NTU60-sized store
python -m lib.tools.benchmark data --sparse --clips 10000000   # the same from a store of any size
python -m lib.tools.benchmark steps --row vanilla         # training steps against a straightforward implementation
python -m lib.tools.benchmark vivit                       # steps of vivit.yaml, against stock Keras layers and fit
python -m lib.tools.benchmark rows --rows MB_train vivit  # training by the scripts, clips/s and the wait for data
python -m lib.tools.benchmark all --out FOLDER            # all of it, into benchmark.json and benchmark.png
"""

import argparse
import json

from lib.tools.benchmark import data, everything, render, rows, steps, vivit
from lib.tools.benchmark.common import as_text

PARTS = {
    'render': render,
    'data': data,
    'steps': steps,
    'vivit': vivit,
    'rows': rows,
    'all': everything,
}


def main(arguments: list[str] | None = None) -> None:
    args = parse_args(arguments)
    report = args.run(args)
    print(json.dumps(report, indent=2, default=str) if args.json else as_text(report))


def parse_args(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog='python -m lib.tools.benchmark'
    )
    parts = parser.add_subparsers(required=True, metavar='PART')
    for name, part in PARTS.items():
        options = parts.add_parser(name, help=part.__doc__, description=part.__doc__)
        options.set_defaults(run=part.run)
        part.add_arguments(options)
        options.add_argument('--json', action='store_true', help='print JSON instead of a table')
    return parser.parse_args(arguments)


if __name__ == '__main__':
    main()
