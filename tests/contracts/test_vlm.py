"""What pretrained vision-language backbones owe the discrete policy, on tiny random models of each family."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from kinoise.config import UsageError
from kinoise.policies.core.network.tokens import NOTHING
from kinoise.policies.encoders.vlm import VlmBackbone, VlmConfig
from kinoise.policies.encoders.vlm_training import FROZEN, leave_out_frozen
from kinoise.spec import KinoiseError, Observation, Spec
from tiny_vlm import BUILD, CHUNK, HISTORY, SIZES, SPEC, STATS, TEXTS, observe, write_model


@pytest.fixture(scope="module")
def models_at(tmp_path_factory) -> dict[str, Path]:
    """A directory for each family, as a hub would hand it out."""
    return {name: write_model(name, tmp_path_factory.mktemp(name)) for name in BUILD}


@pytest.fixture(params=BUILD)
def path(request, models_at) -> Path:
    return models_at[request.param]


@pytest.fixture(scope="module")
def build():
    """Backbones in evaluation mode, each built once; LoRA's second matrices are not the zeros that they start as."""
    made: dict[tuple, VlmBackbone] = {}

    def get(path: Path, spec: Spec = SPEC, fresh: bool = False, seed: int = 1, **settings) -> VlmBackbone:
        key = (path, spec.language, tuple(spec.observations), *sorted(settings.items()))
        if fresh or key not in made:
            torch.manual_seed(seed)
            config = VlmConfig(path=str(path), **{"lora": 4, **settings})
            backbone = VlmBackbone(config, spec, STATS, TEXTS, HISTORY, CHUNK, SIZES)
            for name, item in backbone.named_parameters():
                if "lora_B" in name:
                    torch.nn.init.normal_(item, std=0.1)
            if fresh:
                return backbone.eval()
            made[key] = backbone.eval()
        return made[key].eval()

    return get


def some_tokens(rows: int = 3, seed: int = 0):
    """Every dimension's own tokens, and masks."""
    gen = torch.Generator().manual_seed(seed)
    own = torch.stack([torch.randint(0, size, (rows, CHUNK), generator=gen) for size in SIZES], -1)
    return torch.where(torch.rand(own.shape, generator=gen) < 0.5, max(SIZES), own)


def logits(backbone, obs=None, x=None, dropped=None):
    obs = observe() if obs is None else obs
    x = some_tokens(obs.batch) if x is None else x
    with torch.no_grad():
        return backbone(x, backbone.prefix(obs, dropped)).value


def close(a, b, tolerance: float = 2e-4) -> None:
    torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


def test_two_passes_equal_one_over_the_whole_sequence(path, build):
    backbone = build(path)
    assert (backbone.head is None) == (path.name[:-1] in ("idefics3", "paligemma", "paligemma2"))
    obs, x = observe(), some_tokens()
    prefix = backbone.prefix(obs, None)
    before, length = prefix.embeds.shape[1], CHUNK * len(SIZES)
    offsets = [0, *np.cumsum(SIZES)[:-1].tolist()]
    ids = torch.tensor(
        [[sum(SIZES) if k == max(SIZES) else k + offsets[i % 3] for i, k in enumerate(row)] for row in x.flatten(1).tolist()]
    )
    gain = 32**0.5 if "paligemma" in str(path) else 1.0
    embeds = torch.cat([prefix.embeds, backbone.tokens[ids] * gain], 1)
    states = 2 * HISTORY
    allowed = torch.zeros(3, 1, before + length, before + length, dtype=torch.bool)
    ends = []
    for row in range(3):
        start = int((~prefix.valid[row]).sum())
        for query in range(start, before + length):
            for key in range(start, before + length):
                two_way = "paligemma" in str(path) and max(query, key) < before - states
                allowed[row, 0, query, key] = key <= query or query >= before or two_way
        allowed[row, 0, range(start), range(start)] = True
        ends.append(int(prefix.positions[:, row].max()))
    after = torch.tensor(ends)[:, None] + 1 + torch.arange(length)
    positions = torch.cat([prefix.positions, after.expand(len(prefix.positions), -1, -1)], 2)
    hidden = backbone.family.language(
        inputs_embeds=embeds,
        attention_mask=torch.zeros(allowed.shape).masked_fill(~allowed, -1e9),
        position_ids=positions if len(positions) > 1 else positions[0],
        use_cache=False,
    ).last_hidden_state[:, before:]
    table = backbone.tokens if backbone.head is None else backbone.head
    expected = (hidden @ table[: sum(SIZES)].T).unflatten(1, (CHUNK, 3))
    found = backbone(x, prefix).value
    assert found.dtype == torch.float32
    assert found.shape == (3, CHUNK, 3, max(SIZES))
    for dim, (offset, size) in enumerate(zip(offsets, SIZES, strict=True)):
        close(found[:, :, dim, :size], expected[:, :, dim, offset : offset + size])
        assert (found[:, :, dim, size:] == NOTHING).all()


def test_a_prefix_serves_all_rounds_unchanged(path, build):
    backbone = build(path)
    with torch.no_grad():
        prefix = backbone.prefix(observe(), None)
        kept = [(keys.clone(), values.clone()) for keys, values in prefix.past]
        assert len(kept) == 2
        first = backbone(some_tokens(), prefix).value
        other = backbone(some_tokens(seed=1), prefix).value
        again = backbone(some_tokens(), prefix).value
    torch.testing.assert_close(first, again, atol=0, rtol=0)
    assert not torch.allclose(first, other, atol=1e-3)
    for old, new in zip(kept, prefix.past, strict=True):
        torch.testing.assert_close(old, new, atol=0, rtol=0)


def test_a_row_does_not_depend_on_its_neighbours(path, build):
    backbone = build(path)
    obs, x = observe(), some_tokens()
    whole = logits(backbone, obs, x)
    for row in range(3):
        alone = Observation({key: item[row : row + 1] for key, item in obs.values.items()}, TEXTS, obs.text[row : row + 1])
        close(logits(backbone, alone, x[row : row + 1]), whole[row : row + 1])


def test_everything_observed_and_every_action_token_matters(path, build):
    backbone = build(path)
    obs, x = observe(), some_tokens()
    base = logits(backbone, obs, x)
    for key in SPEC.observations:
        for step in range(HISTORY):
            values = {**obs.values, key: obs.values[key].clone()}
            values[key][:, step] = 255 - values[key][:, step]
            assert not torch.allclose(logits(backbone, replace(obs, values=values), x), base, atol=1e-3), (key, step)
    told = logits(backbone, replace(obs, text=torch.tensor([1, 1, 2])), x)
    assert not torch.allclose(told[0], base[0], atol=1e-3)
    close(told[1:], base[1:])
    hidden = logits(backbone, obs, x, torch.tensor([True, False, False]))
    assert not torch.allclose(hidden[0], base[0], atol=1e-3)
    close(hidden[1:], base[1:])
    close(hidden[0], logits(backbone, replace(obs, texts=("",), text=torch.zeros(3, dtype=torch.long)), x)[0])
    last = x.clone()
    last[:, -1, -1] = (last[:, -1, -1] + 1) % 2
    assert not torch.allclose(logits(backbone, obs, last)[:, 0, 0], base[:, 0, 0], atol=1e-4)


@pytest.mark.parametrize("settings", [{}, {"lora": 0}, {"freeze_vision": False}, {"precision": "bf16"}], ids=str)
def test_gradients_reach_what_is_trained_and_only_that_is_saved(path, build, settings):
    backbone = build(path, fresh=True, **settings).train()
    backbone(some_tokens(), backbone.prefix(observe(), None)).value.clamp(min=-50).square().sum().backward()
    trained = {name: item for name, item in backbone.named_parameters() if item.requires_grad}
    assert all(item.dtype == torch.float32 for item in trained.values())
    assert all(item.grad is None for name, item in backbone.named_parameters() if name not in trained)
    # A look-up table's unused rows, and biases that a softmax cancels, get zeros; nothing is left without a gradient.
    assert [name for name, item in trained.items() if item.grad is None or not item.grad.isfinite().all()] == []
    assert sum(bool(item.grad.any()) for item in trained.values()) > 0.9 * len(trained)
    everything = len(trained) == len(list(backbone.parameters()))
    assert set(backbone.state_dict()) == {*trained, *([] if everything else [FROZEN])}
    text, vision = backbone.family.names[0], backbone.family.names[1:]
    for name in backbone.state_dict():
        if name.startswith("family."):
            part, names = name.split(".")[2], [text, *vision] if settings.get("freeze_vision") is False else [text]
            assert part in names
            assert part != text or settings.get("lora") == 0 or "lora_" in name


@pytest.mark.parametrize("settings", [{}, {"lora": 0}, {"freeze_vision": False, "precision": "bf16"}], ids=str)
def test_a_saved_backbone_gives_the_same_logits(path, build, settings):
    one = build(path, fresh=True, **settings)
    with torch.no_grad():
        for item in one.parameters():
            if item.requires_grad:
                item.add_(0.02 * torch.randn_like(item))
    # Inside a policy, keys have a prefix.
    outer, other = torch.nn.ModuleDict({"backbone": one}), build(path, fresh=True, seed=2, **settings)
    expected, saved = logits(one), {key: item.clone() for key, item in outer.state_dict().items()}
    assert not torch.allclose(logits(other), expected, atol=1e-3)
    torch.nn.ModuleDict({"backbone": other}).load_state_dict(saved, strict=True)
    torch.testing.assert_close(logits(other), expected, atol=0, rtol=0)
    lacking = {key: item for key, item in saved.items() if key != f"backbone.{FROZEN}"}
    if len(lacking) < len(saved):
        with pytest.raises(KinoiseError, match="another vision-language model"):
            torch.nn.ModuleDict({"backbone": other}).load_state_dict(lacking)
    del saved["backbone.tokens"]
    with pytest.raises(RuntimeError, match=r"backbone\.tokens"):
        torch.nn.ModuleDict({"backbone": other}).load_state_dict(saved)


@pytest.mark.parametrize("settings", [{}, {"lora": 0, "freeze_vision": False}], ids=str)
def test_checkpointing_changes_no_gradient(path, build, settings):
    found = []
    for checkpointing in (False, True):
        backbone = build(path, fresh=True, checkpointing=checkpointing, **settings).train()
        prefix = backbone.prefix(observe(), None)
        assert bool(prefix.past) != checkpointing
        value = backbone(some_tokens(), prefix).value
        value.clamp(min=-50).square().mean().backward()
        gradients = {name: item.grad for name, item in backbone.named_parameters() if item.requires_grad}
        found.append({"value": value.detach(), **gradients})
        assert bool(backbone.eval().prefix(observe(), None).past)
    for name, item in found[0].items():
        close(found[1][name], item, 1e-3)


def test_bf16_stays_near_fp32_and_plans_between_updates(path, build):
    rough, exact = build(path, precision="bf16"), logits(build(path))
    frozen = [item for item in rough.parameters() if not item.requires_grad]
    assert frozen
    assert all(item.dtype == torch.bfloat16 for item in frozen)
    with torch.inference_mode():
        found = rough(some_tokens(), rough.prefix(observe(), None)).value
    own = exact > NOTHING
    assert found.dtype == torch.float32
    assert (found - exact)[own].abs().mean() < 0.05 * exact[own].std()
    rough(some_tokens(), rough.prefix(observe(), None)).value.clamp(min=-50).sum().backward()
    rough.zero_grad()


def test_without_images_or_language(models_at, build):
    spec = replace(SPEC.select(["joints"]), language=False)
    backbone = build(models_at["smolvlm"], spec)
    obs = observe()
    seen = Observation({"joints": obs.values["joints"]})
    assert logits(backbone, seen).shape == (3, CHUNK, 3, max(SIZES))
    assert not torch.allclose(logits(backbone, seen), logits(backbone, Observation({"joints": -seen.values["joints"]})))


def test_weights_are_not_laid_over_another_model(models_at, build):
    one, other = (build(models_at["smolvlm"], fresh=True) for _ in range(2))
    with torch.no_grad():
        next(item for item in other.parameters() if not item.requires_grad).mul_(1.5)
    leave_out_frozen(other)
    with pytest.raises(KinoiseError, match="another vision-language model"):
        other.load_state_dict(one.state_dict())


def test_fresh_parameters_come_from_the_global_generator(models_at, build):
    states = [build(models_at["smolvlm"], fresh=True, seed=seed).state_dict() for seed in (1, 1, 2)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert not torch.equal(states[0]["tokens"], states[2]["tokens"])


def test_the_observation_is_checked(models_at, build):
    backbone, obs = build(models_at["smolvlm"]), observe()
    with pytest.raises(KinoiseError, match="instruction"):
        backbone.prefix(replace(obs, text=None), None)
    with pytest.raises(KinoiseError, match="lacks 'joints'"):
        backbone.prefix(replace(obs, values={key: item for key, item in obs.values.items() if key != "joints"}), None)
    with pytest.raises(KinoiseError, match="image tokens"):
        backbone.prefix(replace(obs, texts=("<image> push", *TEXTS[1:])), None)
    with pytest.raises(KinoiseError, match="instructions"):
        VlmBackbone(VlmConfig(path="x"), SPEC, STATS, (), HISTORY, CHUNK, SIZES)
    with pytest.raises(UsageError, match="path"):
        VlmBackbone(VlmConfig(), SPEC, STATS, TEXTS, HISTORY, CHUNK, SIZES)


@pytest.mark.parametrize(
    "settings", [{"path": ""}, {"lora": -1}, {"lora_alpha": 0.0}, {"precision": "fp16"}], ids=lambda item: next(iter(item))
)
def test_settings_are_checked(settings):
    with pytest.raises(UsageError, match=next(iter(settings))):
        VlmConfig(**settings)


def test_lora_without_peft_says_what_to_install(models_at, build, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(KinoiseError, match=r"\.\[vlm\]"):
        build(models_at["smolvlm"], fresh=True)
    assert build(models_at["smolvlm"], fresh=True, lora=0)
