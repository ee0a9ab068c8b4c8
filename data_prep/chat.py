"""The one place that knows the chat template: records become token ids and response masks.

A conversation is cut into segments, context and response in turn, and each segment is tokenised by itself. So the
prompt's tokens are a prefix of every answer's sequence by construction, and training sees exactly the tokens that
generation will see. A response ends with its end-of-turn token; whatever the template writes after it (ChatML's
newline) is context. Masks are carried from here on; nothing later looks at ids to find padding or answers. What becomes
of function calls is in `tool_rendering`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from data_prep.records import Demonstration, Message, PreferencePair, Prompt
from data_prep.tool_rendering import Rendered, as_text, knows_tools, native, simple, uses_tools

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class UnusableRow(Exception):
    """A row that cannot be trained on; the text is a stable reason under which it is counted."""


@dataclass(frozen=True, slots=True)
class EncodedDemonstration:
    """Ids of a whole conversation (T tokens) and which of them are answers."""

    input_ids: list[int]
    response_mask: list[bool]
    prompt_cut: bool
    """Whether the beginning was cut off to fit."""


@dataclass(frozen=True, slots=True)
class EncodedPair:
    """A prompt (P tokens) and its two answers, end-of-turn token included."""

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]
    prompt_cut: bool

    def answers(self) -> list[tuple[list[int], list[bool]]]:
        """Both answers behind the prompt, chosen first, and which tokens are the answer's."""
        return [
            ([*self.prompt_ids, *ids], [False] * len(self.prompt_ids) + [True] * len(ids))
            for ids in (self.chosen_ids, self.rejected_ids)
        ]


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """Ids of a prompt, up to where an answer begins."""

    ids: list[int]
    prompt_cut: bool


@dataclass(frozen=True, slots=True)
class _Segment:
    ids: list[int]
    is_response: bool


class ChatFormatter:
    """Encodes records with one tokenizer and its chat template.

    Args:
        tokenizer: with the chat template to use already set, and an EOS token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = tokenizer
        self._special_ids = set(tokenizer.all_special_ids) | {
            number for number, token in tokenizer.added_tokens_decoder.items() if token.special
        }
        names = {str(tokenizer.convert_ids_to_tokens(number)) for number in self._special_ids}
        # Short or wordlike specials (such as a bare "<") would make ordinary text unusable.
        self._control_texts = sorted(name for name in names if len(name) > 2 and not name.isalnum())

    def demonstrations(self, record: Demonstration, max_length: int) -> list[EncodedDemonstration]:
        """Encode a conversation as one row, plain text as as many as it takes.

        Raises:
            UnusableRow: as for `demonstration`.
        """
        return self._pieces(record, max_length) if record.is_text else [self.demonstration(record, max_length)]

    def _pieces(self, record: Demonstration, max_length: int) -> list[EncodedDemonstration]:
        """Plain text with EOS behind it, cut into pieces; all is learnt but their first tokens, which have no past."""
        self._refuse_unusable(record.messages)
        ids = [*self._ids(record.messages[0].content), int(self.tokenizer.eos_token_id)]
        bos = [int(self.tokenizer.bos_token_id)] if begins_with_bos(self.tokenizer) else []
        size = max_length - len(bos)
        cut = ([*bos, *ids[start : start + size]] for start in range(0, len(ids), size))
        pieces = [EncodedDemonstration(piece, [False] + [True] * (len(piece) - 1), False) for piece in cut if piece[1:]]
        if not pieces:
            raise UnusableRow("empty_answer")
        return pieces

    def demonstration(self, record: Demonstration, max_length: int) -> EncodedDemonstration:
        """Encode a conversation; every assistant turn is a response.

        Args:
            record: ends with an assistant turn.
            max_length: longest sequence, in tokens; the beginning is cut off to fit, the last answer never.

        Raises:
            UnusableRow: `answer_too_long`, `control_token`, `template_refuses`, or `empty_answer`.
        """
        segments = self._segments(record.messages)
        ids = [token for segment in segments for token in segment.ids]
        mask = [segment.is_response for segment in segments for _ in segment.ids]
        if len(ids) <= max_length:
            return EncodedDemonstration(ids, mask, False)
        kept = self._cut_left(ids, max_length)
        if len(segments[-1].ids) >= len(kept):
            raise UnusableRow("answer_too_long")
        kept_bos = kept[0] != ids[len(ids) - len(kept)]
        cut = len(ids) - len(kept) + kept_bos
        return EncodedDemonstration(kept, [False] * kept_bos + _without_cut_response(mask, cut), True)

    def pair(self, record: PreferencePair, max_length: int) -> EncodedPair:
        """Encode a prompt and two answers to it; the prompt is cut from the left so that both fit whole.

        Args:
            record: the pair.
            max_length: longest sequence of prompt and one answer, in tokens.

        Raises:
            UnusableRow: as for `demonstration`, or `identical_tokens`.
        """
        prompt_ids = self.prompt_ids(record.prompt)
        chosen_ids = self._response_ids(record.prompt, record.chosen_turn)
        rejected_ids = self._response_ids(record.prompt, record.rejected_turn)
        if chosen_ids == rejected_ids:
            raise UnusableRow("identical_tokens")
        room = max_length - max(len(chosen_ids), len(rejected_ids))
        if room <= 1:
            raise UnusableRow("answer_too_long")
        return EncodedPair(self._cut_left(prompt_ids, room), chosen_ids, rejected_ids, len(prompt_ids) > room)

    def prompt(self, record: Prompt, max_length: int) -> EncodedPrompt:
        """Encode a prompt to be answered, cut from the left to `max_length` tokens.

        Raises:
            UnusableRow: `control_token`, `template_refuses`, or `empty_answer` of an earlier turn.
        """
        ids = self.prompt_ids(record.messages)
        return EncodedPrompt(self._cut_left(ids, max_length), len(ids) > max_length)

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Ids of a prompt up to where the model's answer begins."""
        segments = self._segments(messages, generation=True)
        return [token for segment in segments for token in segment.ids]

    @cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """Ids that end an answer: the template's end of turn first, then the tokenizer's EOS where it differs."""
        probe = (Message(role="user", content="a"), Message(role="assistant", content="b"))
        end_of_turn = next(segment for segment in self._segments(probe) if segment.is_response).ids[-1]
        return tuple(dict.fromkeys((end_of_turn, int(self.tokenizer.eos_token_id))))

    def response_text(self, ids: Sequence[int]) -> str:
        """Text of generated ids, without the end-of-turn token."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True)).strip()

    def _response_ids(self, prompt: Sequence[Message], answer: Message) -> list[int]:
        messages = [*prompt, answer]
        self._refuse_unusable(messages[-1:])
        tools = uses_tools(messages)
        before = self._render(prompt, tools, generation=True)
        after = self._render(messages, tools)
        if not after.startswith(before):
            raise UnusableRow("template_refuses")
        return self._split_response(after[len(before) :], bool(answer.tool_calls))[0]

    def _segments(self, messages: Sequence[Message], *, generation: bool = False) -> list[_Segment]:
        """Context and response segments of a conversation, in order.

        With `generation` the last segment is the context up to where an answer would begin. An earlier answer that
        the template rewrites once more turns follow (hidden reasoning is often removed) stays context.
        """
        self._refuse_unusable(messages)
        tools = uses_tools(messages)
        whole = self._render(messages, tools, generation=generation)
        segments: list[_Segment] = []
        cursor = 0
        for index, message in enumerate(messages):
            if message.role != "assistant":
                continue
            before = self._render(messages[:index], tools, generation=True) if index else ""
            after = self._render(messages[: index + 1], tools)
            if not whole.startswith(after):
                # Phi-3's template closes a conversation with EOS, which goes again when the conversation goes on.
                after = after.removesuffix(str(self.tokenizer.eos_token))
            if not (after.startswith(before) and whole.startswith(after)):
                if index == len(messages) - 1:
                    raise UnusableRow("template_refuses")
                continue
            response, rest = self._split_response(after[len(before) :], bool(message.tool_calls))
            segments += [_Segment(self._ids(whole[cursor : len(before)]), False), _Segment(response, True)]
            cursor = len(after)
            if index < len(messages) - 1:
                segments.append(_Segment(rest, False))
        if cursor < len(whole):
            segments.append(_Segment(self._ids(whole[cursor:]), False))
        return segments

    def _split_response(self, text: str, calls: bool) -> tuple[list[int], list[int]]:
        """Ids of a rendered answer up to its end-of-turn token, and the ids that follow it in the template.

        The first control token behind words ends a turn. Where there are calls it may open one instead; then only a
        token that ends other answers counts, if there is such.
        """
        ids = self._ids(text)
        words = [index for index, token in enumerate(ids) if token not in self._special_ids]
        if not words:
            raise UnusableRow("empty_answer")
        ends = self._special_ids
        if calls and ends.intersection(self.stop_ids).intersection(ids):
            ends = set(self.stop_ids)
        for index in range(words[0], len(ids)):
            if ids[index] in ends:
                return ids[: index + 1], ids[index + 1 :]
        return [*ids, int(self.tokenizer.eos_token_id)], []

    def _cut_left(self, ids: list[int], length: int) -> list[int]:
        """The last `length` ids; a beginning-of-sequence token stays in front, where the model expects it."""
        if len(ids) <= length:
            return ids
        # ChatML's tokenizers often call <|im_start|> their BOS; it opens every turn and is no such token.
        if ids[0] == self.tokenizer.bos_token_id and (ids.count(ids[0]) == 1 or begins_with_bos(self.tokenizer)):
            return [ids[0], *ids[len(ids) - length + 1 :]]
        return ids[len(ids) - length :]

    def _ids(self, text: str) -> list[int]:
        # The template writes its own beginning-of-sequence token; the tokenizer must not add a second.
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []

    def _render(self, messages: Sequence[Message], tools: bool = False, *, generation: bool = False) -> str:
        """The template's text.

        Args:
            messages: the turns, or the first few of them.
            tools: whether the whole conversation has functions in it.
            generation: end where an answer begins.
        """
        if tools:
            return self._apply((native if self._knows_tools else as_text)(messages), generation)
        return self._apply(simple(messages), generation)

    @cached_property
    def _knows_tools(self) -> bool:
        """Whether the chat template can write functions and their calls."""

        def render(probe: Rendered) -> str:
            try:
                return self._apply(probe, False)
            except (UnusableRow, TypeError) as error:
                raise ValueError from error

        return knows_tools(render)

    def _apply(self, rendered: Rendered, generation: bool) -> str:
        from jinja2 import TemplateError

        try:
            return str(
                self.tokenizer.apply_chat_template(
                    rendered.turns, tools=rendered.tools, tokenize=False, add_generation_prompt=generation
                )
            )
        except TemplateError as error:
            raise UnusableRow("template_refuses") from error

    def _refuse_unusable(self, messages: Sequence[Message]) -> None:
        """A row that spells out the template's control tokens could end or forge turns: it is left out, counted.

        So is one with an empty answer: where a template writes on after the end of turn, that would be trained.
        """
        for message in messages:
            if message.role == "assistant" and not message.content.strip() and not message.tool_calls:
                raise UnusableRow("empty_answer")
            written = (message.content, *message.tools, *(f"{c.name} {c.arguments}" for c in message.tool_calls))
            if any(text in part for text in self._control_texts for part in written):
                raise UnusableRow("control_token")


def begins_with_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer puts BOS before plain text by itself: its model has seen it in front of everything."""
    bos = tokenizer.bos_token_id
    return bos is not None and next(iter(tokenizer("a")["input_ids"])) == bos


def _without_cut_response(mask: list[bool], cut: int) -> list[bool]:
    """The mask after `cut` leading tokens went, less the answer that the cut goes through, learnt from nothing."""
    rest = mask[cut:]
    if mask[cut - 1]:
        for position, is_response in enumerate(rest):
            if not is_response:
                break
            rest[position] = False
    return rest
