"""YAML configs: a section is the keyword arguments of one callable, which thereby is the section's schema.

A keyword-only parameter is a key; its annotation is the key's type; without a default the key must be there. So a name
that nothing reads, a value of another type or a forgotten key ends a run before it has touched any data.

Some keys say nothing under the others (what is cropped where nothing is drawn?). A callable that has such keys names
them: `unused_keys(**keys) -> {key: reason}`. They are refused, and left out of the resolved config. But where
overrides change a section, its unused keys are dropped: `--set train.lr_schedule=cosine` goes with a config's lr_decay.
"""

import contextlib
import difflib
import inspect
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from easydict import EasyDict

from lib.errors import UserError, shown, user_file

Sections = Mapping[str, Callable[..., Any]]


def load_config(path: str | Path, sections: Sections, overrides: Iterable[str] = ()) -> EasyDict:
    """Reads a config, changes it by `overrides` ('section.key=value') and checks it against `sections`.

    Returns every key of every section, defaults filled in. Raises UserError naming file and key.
    """
    return resolve_config(read_config(path, sections), sections, overrides, str(path))


def read_config(path: str | Path, sections: Iterable[str]) -> dict[str, dict]:
    """The sections of a config as they stand in the file, of which nothing but the form is checked.

    Raises UserError naming the file; `sections`, their names, are told to who wrote something else.
    """
    with user_file(path):
        content = Path(path).read_bytes()
    config = _parse(content, f'{path} is not sound YAML')
    if not isinstance(config, dict) or not all(isinstance(section, dict) for section in config.values()):
        raise UserError(
            f'{path}: a config is sections of keys ({", ".join(sections)}), each `section: {{key: value}}`.'
        )
    return config


def resolve_config(config: Mapping[str, dict], sections: Sections, overrides: Iterable[str], where: str) -> EasyDict:
    """As `load_config`, for a config that is already read; `where` names it in errors."""
    config = {section: dict(keys) for section, keys in config.items()}
    overridden = {section: set() for section in sections}
    for override in overrides:
        name, equals, value = override.partition('=')
        section, dot, key = name.partition('.')
        if not (equals and dot and key):
            raise UserError(f'--set {override}: write --set section.key=value.')
        config.setdefault(section, {})[key] = _parse(value, f'--set {override}: {value!r} is not sound YAML')
        overridden.setdefault(section, set()).add(key)
    for section in config:
        if section not in sections:
            raise UserError(f'{where}: unknown section {section!r}.{_nearest(section, sections)}')
    resolved = {}
    for name, call in sections.items():
        data_input = resolved.get('data', {}).get('input', 'heatmap')
        if name == 'heatmap' and data_input != 'heatmap':
            if name in config:
                raise UserError(f'{where}: data.input {data_input} draws nothing, so that the section heatmap must go.')
        else:
            resolved[name] = _bind(config.get(name, {}), call, f'{where}: {name}', overridden[name])
    return EasyDict(resolved)


def differences(one: Mapping[str, dict], other: Mapping[str, dict]) -> dict[str, tuple[Any, Any]]:
    """{'section.key': (value in one, value in other)} for all keys that differ; None stands for absent."""
    names = {(section, key) for config in (one, other) for section, keys in config.items() for key in keys}
    values = {f'{s}.{k}': (one.get(s, {}).get(k), other.get(s, {}).get(k)) for s, k in sorted(names)}
    return {name: (a, b) for name, (a, b) in values.items() if a != b}


def plain(config: Mapping[str, dict]) -> dict[str, dict[str, Any]]:
    """A config as plain dicts and lists, for YAML files and checkpoints."""
    return {
        section: {key: list(value) if isinstance(value, tuple) else value for key, value in keys.items()}
        for section, keys in config.items()
    }


def _bind(given: Mapping[str, Any], call: Callable, where: str, overridden: set[str]) -> dict[str, Any]:
    """The keyword arguments of `call`, checked, with defaults. overridden: the given keys that come from --set."""
    hints = typing.get_type_hints(call.__init__ if inspect.isclass(call) else call)
    parameters = inspect.signature(call).parameters.values()
    keys = {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY}
    for key, value in given.items():
        if key not in keys:
            raise UserError(f'{where}.{key} is not a known key.{_nearest(key, keys)}')
        _check_type(value, hints[key], f'{where}.{key}')
    unused = call.unused_keys(**given) if hasattr(call, 'unused_keys') else {}
    for key in given:
        if key in unused and (key in overridden or not overridden):
            raise UserError(f'{where}.{key} has no effect: {unused[key]}. Omit it.')
    keys = {name: parameter for name, parameter in keys.items() if name not in unused}
    bound = {}
    for key, parameter in keys.items():
        if key in given:
            bound[key] = given[key]
        elif parameter.default is parameter.empty:
            raise UserError(f'{where}.{key} is missing; it must be {_name(hints[key])}.')
        else:
            bound[key] = parameter.default
    return plain({'': bound})['']


def _check_type(value: Any, hint: Any, where: str) -> None:
    if not _fits(value, hint):
        advice = ''
        if isinstance(value, str) and float in _options(hint):
            with contextlib.suppress(ValueError):
                advice = f' YAML reads {value} as text; write {float(value):.1e}.'
        found = 'null' if value is None else shown(value)
        raise UserError(f'{where} must be {_name(hint)}, found {found}.{advice}')


def _options(hint: Any) -> tuple:
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if is_union else (hint,)


def _fits(value: Any, hint: Any) -> bool:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, option) for option in args)
    if origin is typing.Literal:
        return value in args
    if origin is tuple:
        return isinstance(value, list | tuple) and len(value) == len(args) and all(map(_fits, value, args))
    if origin is list:
        return isinstance(value, list) and all(_fits(item, args[0]) for item in value)
    if hint is float:
        return isinstance(value, float | int) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    assert isinstance(hint, type), f'config keys of type {hint} are not supported'
    return isinstance(value, hint)


def _name(hint: Any) -> str:
    names = {int: 'a whole number', float: 'a number', str: 'text', bool: 'true or false', types.NoneType: 'null'}
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return ' or '.join(map(_name, args))
    if origin is typing.Literal:
        return 'one of ' + ', '.join(map(str, args))
    if origin is tuple:
        return f'[{", ".join(map(_name, args))}]'
    if origin is list:
        return f'[{_name(args[0])}, ...]'
    return names[hint]


def _nearest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(str(name), known, n=1)
    return f' Did you mean {close[0]}?' if close else f' Known are {", ".join(known)}.'


def _parse(text: str | bytes, complaint: str) -> Any:
    """What a YAML text holds. Raises UserError, which begins with `complaint`."""
    try:
        return yaml.load(text, _Loader)
    except Exception as error:  # PyYAML raises whatever its constructors stumble on, as with !!int x or a 13th month
        problem = ' '.join(str(error).split())
        raise UserError(f'{complaint}: {problem[:300]}') from None


class _Loader(yaml.SafeLoader):
    """Refuses a key that a section has twice, of which PyYAML would take the last one."""

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.composer.ComposerError(None, None, f'the key {key.value!r} is given twice', key.start_mark)
            seen.add(key.value)
        return node
