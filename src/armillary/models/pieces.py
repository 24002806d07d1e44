"""From the pieces of a vocabulary to bytes, for the three ways in which tokenizer.json files spell them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from armillary.errors import ArmillaryError, Code

_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>\Z")


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's spelling of bytes as visible characters: printable ones stand for themselves, others move up."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(moved)}


_ALPHABET = _byte_alphabet()


@dataclass(frozen=True, slots=True)
class PieceBytes:
    """How a vocabulary spells bytes.

    Attributes:
        byte_level: pieces are in GPT-2's byte alphabet; else they are text.
        space: the character that stands for a space, where pieces are text.
        byte_fallback: `<0xNN>` is one byte, where pieces are text.
        strips_first_space: a text loses the leading space of its first piece.
        continuation: what pieces begin with that go on a word, where all others begin one (WordPiece). Spaces
            between words are then a guess: these vocabularies do not keep them.
    """

    byte_level: bool
    space: str = ""
    byte_fallback: bool = False
    strips_first_space: bool = False
    continuation: str = ""

    def of(self, piece: str) -> bytes:
        """Bytes of one piece of the vocabulary (not of an added token, which is plain text)."""
        if self.byte_level:
            found = [_ALPHABET.get(character) for character in piece]
            known = bytes(byte for byte in found if byte is not None)
            return known if len(known) == len(piece) else piece.encode("utf-8", "replace")
        if self.byte_fallback and (match := _BYTE_PIECE.match(piece)):
            return bytes([int(match[1], 16)])
        if self.continuation:
            goes_on = piece.startswith(self.continuation)
            piece = piece[len(self.continuation) :] if goes_on else f" {piece}"
        return (piece.replace(self.space, " ") if self.space else piece).encode("utf-8", "replace")


def piece_bytes(decoder: Any) -> PieceBytes:
    """Read how a vocabulary spells bytes from the `decoder` entry of tokenizer.json.

    Raises:
        ArmillaryError: UNSUPPORTED_MODEL for decoders whose pieces have no bytes of their own.
    """
    steps = _steps(decoder)
    kinds = [step.get("type") for step in steps]
    if "ByteLevel" in kinds:
        return PieceBytes(byte_level=True)
    if kinds == ["WordPiece"]:
        return PieceBytes(False, strips_first_space=True, continuation=str(steps[0].get("prefix") or "##"))
    known = {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"}
    if not kinds or not set(kinds) <= known:
        found = ", ".join(str(kind) for kind in kinds if kind not in known) or "no decoder"
        raise ArmillaryError(
            Code.UNSUPPORTED_MODEL,
            "the decoder of tokenizer.json must be byte-level, WordPiece or SentencePiece-like "
            f"({', '.join(sorted(known))}), given {found}, so tokens cannot be mapped to bytes",
        )
    space, strips = "", False
    for step in steps:
        if step["type"] == "Metaspace":
            space = str(step.get("replacement", "▁"))
            strips = strips or step.get("prepend_scheme", "always") != "never"
        elif step["type"] == "Replace" and step.get("content") == " ":
            space = str((step.get("pattern") or {}).get("String", ""))
        elif step["type"] == "Replace":
            raise ArmillaryError(
                Code.UNSUPPORTED_MODEL,
                f"a Replace in the decoder of tokenizer.json must write a space, given {step.get('content')!r}",
            )
        elif step["type"] == "Strip":
            strips = strips or (step.get("content") == " " and int(step.get("start", 0)) > 0)
    return PieceBytes(False, space, "ByteFallback" in kinds, strips)


def _steps(decoder: Any) -> list[dict[str, Any]]:
    """The decoder's steps in order, sequences flattened."""
    if not isinstance(decoder, dict):
        return []
    if decoder.get("type") == "Sequence":
        return [step for inner in decoder.get("decoders", []) for step in _steps(inner)]
    return [decoder]
