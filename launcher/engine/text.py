"""Between rows and tokens: chat templates, encoding, what fits the context, and text with its stop strings."""

from __future__ import annotations

import contextlib
from functools import cached_property
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from launcher.errors import PreflightError
from launcher.input.codes import RowError
from launcher.job.spec import ModelSpec
from launcher.records import Request

_REPLACEMENT = "�"  # what a decoder puts for bytes that are no whole character yet

# What a template, which is a program over a row's own messages, may raise beside jinja's own errors.
_TEMPLATE_ERRORS = (
    TemplateError,
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RecursionError,
)


class Text:
    """A model's tokenizer, its chat template, the tokens that end its texts and the length it can take.

    ``template`` is ``auto`` (messages through the tokenizer's own template, prompts as they are), ``none``
    (no template: rows with messages fail) or the text of a template, through which prompts go as well, as
    one message of the user. ``context`` counts prompt and new tokens; ``vocabulary`` the tokens that the model has an
    embedding of, None if that is not known.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        eos: frozenset[int],
        context: int,
        template: str = "auto",
        vocabulary: int | None = None,
    ) -> None:
        self.eos = eos
        self.context = context
        self._vocabulary = vocabulary
        self._tokenizer = tokenizer
        self._template = template
        self._longest = max(map(len, tokenizer.get_vocab()), default=1)

    @classmethod
    def load(cls, model: ModelSpec, *, max_length: int, template: str = "auto") -> Text:
        """The text side of ``model``; ``template`` as in the spec: auto, none, or a file's name.

        Raises PreflightError when the tokenizer or the template can't be read.
        """
        from transformers import AutoConfig, AutoTokenizer

        options = {"revision": model.revision, "trust_remote_code": model.trust_remote_code}
        try:
            config = AutoConfig.from_pretrained(model.path, **options)
            tokenizer = AutoTokenizer.from_pretrained(model.path, **options)
        except (OSError, ValueError, ImportError) as error:
            raise PreflightError(
                f"can't load the tokenizer: {error}",
                where=model.path,
                fix="put the tokenizer's files beside the model's",
            ) from error
        if template not in ("auto", "none"):
            template = _read_template(Path(template))
        limits = (max_length, getattr(config.get_text_config(), "max_position_embeddings", None))
        return cls(
            tokenizer,
            eos=_eos(model, config, tokenizer),
            context=min(limit for limit in limits if limit),
            template=template,
            vocabulary=getattr(config.get_text_config(), "vocab_size", None),
        )

    def encode(self, request: Request) -> list[int]:
        """The prompt's tokens, at least one. Raises RowError where the row can't be answered."""
        tokens = self.tokens(*self.written(request))
        if not tokens:
            raise RowError("no_prompt", "the prompt has no tokens")
        if len(tokens) >= self.context:
            raise RowError(
                "too_long",
                f"the prompt has {len(tokens)} tokens; with one new token at least, "
                f"{self.context} fit (batch.max_length and the model's context)",
            )
        self.check_known(tokens)
        self._check_biased(request)
        return tokens

    def _check_biased(self, request: Request) -> None:
        for token, _ in request.sampling.logit_bias:
            if self._vocabulary is not None and token >= self._vocabulary:
                raise RowError(
                    "bad_sampling",
                    f"logit_bias names token {token}, the model has {self._vocabulary} tokens",
                )

    def check_known(self, tokens: list[int]) -> None:
        """Raises RowError for a token that the model has no embedding of."""
        if self._vocabulary is not None and max(tokens) >= self._vocabulary:
            raise RowError(
                "unknown_token",
                f"token {max(tokens)} of the prompt is beyond the model's {self._vocabulary}",
            )

    @property
    def start(self) -> int | None:
        """The token before a text that nothing comes before: bos, or else eos; None where the tokenizer has neither."""
        bos, eos = self._tokenizer.bos_token_id, self._tokenizer.eos_token_id
        found: int | None = eos if bos is None else bos
        return found

    def written(self, request: Request) -> tuple[str, bool]:
        """What the model is to read, and whether it still lacks the special tokens, which a chat template writes
        itself. Raises RowError."""
        messages = request.messages
        if messages is None and self._template not in ("auto", "none"):
            messages = [{"role": "user", "content": request.prompt}]
        if messages is None:
            return request.prompt or "", True
        return self._chat(messages, request.tools), False

    def tokens(self, text: str, special: bool) -> list[int]:
        """The tokens of ``text``, maybe none; ``special`` adds those that a text begins with, once. Raises RowError."""
        tokens = self._tokens(text, add_special_tokens=special)
        if not special:
            return tokens
        bos = self._tokenizer.bos_token_id
        if bos is not None and tokens[:2] == [bos, bos]:
            return tokens[1:]  # the prompt brought its own
        return tokens

    def _chat(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None) -> str:
        if self._template == "none":
            raise RowError("bad_template", "the row has messages, and input.template is none")
        template = None if self._template == "auto" else self._template
        try:
            if tools and "tools" not in self._tokenizer.get_chat_template(template, tools):
                raise RowError("bad_template", "the chat template has no place for tools")
            text: str = self._tokenizer.apply_chat_template(
                messages,
                tools=tools,
                chat_template=template,
                add_generation_prompt=True,
                tokenize=False,
            )
        except _TEMPLATE_ERRORS as error:
            raise RowError(
                "bad_template", f"the chat template refused the messages: {error}"
            ) from error
        return text

    def _tokens(self, text: str, *, add_special_tokens: bool) -> list[int]:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise RowError("bad_unicode", f"the prompt is not valid Unicode: {error}") from error
        if len(text) > self.context * self._longest:
            # Known without minutes of tokenizing: no token stands for more letters than the longest one.
            raise RowError(
                "too_long", f"the prompt has {len(text)} letters, {self.context} tokens fit"
            )
        tokens: list[int] = self._tokenizer(text, add_special_tokens=add_special_tokens).input_ids
        return tokens

    @cached_property
    def special(self) -> dict[str, int]:
        """The tokens that decoding leaves out, such as <|im_end|>."""
        added = self._tokenizer.added_tokens_decoder
        return {token.content: number for number, token in added.items() if token.special}

    def decode(self, tokens: list[int]) -> str:
        """The text of ``tokens`` alone, special tokens left out."""
        text: str = self._tokenizer.decode(tokens, skip_special_tokens=True)
        return text

    def piece(self, before: list[int], token: int) -> str:
        """The text that ``token`` adds behind the tokens ``before``; its name where it adds none."""
        known, grown = self.decode(before), self.decode([*before, token])
        found = grown[len(known) :] if grown.startswith(known) else self.decode([token])
        return found or str(self._tokenizer.convert_ids_to_tokens(token))


class StopFinder:
    """Finds the first stop string in a text that grows token by token, also where it spans tokens.

    Each token costs the decoding of a few: those since text last came out whole, which leaves room for
    characters of several tokens and for decoders that strip a leading space.
    """

    def __init__(self, text: Text, stops: tuple[str, ...]) -> None:
        self._text = text
        self._stops = tuple(stop for stop in stops if stop)
        self._ends = {text.special[stop] for stop in self._stops if stop in text.special}
        self._longest = max((len(stop) for stop in self._stops), default=0)
        self._tail = ""  # of the text so far, as much as a stop string could reach back
        self._before, self._read = 0, 0  # tokens [before:read] are in the text, and are context

    def found(self, tokens: list[int]) -> bool:
        """Whether the text of ``tokens``, which has grown by one since the last call, has a stop string."""
        if not self._stops:
            return False
        if tokens[-1] in self._ends:
            return True
        known = self._text.decode(tokens[self._before : self._read])
        grown = self._text.decode(tokens[self._before :])
        if len(grown) <= len(known) or grown.endswith(_REPLACEMENT):
            return False
        self._before, self._read = self._read, len(tokens)
        seen = self._tail + grown[len(known) :]
        self._tail = seen[-self._longest :]
        return self.cut(seen) is not None and self.cut(self._text.decode(tokens)) is not None

    def cut(self, text: str) -> str | None:
        """``text`` before its first stop string; None if it has none."""
        places = [place for place in map(text.find, self._stops) if place >= 0]
        return text[: min(places)] if places else None


def _eos(model: ModelSpec, config: Any, tokenizer: Any) -> frozenset[int]:
    """The generation config's, else the config's, else the tokenizer's: one number or a list."""
    from transformers import GenerationConfig

    sources = [config.get_text_config(), tokenizer]
    with contextlib.suppress(OSError):  # a model need not have one
        options: dict[str, Any] = {} if model.revision is None else {"revision": model.revision}
        sources.insert(0, GenerationConfig.from_pretrained(model.path, **options))
    for source in sources:
        found = getattr(source, "eos_token_id", None)
        if found is not None:
            return frozenset([found] if isinstance(found, int) else found)
    return frozenset()


def _read_template(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PreflightError(
            f"can't read the chat template: {error}",
            where=str(path),
            fix="correct input.template: auto, none, or a file",
        ) from error
