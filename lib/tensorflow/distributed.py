"""Data-parallel training on all GPUs of a host, or on several hosts with TF_CONFIG and one command per host.

    TF_CONFIG='{"cluster": {"worker": ["host0:2222", "host1:2222"]}, "task": {"type": "worker", "index": 0}}' \\
        python train_action_vivit.py ...                          # and with index 1 on host1

A worker is one process, a replica the model on one of its devices. Each replica computes its share of every batch.
"""

import json
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import TracebackType
from typing import Any

import numpy as np
import tensorflow as tf

from lib.console import peak_process_memory, silence
from lib.errors import UserError
from lib.run import check_same

EXAMPLE = '{"cluster": {"worker": ["host0:2222", "host1:2222"]}, "task": {"type": "worker", "index": 0}}'
# Errors of collectives if another worker is lost, which TensorFlow detects within about 10 seconds.
LOST = (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError, tf.errors.DeadlineExceededError)


@dataclass(frozen=True)
class World:
    """Distribution strategy, with the rank of this worker and the number of workers."""

    strategy: tf.distribute.Strategy
    rank: int = 0
    num_workers: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this worker prints and writes files."""
        return self.rank == 0

    @property
    def is_alone(self) -> bool:
        """Whether this is the only worker."""
        return self.num_workers == 1

    @property
    def num_replicas(self) -> int:
        """Number of replicas over all workers."""
        return self.strategy.num_replicas_in_sync

    @property
    def local_replicas(self) -> range:
        """Indices of this worker's replicas; all workers have equally many."""
        count = self.num_replicas // self.num_workers
        return range(self.rank * count, (self.rank + 1) * count)

    @property
    def description(self) -> str:
        """Devices, for the log."""
        device = 'cuda' if tf.config.list_logical_devices('GPU') else 'cpu'
        count = len(self.local_replicas)
        if self.num_workers > 1:
            return f'{self.num_workers} workers of {count} x {device}'
        return device if count == 1 else f'{count} x {device}'

    def peak_memory(self) -> int:
        """Peak memory in bytes: of tensors on the first GPU, or of this process on a CPU."""
        gpus = tf.config.list_logical_devices('GPU')
        return tf.config.experimental.get_memory_info('GPU:0')['peak'] if gpus else peak_process_memory()

    def reduce(self, steps: Sequence[tf.Tensor], stop: bool) -> tuple[list[float], int, bool]:
        """Returns mean losses, number of correct clips, and whether any worker was to stop. Waits for the devices.

        steps: [mean loss, correct clips] over all workers, per step.
        """
        rows = tf.stack(steps).numpy().tolist()
        stops = [stop] if self.is_alone else self._gather(int(stop))
        return [loss for loss, _ in rows], int(sum(correct for _, correct in rows)), any(stops)

    def distribute(self, shares: Sequence[Mapping[str, np.ndarray]]) -> Any:
        """Converts one share per replica of this worker, in order, to an argument of strategy.run."""

        def share_of(replica: tf.distribute.experimental.ValueContext) -> dict[str, tf.Tensor]:
            share = shares[replica.replica_id_in_sync_group - self.local_replicas.start]
            with tf.device('CPU'):  # each device copies its own share
                return {name: tf.convert_to_tensor(array) for name, array in share.items()}

        return self.strategy.experimental_distribute_values_from_function(share_of)

    def check_same(self, what: str, number: int) -> None:
        """Raises UserError if the workers have different numbers. what: name of the number."""
        if not self.is_alone:
            check_same('workers', what, self._gather(number))

    def wait_for_all(self) -> None:
        """Barrier over all workers."""
        if not self.is_alone:
            self._gather(0)

    def _gather(self, number: int) -> list[int]:
        """Gathers a number from all workers."""
        numbers = self.distribute([{'number': np.array([number], np.int64)}] * len(self.local_replicas))
        return self._gather_values(numbers['number']).numpy().tolist()

    @cached_property
    def _gather_values(self) -> Callable[[Any], tf.Tensor]:
        return tf.function(lambda value: self.strategy.gather(value, axis=0), autograph=False)


def init() -> World:
    """Joins the cluster in TF_CONFIG, or returns a single worker on all GPUs of the host, else on all logical CPUs.

    Must be called before any other use of TensorFlow. Raises UserError if TF_CONFIG is invalid or its port is in use.
    """
    tf.get_logger().setLevel(logging.WARNING)  # strategies log every collective
    rank, num_workers = cluster_task(os.environ.get('TF_CONFIG', ''))
    if num_workers > 1:
        if rank == 0:
            print(f'waiting for {num_workers - 1} other workers to join', flush=True)
        else:  # only the main worker prints
            silence()
        sys.excepthook = report_error
        try:
            return World(tf.distribute.MultiWorkerMirroredStrategy(), rank, num_workers)
        except tf.errors.UnknownError as error:
            raise UserError(
                f'the port of worker {rank} in TF_CONFIG cannot be opened ({error.message}): it may be used by another '
                'process, or by a worker with the same index.'
            ) from None
    devices = tf.config.list_logical_devices('GPU') or tf.config.list_logical_devices('CPU')
    if len(devices) > 1:
        return World(tf.distribute.MirroredStrategy([device.name for device in devices]))
    return World(tf.distribute.get_strategy())


def cluster_task(text: str) -> tuple[int, int]:
    """Parses TF_CONFIG: rank of this worker and number of workers. Raises UserError if it is invalid."""
    try:
        config = json.loads(text or '{}')
        if config.get('cluster') is None:
            return 0, 1
        (job, addresses), *others = config['cluster'].items()
        task, index = config['task']['type'], int(config['task']['index'])
        is_valid = (
            job == task == 'worker' and not others and isinstance(addresses, list) and 0 <= index < len(addresses)
        )
    except (ValueError, TypeError, KeyError, AttributeError):
        is_valid = False
    if not is_valid:
        raise UserError(
            f'TF_CONFIG is {text}; it must list all workers and the index of this one, for example {EXAMPLE}. Unset it '
            'to train in a single process.'
        )
    return index, len(addresses)


def report_error(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Exception hook of workers: prints one line if another worker was lost, else the traceback."""
    if issubclass(kind, LOST):
        print(
            'error: another worker has stopped responding; see its own messages. To resume from the last checkpoint, '
            'repeat the command on all hosts.',
            file=sys.stderr,
        )
    else:
        sys.__excepthook__(kind, error, trace)
