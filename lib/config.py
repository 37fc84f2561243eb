"""YAML configs: a section holds the keyword arguments of one callable, whose signature is the section's schema.

A keyword-only parameter is a key, its annotation the key's type; a parameter without a default is a required key. An
unknown key, a value of another type or a missing key stops a run before any data is read.
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

from lib.errors import UserError, shown, user_file

Sections = Mapping[str, Callable[..., Any]]


def read_config(path: str | Path) -> dict[str, Any]:
    """Reads `script` and the sections of a config file, checking only the structure. Raises UserError naming it."""
    with user_file(path):
        content = Path(path).read_bytes()
    config = _parse(content, f'{path} is not valid YAML')
    if not isinstance(config, dict) or not all(
        isinstance(keys, dict) for name, keys in config.items() if name != 'script'
    ):
        raise UserError(f'{path}: expected `script: NAME` and sections, each `section: {{key: value}}`.')
    return config


def override(config: Mapping[str, dict], overrides: Iterable[str]) -> dict[str, dict]:
    """Returns a copy of the sections with each 'section.key=value' applied. Raises UserError for any other form."""
    config = {section: dict(keys) for section, keys in config.items()}
    for text in overrides:
        name, equals, value = text.partition('=')
        section, dot, key = name.partition('.')
        if not (equals and dot and key):
            raise UserError(f'--set {text}: write --set section.key=value.')
        config.setdefault(section, {})[key] = _parse(value, f'--set {text}: {value!r} is not valid YAML')
    return config


def bind(config: Mapping[str, dict], sections: Sections, where: str) -> dict[str, dict[str, Any]]:
    """Checks all sections and fills in defaults. Raises UserError naming `where` and the key."""
    for section in config:
        if section not in sections:
            raise UserError(f'{where}: unknown section {section!r}.{_nearest(section, sections)}')
    return {name: _bind(config.get(name, {}), call, f'{where}: {name}') for name, call in sections.items()}


def flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """Flattens a config to {'script': ..., 'section.key': value, ...}."""
    entries = {}
    for name, value in config.items():
        entries |= {f'{name}.{key}': v for key, v in value.items()} if isinstance(value, Mapping) else {name: value}
    return entries


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Entries that differ between two configs: {'section.key': (value in one, value in other)}; None: absent."""
    one, other = flat(one), flat(other)
    return {
        name: (one.get(name), other.get(name)) for name in sorted({*one, *other}) if one.get(name) != other.get(name)
    }


def plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """Converts a config to plain dicts and lists, for YAML files and checkpoints."""
    return {
        name: {key: _plain(value) for key, value in keys.items()} if isinstance(keys, Mapping) else keys
        for name, keys in config.items()
    }


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _bind(values: Mapping[str, Any], call: Callable, where: str) -> dict[str, Any]:
    """Checks the keyword arguments of `call` and fills in defaults."""
    hints = typing.get_type_hints(call.__init__ if inspect.isclass(call) else call)
    keys = {p.name: p for p in inspect.signature(call).parameters.values() if p.kind is p.KEYWORD_ONLY}
    for key, value in values.items():
        if key not in keys:
            raise UserError(f'{where}.{key} is not a known key.{_nearest(key, keys)}')
        _check_type(value, hints[key], f'{where}.{key}')
    for key, parameter in keys.items():
        if key not in values and parameter.default is parameter.empty:
            raise UserError(f'{where}.{key} is missing; it must be {_name(hints[key])}.')
    return {key: values[key] if key in values else _plain(parameter.default) for key, parameter in keys.items()}


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
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63
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
    return f' Did you mean {close[0]}?' if close else f' Known: {", ".join(known)}.'


def _parse(text: str | bytes, problem: str) -> Any:
    """Parses YAML. Raises UserError with a message that begins with `problem`."""
    try:
        return yaml.load(text, _Loader)
    except Exception as error:  # PyYAML passes on errors of its constructors, e.g. for !!int x or a 13th month
        details = ' '.join(str(error).split())
        raise UserError(f'{problem}: {details[:300]}') from None


class _Loader(yaml.SafeLoader):
    """Rejects duplicate keys, for which PyYAML would use the last value."""

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        keys = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in keys:
                raise yaml.composer.ComposerError(None, None, f'duplicate key {key.value!r}', key.start_mark)
            keys.add(key.value)
        return node
