"""Where the tokens of a row to score are divided between what is given and what is asked for.

A text has its tokens as a whole: `"Answer: "` and `"42"` put together may be other tokens than apart. So prefix and
continuation are encoded together, and all continuations of a row are counted from the same token on: the first one at
which one of them, or the prefix alone, differs. What comes before is the prefix that they share. Where a continuation
merges with the end of the prefix, the last piece of the prefix is thus scored with each of them, and they compare.
"""

from __future__ import annotations

from launcher.engine.text import Text
from launcher.input.codes import RowError
from launcher.records import Request


def divide(text: Text, request: Request) -> tuple[list[int], list[list[int]]]:
    """The tokens of the prefix, at least one, and those of each continuation, at least one each. Raises RowError."""
    given, special = text.written(request)
    prefix = text.tokens(given, special)
    wholes = [text.tokens(given + each, special) for each in request.continuations]
    shared = min(common(prefix, whole) for whole in wholes)
    for number, whole in enumerate(wholes):
        if len(whole) == shared:
            raise RowError(
                "bad_continuations", f"continuation {number} makes no token behind the prefix"
            )
        text.check_known(whole)
    continuations = [whole[shared:] for whole in wholes]
    prefix = prefix[:shared]
    if not prefix:
        if text.start is None:
            raise RowError("no_prompt", "the prefix has no tokens, and the tokenizer no first one")
        prefix = [text.start]
    longest = len(prefix) + max(map(len, continuations)) - 1  # the last token is not fed
    if longest > text.context:
        raise RowError(
            "too_long",
            f"the prefix and its longest continuation have {longest + 1} tokens; of these all but the last are fed, "
            f"and {text.context} fit (batch.max_length and the model's context)",
        )
    return prefix, continuations


def common(one: list[int], other: list[int]) -> int:
    """How many tokens both begin with."""
    low, high = 0, min(len(one), len(other))
    while low < high:  # comparing halves is quicker than walking
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
