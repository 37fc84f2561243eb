"""Everything, one part after the other, each in a process of its own: tables, benchmark.json and a picture."""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

from lib.tools.benchmark.common import as_text

ROOT = Path(__file__).parents[3]
DRAWN = (('16', '2'), ('16', '1'), ('64', '2'), ('64', '1'))  # batch, persons

# Label, command, table and line of what is measured, and whether that is a time, to be turned into a speed.
Bar = tuple[str, tuple[str, ...], str, bool]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--out', type=Path, required=True, metavar='FOLDER', help='for benchmark.json and benchmark.png'
    )
    parser.add_argument('--device', default='cpu', help='cpu, cuda, cuda:1 ... (default: %(default)s)')


def bars(device: str) -> dict[str, list[Bar]]:
    """What the picture shows, by heading. In all of it 1 is the limit, or the implementation compared with."""
    on, on_cpu = ('--device', device), device == 'cpu'
    draw = [
        (f'joints, {batch} clips, persons: {persons}', ('render', '--batch', batch, '--persons', persons, *on))
        for batch, persons in DRAWN
    ]
    steps = [(row, ('steps', '--row', row, *on)) for row in ('MB_train', 'vanilla', 'vanilla_big')]
    if not on_cpu:
        steps += [
            (f'{row}, bf16, compiled', ('steps', '--row', row, '--precision', 'bf16', '--compile', *on))
            for row in ('MB_train', 'vanilla', 'vanilla_big')
        ]
    peak = [(label, command, 'ours/peak', False) for label, command in steps]
    peak.append(('vivit', ('vivit',), 'ours/peak', False))
    fast = [(label, command, 'time ours/straightforward', True) for label, command in steps]
    fast.append(('vivit', ('vivit',), 'time ours/stock', True))
    return {
        'Drawing: speed, of filling the same memory': [
            (label, command, 'compiled/fill', False) for label, command in draw
        ],
        'Training step: rate, of a large matrix product': peak,
        'Training step: speed, of a straightforward implementation': fast,
    }


def commands(device: str) -> list[tuple[str, ...]]:
    """What is run, in this order."""
    on, on_cpu = ('--device', device), device == 'cpu'
    shown = [command for part in bars(device).values() for _, command, _, _ in part]
    rows = ('--rows', 'MB_train', 'vanilla', 'vivit', '--batch', '4', '--steps', '3') if on_cpu else ()
    changes = () if on_cpu else ('--set', 'train.precision=bf16', '--set', 'train.compile=true')
    others = [
        ('render', '--batch', '1', *on),
        ('render', '--kind', 'limb', *on),
        ('data',),
        ('data', '--sparse', '--clips', '10000'),
        ('data', '--sparse', '--clips', '10000000'),
        ('rows', *rows),
    ]
    others += [('rows', *rows, *changes)] if changes else []
    return list(dict.fromkeys([*shown, *others]))


def run(args: argparse.Namespace) -> dict:
    """Prints the tables of all parts; benchmark.json and benchmark.png go into the folder."""
    args.out.mkdir(parents=True, exist_ok=True)
    report = {'title': machine(args.device), 'unit': 'clips/s', 'setting': {'written to': args.out}, 'rates': {}}
    report['parts'] = {}
    for command in commands(args.device):
        part = [sys.executable, '-m', 'lib.tools.benchmark', *command, '--json']
        done = subprocess.run(part, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
        found = report['parts'][' '.join(command)] = json.loads(done.stdout[done.stdout.index('{') :])
        if not args.json:
            print(as_text(found), end='\n\n', flush=True)
        (args.out / 'benchmark.json').write_text(json.dumps(report, indent=2, default=str))
    draw(report['parts'], args.device, args.out / 'benchmark.png')
    return report


def machine(device: str) -> str:
    """The name of what is measured."""
    try:
        name = re.search(r'model name\s*: (.*)', Path('/proc/cpuinfo').read_text())[1]
    except (OSError, TypeError):
        name = platform.processor() or platform.machine()
    name = f'{name}, {len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()} cores'
    if device == 'cpu':
        return name
    import torch

    return f'{torch.cuda.get_device_name(device)} ({name})'


def draw(reports: dict[str, dict], device: str, path: Path) -> None:
    """The bars with the middle half of the rounds, and 1 as a line."""
    from matplotlib.figure import Figure

    panels = bars(device)
    figure = Figure(figsize=(9, 1 + 0.36 * sum(len(panel) + 1.6 for panel in panels.values())), layout='constrained')
    axes = figure.subplots(len(panels), 1, height_ratios=[len(panel) + 0.8 for panel in panels.values()])
    for axis, (heading, panel) in zip(axes, panels.items(), strict=True):
        for i, (_, command, line, is_time) in enumerate(panel):
            found = reports[' '.join(command)]['ratios'][line]
            low, middle, high = (found[key] for key in ('lower', 'median', 'upper'))
            if is_time:
                low, middle, high = 1 / high, 1 / middle, 1 / low
            axis.barh(i, middle, color='#0072b2', height=0.7)
            axis.plot([low, high], [i, i], color='#222222', linewidth=1.5)
            axis.text(0.01, i, f'{middle:.2f}', va='center', fontsize=9, color='white')
        axis.axvline(1, color='#d55e00', linewidth=1.5)
        axis.set_yticks(range(len(panel)), [label for label, *_ in panel], fontsize=9)
        axis.set_title(heading, loc='left', fontsize=10)
        axis.set_xlim(0, max(1.1, axis.get_xlim()[1]))
        axis.invert_yaxis()
        axis.spines[['top', 'right']].set_visible(False)
    figure.suptitle(machine(device), fontsize=10)
    figure.savefig(path, dpi=120)
