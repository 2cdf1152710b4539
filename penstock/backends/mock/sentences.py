"""The mock's English: sentences that are right in grammar and mean nothing. Pure.

A layout is the parts of speech of 64 tokens: some sentences, each with a capital letter and a full stop. The token at
an index is a word of the list that the layout has there, so a token costs one number and two look-ups.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate

TokenOf = Callable[[int], str]

SHORTEST, LONGEST = 12, 60  # tokens of an answer that ends by itself


def _list(words: str) -> list[str]:
    return words.split()


_THE = _list("the every this that each one another our")
_AND, _AND_BUT = ["and"], ["and", "but"]
_ADJECTIVE = _list("""
    amber ancient bitter blue brave bright broad broken calm careful cheerful clean clever cold curious dark distant
    dry dusty early easy empty faint fair famous fine foreign fresh gentle golden grand green grey happy heavy
    hidden hollow honest humble late lazy light little lonely long narrow new noisy old open pale patient plain
    polite proud quick quiet round sharp silver simple small soft strange
""")
_NOUN = _list("""
    acorn anchor apple arrow attic autumn baker balcony barn basket beacon bench blanket bottle bramble branch
    bridge brook bucket butter button cabin candle canoe canyon captain carpet castle cedar chapel chimney circle
    cloud clover coast compass copper corner cottage cousin crane cricket cushion desert doctor dolphin dragon
    driver eagle engine farmer feather ferry fiddle field fisher flower forest fountain gallery garden gardener
    glacier grove guitar hammer harbour harvest heron hillside horizon island jacket journey kettle kitchen ladder
    lantern lemon letter lighthouse lily magpie maple market meadow melody miller mirror monument morning mountain
    museum neighbour orchard otter painter palace pebble pepper piano pigeon pillow pioneer pocket poem prairie
    quarry rabbit raven ribbon river robin saddle sailor shadow shepherd singer sparrow stranger summer teapot
    temple thimble tiger traveller valley violin
""")
_VERB = _list("""
    admires answers avoids blesses borrows brings builds buries carries catches chooses colours copies covers
    crosses defends describes draws dreads expects explains finds follows forgets frames gathers greets guards
    guides helps hides holds imagines invites keeps knows leads lifts likes loses loves measures meets misses moves
    names needs notices offers orders paints passes praises prefers protects pulls reaches remembers repairs saves
    sees sells shapes shares
""")
_RESTS = _list("""
    appears arrives begins blooms changes dances disappears dreams fades glows grows laughs leans listens pauses
    remains returns rises shines sings sinks sleeps smiles stays stops swings travels trembles vanishes waits wakes
    wanders
""")
_HOW = _list("""
    again alone already always calmly closely daily easily finally gently gladly happily early later lightly mostly
    nearly neatly never often once openly quickly quietly rarely safely seldom slowly softly sometimes soon together
""")
_WHERE = _list("""
    above across along around before behind below beneath beyond inside near opposite outside past through under
""")
_SENTENCES = (
    (_THE, _ADJECTIVE, _NOUN, _VERB, _THE, _NOUN),
    (_THE, _NOUN, _VERB, _THE, _ADJECTIVE, _NOUN, _WHERE, _THE, _NOUN),
    (_THE, _NOUN, _RESTS, _HOW),
    (_HOW, _THE, _ADJECTIVE, _NOUN, _RESTS, _WHERE, _THE, _NOUN),
    (_THE, _ADJECTIVE, _NOUN, _VERB, _THE, _NOUN, _AND_BUT, _VERB, _THE, _NOUN),
    (_THE, _NOUN, _WHERE, _THE, _NOUN, _VERB, _THE, _ADJECTIVE, _NOUN),
    (_WHERE, _THE, _NOUN, _THE, _ADJECTIVE, _NOUN, _RESTS, _HOW),
    (_THE, _NOUN, _VERB, _THE, _NOUN, _WHERE, _THE, _NOUN, _AND, _RESTS),
)

NOUNS = tuple(_NOUN)

_CHOICES = 128  # words of a list, which is repeated up to that many
_STEP = 0x5851F42D4C9
_MIX = 0x2545F491
_THOUGHTS = 0x1B873593CC9E2D51


def _lists() -> list[tuple[str, ...]]:
    """The words that each token of the cycle may be."""
    lists = []
    for sentence in _SENTENCES:
        for place, words in enumerate(sentence):
            shown = words if place else [word.capitalize() for word in words]
            end = "." if place == len(sentence) - 1 else ""
            lists.append((tuple(f" {word}{end}" for word in shown) * _CHOICES)[:_CHOICES])
    return lists


def _turned(first: int) -> tuple[tuple[tuple[str, ...], ...], tuple[int, ...]]:
    """The cycle with sentence number `first` at its beginning, and where its sentences end."""
    sizes = [len(sentence) for sentence in _SENTENCES]
    at = sum(sizes[:first])
    return tuple(_LISTS[at:] + _LISTS[:at]), tuple(accumulate(sizes[first:] + sizes[:first]))


_LISTS = _lists()
_TURNED = tuple(_turned(first) for first in range(len(_SENTENCES)))


def sentences(key: int) -> TokenOf:
    """The function from an index to the token there, for a key of 64 bits."""
    layout, _ = _TURNED[key % len(_TURNED)]

    def token_of(index: int) -> str:
        mixed = key + index * _STEP
        text = layout[index & 63][(mixed ^ mixed >> 23) * _MIX >> 37 & 127]
        return text if index else text[1:]

    return token_of


def thoughts(key: int) -> TokenOf:
    """The same for the reasoning in front of the answer, which has other words."""
    return sentences(key ^ _THOUGHTS)


def natural_length(key: int) -> int:
    """The number of tokens after which an answer ends by itself: 12 to 60, at the end of a sentence."""
    _, ends = _TURNED[key % len(_TURNED)]
    drawn = SHORTEST + (key >> 16) % (LONGEST - SHORTEST + 1)
    return max((end for end in ends if SHORTEST <= end <= drawn), default=min(end for end in ends if end >= SHORTEST))
