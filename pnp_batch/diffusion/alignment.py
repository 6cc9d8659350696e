"""Alignment of prompts: which tokens of a source prompt stand for which of a target prompt.

In: two tokenized prompts and their words. Out: a matrix that carries attention maps over (Hertz et
al., arXiv 2208.01626, section 3.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Tokenized:
    """A prompt as a text encoder reads it.

    Attributes:
        tokens: their numbers, begin and end included, without padding.
        words: in order, each with the positions of its tokens.
    """

    tokens: Sequence[int]
    words: Sequence[tuple[str, tuple[int, ...]]]


def carried(source: Tokenized, target: Tokenized, length: int) -> torch.Tensor:
    """What of the source's maps becomes the target's: `maps_target = maps_source @ carried`.

    Equal tokens in the same order carry their maps over, and so does the padding. Where the
    prompts have equally many words, each word's maps go to the word in its place: token by token,
    or, if they have not equally many, their sum in equal parts.

    Args:
        source: the source prompt; if it has no words, nothing is carried over.
        target: the target prompt.
        length: of the embeddings, in tokens.

    Returns:
        float32 (length, length). A column of zeros is a token of the target that has its own maps.
    """
    matrix = torch.zeros(length, length)
    if not source.words:
        return matrix
    padding = range(len(target.tokens), length)
    for i, j in [*common(source.tokens, target.tokens), *zip(padding, padding, strict=True)]:
        matrix[i, j] = 1
    if len(source.words) != len(target.words):
        return matrix
    for (_, old), (_, new) in zip(source.words, target.words, strict=True):
        matrix[:, list(new)] = 0
        for place, j in enumerate(new):
            if len(old) == len(new):
                matrix[old[place], j] = 1
            else:
                matrix[list(old), j] = 1 / len(new)
    return matrix


def common(source: Sequence[int], target: Sequence[int]) -> list[tuple[int, int]]:
    """The positions (i, j) of a longest common subsequence, last ones first.

    It is the global alignment of Needleman and Wunsch (1970) at the scores of the authors' code,
    1 for a match, -1 for a mismatch and 0 for a gap, at which two gaps beat a mismatch. Of several
    it is that code's: from the end on, the target's tokens are passed over first, as new ones.
    """
    rows, columns = len(source), len(target)
    longest = [[0] * (columns + 1) for _ in range(rows + 1)]
    for i in range(rows):
        for j in range(columns):
            match = longest[i][j] + (source[i] == target[j])
            longest[i + 1][j + 1] = max(match, longest[i][j + 1], longest[i + 1][j])
    pairs, i, j = [], rows, columns
    while i and j:
        if longest[i][j] == longest[i][j - 1]:
            j -= 1
        elif longest[i][j] == longest[i - 1][j]:
            i -= 1
        else:
            i, j = i - 1, j - 1
            pairs.append((i, j))
    return pairs
