import json

from lib.tools import report


def test_a_page_shows_the_results_of_its_runs(trained_once, tmp_path):
    folders = [trained_once(kind) / 'run' for kind in ('vanilla', 'mbert')]
    out = tmp_path / 'report.html'
    assert report.main([*map(str, folders), '--out', str(out)]) == 0
    page = out.read_text()
    for folder in folders:
        found = json.loads((folder / 'evaluation.json').read_text())
        assert f'{found["parameters"]:,}' in page
        assert f'{100 * found["top1"]:.2f}' in page
    assert '<svg' in page


def test_text_of_untrusted_files_is_escaped(trained, tmp_path):
    run, hostile = trained('vanilla') / 'run', '<img src=x onerror=alert(1)>'
    found = json.loads((run / 'evaluation.json').read_text())
    names = [hostile, '</script><script>', 'c', 'd']
    (run / 'evaluation.json').write_text(json.dumps(found | {'kind': hostile, 'class_names': names}))
    assert report.main([str(run), '--out', str(tmp_path / 'report.html')]) == 0
    page = (tmp_path / 'report.html').read_text()
    assert hostile not in page
    assert '<script' not in page


def test_other_files_are_not_overwritten(trained_once, tmp_path, capsys):
    (tmp_path / 'mine.html').write_text('my own')
    assert report.main([str(trained_once('vanilla') / 'run'), '--out', str(tmp_path / 'mine.html')]) == 2
    assert 'mine.html' in capsys.readouterr().err
    assert (tmp_path / 'mine.html').read_text() == 'my own'
