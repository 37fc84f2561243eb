"""Measurements: a function in a new process, two functions in turn, training steps on random or generated data."""

import multiprocessing
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from multiprocessing.connection import Connection
from pathlib import Path
from types import MethodType
from typing import TYPE_CHECKING, Any

import numpy as np
from easydict import EasyDict

from lib.data.heatmap import MIN_SCORE, joints_with
from lib.data.pickles import save_annotations
from lib.data.skeletons import PICKLE_SKELETONS
from lib.errors import UserError
from lib.models import MODELS

if TYPE_CHECKING:
    import torch

SIZE, FRAMES, JOINTS = 56, 48, 17

Step = Callable[[], object]


def in_new_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Returns function(*arguments), computed in a new process.

    Raises its UserError, and ChildProcessError if it raises another exception (the traceback is printed) or is killed.
    """
    context = multiprocessing.get_context('forkserver')
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=send_result, args=(sender, function, arguments))
    process.start()
    sender.close()
    try:
        result = receiver.recv()
        process.join(10)  # an orderly end releases its semaphores
    except EOFError:
        process.join()
        raise ChildProcessError(f'the process ended with exit code {process.exitcode}, see above') from None
    finally:
        process.kill()
        process.join()
    if isinstance(result, UserError):
        raise result
    return result


def send_result(sender: Connection, function: Callable[..., Any], arguments: tuple) -> None:
    """Sends the result of function(*arguments), or its UserError. The parent handles Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        sender.send(function(*arguments))
    except UserError as error:
        sender.send(error)


def compare(ours: Step, reference: Step | None, rounds: int, num_clips: int) -> dict[str, Any]:
    """Times two functions alternately after two warm-up calls each. num_clips: clips processed per call.

    Returns {'clips/s'}, and with a reference {'reference clips/s', 'ratio': median of our time / reference time}.
    """
    functions = [function for function in (ours, reference) if function]
    for function in functions * 2:
        function()
    seconds = np.zeros((len(functions), rounds))
    for i in range(rounds):
        for j in range(len(functions))[:: 1 if i % 2 else -1]:
            start = time.perf_counter()
            functions[j]()
            seconds[j, i] = time.perf_counter() - start
    rates = (num_clips / np.median(seconds, axis=1)).tolist()
    row = dict(zip(('clips/s', 'reference clips/s'), rates, strict=False))
    return row | {'ratio': float(np.median(seconds[0] / seconds[1]))} if reference else row


def waiting(function: Callable[[], Any], device: str, calls: int = 1) -> Step:
    """A function that calls `function`, several times, and waits for the device, a PyTorch one."""
    import torch

    def call() -> None:
        for _ in range(calls):
            function()
        if device == 'cuda':
            torch.cuda.synchronize()

    return call


def make_renderer(kind: str, batch: int, device: str) -> tuple['torch.nn.Module', list['torch.Tensor']]:
    """PyTorch's renderer and random keypoints and scores of `batch` clips on a device."""
    import torch

    from lib.pytorch.heatmap import HeatmapRenderer

    make_world('vanilla', device)
    inputs = [torch.from_numpy(array).to(device) for array in random_keypoints(batch, 2, FRAMES, JOINTS)]
    return HeatmapRenderer(size=SIZE, kind=kind).to(device), inputs


def random_keypoints(*shape: int) -> tuple[np.ndarray, np.ndarray]:
    """Random keypoint (N,M,T,V,2) in heatmap pixels, some outside, and score (N,M,T,V). shape: (N,M,T,V)."""
    rng = np.random.default_rng(0)
    return rng.uniform(-2, SIZE + 2, (*shape, 2)).astype(np.float32), rng.uniform(0, 1, shape).astype(np.float32)


def write_pickle(path: Path, num_clips: int) -> None:
    """Writes a pickle with the proportions of NTU60: 20 to 300 frames, a fifth of the clips with two persons."""
    rng = np.random.default_rng(0)
    keypoint = rng.uniform(300, 1500, (600, JOINTS, 2)).astype(np.float16)
    score = rng.uniform(0.3, 1, (600, JOINTS)).astype(np.float16)
    annotations = []
    for i in range(num_clips):
        persons, frames = 1 + int(rng.random() < 0.2), int(rng.integers(20, 301))
        rows, shape = slice(0, persons * frames), (persons, frames, JOINTS)
        annotation = {'frame_dir': f'clip{i:06d}', 'label': i % 60, 'total_frames': frames, 'img_shape': (1080, 1920)}
        arrays = {'keypoint': keypoint[rows].reshape(*shape, 2), 'keypoint_score': score[rows].reshape(shape)}
        annotations.append(annotation | arrays)
    names = [annotation['frame_dir'] for annotation in annotations]
    split = {'xsub_train': names[: num_clips * 7 // 10], 'xsub_val': names[num_clips * 7 // 10 :]}
    save_annotations(path, split, annotations)


def make_world(script: str, device: str) -> Any:
    """The device to train on. Raises UserError if it is not available."""
    distributed = MODELS[script].training.distributed
    if MODELS[script].framework == 'pytorch':
        import torch

        has_gpu, world = torch.cuda.is_available(), distributed.World(0, 1, torch.device(device))
    else:
        import tensorflow as tf

        if device == 'cpu':
            tf.config.set_visible_devices([], 'GPU')
        for gpu in tf.config.get_visible_devices('GPU'):  # other processes use it too
            tf.config.experimental.set_memory_growth(gpu, True)
        has_gpu, world = bool(tf.config.list_logical_devices('GPU')), distributed.World(tf.distribute.get_strategy())
    if device == 'cuda' and not has_gpu:
        raise UserError(f'--device cuda: {MODELS[script].framework} sees no GPU.')
    return world


def make_step(config: EasyDict, world: Any, is_reference: bool = False, calls: int = 1) -> Callable[..., None]:
    """step(size=data.batch_size) trains a new model for `calls` steps on `size` random clips, and waits for the device.

    One wait for several steps, as in training, where the host prepares a step while the device computes another.
    """
    batch = random_batch(config)
    if MODELS[config.script].framework == 'tensorflow':
        return tensorflow_step(config, batch, world, calls)
    return pytorch_step(config, batch, world, is_reference, calls)


def random_batch(config: EasyDict) -> dict[str, np.ndarray]:
    """A random batch for a config, as from Clips."""
    shape = (config.data.batch_size, config.data.max_persons, config.data.clip_len, joints_of(config))
    if config.data.input == 'heatmap':
        batch = dict(zip(('keypoint', 'score'), random_keypoints(*shape), strict=True))
    else:
        batch = {'keypoint': np.random.default_rng(0).uniform(-1, 1, (*shape, 3)).astype(np.float32)}
    return batch | {'label': np.arange(config.data.batch_size) % config.model.get('num_classes', 1)}


def joints_of(config: EasyDict) -> int:
    """Joints per person in a batch: those of the first skeleton that has as many maps as the model."""
    if config.data.input != 'heatmap':
        return config.model.num_joints
    return [*joints_with(config.heatmap.kind, config.model.num_joints), *PICKLE_SKELETONS][0]


def pytorch_step(
    config: EasyDict, batch: dict[str, np.ndarray], world: Any, is_reference: bool, calls: int
) -> Callable[..., None]:
    """The reference uses torch's layers, explicit attention and heatmap formulas, a loop over parameters in AdamW."""
    import torch

    from lib.pytorch import pretraining, training

    device, count = world.device, len(batch['label'])
    options = training.TrainOptions(**config.train)
    options.set_precision(device)
    options.check_batch_size(count, 1)
    render, model = training.make_model(config, batch['keypoint'].shape[3], device)
    if is_reference:
        make_straightforward(model)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, foreach=False, fused=False)
        render = render and partial(straightforward_maps, render.size, render.sigma)
        options = replace(options, compile=False)
    else:
        optimizer = training.make_optimizer(model, **config.optimizer)
    if options.activation_checkpointing:
        training.recompute_blocks(model)
    forward = training.make_forward(render, model.train(), options, world)
    batch = {name: torch.from_numpy(array).to(device) for name, array in batch.items()}
    criterion = pretraining.motion_loss if config.script == 'pretrain' else training.classification_loss

    def step(size: int = count) -> None:
        part = {name: tensor[:size] for name, tensor in batch.items()}
        for _ in range(calls):
            results = training.train_step(forward, optimizer, dict(part), options, size, 0, criterion)
        results.tolist()

    return step


def straightforward_maps(
    size: int, sigma: float, keypoint: 'torch.Tensor', score: 'torch.Tensor', dtype: 'torch.dtype'
) -> 'torch.Tensor':
    """Joint maps (N,T,V,H,W): the maximum over persons of outer products of two windowed Gaussians.

    keypoint: (N,M,T,V,2), score: (N,M,T,V). See lib.data.heatmap.
    """
    import torch

    pixel, centre = torch.arange(size, device=keypoint.device), keypoint[..., None]  # (N,M,T,V,2,1)
    inside = (pixel >= (centre - 3 * sigma).trunc()) & (pixel <= (centre + 3 * sigma).trunc())
    x, y = (torch.exp((pixel - centre) ** 2 / (-2 * sigma**2)) * inside).unbind(-2)
    shown = torch.where(score >= MIN_SCORE, score, 0)[..., None, None]
    return (shown * y[..., :, None] * x[..., None, :]).amax(1).to(dtype)


def make_straightforward(model: 'torch.nn.Module') -> None:
    """Replaces our own layers by torch's modules and explicit formulas, in place."""
    from einops import rearrange
    from torch import nn

    from lib.pytorch.layers import Attention, Linear
    from lib.pytorch.vanilla import SkeleEmbed

    def attend(self, x):
        q, k, v = rearrange(self.qkv(x), 'n l (qkv h d) -> qkv n h l d', qkv=3, h=self.num_heads).unbind()
        weights = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(dim=-1)
        return self.proj(rearrange(weights @ v, 'n h l d -> n l (h d)'))

    def embed(self, x):
        return rearrange(self.proj(x), 'n d t v -> n t v d')

    plain = {Attention: attend, Linear: nn.Linear.forward, SkeleEmbed: embed}
    for module in model.modules():
        if type(module) in plain:
            module.forward = MethodType(plain[type(module)], module)


def tensorflow_step(config: EasyDict, batch: dict[str, np.ndarray], world: Any, calls: int) -> Callable[..., None]:
    from lib.tensorflow import training

    count = len(batch['label'])
    options = training.TrainOptions(**config.train)
    options.set_precision()
    options.check_batch_size(count, 1)
    render, model = training.make_model(config, batch['keypoint'].shape[3], world)
    optimizer = training.make_optimizer(model, **config.optimizer)
    train_step = training.make_train_step(render, model, optimizer, options, world)

    @cache
    def shares(size: int) -> Any:
        part = {name: array[:size] for name, array in batch.items()}
        part |= {'weight': np.full(size, 1 / size, np.float32), 'seed': np.zeros(2, np.int64)}
        return world.distribute([part] * len(world.local_replicas))

    def step(size: int = count) -> None:
        for _ in range(calls):
            results = train_step(shares(size))
        results.numpy()

    return step
