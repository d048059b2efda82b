"""Rotary base and scaling in a config.json, read in every spelling that transformers has had.

    transformers 4.31 to 4.42  rope_theta: 1e4, rope_scaling: {"type": "linear", "factor": 4.0}
    4.43 to 4.57               rope_theta: 1e4, rope_scaling: {"rope_type": "linear", "type": "linear", "factor": 4.0}
    from 5.0 on                rope_parameters: {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}

If a file says one thing in two places, both must agree: an older and a newer transformers would read different ones.
Files are written in the first spelling, which every version reads. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from megatron_patch.errors import UserError

DEFAULT, LINEAR, DYNAMIC = "default", "linear", "dynamic"
SUPPORTED = (DEFAULT, LINEAR, DYNAMIC)
DEFAULT_THETA = 10000.0

_PLACES = ("rope_scaling", "rope_parameters")
_KNOWN = {"type", "rope_type", "factor", "rope_theta", "original_max_position_embeddings", "partial_rotary_factor"}


@dataclass(frozen=True)
class Rope:
    """Rotary base, kind of scaling, and the scaling's factor, which is 1 for `default`."""

    theta: float = DEFAULT_THETA
    rope_type: str = DEFAULT
    factor: float = 1.0


def read_rope(hf_config: Mapping[str, Any]) -> Rope:
    """What a config.json says about rotary positions.

    Raises:
        UserError: it names a kind that this model does not compute, something else than a number where one belongs, or
            two places disagree.
    """
    theta = _theta(hf_config)
    _check_whole_head(hf_config)
    found = {place: _scaling(hf_config, place) for place in _PLACES if _is_given(hf_config, place)}
    if len(set(found.values())) > 1:
        (first, one), (second, other) = found.items()
        raise UserError(
            f"{first} is {one[0]} by {one[1]:g} and {second} is {other[0]} by {other[1]:g}; transformers of different ages "
            "take different ones: remove the wrong one."
        )
    kind, factor = next(iter(found.values()), (DEFAULT, 1.0))
    return Rope(theta, kind, factor)


def rope_keys(rope: Rope) -> dict[str, Any]:
    """The keys of a config.json that mean `rope` to every transformers since 4.31.

    Before 4.43 it accepts `rope_scaling` with exactly these two keys, and a factor only if it is a float above 1.
    transformers 5 reads both keys as its `rope_parameters`.
    """
    scaling = None if rope.rope_type == DEFAULT else {"type": rope.rope_type, "factor": float(rope.factor)}
    return {"rope_theta": rope.theta, "rope_scaling": scaling}


def _is_given(hf_config: Mapping[str, Any], place: str) -> bool:
    """Whether `place` says anything about scaling."""
    value = hf_config.get(place)
    if value is None or value == {}:
        return False
    if not isinstance(value, Mapping):
        raise UserError(f"{place} is {value!r}; it must be null or an object such as {{'type': 'linear', 'factor': 2.0}}.")
    # rope_parameters may hold the base alone, which says nothing about scaling.
    return place == "rope_scaling" or any(value[key] is not None for key in value if key != "rope_theta")


def _scaling(hf_config: Mapping[str, Any], place: str) -> tuple[str, float]:
    """(kind, factor) as one place says. Linear scaling by 1 counts as none."""
    given = {key: value for key, value in hf_config[place].items() if value is not None}
    kinds = {str(given[key]) for key in ("rope_type", "type") if key in given}
    if len(kinds) > 1:
        raise UserError(f"{place} has rope_type {given['rope_type']!r} and type {given['type']!r}: remove the wrong one.")
    kind = kinds.pop() if kinds else DEFAULT
    if kind not in SUPPORTED:
        raise UserError(
            f"{place} has the type {kind!r}; supported are {', '.join(SUPPORTED)}. "
            "This model would compute other positions than those that the weights were trained with."
        )
    unknown = sorted(set(given) - _KNOWN)
    if unknown:
        raise UserError(f"{place} has the key {unknown[0]!r}, which {kind} scaling does not use; remove it if it means nothing.")
    if kind != DEFAULT and "factor" not in given:
        raise UserError(f"{place} has the type {kind!r} and no factor; it must name one, such as 2.0.")
    factor = _number(f"{place}.factor", given.get("factor", 1.0))
    if factor < 1 or (kind == DEFAULT and factor != 1):
        allowed = "1 or left out with the type 'default'" if kind == DEFAULT else "at least 1"
        raise UserError(f"{place}.factor is {factor:g}; it must be {allowed}.")
    _check_original_limit(hf_config, place, kind)
    return (DEFAULT, 1.0) if kind == LINEAR and factor == 1 else (kind, factor)


def _check_original_limit(hf_config: Mapping[str, Any], place: str, kind: str) -> None:
    """Refuse a dynamic scaling whose own limit differs from max_position_embeddings, where transformers begins it."""
    original = hf_config[place].get("original_max_position_embeddings")
    limit = hf_config.get("max_position_embeddings")
    if kind == DYNAMIC and original is not None and original != limit:
        raise UserError(
            f"{place}.original_max_position_embeddings is {original!r} and max_position_embeddings {limit!r}; transformers "
            "begins dynamic scaling at the latter: make them one."
        )


def _theta(hf_config: Mapping[str, Any]) -> float:
    """The rotary base; all places that give one must agree."""
    found = {name: _number(name, value) for name, value in _values(hf_config, "rope_theta") if value is not None}
    if len(set(found.values())) > 1:
        said = " and ".join(f"{name} {value:g}" for name, value in found.items())
        raise UserError(f"{said} disagree; transformers of different ages take different ones: remove the wrong one.")
    theta = next(iter(found.values()), DEFAULT_THETA)
    if theta <= 1:
        raise UserError(f"rope_theta is {theta:g}; it must be above 1, and 10000 in LLaMA and LLaMA-2.")
    return theta


def _check_whole_head(hf_config: Mapping[str, Any]) -> None:
    """Refuse a rotation of a part of each head, which other models have."""
    for name, value in _values(hf_config, "partial_rotary_factor"):
        if value is not None and _number(name, value) != 1:
            raise UserError(f"{name} is {value!r}; supported is 1: a LLaMA rotates whole heads.")


def _values(hf_config: Mapping[str, Any], key: str) -> Iterator[tuple[str, Any]]:
    """(name, value) of `key` at each place where it may be; None where it is not."""
    yield key, hf_config.get(key)
    for place in _PLACES:
        if isinstance(hf_config.get(place), Mapping):
            yield f"{place}.{key}", hf_config[place].get(key)


def _number(name: str, value: Any) -> float:
    """`value` as a finite float; the sentence of the UserError calls it `name`."""
    # `not … <=` is true for a NaN too.
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= 1e30:
        got = value if not isinstance(value, int) or abs(value) <= 1e30 else "a number of many digits"
        raise UserError(f"{name} is {got!r}; it must be a finite number.")
    return float(value)


def dynamic_ntk_base(base: float, head_dim: int, length: int, max_length: int, factor: float) -> float:
    """The rotary base of a sequence of `length` under dynamic NTK scaling (u/bloc97 and u/emozilla, 2023).

    base · (factor · length / max_length − (factor − 1))^(D / (D − 2)), and `base` itself up to max_length, the
    length that the model was trained for: transformers' `_compute_dynamic_ntk_parameters`. head_dim is above 2.
    """
    stretched = factor * max(length, max_length) / max_length - (factor - 1)
    return base * stretched ** (head_dim / (head_dim - 2))
