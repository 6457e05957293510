"""Instructions word by word: a frozen sentence encoder's token embeddings, asked once for each text."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ...spec import KinoiseError
from .language import EMBEDDING, sentence_encoder

LONGEST = 253
"""Tokens of an instruction that the sentence encoder is sure to have seen whole; it cuts off what comes after 254."""


class Words(nn.Module):
    """Instructions as sequences of tokens of the policy's width; a single `null` token stands for a dropped instruction.

    Whole sentences' embeddings crowd together ("open the drawer" and "close the drawer" have cosine 0.9); their first words'
    do not. Embeddings are standardised by those of the known instructions. These are part of the weights, so a checkpoint needs
    no sentence encoder for them; it is loaded for other texts, which are remembered.

    Args:
        texts: the instructions of the training data, all different.
        width: of the tokens.
        longest: tokens that an instruction may have.
    """

    embeddings: Tensor
    lengths: Tensor

    def __init__(self, texts: tuple[str, ...], width: int, longest: int) -> None:
        super().__init__()
        self.texts, self.longest = texts, longest
        if not texts or len(set(texts)) < len(texts):
            raise KinoiseError(f"a language-conditioned policy needs instructions, all different; the data have {list(texts)}")
        self._known: dict[str, Tensor] = {}
        self.register_buffer("embeddings", torch.zeros(len(texts), longest, EMBEDDING))
        self.register_buffer("lengths", torch.zeros(len(texts), dtype=torch.int64))
        self.layers = nn.Sequential(nn.Linear(EMBEDDING, width), nn.SiLU(), nn.Linear(width, width))
        self.null = nn.Parameter(torch.randn(width))

    def forward(
        self, texts: tuple[str, ...], text: Int[Tensor, "batch"], keep: Bool[Tensor, "batch"] | None = None
    ) -> tuple[Float[Tensor, "batch words width"], Bool[Tensor, "batch words"]]:
        """The words of `texts[text[i]]` for each row i, and which of them are there; only `null` where `keep` is false.

        Raises KinoiseError for a text that is too long, and for an unknown one where the sentence encoder is not installed.
        """
        device = self.null.device
        rows = self._lookup(texts)
        words = self.layers(pad_sequence(rows, batch_first=True).to(self.null))
        there = torch.arange(words.shape[1]) < torch.tensor([len(row) for row in rows])[:, None]
        text = text.to(device)
        words, there = words[text], there.to(device)[text]
        if keep is not None:
            keep = keep.to(device)[:, None]
            first = torch.arange(words.shape[1], device=device) == 0
            words = torch.where(keep[..., None], words, self.null)
            there = (there & keep) | (first & ~keep)
        return words, there

    @torch.no_grad()
    def _lookup(self, texts: tuple[str, ...]) -> list[Float[Tensor, "words 384"]]:
        """Each text's standardised embeddings, on the CPU."""
        self._fill()
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        if new:
            self._remember(new, self._embed(tuple(new)))
        return [self._known[text] for text in texts]

    @torch.no_grad()
    def _fill(self) -> None:
        """Embeds the known texts, unless a checkpoint has brought their embeddings: no text is without a word."""
        if self._known:
            return
        if not self.lengths.any():
            for index, item in enumerate(self._embed(self.texts)):
                self.embeddings[index, : len(item)], self.lengths[index] = item.to(self.embeddings), len(item)
        lengths = self.lengths.tolist()
        self._remember(self.texts, [item[:length] for item, length in zip(self.embeddings.cpu(), lengths, strict=True)])

    def _remember(self, texts: tuple[str, ...] | list[str], found: list[Tensor]) -> None:
        words = torch.cat([item[:length] for item, length in zip(self.embeddings.cpu(), self.lengths.tolist(), strict=True)])
        centre, scale = words.mean(0), words.std(0).clamp(min=1e-3) if len(words) > 1 else torch.ones(EMBEDDING)
        self._known.update({text: (item.to(centre) - centre) / scale for text, item in zip(texts, found, strict=True)})

    def _embed(self, texts: tuple[str, ...]) -> list[Tensor]:
        found = sentence_encoder().words(texts)
        for text, item in zip(texts, found, strict=True):
            if len(item) > self.longest:
                raise KinoiseError(
                    f"'{text[:80]}' has {len(item)} tokens, more than {self.longest}: shorten it, or train with a higher "
                    f"policy.encoder.words, at most {LONGEST}"
                )
        return found

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._known.clear()
        super()._load_from_state_dict(*args, **kwargs)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        if not keep_vars:  # a state dict that is saved, not one that is only compared
            self._fill()
        super()._save_to_state_dict(destination, prefix, keep_vars)
