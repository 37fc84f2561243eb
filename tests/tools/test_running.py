import logging
import os
import signal
import sys
import warnings

import pytest

from lib.errors import UserError
from lib.tools.running import add_out, check_new, log, make_parser, run_tool


def run(main):
    return run_tool(main, make_parser('A tool.', 'example'), [])


def test_output_warnings_and_the_exit_code_of_main(capsys):
    other = logging.StreamHandler(sys.stdout)

    def work(args):
        logging.getLogger().addHandler(other)  # like TensorFlow
        log.info('done')
        warnings.warn('beware', stacklevel=1)
        return 1

    assert run(work) == 1
    assert capsys.readouterr() == ('done\n', 'warning: beware\n')
    assert run(lambda args: None) == 0
    assert logging.getLogger('lib').handlers == []
    logging.getLogger().removeHandler(other)


def test_user_errors_are_one_line_and_bugs_keep_their_traceback(capsys):
    def fail(error):
        def work(args):
            raise error

        return run(work)

    assert fail(UserError('no such clip')) == 2
    assert fail(FloatingPointError('not finite')) == 1
    assert capsys.readouterr().err == 'error: no such clip\nerror: not finite\n'
    for bug in (ValueError('a bug'), OSError('a bug')):
        with pytest.raises(type(bug), match='a bug'):
            fail(bug)


def test_signals_exit_with_code_75(capsys):
    assert run(lambda args: os.kill(os.getpid(), signal.SIGTERM)) == 75
    assert capsys.readouterr().err == '\nstopped before the end.\n'


def test_existing_output_is_refused_by_name(tmp_path, capsys):
    def into_file(args):
        check_new(args.out)

    def into_folder(args):
        check_new(args.out, 'a.json', 'plot*.png')

    parser = make_parser('A tool.', 'example')
    add_out(parser, 'FILE', text='new file')
    (tmp_path / 'plot1.png').touch()
    for work, out, code in (
        (into_file, tmp_path / 'plot1.png', 2),
        (into_file, tmp_path / 'new.png', 0),
        (into_file, tmp_path / 'plot1.png' / 'new.png', 2),
        (into_folder, tmp_path, 2),
        (into_folder, tmp_path / 'new', 0),
    ):
        assert run_tool(work, parser, ['--out', str(out)]) == code
        assert ('plot1.png' in capsys.readouterr().err) == (code == 2)
