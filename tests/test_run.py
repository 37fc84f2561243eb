"""Progress and saves of a run without training; test_resume.py and test_kills.py train."""

import threading
import time
from concurrent.futures import wait

import pytest
from easydict import EasyDict

from lib.errors import UserError
from lib.run import Run


class PlainRun(Run):
    """A run of a model without weights; tests replace `write`."""

    def learning_rates(self):
        return {'model': 1.0}

    def state(self):
        return {'model': {}, 'optimizer': {}}


@pytest.fixture
def run(tmp_path):
    return PlainRun(tmp_path, EasyDict({'script': 'mbert', 'train': {'keep': 2}}))


class ShortClips:
    """Three batches, the last one short."""

    batch_sizes = (8, 8, 4)

    def __len__(self):
        return 3

    def names(self, epoch, step):
        return [f'clip of step {step}']


@pytest.fixture
def clips():
    return ShortClips()


def test_means_weigh_batches_by_their_clips(run, clips):
    run.add_steps([1.0, 2.0], 6, clips)
    assert run.means() == {'loss': 1.5, 'top1': 6 / 16}
    run.add_steps([4.0], 1, clips)
    assert run.means() == {'loss': (8 + 16 + 16) / 20, 'top1': 7 / 20}
    assert run.step == 3


def test_a_loss_that_is_not_finite_names_its_step(run, clips):
    with pytest.raises(FloatingPointError, match='step 2 of 3, with the clips clip of step 1'):
        run.add_steps([1.0, float('nan')], 0, clips)


def test_of_equal_epochs_the_first_is_the_best(run, clips):
    run.write = lambda file, content: file.write(b'%d' % content['epoch'])
    for top1 in (0.25, 0.5, 0.5, 0.25):
        run.add_steps([1.0], 4, clips)
        run.finish_epoch({'top1': top1})
    run.wait()
    assert run.best == {'top1': 0.5, 'epoch': 2}
    assert run.best_path.read_bytes() == b'2'
    assert run.latest_path.read_bytes() == b'4'


def test_only_one_save_is_written_at_a_time(run):
    under_way, most = [], []

    def write(file, content):
        under_way.append(1)
        most.append(len(under_way))
        file.write(b'saved')
        time.sleep(0.02)
        under_way.pop()

    run.write = write
    for _ in range(3):
        run.save()
        assert run.writing is not None
    run.wait()
    assert most == [1, 1, 1]
    assert (run.folder / 'latest_epoch.bin').read_bytes() == b'saved'


def test_a_failed_rename_ends_the_run(run):
    run.write = lambda file, content: None
    run.damaged = [run.folder / 'gone.bin']
    run.save()
    with pytest.raises(UserError, match='cannot be written'):
        run.wait()


@pytest.mark.parametrize('notice', ['next save', 'next steps', 'exit'])
def test_a_failed_save_ends_the_run(run, clips, notice):
    begun = threading.Event()

    def write(file, content):
        begun.set()
        raise OSError(28, 'No space left on device')

    run.write = write
    run.save()
    assert begun.wait(10)
    wait([run.writing])
    with pytest.raises(ValueError, match='No space left on device'):
        {'next save': run.save, 'next steps': lambda: run.add_steps([1.0], 0, clips), 'exit': run.wait}[notice]()
