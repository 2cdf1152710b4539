"""Strings and numbers that are valid against a JSON Schema."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction

from penstock.backends.mock.schema.check import exact, is_valid
from penstock.backends.mock.schema.draw import Draw
from penstock.backends.mock.schema.formats import FORMATS, noun
from penstock.backends.mock.schema.keywords import SIZE_OF_STEP, Root, Schema, Unwritable, count_of, number_of, text_of
from penstock.backends.mock.schema.pattern import MAX_TEXT, Pattern

LIMITS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")

_SPAN = 100  # of numbers without both limits
_WHOLE_SPAN = 10


def text_for(schema: Schema, draw: Draw, root: Root) -> str:
    """A text of the pattern or the format, or else one to three words, as long as the schema allows."""
    least, most = count_of(schema, "minLength") or 0, count_of(schema, "maxLength")
    if least > MAX_TEXT:
        raise Unwritable(f"'minLength' is above {MAX_TEXT}")
    pattern, kind = text_of(schema, "pattern"), text_of(schema, "format")

    def fits(text: str) -> bool:
        return len(text) >= least and (most is None or len(text) <= most)

    if pattern is not None:
        known = Pattern(pattern)
        return known.written(draw, root, lambda text: fits(text) and known.matches(text, root))
    root.spend(least // SIZE_OF_STEP)
    if kind in FORMATS:
        return FORMATS[kind](draw)
    text = " ".join([noun(draw) for _ in range(1 + draw.below(3))])
    while len(text) < least:
        text += " " + noun(draw)
    cut = text[:most].rstrip()
    return cut + "s" * (least - len(cut))


def number_for(schema: Schema, draw: Draw, root: Root, *, is_whole: bool) -> int | float:
    """A number within the limits. It is whole where they are far apart: tools that declare `number` often want that."""
    low, high = _limits(schema)
    if low is None:
        low = Fraction(0) if high is None else min(Fraction(0), high - _SPAN)
    if high is None:
        high = max(low, Fraction(0)) + _SPAN
    limits = {name: schema[name] for name in LIMITS if name in schema}
    unit = _unit(schema, high - low, is_whole)
    for factor in _factors(low / unit, high / unit, draw):
        number = factor * unit
        value = int(number) if number.denominator == 1 else float(number)
        if is_valid(value, limits, root):
            return value
    raise Unwritable("no number is within the limits")


def _unit(schema: Schema, span: Fraction, is_whole: bool) -> Fraction:
    """The distance between two of the numbers that may be drawn."""
    step = number_of(schema, "multipleOf")
    if step is not None:
        if step <= 0:
            raise Unwritable("'multipleOf' must be above 0")
        return Fraction(exact(step).numerator) if is_whole else exact(step)
    if is_whole or span >= _WHOLE_SPAN:
        return Fraction(1)
    return Fraction(1, 10) if span >= 1 or span <= 0 else span / 16


def _factors(low: Fraction, high: Fraction, draw: Draw) -> Iterator[int]:
    """Whole numbers in the range, beginning with a drawn one."""
    first, last = math.ceil(low), math.floor(high)
    if last >= first:
        yield first + draw.below(last - first + 1)
        yield from range(first, min(last, first + 3) + 1)


def _limits(schema: Schema) -> tuple[Fraction | None, Fraction | None]:
    lows = [number_of(schema, name) for name in ("minimum", "exclusiveMinimum")]
    highs = [number_of(schema, name) for name in ("maximum", "exclusiveMaximum")]
    return (
        max((exact(low) for low in lows if low is not None), default=None),
        min((exact(high) for high in highs if high is not None), default=None),
    )
