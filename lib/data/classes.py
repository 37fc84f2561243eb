"""Class names: those of NTU RGB+D in order of action number, or from a text file."""

from collections.abc import Mapping
from pathlib import Path

from lib.errors import UserError

MOST_BYTES = 2**20  # largest text file of class names

# Shahroudy et al., CVPR 2016 (A001-A060), and Liu et al., TPAMI 2019 (A061-A120).
NTU120 = (
    'drink water', 'eat meal', 'brush teeth', 'brush hair', 'drop', 'pick up', 'throw', 'sit down', 'stand up',
    'clapping', 'reading', 'writing', 'tear up paper', 'put on jacket', 'take off jacket', 'put on a shoe',
    'take off a shoe', 'put on glasses', 'take off glasses', 'put on a hat/cap', 'take off a hat/cap', 'cheer up',
    'hand waving', 'kicking something', 'reach into pocket', 'hopping', 'jump up', 'phone call', 'play with phone',
    'type on a keyboard', 'point to something', 'taking a selfie', 'check time (from watch)', 'rub two hands',
    'nod head/bow', 'shake head', 'wipe face', 'salute', 'put palms together', 'cross hands in front',
    'sneeze/cough', 'staggering', 'falling down', 'headache', 'chest pain', 'back pain', 'neck pain',
    'nausea/vomiting', 'fan self', 'punch/slap', 'kicking', 'pushing', 'pat on back', 'point finger', 'hugging',
    'giving object', 'touch pocket', 'shaking hands', 'walking towards', 'walking apart',
    'put on headphone', 'take off headphone', 'shoot at basket', 'bounce ball', 'tennis bat swing',
    'juggle table tennis ball', 'hush', 'flick hair', 'thumb up', 'thumb down', 'make OK sign', 'make victory sign',
    'staple book', 'counting money', 'cutting nails', 'cutting paper', 'snap fingers', 'open bottle', 'sniff/smell',
    'squat down', 'toss a coin', 'fold paper', 'ball up paper', 'play magic cube', 'apply cream on face',
    'apply cream on hand', 'put on bag', 'take off bag', 'put object into bag', 'take object out of bag',
    'open a box', 'move heavy objects', 'shake fist', 'throw up cap/hat', 'capitulate', 'cross arms', 'arm circles',
    'arm swings', 'run on the spot', 'butt kicks', 'cross toe touch', 'side kick', 'yawn', 'stretch oneself',
    'blow nose', 'hit with object', 'wield knife', 'knock over', 'grab stuff', 'shoot with gun', 'step on foot',
    'high-five', 'cheers and drink', 'carry object', 'take a photo', 'follow', 'whisper', 'exchange things',
    'support somebody', 'rock-paper-scissors',
)  # fmt: skip
NTU60 = NTU120[:60]


def class_names(config: Mapping[str, dict]) -> list[str]:
    """Names of the model's classes for a resolved config, model.num_classes of them; none in pretraining.

    Read from the text file `data.class_names`, by default <name>_classes.txt beside the pickle, which make_pickle
    writes. Without such a file the names of NTU RGB+D if the model has 60 or 120 classes, else 'class 0', 'class 1',
    ... Raises UserError naming the file if it has too few names.
    """
    data, num_classes = config['data'], config['model'].get('num_classes', 0)
    path = data.get('class_names') or _beside(Path(data['ann_file']))
    if path is None:
        known = {len(names): list(names) for names in (NTU60, NTU120)}
        return known.get(num_classes, [f'class {number}' for number in range(num_classes)])
    names = read_class_names(path)
    if len(names) < num_classes:
        raise UserError(
            f'{path} (data.class_names) has {len(names)} names, and model.num_classes is {num_classes}: set '
            f'model.num_classes to {len(names)}, or write one name per line, starting with class 0.'
        )
    return names[:num_classes]


def _beside(ann_file: Path) -> Path | None:
    path = ann_file.with_name(f'{ann_file.stem}_classes.txt') if ann_file.name else None
    return path if path and path.is_file() else None


def read_class_names(path: str | Path) -> list[str]:
    """Reads one name per line. Raises UserError naming the file if it is missing or not such a text file."""
    try:
        with Path(path).open('rb') as file:
            text = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise UserError(
            f'{path} (data.class_names) cannot be read ({error.strerror}). Use a text file with one name per line.'
        ) from None
    try:
        names = [' '.join(line.split()) for line in text.decode().splitlines()]
    except UnicodeDecodeError:
        names = []
    if len(text) > MOST_BYTES or not names or not all(name.isprintable() and name for name in names):
        raise UserError(f'{path} (data.class_names) is not a text file with one class name per line.')
    return names
