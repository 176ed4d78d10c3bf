"""Value types of configuration keys and their validation errors."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field


class Section(BaseModel):
    """Frozen pydantic model; rejects unknown keys, wrong types, NaN and infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, populate_by_name=True)


def _ordered(value: tuple[float, float]) -> tuple[float, float]:
    if value[0] > value[1]:
        raise ValueError(f"{list(value)} is not [low, high]")
    return value


def folder_name(value: str) -> str:
    if value in ("", ".", "..") or not value.isprintable() or "/" in value or "\\" in value:
        raise ValueError(f"{value!r} is not a plain folder name")
    return value


def _listed(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _valid_paths(value: Any) -> Any:
    items = value if isinstance(value, list) else [value]
    if not items or not all(isinstance(item, str) and item for item in items):
        raise ValueError(f"{value!r} is not a path or a list of paths")
    return value


def _valid_names(value: Any) -> Any:
    if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
        raise ValueError(f"{value!r} is not a list of names")
    return value


BASELINES = ("mfcc", "mfcc_clip", "mfcc_context", "logmel", "logmel_clip", "logmel_context", "mixture", "untrained")
USUAL_BASELINES = ("mfcc", "mfcc_clip", "untrained")


def _valid_baselines(value: Any) -> Any:
    if isinstance(value, bool):
        return USUAL_BASELINES if value else ()
    if not isinstance(value, list | tuple) or not all(item in BASELINES for item in value):
        raise ValueError(f"{value!r} is neither true nor false nor a list of {', '.join(BASELINES)}")
    return tuple(value)


def _valid_layers(value: Any) -> Any:
    def is_layer(item: Any) -> bool:
        return item == "learned" or (isinstance(item, int) and not isinstance(item, bool))

    if not isinstance(value, list) or not value or not all(map(is_layer, value)):
        raise ValueError(f"{value!r} is not a list of layers (whole numbers, or learned)")
    return value


def _whole_numbers(value: Any) -> Any:
    if not isinstance(value, list | tuple) or not all(type(item) is int for item in value):
        raise ValueError(f"{value!r} is not a list of whole numbers")
    return tuple(value)


def _valid_corpora(value: Any) -> Any:
    if not isinstance(value, list) or not any(isinstance(item, dict) for item in value):
        return _valid_paths(value)
    for item in value:
        if not isinstance(item, dict) or set(item) != {"path", "weight"}:
            raise ValueError(f"{item!r} is not {{path: …, weight: …}}, which the other corpora of the list are")
        _valid_paths(item["path"])
        weight = item["weight"]
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < float("inf"):
            raise ValueError(f"weight {weight!r} is not a number above 0")
    return value


def _epoch(value: float) -> float:
    """An integer epoch; 0 < value < 1: fraction of the run; -1: never."""
    if 0 < value < 1:
        return value
    if value != int(value) or (value < 0 and value != -1):
        raise ValueError(f"{value:g} is neither a whole epoch, nor a fraction below 1, nor -1 (never)")
    return int(value)


Paths = Annotated[Any, BeforeValidator(_valid_paths)]
Corpora = Annotated[Any, BeforeValidator(_valid_corpora)]
Names = Annotated[Any, BeforeValidator(_valid_names)]
Baselines = Annotated[Any, BeforeValidator(_valid_baselines)]
Layers = Annotated[Any, BeforeValidator(_valid_layers)]
Range = Annotated[tuple[float, float], BeforeValidator(_listed), AfterValidator(_ordered)]
WholeNumbers = Annotated[tuple[int, ...], BeforeValidator(_whole_numbers)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(ge=0, lt=1)]
Betas = Annotated[
    tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]], BeforeValidator(_listed)
]
EpochOrFraction = Annotated[float, AfterValidator(_epoch)]
