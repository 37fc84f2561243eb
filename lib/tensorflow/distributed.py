"""Several devices that train as one: all GPUs of a host by themselves, several hosts by TF_CONFIG, one command on each.

    TF_CONFIG='{"cluster": {"worker": ["host0:2222", "host1:2222"]}, "task": {"type": "worker", "index": 0}}' \\
        python train_action_vivit.py ...                          # and with index 1 on host1

A worker is such a process, a replica the model on one of its devices. Every replica works on its share of each batch.
"""

import json
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
import tensorflow as tf

from lib.console import peak_process_memory, silence
from lib.errors import UserError
from lib.run import check_same

EXAMPLE = '{"cluster": {"worker": ["host0:2222", "host1:2222"]}, "task": {"type": "worker", "index": 0}}'
# What an exchange ends with when another worker does not answer any more. TensorFlow finds out within some 10 seconds.
LOST = (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError, tf.errors.DeadlineExceededError)


@dataclass(frozen=True)
class World:
    """The devices that train together, by their strategy; this worker's rank among `num_workers`."""

    strategy: tf.distribute.Strategy
    rank: int = 0
    num_workers: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this worker is the one that prints and writes."""
        return self.rank == 0

    @property
    def is_alone(self) -> bool:
        """Whether this process trains by itself."""
        return self.num_workers == 1

    @property
    def num_replicas(self) -> int:
        """Devices of all workers together."""
        return self.strategy.num_replicas_in_sync

    @property
    def local_replicas(self) -> range:
        """The numbers of this worker's replicas; all workers have as many."""
        count = self.num_replicas // self.num_workers
        return range(self.rank * count, (self.rank + 1) * count)

    @property
    def description(self) -> str:
        """What is computed on, for the log."""
        device = 'cuda' if tf.config.list_logical_devices('GPU') else 'cpu'
        count = len(self.local_replicas)
        if self.num_workers > 1:
            return f'{self.num_workers} workers of {count} x {device}'
        return device if count == 1 else f'{count} x {device}'

    def peak_memory(self) -> int:
        """The largest memory so far in bytes: of the tensors on the first GPU, or of this process on a CPU."""
        gpus = tf.config.list_logical_devices('GPU')
        return tf.config.experimental.get_memory_info('GPU:0')['peak'] if gpus else peak_process_memory()

    def reduce(self, steps: Sequence[tf.Tensor], stop: bool) -> tuple[list[float], int, bool]:
        """Losses and correct clips of steps, and whether any worker was asked to stop. Waits for the devices.

        steps: [mean loss, correct clips] of all workers together.
        """
        rows = tf.stack(steps).numpy().tolist()
        stops = [stop] if self.is_alone else self._gather(int(stop))
        return [loss for loss, _ in rows], int(sum(correct for _, correct in rows)), any(stops)

    def distribute(self, shares: Sequence[Mapping[str, np.ndarray]]) -> Any:
        """The shares of this worker's replicas, one for each in their order, as an argument of strategy.run."""

        def share_of(replica: tf.distribute.experimental.ValueContext) -> dict[str, tf.Tensor]:
            share = shares[replica.replica_id_in_sync_group - self.local_replicas.start]
            with tf.device('CPU'):  # from where each device takes its own
                return {name: tf.convert_to_tensor(array) for name, array in share.items()}

        return self.strategy.experimental_distribute_values_from_function(share_of)

    def check_same(self, what: str, number: int) -> None:
        """Raises UserError where the workers have different numbers; what: what they count."""
        if not self.is_alone:
            check_same('workers', what, self._gather(number))

    def _gather(self, number: int) -> list[int]:
        """The numbers of all workers."""
        numbers = self.distribute([{'number': np.array([number], np.int64)}] * len(self.local_replicas))
        return tf.function(lambda value: self.strategy.gather(value, axis=0))(numbers['number']).numpy().tolist()

    def wait_for_all(self) -> None:
        """Returns when all workers have come here."""
        self.check_same('meetings', 0)


def init() -> World:
    """Joins the workers that TF_CONFIG names; without it this process trains by itself, on all GPUs of the host.

    Without a GPU, on the CPU (all logical ones, where it has been divided). Comes before anything else is done with
    TensorFlow. Raises UserError for a TF_CONFIG that names no cluster of workers, or a port that is taken.
    """
    tf.get_logger().setLevel(logging.WARNING)  # the strategies tell of every collective
    rank, num_workers = cluster_task(os.environ.get('TF_CONFIG', ''))
    if num_workers > 1:
        if rank == 0:
            print(f'waiting for {num_workers - 1} other workers to join', flush=True)
        else:  # one tells for all
            silence()
        sys.excepthook = tell_error
        try:
            return World(tf.distribute.MultiWorkerMirroredStrategy(), rank, num_workers)
        except tf.errors.UnknownError as error:
            raise UserError(
                f'TF_CONFIG says that this is worker {rank}, but the port that it names for it cannot be opened here '
                f'({error.message}): another process may have it, or another worker the same index.'
            ) from None
    devices = tf.config.list_logical_devices('GPU') or tf.config.list_logical_devices('CPU')
    if len(devices) > 1:
        return World(tf.distribute.MirroredStrategy([device.name for device in devices]))
    return World(tf.distribute.get_strategy())


def cluster_task(text: str) -> tuple[int, int]:
    """This worker's rank and the number of workers, of TF_CONFIG's text. Raises UserError for what it cannot be."""
    try:
        told = json.loads(text or '{}')
        if told.get('cluster') is None:
            return 0, 1
        (job, addresses), *others = told['cluster'].items()
        task, index = told['task']['type'], told['task']['index']
        index = int(index)
        sound = job == task == 'worker' and not others and isinstance(addresses, list) and 0 <= index < len(addresses)
    except (ValueError, TypeError, KeyError, AttributeError):
        sound = False
    if not sound:
        raise UserError(
            f'TF_CONFIG is {text}; it must name all workers and which of them this one is, as in {EXAMPLE}. To train '
            'in this process alone, unset it.'
        )
    return index, len(addresses)


def tell_error(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """What a worker prints of an error that ends it: a line where the reason is another worker, which has its own."""
    if issubclass(kind, LOST):
        print(
            'error: another worker does not answer any more; its own messages say why. When all are started again, '
            'the same commands go on from the last finished epoch.',
            file=sys.stderr,
        )
    else:
        sys.__excepthook__(kind, error, trace)
