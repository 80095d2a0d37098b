"""Questions whose answer stood once in the text before them, set into the corpus' own test documents.

A trial is a haystack (test documents, joined in random order) and a key that is written over a part of it. The context
ends with a cue, and the answer is what a reader of the key would write next:

    passkey       a line that states a number (Mohtashami and Jaggi, arXiv 2305.16300); asked for the number
    needle        a line that states where somebody lives, both names made up; asked for the place
    repetition    a passage from the same documents; asked, given its first bytes again, for the rest of it

The first two need a model that understands a request; repetition needs none, any language model gains from it, so small
models get a curve instead of a row of zeros. Contexts of different length end alike, those of different depth differ in
where the key stands, and the context without the key is the haystack as it was: so nothing but the key changes between
the two scores of an answer. Draws depend on the task and the number of the trial alone, never on a model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness.data.tokens import TokenDocument

PASSAGE, CUE = 64, 16
"""Bytes of a passage that is repeated, and how many of them are given the second time."""
MOST_DRAWS = 1000


class Question(NamedTuple):
    """The `key` that is hidden in the text, the `cue` that ends the context, and the `answer` to it."""

    key: bytes
    cue: bytes
    answer: bytes

    def single(self, text: bytes) -> bool:
        """Whether answer and cue stand nowhere in `text`, and but once in the key."""
        context = text + self.cue
        in_text = self.answer in context or self.cue in text
        return not in_text and self.key.count(self.answer) == 1 and self.key.find(self.cue, 1) < 0


def passkey(random: Random, documents: Sequence[TokenDocument]) -> Question:
    """A number of five digits."""
    number = "".join(random.choices("0123456789", k=5)).encode()
    return Question(b"\nThe pass key is %b.\n" % number, b"\nThe pass key is ", number)


def needle(random: Random, documents: Sequence[TokenDocument]) -> Question:
    """Who lives where, in names of three syllables."""
    name, place = _name(random), _name(random)
    return Question(b"\n%b lives in %b.\n" % (name, place), b"\nWhere does %b live? %b lives in " % (name, name), place)


def repetition(random: Random, documents: Sequence[TokenDocument]) -> Question:
    """A passage of the documents."""
    long = [document for document in documents if len(document.ids) >= PASSAGE]
    if not long:
        raise ValueError(f"measure.recall: no test document has the {PASSAGE} bytes that repetition needs")
    ids = random.choice(long).ids
    begin = random.randrange(len(ids) - PASSAGE + 1)
    passage = ids[begin : begin + PASSAGE].tobytes()
    return Question(passage, passage[:CUE], passage[CUE:])


MAKERS: dict[str, Callable[[Random, Sequence[TokenDocument]], Question]] = {
    "passkey": passkey, "needle": needle, "repetition": repetition,
}  # fmt: skip


@dataclass(frozen=True)
class Trial:
    """One draw of a task: a haystack as long as the longest context, and the question about it."""

    text: bytes
    question: Question

    def row(self, length: int, depth: int | None) -> NDArray[np.uint8]:
        """Token ids [length + answer]: `length` tokens of context, then the answer. `depth` None: without the key."""
        key, cue, answer = self.question
        text = self.text[len(self.text) + len(cue) - length :]
        if depth is not None:
            place = self.place(length, depth)
            text = text[:place] + key + text[place + len(key) :]
        return np.frombuffer(text + cue + answer, np.uint8)

    def place(self, length: int, depth: int) -> int:
        """Tokens before the key in a context of `length`, at `depth` percent."""
        return round((length - len(self.question.cue) - len(self.question.key)) * depth / 100)

    def distance(self, length: int, depth: int) -> int:
        """Tokens from the first of the answer in the key to where it is asked for."""
        return length - self.place(length, depth) - self.question.key.index(self.question.answer)


def trials(task: str, documents: Sequence[TokenDocument], longest: int, repeats: int) -> list[Trial]:
    """`repeats` trials with contexts of up to `longest` tokens; the tasks share their haystacks.

    ValueError where the documents are too short together, or too monotonous for anything to stand in them once.
    """
    check_text(documents, longest)
    drawn = []
    for number in range(repeats):
        text = haystack(Random(f"haystack {number}"), documents, longest)
        random = Random(f"{task} {number}")
        questions = (MAKERS[task](random, documents) for _ in range(MOST_DRAWS))
        question = next((question for question in questions if question.single(text)), None)
        if question is None:
            raise ValueError(f"measure.recall: {MOST_DRAWS} draws of {task} stood in the test documents more than once")
        drawn.append(Trial(text, question))
    return drawn


def check_text(documents: Sequence[TokenDocument], longest: int) -> None:
    """ValueError where all documents together are shorter than the longest context."""
    there = sum(len(document.ids) for document in documents)
    if there < longest:
        raise ValueError(f"measure.recall.lengths asks for {longest} tokens: all test documents together have {there}")


def haystack(random: Random, documents: Sequence[TokenDocument], length: int) -> bytes:
    """`length` bytes of `documents` in random order, from a random place in the first of them on."""
    order = random.sample(documents, len(documents))
    spare = sum(len(document.ids) for document in documents) - length
    begin = random.randrange(min(len(order[0].ids) - 1, spare) + 1)
    parts, wanted = [], begin + length
    for document in order:
        parts.append(document.ids[:wanted].tobytes())
        wanted -= len(parts[-1])
    return b"".join(parts)[begin:]


def _name(random: Random) -> bytes:
    return "".join(random.choice("bdfgklmnprstvz") + random.choice("aeiou") for _ in range(3)).capitalize().encode()
