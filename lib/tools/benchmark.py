"""Measures how fast the parts of this project run on this machine.

python -m lib.tools.benchmark render                      # heatmap drawing: compiled, eager, NumPy, against a fill
python -m lib.tools.benchmark render --batch 64 --persons 1 --kind both --device cuda --json
python -m lib.tools.benchmark data                        # training clips/s of Clips on one core, NTU60-sized store
python -m lib.tools.benchmark vivit                       # steps of vivit.yaml, against stock Keras layers and fit
"""

import argparse
import json
import multiprocessing
import os
import pickle
import tempfile
import time
from collections.abc import Callable

import numpy as np

FRAMES, JOINTS, SIZE, SIGMA = 48, 17, 56, 0.6  # the volumes of row 1 of the README's table
VIVIT_FRAMES = 56


def main(arguments: list[str] | None = None) -> None:
    args = parse_args(arguments)
    report = args.run(args)
    print(json.dumps(report, indent=2) if args.json else as_text(report))


def parse_args(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog='python -m lib.tools.benchmark'
    )
    parts = parser.add_subparsers(required=True, metavar='PART')
    render = parts.add_parser('render', help='heatmap volumes drawn from keypoints, clips/s')
    render.set_defaults(run=benchmark_render)
    render.add_argument('--batch', type=positive, default=16, help='clips per batch (default: %(default)s)')
    render.add_argument('--persons', type=positive, default=2, help='persons per clip (default: %(default)s)')
    render.add_argument('--kind', choices=('joint', 'limb', 'both'), default='joint')
    render.add_argument(
        '--pairs', type=positive, default=15, help='timed runs of each candidate (default: %(default)s)'
    )
    render.add_argument('--device', default='cpu', help='cpu, cuda, cuda:1 ... (default: %(default)s)')
    render.add_argument('--json', action='store_true', help='print JSON instead of a table')
    data = parts.add_parser('data', help='batches of training clips, clips/s on one core; opening a large store')
    data.set_defaults(run=benchmark_data)
    data.add_argument('--clips', type=positive, default=60_000, help='clips in the store (default: %(default)s)')
    data.add_argument('--batch', type=positive, default=32, help='clips per batch (default: %(default)s)')
    data.add_argument('--rounds', type=positive, default=15, help='timed runs (default: %(default)s)')
    data.add_argument('--folder', help='where 20 kB per clip are written meanwhile (default: a temporary folder)')
    data.add_argument('--json', action='store_true', help='print JSON instead of a table')
    vivit = parts.add_parser('vivit', help='full-size training steps of ViViT from keypoints, clips/s')
    vivit.set_defaults(run=benchmark_vivit)
    vivit.add_argument('--batch', type=positive, default=4, help='clips per batch (default: %(default)s)')
    vivit.add_argument('--steps', type=positive, default=3, help='steps of a timed run (default: %(default)s)')
    vivit.add_argument('--rounds', type=positive, default=7, help='timed runs of each (default: %(default)s)')
    vivit.add_argument('--json', action='store_true', help='print JSON instead of a table')
    return parser.parse_args(arguments)


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f'{number} is not 1 or more')
    return number


def benchmark_render(args: argparse.Namespace) -> dict:
    """Clips/s of the torch renderer, and of filling the same volume with a constant: the limit that memory sets.

    Both sides allocate their result on each call, as a training step does. The NumPy reference draws one clip.
    """
    import torch

    from lib.data.heatmap import joint_heatmaps, limb_heatmaps
    from lib.pytorch.heatmap import HeatmapRenderer

    device = torch.device(args.device)
    keypoint, score = walking_skeletons(args.batch, args.persons)
    inputs = torch.from_numpy(keypoint).to(device), torch.from_numpy(score).to(device)
    renderer = HeatmapRenderer(size=SIZE, sigma=SIGMA, kind=args.kind).to(device)
    compiled = torch.compile(renderer, fullgraph=True)
    shape = (args.batch, FRAMES, renderer.num_channels(JOINTS), SIZE, SIZE)
    draw_in_numpy = {'joint': [joint_heatmaps], 'limb': [limb_heatmaps], 'both': [joint_heatmaps, limb_heatmaps]}

    def oracle() -> None:
        for draw in draw_in_numpy[args.kind]:
            draw(keypoint[0], score[0], img_shape=(SIZE, SIZE), sigma=SIGMA)

    synchronize = torch.cuda.synchronize if device.type == 'cuda' else lambda: None
    candidates = {
        'fill': lambda: torch.full(shape, 0.5, device=device),
        'compiled': lambda: compiled(*inputs),
        'eager': lambda: renderer(*inputs),
        'oracle': oracle,
    }
    with torch.inference_mode():
        seconds = time_in_turn(candidates, args.pairs, synchronize)
    clips = {name: 1 if name == 'oracle' else args.batch for name in candidates}
    rates = {name: clips[name] / np.array(times) for name, times in seconds.items()}
    return {
        'title': f'render {args.kind}: volumes {shape}, {args.persons} persons',
        'unit': 'clips/s',
        'setting': {
            'device': torch.cuda.get_device_name(device) if device.type == 'cuda' else str(device),
            'threads': torch.get_num_threads(),
            'torch': torch.__version__,
            'pairs': args.pairs,
        },
        'rates': {name: summary(rate) for name, rate in rates.items()},
        'ratios': {
            'compiled/fill': summary(rates['compiled'] / rates['fill']),
            'eager/fill': summary(rates['eager'] / rates['fill']),
            'compiled/oracle': summary(rates['compiled'] / rates['oracle']),
        },
    }


def benchmark_data(args: argparse.Namespace) -> dict:
    """Clips/s of Clips alone, held on one core, and what opening its store costs in seconds and private memory."""
    from lib.data.clips import Clips
    from lib.data.store import open_store

    if hasattr(os, 'sched_setaffinity'):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        ann_file = os.path.join(folder, 'benchmark.pkl')
        # In a process of its own, so that neither its memory nor its warm arrays count here.
        packing = multiprocessing.get_context('spawn').Process(target=pack_made_up_clips, args=(ann_file, args.clips))
        packing.start()
        packing.join()
        assert packing.exitcode == 0, 'packing failed, see above'
        opening = []
        before = private_bytes()
        for _ in range(args.rounds):
            start = time.perf_counter()
            store = open_store(ann_file)
            opening.append(time.perf_counter() - start)
        options = {'ann_file': ann_file, 'benchmark': 'xsub', 'clip_len': FRAMES, 'batch_size': args.batch, 'seed': 0}
        clips = {split: Clips(split, **options) for split in ('train', 'val')}
        private = private_bytes() - before
        batches = min(64, *(part.num_clips // args.batch for part in clips.values()))

        def load(split: str) -> None:
            for b in range(batches):
                clips[split][0, b]

        seconds = time_in_turn({split: lambda split=split: load(split) for split in clips}, args.rounds, lambda: None)
        setting = {
            'clips': args.clips,
            'two persons': f'{(store.num_persons[:] == 2).mean():.0%}',
            'batch': args.batch,
            'rounds': args.rounds,
        }
        size = store.keypoint.nbytes + store.score.nbytes
    return {
        'title': f'data: batches of {FRAMES} frames from a store of {size / 1e6:,.0f} MB, on one core',
        'unit': 'clips/s',
        'setting': setting,
        'rates': {split: summary(batches * args.batch / np.array(times)) for split, times in seconds.items()},
        'opening': {'milliseconds': summary(1e3 * np.array(opening)), 'private MB': summary(np.array([private / 1e6]))},
    }


def benchmark_vivit(args: argparse.Namespace) -> dict:
    """Clips/s of training steps of row vivit.yaml, drawing included, with dropout and without.

    stock: the same architecture made of Keras' own layers and trained by `fit`, on volumes that are there already.
    """
    import keras
    import tensorflow as tf

    from lib.tensorflow import engine
    from lib.tensorflow.heatmap import HeatmapRenderer
    from lib.tensorflow.vivit import ViViT

    frames = VIVIT_FRAMES
    keypoint, score = walking_skeletons(args.batch, 2, frames)
    label = np.arange(args.batch, dtype=np.int64) % 60
    render = HeatmapRenderer(size=SIZE, sigma=SIGMA)
    volume = np.tile(render(keypoint, score).numpy(), (args.steps, 1, 1, 1, 1))

    def ours(dropout: float) -> Callable[[], None]:
        model = ViViT(attn_drop_rate=dropout)
        optimizer = engine.make_optimizer(model, lr=1e-4, weight_decay=0.0)
        train = engine.make_train_step(render, model, optimizer, engine.TrainOptions(epochs=1), keypoint.shape[1:4])

        def run() -> None:
            losses = [train(keypoint, score, label)[0] for _ in range(args.steps)]
            tf.stack(losses).numpy()

        return run

    def stock(dropout: float) -> Callable[[], None]:
        model = stock_vivit(dropout)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.Adam(1e-4), loss, jit_compile=False)  # XLA is slower on a CPU
        labels = np.tile(label, args.steps)
        return lambda: model.fit(volume, labels, batch_size=args.batch, verbose=0)

    candidates = {'ours': ours(0.1), 'stock': stock(0.1), 'ours, no drop': ours(0.0), 'stock, no drop': stock(0.0)}
    seconds = time_in_turn(candidates, args.rounds, lambda: None)
    rates = {name: args.steps * args.batch / np.array(times) for name, times in seconds.items()}
    return {
        'title': f'vivit: training steps on volumes {(args.batch, frames, SIZE, SIZE, JOINTS)}',
        'unit': 'clips/s',
        'setting': {
            'device': engine.device(),
            'tensorflow': tf.__version__,
            'keras': keras.__version__,
            'steps': args.steps,
            'rounds': args.rounds,
        },
        'rates': {name: summary(rate) for name, rate in rates.items()},
        'ratios': {
            'time ours/stock': summary(rates['stock'] / rates['ours']),
            'without dropout': summary(rates['stock, no drop'] / rates['ours, no drop']),
        },
    }


def stock_vivit(dropout: float):
    """ViViT's Model 1 as vivit.yaml has it, of Keras' own layers; the positions, which Keras lacks, are ours."""
    import keras

    from lib.tensorflow.vivit import PositionEmbedding

    layers = keras.layers
    inputs = keras.Input((VIVIT_FRAMES, SIZE, SIZE, JOINTS))
    tokens = layers.Reshape((343, 256))(layers.Conv3D(256, kernel_size=8, strides=8)(inputs))
    tokens = PositionEmbedding()(tokens)
    for _ in range(8):
        normed = layers.LayerNormalization(epsilon=1e-6)(tokens)
        tokens = tokens + layers.MultiHeadAttention(8, 32, dropout=dropout)(normed, normed)
        hidden = layers.Dense(1024, activation='gelu')(layers.LayerNormalization(epsilon=1e-6)(tokens))
        tokens = tokens + layers.Dense(256)(hidden)
    tokens = layers.LayerNormalization(epsilon=1e-6)(tokens)
    return keras.Model(inputs, layers.Dense(60)(layers.GlobalAveragePooling1D()(tokens)))


def pack_made_up_clips(ann_file: str, num_clips: int) -> None:
    """Writes a pickle of NTU60's proportions (20 to 300 frames, a fifth with two persons) and packs it."""
    from lib.data.store import open_store

    rng = np.random.default_rng(0)
    pool = rng.uniform(300, 1500, (600, JOINTS, 2)).astype(np.float16)
    scores = rng.uniform(0.3, 1, (600, JOINTS)).astype(np.float16)
    annotations = []
    for i, (total, persons) in enumerate(
        zip(rng.integers(20, 301, num_clips), rng.random(num_clips) < 0.2, strict=True)
    ):
        rows, shape = slice(0, (persons + 1) * total), (persons + 1, total, JOINTS)
        annotations.append(
            {
                'frame_dir': f'clip{i:06d}',
                'label': i % 60,
                'total_frames': int(total),
                'img_shape': (1080, 1920),
                'keypoint': pool[rows].reshape(*shape, 2),
                'keypoint_score': scores[rows].reshape(shape),
            }
        )
    names = [annotation['frame_dir'] for annotation in annotations]
    split = {'xsub_train': names[: num_clips * 7 // 10], 'xsub_val': names[num_clips * 7 // 10 :]}
    with open(ann_file, 'wb') as file:
        pickle.dump({'split': split, 'annotations': annotations}, file)
    open_store(ann_file)


def private_bytes() -> int:
    """Memory that this process alone has written: Private_Dirty and swap. 0 where the system does not tell."""
    try:
        with open('/proc/self/smaps_rollup') as file:
            return 1024 * sum(int(line.split()[1]) for line in file if line.startswith(('Private_Dirty', 'Swap:')))
    except FileNotFoundError:
        return 0


def walking_skeletons(num_clips: int, num_persons: int, num_frames: int = FRAMES) -> tuple[np.ndarray, np.ndarray]:
    """Keypoints (N,M,T,V,2), in pixels of the map, and scores (N,M,T,V): persons who swing and drift, always the same.

    Some joints leave the map, and one in fifty is missing: score and coordinates zero.
    """
    rng = np.random.default_rng(0)
    shape = (num_clips, num_persons, 1, 1)
    time_axis, body_height = np.arange(num_frames)[:, None], np.linspace(-20, 20, JOINTS)  # from nose to ankles
    swing = np.sin(time_axis * 0.4 + rng.uniform(0, 2 * np.pi, (*shape[:2], 1, JOINTS)))
    x = rng.uniform(12, 44, shape) + rng.uniform(-0.3, 0.3, shape) * time_axis + rng.normal(0, 5, (1, 1, 1, JOINTS))
    x = x + 3 * swing
    y = rng.uniform(24, 32, shape) + body_height + rng.normal(0, 0.3, (*shape[:2], num_frames, JOINTS))
    score = rng.uniform(0.3, 1, x.shape)
    score[rng.random(x.shape) < 0.02] = 0
    keypoint = np.stack([x, y], axis=-1) * (score > 0)[..., None]
    return keypoint.astype(np.float32), score.astype(np.float32)


def time_in_turn(
    candidates: dict[str, Callable[[], object]], rounds: int, synchronize: Callable[[], None]
) -> dict[str, list[float]]:
    """Seconds of each candidate in each round, after two calls to warm up.

    Every round runs all of them, in alternating order, so that what else the machine does weighs on all alike and the
    ratios of one round's times can be trusted more than the times.
    """
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(2):
        for run in candidates.values():
            run()
    for i in range(rounds):
        for name in list(candidates) if i % 2 == 0 else reversed(candidates):
            synchronize()
            start = time.perf_counter()
            candidates[name]()
            synchronize()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def summary(values: np.ndarray) -> dict[str, float]:
    """Median, quartiles and extremes of one measurement's rounds."""
    lower, median, upper = np.quantile(values, [0.25, 0.5, 0.75]).tolist()
    return {'median': median, 'lower': lower, 'upper': upper, 'min': float(values.min()), 'max': float(values.max())}


def as_text(report: dict) -> str:
    """The report as a table: medians, then the middle half and the extremes of the rounds."""
    columns = ('median', 'lower', 'upper', 'min', 'max')
    lines = [report['title'], ', '.join(f'{name} {value}' for name, value in report['setting'].items()), '']
    tables = (
        (report['unit'], report['rates'], 1),
        ('ratio', report.get('ratios'), 3),
        ('opening', report.get('opening'), 2),
    )
    for heading, rows, digits in tables:
        if not rows:
            continue
        lines.append(f'{heading:<16}' + ''.join(f'{column:>10}' for column in columns))
        for name, numbers in rows.items():
            lines.append(f'{name:<16}' + ''.join(f'{numbers[column]:>10.{digits}f}' for column in columns))
        lines.append('')
    return '\n'.join(lines).rstrip()


if __name__ == '__main__':
    main()
