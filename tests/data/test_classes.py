import pytest
from easydict import EasyDict

from lib.data.classes import NTU60, class_names


def config(num_classes: int, names: object = None) -> EasyDict:
    return EasyDict(data={'ann_file': 'set.pkl', 'class_names': names}, model={'num_classes': num_classes})


def test_class_names_beside_the_pickle(tmp_path):
    found = config(2)
    found.data.ann_file = str(tmp_path / 'own.pkl')
    assert class_names(found) == ['class 0', 'class 1']
    (tmp_path / 'own_classes.txt').write_text('walk\nrun\n')
    assert class_names(found) == ['walk', 'run']
    found.model.num_classes = 60
    with pytest.raises(ValueError, match=r'set model\.num_classes to 2'):
        class_names(found)


def test_class_names(tmp_path):
    assert class_names(config(60))[23] == 'kicking something'
    assert class_names(config(120))[:60] == list(NTU60)
    assert class_names(config(3)) == ['class 0', 'class 1', 'class 2']
    path = tmp_path / 'names.txt'
    path.write_text('a\nb\n')
    assert class_names(config(2, str(path))) == ['a', 'b']
    with pytest.raises(ValueError, match=r'names\.txt .* 2 names'):
        class_names(config(3, str(path)))
    with pytest.raises(ValueError, match=r'nothing\.txt'):
        class_names(config(2, 'nothing.txt'))
    for content in (b'', b'a\n\nb\n', b'\xff\xfe', b'a\x00b\nc'):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r'names\.txt'):
            class_names(config(2, str(path)))
