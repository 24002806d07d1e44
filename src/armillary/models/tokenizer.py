"""A tokenizer read from a Hugging Face folder: text to token ids, ids to text, and ids to bytes.

Control tokens (those marked special: turn markers, end of text) are the one thing that text from a stranger
must not be able to write. `encode` therefore takes text literally unless it is told that the text may speak
in control tokens, and `encode_chat` lets only the chat template write them.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tokenizers

from armillary.errors import ArmillaryError, Code
from armillary.models.chat import ChatTemplate, Message
from armillary.models.pieces import PieceBytes, piece_bytes
from armillary.models.tokenizer_files import TokenizerFiles, read_files

_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class Tokenizer:
    """Text to token ids and back. Safe to use from many threads.

    Args:
        files: see `from_folder`.

    Attributes:
        vocab_size: ids are below this. A model may have more rows than its tokenizer has tokens; such ids
            have no bytes.
        eos_ids: tokens that end a text, from generation_config.json and tokenizer_config.json together.
        special_ids: control tokens; they have no place in text that is shown.
        chat_template: None where the folder has none.
    """

    def __init__(self, files: TokenizerFiles) -> None:
        self._backend = _backend(files.definition)
        self._named = {key: text for key in _NAMED if (text := _content(files.config.get(key))) is not None}
        self._mark_specials(files.config)
        self.vocab_size: int = self._backend.get_vocab_size(with_added_tokens=True)
        added = self._backend.get_added_tokens_decoder()
        self.special_ids = frozenset(i for i, token in added.items() if token.special)
        self._specials = {token.content: i for i, token in added.items() if token.special}
        self._added = {i: token.content for i, token in added.items()}
        self._pieces: PieceBytes = piece_bytes(_decoder(self._backend))
        self.strips_first_space: bool = self._pieces.strips_first_space
        """Whether the first token of a text is shown without its leading space (SentencePiece)."""
        self.bos_id = self._id_of("bos_token")
        named_eos = self._id_of("eos_token")
        self.eos_ids = files.eos if named_eos is None else files.eos | {named_eos}
        self._bytes: dict[int, bytes] = {}
        template = files.template
        self.chat_template = None if template is None else ChatTemplate(template, self._named)
        self._prepare_literals()

    @classmethod
    def from_folder(cls, folder: str | Path) -> Tokenizer:
        """Read tokenizer.json, tokenizer_config.json, generation_config.json and the chat template.

        Raises:
            ArmillaryError: INVALID_CHECKPOINT where tokenizer.json is missing or cannot be read;
                UNSUPPORTED_MODEL where its tokens cannot be mapped to bytes.
        """
        return cls(read_files(Path(folder)))

    # ---------------------------------------------------------------- text to ids

    def encode(self, text: str, add_special: bool = True, *, parse_special: bool = False) -> list[int]:
        """Token ids of a text.

        Args:
            add_special: add what the model expects around a text (mostly: a begin-of-text token in front), as
                the post-processor of tokenizer.json says. `add_bos_token` of tokenizer_config.json is older
                and is not read where there is a tokenizer.json; transformers 5 does the same.
            parse_special: whether text that spells a control token becomes that token, as in a prompt whose
                author also writes the turn markers. Off, it stays text.

        Raises:
            ArmillaryError: INVALID_REQUEST where the text has half of a surrogate pair, which is no character.
        """
        if parse_special or not self._specials:
            return self._encode(text, add_special)
        return self._encode_guarded(self._guard(text), add_special)

    def encode_pair(self, first: str, second: str) -> tuple[list[int], int | None]:
        """Token ids of two texts as one, as models that compare texts expect them.

        Control tokens come from the tokenizer alone; where a text spells one, it stays text.

        Returns:
            The ids, and the place at which the second text begins; None for models that do not tell the two apart.

        Raises:
            ArmillaryError: INVALID_REQUEST where a text has half of a surrogate pair.
        """
        order: list[int] = []
        texts = [self._with_sentinels(self._guard(text), order) for text in (first, second)]
        try:
            found = self._backend.encode(texts[0], texts[1])
        except (TypeError, UnicodeError) as error:
            raise _no_unicode() from error
        ids: list[int] = []
        begins: int | None = None
        quoted = iter(order)
        for token, kind in zip(found.ids, found.type_ids, strict=True):
            if kind and begins is None:
                begins = len(ids)
            ids.extend(self._literals[next(quoted)] if token == self._sentinel_id else [token])
        return ids, begins

    def encode_chat(
        self,
        messages: Sequence[Message],
        tools: Sequence[dict[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> list[int]:
        """Token ids of a conversation.

        Control tokens come from the template alone: where a message, a tool or a variable spells one, it is
        encoded as text. Not covered: a template that itself joins pieces of what it is given into a control
        token (as in `'<|' + role + '|>'`; roles are a closed list for that reason).

        Raises:
            ArmillaryError: INVALID_REQUEST as of `ChatTemplate.render`, or where there is no template.
        """
        template = self._require_template()
        rendered = template.render(messages, tools, add_generation_prompt, guard=self._guard, **variables)
        return self._encode_guarded(rendered, add_special=False)

    def render_chat(
        self,
        messages: Sequence[Message],
        tools: Sequence[dict[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> str:
        """The text of a conversation, as the template writes it."""
        return self._require_template().render(messages, tools, add_generation_prompt, **variables)

    def encode_inside(self, text: str) -> list[int]:
        """Token ids of a text that goes on from another: nothing is added that begins a text."""
        if not self._literals:
            return self._encode(text, add_special=False)
        # After the placeholder, as `_literal` does it, with the control tokens in the text taken literally.
        ids = self._encode(self._sentinel + text, add_special=False)[1:]
        return ids if self.special_ids.isdisjoint(ids) else self.encode(text, add_special=False)

    # ---------------------------------------------------------------- ids to text

    def decode(self, ids: Sequence[int], *, skip_special: bool = True, continues: bool = False) -> str:
        """Text of token ids; bytes that are no valid UTF-8 become U+FFFD.

        Args:
            skip_special: leave control tokens out.
            continues: the text goes on from earlier text, so a leading space stays.
        """
        skip = self.special_ids if skip_special else frozenset()
        text = b"".join(self.token_bytes(i) for i in ids if i not in skip).decode("utf-8", "replace")
        return text[1:] if self.strips_first_space and not continues and text.startswith(" ") else text

    def token_bytes(self, token: int) -> bytes:
        """The bytes that a token stands for; empty for an id that has no token."""
        known = self._bytes.get(token)
        if known is None:
            known = self._bytes[token] = self._find_bytes(token)
        return known

    def token_text(self, token: int) -> str:
        """One token as text, for logprobs: U+FFFD where its bytes are only part of a character."""
        return self.token_bytes(token).decode("utf-8", "replace")

    def token_id(self, text: str) -> int | None:
        """The id of the token with exactly this content, if there is one."""
        found: int | None = self._backend.token_to_id(text)
        return None if found is None or found >= self.vocab_size else found

    def special_id(self, text: str) -> int | None:
        """The id of the control token that is spelled so, if there is one."""
        return self._specials.get(text)

    @property
    def special_texts(self) -> frozenset[str]:
        """How the control tokens are spelled."""
        return frozenset(self._specials)

    # ---------------------------------------------------------------- inside

    def _encode(self, text: str, add_special: bool) -> list[int]:
        try:
            ids: list[int] = self._backend.encode(text, add_special_tokens=add_special).ids
        except (TypeError, UnicodeError) as error:  # the binding refuses what is no valid Unicode
            raise _no_unicode() from error
        return ids

    def _encode_guarded(self, text: str, add_special: bool) -> list[int]:
        """Encode text in which `_guard` replaced control tokens, putting their literal tokens back."""
        if self._sentinel not in text:
            return self._encode(text, add_special)
        order: list[int] = []
        ids = self._encode(self._with_sentinels(text, order), add_special)
        quoted = iter(order)
        result: list[int] = []
        for token in ids:
            if token == self._sentinel_id:
                result.extend(self._literals[next(quoted)])
            else:
                result.append(token)
        return result

    def _with_sentinels(self, text: str, order: list[int]) -> str:
        """The text with bare sentinels for placeholders; what they stand for is appended to `order`."""

        def placeholder(match: re.Match[str]) -> str:
            if match[1] is None or int(match[1]) not in self._literals:
                return ""  # a template cut the placeholder in two
            order.append(int(match[1]))
            return self._sentinel

        return re.sub(self._sentinel + r"(\d{6})?", placeholder, text)

    def _guard(self, text: str) -> str:
        """Replace every control token that a text spells by a placeholder that nobody can guess."""
        if self._special_pattern is None:
            return text
        return self._special_pattern.sub(lambda match: f"{self._sentinel}{self._specials[match[0]]:06d}", text)

    def _prepare_literals(self) -> None:
        """Learn how each control token is written in ordinary tokens.

        The placeholder is made of digits, so that filters of a template (`upper`, `tojson`) leave it alone. It
        is an added token with the first id that the model does not have, and never leaves this class.
        """
        self._sentinel = "".join(secrets.choice("123456789") for _ in range(48))
        self._sentinel_id = -1
        self._literals: dict[int, list[int]] = {}
        contents = sorted(self._specials, key=len, reverse=True)
        self._special_pattern = re.compile("|".join(map(re.escape, contents))) if contents else None
        if not contents:
            return
        self._backend.add_tokens([tokenizers.AddedToken(self._sentinel, normalized=False, special=False)])
        self._sentinel_id = self.vocab_size
        self._backend.encode_special_tokens = True
        try:
            for content, token in self._specials.items():
                self._literals[token] = self._literal(content, token)
        finally:
            self._backend.encode_special_tokens = False

    def _literal(self, content: str, token: int) -> list[int]:
        # After the placeholder, so that nothing is added which belongs to the beginning of a text only.
        ids: list[int] = self._backend.encode(self._sentinel + content, add_special_tokens=False).ids[1:]
        if token not in ids:
            return ids
        # The vocabulary reaches the control token by ordinary merges: write it character by character.
        single: list[int] = []
        for character in content:
            single += self._backend.encode(self._sentinel + character, add_special_tokens=False).ids[1:]
        return [i for i in single if i != token]

    def _find_bytes(self, token: int) -> bytes:
        if token in self._added:
            return self._added[token].encode("utf-8", "replace")
        piece = self._backend.id_to_token(token) if 0 <= token < self.vocab_size else None
        return b"" if piece is None else self._pieces.of(piece)

    def _mark_specials(self, config: dict[str, Any]) -> None:
        """Mark as special what only tokenizer_config.json calls so, where the model has the token at all."""
        added = self._backend.get_added_tokens_decoder()
        marked = {token.content for token in added.values() if token.special}
        named = [*self._named.values()]
        for entry in config.get("additional_special_tokens") or []:
            if (text := _content(entry)) is not None:
                named.append(text)
        for entry in (config.get("added_tokens_decoder") or {}).values():
            if isinstance(entry, dict) and entry.get("special") and (text := _content(entry)) is not None:
                named.append(text)
        missing = [text for text in dict.fromkeys(named) if text not in marked]
        known = [text for text in missing if self._backend.token_to_id(text) is not None]
        self._backend.add_special_tokens([tokenizers.AddedToken(text, normalized=False) for text in known])

    def _id_of(self, name: str) -> int | None:
        text = self._named.get(name)
        return None if text is None else self.token_id(text)

    def _require_template(self) -> ChatTemplate:
        if self.chat_template is None:
            raise ArmillaryError(
                Code.INVALID_REQUEST,
                "this model has no chat template (neither chat_template.jinja nor `chat_template` in "
                "tokenizer_config.json), so it cannot take messages; send a prompt to the completions API instead",
                "messages",
            )
        return self.chat_template


def _no_unicode() -> ArmillaryError:
    return ArmillaryError(
        Code.INVALID_REQUEST,
        "text must be valid Unicode, given half of a surrogate pair, so it cannot be encoded as UTF-8",
    )


def _backend(definition: str) -> tokenizers.Tokenizer:
    try:
        backend = tokenizers.Tokenizer.from_str(definition)
    except Exception as error:  # the binding raises bare Exception
        raise ArmillaryError(Code.INVALID_CHECKPOINT, f"tokenizer.json cannot be read: {error}") from error
    backend.no_truncation()
    backend.no_padding()
    return backend


def _decoder(backend: tokenizers.Tokenizer) -> Any:
    """The decoder's entry of tokenizer.json: the binding's own text of it, since the whole file is megabytes."""
    return None if backend.decoder is None else json.loads(backend.decoder.__getstate__())


def _content(entry: Any) -> str | None:
    """The text of a token that a config gives as a string or as an object."""
    if isinstance(entry, dict):
        entry = entry.get("content")
    return entry if isinstance(entry, str) and entry else None
