"""A pretrained vision-language model as the backbone of a policy with discrete actions.

The sequence is [vision | language | state | action tokens]. Attention is block-causal: what is observed never sees actions,
action tokens see all that is observed and each other both ways (Discrete Diffusion VLA, arXiv 2508.20072).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ...config import UsageError
from ...spec import KinoiseError, Observation, Spec, Stats
from ..bounded import elsewhere
from ..core.codec import Affine
from ..core.network.tokens import NOTHING
from ..core.process.base import Prediction
from ..core.random import Gen
from .observation import check_observation
from .vlm_families import load_family
from .vlm_training import checkpoint_activations, choose_trained, leave_out_frozen

PRECISIONS = ("fp32", "bf16")
HIDDEN = torch.finfo(torch.float16).min
"""Added to the scores of what attention may not see; finite in every precision, and more than any score."""
STATE_WIDTH = 256


@dataclass
class VlmConfig:
    """Which vision-language model, and how much of it is trained. Raises UsageError for settings out of range."""

    path: str | None = field(
        default=None,
        metadata={"help": "local directory or hub name of a vision-language model; null: the embedded backbone"},
    )
    lora: int = field(default=32, metadata={"help": "rank of LoRA in the language model; 0 trains all of it"})
    lora_alpha: float = field(default=16.0, metadata={"help": "LoRA's scale, divided by its rank"})
    precision: str = field(default="fp32", metadata={"help": f"of the backbone: {' or '.join(PRECISIONS)}"})
    checkpointing: bool = field(default=False, metadata={"help": "save memory in training by computing activations twice"})
    freeze_vision: bool = field(default=True, metadata={"help": "leave the vision tower and its connector as they are"})

    def __post_init__(self) -> None:
        if self.path is not None and not self.path:
            raise UsageError("vlm.path is empty: give a directory or a hub name, or null for the embedded backbone")
        if self.lora < 0:
            raise UsageError(f"vlm.lora={self.lora}: expected a rank of at least 1, or 0 to train all of the language model")
        if not 0 < self.lora_alpha < math.inf:
            raise UsageError(f"vlm.lora_alpha={self.lora_alpha}: expected a number above 0")
        if self.precision not in PRECISIONS:
            raise UsageError(f"vlm.precision={self.precision}: expected one of {', '.join(PRECISIONS)}")


@dataclass(frozen=True)
class VlmPrefix:
    """An observation as the language model holds it.

    Args:
        embeds: the tokens that go in, padded on the left.
        valid: which of them are not padding.
        positions: for the rotary embedding; padding is at 0.
        block: a token sees those of its own and of earlier blocks.
        past: keys and values of every layer. Empty while training with checkpointing: then tokens go in with the actions.
    """

    embeds: Float[Tensor, "batch tokens width"]
    valid: Bool[Tensor, "batch tokens"]
    positions: Int[Tensor, "axes batch tokens"]
    block: Int[Tensor, "tokens"]
    past: tuple[tuple[Tensor, Tensor], ...] = ()


class _Past:
    """What the language model takes for its cache: joins `past` to each layer's keys and values, and is not changed by it.

    `seen` collects what a pass computed. Hugging Face's own cache would grow with every pass.
    """

    def __init__(self, past: tuple[tuple[Tensor, Tensor], ...] = ()) -> None:
        self.past, self.seen = past, []

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        if not self.past:
            self.seen.append((keys, values))
            return keys, values
        before_keys, before_values = self.past[layer]
        return torch.cat([before_keys, keys], 2), torch.cat([before_values, values], 2)

    def get_seq_length(self, *_: Any) -> int:
        return self.past[0][0].shape[2] if self.past else 0


class VlmBackbone(nn.Module):
    """Logits of action tokens under an observation.

    The new vocabulary stands beside the pretrained table, in `tokens` (and `head`, where the model does not tie input and
    output): only these rows are trained and saved, and logits come from them alone. Rows appended to the table would bring the
    whole table along, as one parameter. They start like the pretrained rows: normal, with these rows' mean and deviation.

    What is frozen is no part of the state dict, so that a checkpoint stays small; it is loaded from `config.path` again.

    Args:
        spec, stats, history: as `ObservationEncoder`.
        texts: the training data's instructions. Others work too: the tokenizer spells them.
        chunk: actions in a plan.
        sizes: number of tokens of each action dimension.
        state_scaling: one of core.codec.CODECS.

    Raises:
        UsageError: no path.
        KinoiseError: a model that isn't there or of no known family, no instructions, or LoRA without peft.
    """

    rows: Tensor
    absent: Tensor
    offsets: Tensor

    def __init__(
        self,
        config: VlmConfig,
        spec: Spec,
        stats: Mapping[str, Stats],
        texts: tuple[str, ...],
        history: int,
        chunk: int,
        sizes: Sequence[int],
        state_scaling: str = "meanstd",
    ) -> None:
        super().__init__()
        if config.path is None:
            raise UsageError("vlm.path is null: give the directory or the hub name of a vision-language model")
        if spec.language and not texts:
            raise KinoiseError("a language-conditioned policy needs instructions; the data have none")
        self.config, self.language, self.history, self.chunk, self.sizes = config, spec.language, history, chunk, tuple(sizes)
        self.cameras = [key for key, item in spec.observations.items() if item.kind == "image"]
        states = {key: item for key, item in spec.observations.items() if item.kind == "state"}
        shapes = [spec.observations[key].shape[:2] for key in self.cameras for _ in range(history)]
        self.dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
        self.looks = not config.freeze_vision and bool(self.cameras)
        # Weights that are trained stay float32, which small steps need; autocast computes with them in `dtype`.
        pretrained = torch.float32 if config.lora == 0 or self.looks else self.dtype
        with elsewhere():
            self.family, table, output = load_family(config.path, [(shape[0], shape[1]) for shape in shapes], pretrained)
        lora = (config.lora, config.lora_alpha) if config.lora else None
        choose_trained(self.family, lora, self.looks, self.dtype)
        if config.checkpointing:
            checkpoint_activations(self.family, self.looks)
        width = table.shape[1]
        self.keys, self.features = list(states), spec.observations
        self.codecs = nn.ModuleList(Affine.fit(stats[key], state_scaling) for key in states)
        self.states = nn.ModuleList(
            nn.Sequential(nn.Linear(item.shape[0], STATE_WIDTH), nn.SiLU(), nn.Linear(STATE_WIDTH, width))
            for item in states.values()
        )
        self.tokens = nn.Parameter(_like(table, sum(sizes) + 1))
        self.head = None if output is table else nn.Parameter(_like(output, sum(sizes)))
        # Gemma multiplies what it looks up; the table that it ties to the output is not multiplied.
        self.gain = float(getattr(self.family.language.get_input_embeddings(), "scalar_embed_scale", 1.0))
        offsets = torch.tensor([0, *sizes]).cumsum(0)[:-1]
        own = torch.arange(max(sizes)) < torch.tensor(self.sizes)[:, None]
        rows = torch.where(own, offsets[:, None] + torch.arange(max(sizes)), 0)
        for name, value in (("rows", rows), ("absent", ~own), ("offsets", offsets)):
            self.register_buffer(name, value, persistent=False)
        leave_out_frozen(self)

    def prefix(self, obs: Observation, dropped: Bool[Tensor, "batch"] | None, gen: Gen | None = None) -> VlmPrefix:
        """What every pass over action tokens shares, computed once; gradients flow through it.

        Args:
            dropped: rows that get an empty instruction (goal dropout, the unconditional half of guidance).
            gen: not drawn from: nothing here is random.

        Raises:
            KinoiseError: a missing key, a history of another length, or no instruction where one is needed.
        """
        check_observation(obs, self.features, self.history, self.language)
        device = self.tokens.device
        texts = [""] * obs.batch
        if self.language:
            assert obs.text is not None
            texts = [obs.texts[index] for index in obs.text.tolist()]
        if dropped is not None:
            texts = ["" if drop else text for text, drop in zip(texts, dropped.tolist(), strict=True)]
        prompts = [self.family.prompt(text) for text in texts]
        longest = max(len(prompt.ids) for prompt in prompts)
        pads = [longest - len(prompt.ids) for prompt in prompts]

        def pad(items: list[Tensor]) -> Tensor:
            return torch.stack([nn.functional.pad(item, (pads[row], 0)) for row, item in enumerate(items)]).to(device)

        images, positions = pad([item.images for item in prompts]), pad([item.positions for item in prompts]).transpose(0, 1)
        valid = torch.arange(longest, device=device) >= torch.tensor(pads, device=device)[:, None]
        with self._autocast():
            embed = self.family.language.get_input_embeddings()
            # A placeholder's id may lie outside the table; its vector is replaced anyway.
            embeds = embed(pad([item.ids for item in prompts]).masked_fill(images, 0)).to(self.dtype)
            if self.cameras:
                embeds = embeds.masked_scatter(images[..., None], self._see(obs).to(self.dtype))
        states = self._states(obs)
        count = states.shape[1]
        after = self._onwards(positions, count)
        prompt_block = torch.arange(longest, device=device) * (not self.family.two_way)
        prefix = VlmPrefix(
            embeds=torch.cat([embeds, states.to(self.dtype)], 1),
            valid=nn.functional.pad(valid, (0, count), value=True),
            positions=torch.cat([positions, after], 2),
            block=torch.cat([prompt_block, longest + torch.arange(count, device=device)]),
        )
        if self.training and self.config.checkpointing:
            # Hugging Face's checkpointed layers keep no keys and values, so `forward` passes everything through at once.
            return prefix
        past = _Past()
        self._run(prefix.embeds, prefix.positions, _mask(prefix.block, prefix.block, prefix.valid), past)
        return replace(prefix, past=tuple(past.seen))

    def forward(self, x: Int[Tensor, "batch chunk action"], prefix: VlmPrefix, gen: Gen | None = None) -> Prediction:
        """Float32 logits `[batch, chunk, action, max(sizes)]` of the token at each place itself, not of the next one.

        Args:
            x: tokens in each dimension's own numbering, 0 to sizes[d] - 1; max(sizes) is the mask.
            gen: not drawn from.
        """
        ids = torch.where(x == max(self.sizes), sum(self.sizes), x + self.offsets)
        embeds = (self.tokens[ids.flatten(1)] * self.gain).to(self.dtype)
        length = embeds.shape[1]
        positions = self._onwards(prefix.positions, length)
        own = prefix.block.new_full((length,), int(prefix.embeds.shape[1]))
        block = torch.cat([prefix.block, own])
        valid = nn.functional.pad(prefix.valid, (0, length), value=True)
        if prefix.past:
            hidden = self._run(embeds, positions, _mask(own, block, valid), _Past(prefix.past))
        else:
            embeds = torch.cat([prefix.embeds, embeds], 1)
            positions = torch.cat([prefix.positions, positions], 2)
            hidden = self._run(embeds, positions, _mask(block, block, valid), None)[:, -length:]
        with torch.autocast(x.device.type, enabled=False):
            rows = (self.tokens if self.head is None else self.head)[self.rows]
            logits = torch.einsum("bcdw,dtw->bcdt", hidden.float().unflatten(1, x.shape[1:]), rows.float())
        return Prediction(value=logits.masked_fill(self.absent, NOTHING))

    def _run(self, embeds: Tensor, positions: Tensor, mask: Tensor, past: _Past | None) -> Tensor:
        with self._autocast():
            return self.family.language(
                inputs_embeds=embeds,
                attention_mask=mask,
                position_ids=positions if self.family.axes > 1 else positions[0],
                past_key_values=past,
                use_cache=False,
            ).last_hidden_state

    def _onwards(self, positions: Int[Tensor, "axes batch _"], count: int) -> Int[Tensor, "axes batch {count}"]:
        """The next `count` positions after each row's last, the same along all axes."""
        after = positions.amax((0, 2))[:, None] + 1 + torch.arange(count, device=positions.device)
        return after.expand(self.family.axes, -1, -1)

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.tokens.device.type, self.dtype) if self.dtype != torch.float32 else nullcontext()

    def _see(self, obs: Observation) -> Tensor:
        """Vectors of all images, in the order of their places: cameras outermost, then history."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.looks):
            seen = [
                self.family.encode(obs.values[key].to(self.tokens.device).flatten(0, 1)).unflatten(0, (-1, self.history))
                for key in self.cameras
            ]
        return torch.cat([item.flatten(1, 2) for item in seen], 1)

    def _states(self, obs: Observation) -> Tensor:
        """One token for each state key and history step; its place in the sequence tells its age."""
        tokens = [self.tokens.new_zeros(obs.batch, 0, self.tokens.shape[1])]
        for key, codec, layers in zip(self.keys, self.codecs, self.states, strict=True):
            codec = cast(Affine, codec)
            tokens.append(layers(codec.encode(obs.values[key].to(codec.centre.device))))
        return torch.cat(tokens, 1)


def _like(table: Tensor, rows: int) -> Float[Tensor, "rows width"]:
    """New rows of an embedding table, as the known ones are distributed; some thousands of these are enough to tell."""
    known = table.detach()[:: len(table) // 8192 + 1].float()
    return known.mean(0) + known.std(0) * torch.randn(rows, table.shape[1])


def _mask(asking: Int[Tensor, "queries"], asked: Int[Tensor, "keys"], valid: Bool[Tensor, "batch keys"]) -> Tensor:
    """What is added to attention scores, `[batch, 1, queries, keys]`: blocks see themselves and earlier ones.

    The queries are the last of the keys. Padding is seen by itself alone, since a softmax over nothing is no number.
    """
    queries, keys = len(asking), len(asked)
    seen = (asked <= asking[:, None]) & valid[:, None]
    seen = seen | torch.ones(queries, keys, dtype=torch.bool, device=valid.device).tril(keys - queries).triu(keys - queries)
    return torch.where(seen, 0.0, HIDDEN)[:, None]
