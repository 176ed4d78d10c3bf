"""Parses YAML and overrides into a validated configuration; all problems are reported at once."""

from __future__ import annotations

import copy
import difflib
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Generic, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from sjepa.core.errors import UserError

C = TypeVar("C", bound=BaseModel)


class ConfigError(UserError):
    """One or more problems of a configuration, one per line."""


@dataclass(frozen=True)
class Schema(Generic[C]):
    """Configuration schema of a system. `problems`: inconsistencies between keys of a valid
    configuration; `more_problems`: checks on the raw values beyond those of `root`; `resolved`:
    fills in defaults that depend on other keys; `appendix`: additional lines of `--help-config`."""

    root: type[C]
    problems: Callable[[C], list[str]] = lambda config: []
    more_problems: Callable[[dict[str, Any]], list[str]] = lambda values: []
    resolved: Callable[[C], C] = lambda config: config
    appendix: Callable[[], list[str]] = list


def load_config(schema: Schema[C], path: Path | None, overrides: Sequence[str] = ()) -> C:
    """The configuration of a YAML file with `section.key=value` overrides applied.

    Raises ConfigError naming every unknown key (with a suggestion), wrong type and value out of
    range.
    """
    values = _read_yaml(path) if path is not None else {}
    for override in overrides:
        _apply(values, override)
    return parse_config(schema, values, where=str(path) if path else "configuration")


def stated(config: BaseModel) -> dict[str, Any]:
    """Explicitly set keys (file or command line), dotted, with their values; entries of
    `model.overrides` individually."""
    return dict(_flat(config.model_dump(mode="json", by_alias=True, exclude_unset=True)))


def overridden(overrides: Sequence[str]) -> set[str]:
    """Dotted keys set by command-line overrides."""
    values: dict[str, Any] = {}
    for override in overrides:
        _apply(values, override)
    return {name for name, _ in _flat(values)}


def with_overrides(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Nested plain values with `section.key=value` overrides applied. Raises UserError."""
    changed = copy.deepcopy(values)
    for override in overrides:
        _apply(changed, override)
    return changed


def parse_config(schema: Schema[C], values: dict[str, Any], *, where: str = "configuration") -> C:
    """A checked configuration from nested plain values. Raises ConfigError."""
    problems: list[str] = []
    config: C | None = None
    try:
        config = schema.root.model_validate(values)
    except ValidationError as error:
        problems += describe(error, schema.root)
    problems += schema.more_problems(values)
    if config is not None and not problems:
        config = schema.resolved(config)
        problems += schema.problems(config)
    if problems or config is None:
        raise ConfigError("\n".join(f"{where}: {problem}" for problem in problems))
    return config


def dump_config(config: BaseModel) -> str:
    """YAML that `load_config` reads back to the same configuration."""
    return yaml.dump(config.model_dump(mode="json", by_alias=True), sort_keys=False, allow_unicode=True)


def describe(error: ValidationError, model: type[BaseModel], *, prefix: str = "") -> list[str]:
    """pydantic's errors as lines `section.key: value is not …`, one per key."""
    found: dict[str, tuple[Any, list[str]]] = {}
    for item in error.errors(include_url=False):
        path, field = _resolve(model, item["loc"])
        _, expected = found.setdefault(path, (item.get("input"), []))
        expected.append(_expectation(item, field, model, path))
    return [
        f"{prefix}{path}{': ' if path else ''}{_sentence(value, texts)}{_quotes(prefix + path, value, texts)}"
        for path, (value, texts) in found.items()
    ]


def keys(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """All keys as (dotted path, field); a section precedes its keys."""
    for name, field in model.model_fields.items():
        path = prefix + (field.alias or name)
        yield path, field
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from keys(field.annotation, path + ".")


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _resolve(model: type[BaseModel], location: tuple[int | str, ...]) -> tuple[str, FieldInfo | None]:
    """The dotted key of an error location, without pydantic's union tags, and its field."""
    parts: list[str] = []
    field: FieldInfo | None = None
    current: type[BaseModel] | None = model
    for part in location:
        if current is None:
            if isinstance(part, int):
                parts[-1] += f"[{part}]"
            continue
        parts.append(str(part))
        matches = [f for name, f in current.model_fields.items() if part in (name, f.alias)]
        field = matches[0] if matches else None
        kind = field.annotation if field else None
        current = kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None
    return ".".join(parts), field


def _expectation(item: Any, field: FieldInfo | None, model: type[BaseModel], path: str) -> str:
    """The expected value, for "… is not X"; texts that start with '=' are complete messages."""
    kind = item["type"]
    if kind == "invalid_key":
        return "=the key is not a string"
    if kind == "extra_forbidden":
        return "=unknown key" + _suggestion(path, model)
    if kind == "value_error":
        return "=" + str(item["ctx"]["error"])
    if kind in ("greater_than", "greater_than_equal", "less_than", "less_than_equal"):
        return _bounds(field, item)
    names = {
        "int_type": "a whole number", "int_from_float": "a whole number", "float_type": "a number",
        "bool_type": "true or false", "string_type": "a string", "finite_number": "a finite number",
        "model_type": "a section with keys of its own", "dict_type": "a mapping", "tuple_type": "a list of two numbers",
        "missing": "a list of two numbers", "too_long": "a list of two numbers",
    }  # fmt: skip
    if kind == "literal_error":
        return f"one of {item['ctx']['expected'].replace(chr(39), '')}"
    return names.get(kind, str(item["msg"]))


def _bounds(field: FieldInfo | None, item: Any) -> str:
    low = high = None
    for mark in field.metadata if field else ():
        low = getattr(mark, "ge", getattr(mark, "gt", low))
        high = getattr(mark, "le", getattr(mark, "lt", high))
    strict = " (bounds excluded)" if "equal" not in item["type"] else ""
    if low is not None and high is not None:
        return f"between {low:g} and {high:g}{strict}"
    context = item["ctx"]
    words = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}
    return next(f"{words[name]} {bound:g}" for name, bound in context.items() if name in words)


def _sentence(value: Any, texts: list[str]) -> str:
    whole = [text[1:] for text in texts if text.startswith("=")]
    if whole:
        return "; ".join(whole)
    return f"{_shown(value)} is not {' or '.join(dict.fromkeys(texts))}"


def _quotes(path: str, value: Any, texts: list[str]) -> str:
    """Hint on quoting, where a string was expected and YAML parsed another type."""
    kinds = {bool: "true or false", int: "a number", float: "a number", date: "a date"}
    if type(value) not in kinds or not any(text == "a string" or "is not a path" in text for text in texts):
        return ""
    return f" (YAML reads {kinds[type(value)]}; in quotes it is a string, on the command line {_quoted(path, '…')})"


def _quoted(name: str, text: str) -> str:
    """A shell-quoted override whose value YAML parses as a string."""
    inner = text.replace("\\", "\\\\").replace('"', '\\"')
    return shlex.quote(f'{name}="{inner}"')


def _shown(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, date):
        return str(value)
    if isinstance(value, float | int):
        return f"{value}"
    return repr(value)


def _suggestion(path: str, model: type[BaseModel]) -> str:
    known = [name for name, _ in keys(model)]
    near = difflib.get_close_matches(path, known, n=1, cutoff=0.6)
    if not near:  # right key, wrong section
        last = path.rsplit(".", 1)[-1]
        near = [name for name in known if name.rsplit(".", 1)[-1] == last][:1]
    return f", did you mean {near[0]}?" if near else ""


class _Loader(yaml.SafeLoader):
    """SafeLoader that parses `1e-4` as a float and rejects duplicate keys."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            name = self.construct_object(key_node, deep=True)  # type: ignore[no-untyped-call]
            if name in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {name!r} appears twice", key_node.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+0123456789."),
)


def _parse_yaml(text: str) -> Any:
    return yaml.load(text, Loader=_Loader)  # a SafeLoader: rejects tags that construct objects


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = _parse_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such configuration file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML ({_one_line(error)})") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{path}: holds {type(values).__name__}, not a mapping of sections")
    return values


def _apply(values: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    if not equals or not name:
        raise UserError(f"{override!r} is not an override: write section.key=value")
    try:
        value = _parse_yaml(text)
    except yaml.YAMLError as error:
        raise UserError(f"{override}: the value is not valid YAML ({_one_line(error)})") from None
    if _has_comment(text, value):
        raise UserError(f"{override}: YAML takes what follows # for a comment; quote the value: {_quoted(name, text)}")
    *parents, last = name.split(".")
    target = values
    for parent in parents:
        inner = target.setdefault(parent, {})
        if inner is None:
            inner = target[parent] = {}
        if not isinstance(inner, dict):
            raise UserError(f"{override}: {parent} is not a section")
        target = inner
    target[last] = value


def _has_comment(text: str, value: Any) -> bool:
    """Whether YAML drops a part of `text` as a comment."""
    for place in (match.start() for match in re.finditer("#", text)):
        try:
            if _parse_yaml(text[:place]) == value:
                return True
        except yaml.YAMLError:  # it is inside quotes
            continue
    return False


def _one_line(error: Exception) -> str:
    return re.sub(r"\s+", " ", str(error)).strip()
