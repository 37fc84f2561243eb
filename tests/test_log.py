from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata

from lib.log import Log
from tests import tiny


def read_board(run: Path) -> EventAccumulator:
    board = EventAccumulator(str(run / 'logs'), size_guidance={'scalars': 0, 'images': 0})
    return board.Reload()


def steps(events) -> list[int]:
    return [event.step for event in events]


def test_tensorboard_has_curves_confusion_matrix_and_hparams_of_a_resumed_run(trained, monkeypatch):
    folder = trained('vanilla')
    resume = ['--config', folder / 'tiny.yaml', '-c', folder / 'run', '--set', 'train.epochs=3']
    call, epoch, scores = tiny.caller(tiny.SCRIPTS['vanilla']), Log.epoch, iter([-1.0, 2.0])

    def log_epoch(self: Log, logits, val_clips) -> None:  # only the third epoch is better than the first
        top1 = next(scores)
        if top1 > 0:
            self.run.best = {'top1': top1, 'epoch': self.run.epoch}
        epoch(self, logits, val_clips)

    monkeypatch.setattr(Log, 'epoch', log_epoch)
    assert call(*resume) == 0
    board = read_board(folder / 'run')
    lines = tiny.lines(folder / 'run')
    assert [event.value for event in board.Scalars('val/top1')] == pytest.approx(
        [line['val']['top1'] for line in lines]
    )
    assert steps(board.Scalars('val/top1')) == steps(board.Scalars('best/top1')) == [1, 2, 3]
    assert steps(board.Images('best/confusion_matrix')) == [1, 3]  # resuming keeps the first
    assert not [path for path in (folder / 'run' / 'logs').iterdir() if path.is_dir()]  # one run in TensorBoard

    content = board.PluginTagToContent('hparams')
    assert list(content) == [metadata.SESSION_START_INFO_TAG]
    found = metadata.parse_session_start_info_plugin_data(content[metadata.SESSION_START_INFO_TAG]).hparams
    assert found['model.dim_feat'].number_value == 16
    assert found['data.benchmark'].string_value == 'xsub'
