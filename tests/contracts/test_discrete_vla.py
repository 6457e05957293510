"""What the discrete-diffusion VLA adds to a policy's contract: pinned prefixes, rounds, instructions word by word."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from kinoise.policies import build_policy
from kinoise.policies.checkpoint import load_policy, save_policy
from kinoise.policies.decode import DecodeChanges
from kinoise.policies.discrete_vla import DiscreteVLAConfig, DiscreteVLAPolicy
from kinoise.policies.encoders import words
from kinoise.spec import Batch, Feature, KinoiseError, Observation, Plan, Spec, Stats
from omegaconf import OmegaConf

TEXTS = ("open the drawer", "close the drawer", "put the small red block on the shelf")
KEYS = ("state", "image.front")
CHUNK, BINS = 6, 16
SPEC = Spec(
    observations={"state": Feature((5,)), "image.front": Feature((32, 48, 3), kind="image")},
    action=Feature((3,), low=(-1.0,) * 3, high=(1.0,) * 3),
    rate=20.0,
    gripper=(2,),
)
RAMP = tuple(torch.linspace(-1, 1, 257).tolist())
STATS = {
    key: Stats(mean=(0.1,) * n, std=(0.5,) * n, min=(-1.0,) * n, max=(1.0,) * n, q01=(-0.9,) * n, q99=(0.9,) * n, count=9)
    for key, n in (("state", 5), ("image.front", 3))
}
STATS["action"] = Stats(
    *((0.0,) * 3, (0.5,) * 3, (-1.0,) * 3, (1.0,) * 3, (-0.98, -0.98, -1.0), (0.98, 0.98, 1.0)),
    count=9,
    quantiles=(RAMP, RAMP, (-1.0,) * 128 + (1.0,) * 129),
)
SMALL = {
    "network": {"width": 32, "depth": 2},
    "chunk": CHUNK,
    "execute": 2,
    "bins": {"count": BINS},
    "encoder": {"patch": 16},
    "decode": {"steps": 5},
    "observations": ["state"],
}


def config(**over: object) -> DiscreteVLAConfig:
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(DiscreteVLAConfig()), SMALL, over))


def small(**over: object) -> DiscreteVLAPolicy:
    return build_policy(config(**over), SPEC, STATS, TEXTS, seed=0)


def changed(policy: DiscreteVLAPolicy, **decode: object) -> DiscreteVLAPolicy:
    """The same weights, decoded otherwise."""
    merged = OmegaConf.merge(OmegaConf.structured(policy.config), {"decode": decode})
    other = build_policy(OmegaConf.to_object(merged), SPEC, STATS, TEXTS, seed=1)
    other.load_state_dict(policy.state_dict())
    return other.eval()


def observation(rows: int = 3, texts: tuple[str, ...] = TEXTS, seed: int = 0) -> Observation:
    gen = torch.Generator().manual_seed(seed)
    values = {
        "state": torch.randn(rows, 1, 5, generator=gen),
        "image.front": torch.randint(0, 256, (rows, 1, 32, 48, 3), generator=gen, dtype=torch.uint8),
    }
    return Observation(values, texts, torch.arange(rows) % len(texts))


def row(obs: Observation, index: int) -> Observation:
    values = {key: item[index : index + 1] for key, item in obs.values.items()}
    return Observation(values, obs.texts, obs.text[index : index + 1])


def generators(rows: int = 3) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(index) for index in range(rows)]


def trained(policy: DiscreteVLAPolicy, steps: int = 8) -> DiscreteVLAPolicy:
    gen = torch.Generator().manual_seed(0)
    actions = torch.randn(9, CHUNK, 3, generator=gen).clamp(-0.9, 0.9)
    actions[..., 2] = actions[..., 2].sign()
    batch = Batch(observation(9), actions, torch.ones(9, CHUNK, dtype=torch.bool))
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-2)
    for step in range(steps):
        loss = policy.train().loss(batch, torch.Generator().manual_seed(step)).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return policy.eval()


@pytest.fixture(scope="module")
def policy() -> DiscreteVLAPolicy:
    return trained(small())


def previous(rows: int = 3, length: int = CHUNK) -> Plan:
    """Numbers that no bin stands for, some of them beyond all bins."""
    actions = torch.randn(rows, length, 3, generator=torch.Generator().manual_seed(7))
    return Plan(actions=actions, dt=0.05, nfe=1)


@pytest.mark.parametrize("keys", [KEYS[:1], KEYS[1:], KEYS], ids=["state", "image", "both"])
def test_it_sees_what_it_is_given(keys: tuple[str, ...]) -> None:
    policy = trained(small(observations=list(keys)), steps=4)
    obs = observation()
    plan = policy.plan(obs, generators())
    assert plan.actions.shape == (3, CHUNK, 3)
    assert plan.actions.abs().max() <= 1
    assert set(plan.actions[..., 2].unique().tolist()) <= {-1.0, 1.0}, "the gripper's commands are two"
    for key in KEYS:
        other = replace(obs, values={**obs.values, key: obs.values[key].flip(0)})
        assert torch.equal(policy.plan(other, generators()).actions, plan.actions) == (key not in keys)
    lacking = replace(
        obs, values={key: item for key, item in obs.values.items() if key != keys[0]} | {"other": obs.values[KEYS[0]]}
    )
    with pytest.raises(KinoiseError, match=f"lacks '{keys[0]}'"):
        policy.plan(lacking, generators())


def test_plans_before_training_do_not_hinder_it() -> None:
    """Instructions that were first looked up without gradients are learned from all the same."""
    policy = small().eval()
    policy.plan(observation(), generators())
    trained(policy, steps=2)  # the first alone passes nothing back: the output starts at zero
    assert policy.backbone.encoder.words.layers[0].weight.grad.abs().sum() > 0


# Pinned prefixes


@pytest.mark.parametrize(
    "how", [{}, {"threshold": 0.9, "temperature": 1.0, "value": "centre"}, {"sampler": "autoregressive"}, {"guidance": 2.0}]
)
@pytest.mark.parametrize("prefix", [1, 3, CHUNK])
@pytest.mark.parametrize("elapsed", [0, 2])
def test_a_pinned_prefix_comes_back_bit_by_bit(policy: DiscreteVLAPolicy, prefix: int, elapsed: int, how: dict) -> None:
    before = previous(length=CHUNK + 2)
    plan = changed(policy, **how).plan(observation(), generators(), previous=before, elapsed=elapsed, prefix=prefix)
    assert torch.equal(plan.actions[:, :prefix], before.actions[:, elapsed : elapsed + prefix])


def test_a_pinned_prefix_saves_evaluations_and_shapes_what_follows(policy: DiscreteVLAPolicy) -> None:
    twelve, obs = changed(policy, steps=12), observation()
    nfe = [twelve.plan(obs, generators(), previous=previous(), elapsed=0, prefix=prefix).nfe for prefix in range(CHUNK + 1)]
    assert nfe == sorted(nfe, reverse=True)
    assert nfe[3] < nfe[0] <= 12
    assert nfe[CHUNK] == 0
    free, pinned = (policy.plan(obs, generators(), previous=previous(), prefix=prefix).actions for prefix in (0, 3))
    assert not torch.equal(free[:, 3:], pinned[:, 3:])


def test_without_a_prefix_the_previous_plan_plays_no_part(policy: DiscreteVLAPolicy) -> None:
    free = policy.plan(observation(), generators())
    assert torch.equal(policy.plan(observation(), generators(), previous=previous(), elapsed=4).actions, free.actions)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"prefix": CHUNK + 1, "previous": previous(length=9)}, "chunk of 6"),
        ({"prefix": 3, "elapsed": 4, "previous": previous()}, "needs 7 actions; the previous plan has 6"),
        ({"prefix": 1}, "previous="),
        ({"prefix": -1, "previous": previous()}, "at least 0"),
        ({"elapsed": -1, "previous": previous()}, "at least 0"),
        ({"prefix": 1, "previous": previous(rows=2)}, "expected 3 rows, a chunk, 3 numbers"),
    ],
)
def test_a_prefix_that_cannot_be_kept_is_refused(policy: DiscreteVLAPolicy, arguments: dict, said: str) -> None:
    with pytest.raises(KinoiseError, match=said):
        policy.plan(observation(), generators(), **arguments)


# Rounds


def test_evaluations_are_counted_for_the_batch_and_for_each_row(policy: DiscreteVLAPolicy) -> None:
    obs = observation()
    plan = policy.plan(obs, generators())
    assert (plan.nfe, plan.nfe_rows) == (5, (5,) * 3)
    assert policy.plan(obs, generators()).timing.keys() == {"encode", "denoise", "evaluation"}
    guided = changed(policy, guidance=2.0).plan(obs, generators())
    assert (guided.nfe, guided.nfe_rows) == (10, (10,) * 3)
    assert not torch.allclose(guided.actions, plan.actions)
    assert changed(policy, guidance=0.0).plan(obs, generators()).nfe == 5
    assert changed(policy, steps=1).plan(obs, generators()).nfe == 1
    assert changed(policy, sampler="autoregressive").plan(obs, generators()).nfe == 3 * CHUNK


def test_an_adaptive_row_spends_what_it_needs_whatever_the_others_do(policy: DiscreteVLAPolicy) -> None:
    obs, rounds = observation(), changed(policy, steps=9)
    sure = changed(rounds, adaptive=0.0).plan(obs, generators())
    assert (sure.nfe, sure.nfe_rows) == (1, (1,) * 3)
    found = set()
    for level in torch.linspace(0.05, 0.9, 18).tolist():
        adaptive = changed(rounds, adaptive=level, temperature=1.0, value="centre")
        plan = adaptive.plan(obs, generators())
        assert plan.nfe == max(plan.nfe_rows)
        found |= {plan.nfe_rows}
        alone = [adaptive.plan(row(obs, index), generators()[index : index + 1]) for index in range(3)]
        assert tuple(item.nfe for item in alone) == plan.nfe_rows
        torch.testing.assert_close(torch.cat([item.actions for item in alone]), plan.actions, atol=1e-5, rtol=1e-4)
    assert any(len(set(item)) > 1 for item in found), "no batch had a row that was done before another"


def test_centres_are_what_tokens_stand_for(policy: DiscreteVLAPolicy) -> None:
    plan = changed(policy, value="centre").plan(observation(), generators())
    assert torch.equal(policy.bins.decode(policy.bins.encode(plan.actions)), plan.actions)
    expected = policy.plan(observation(), generators()).actions
    assert not torch.allclose(expected, plan.actions)
    assert torch.equal(expected[..., 2], plan.actions[..., 2])
    assert (expected[..., :2].abs() <= 0.98).all()


def test_settings_of_rounds_are_the_command_line_s() -> None:
    assert set(vars(DecodeChanges())) | {"schedule"} == set(vars(config().decode))


@pytest.mark.parametrize(
    ("over", "said"),
    [
        ({"decode": {"value": "mean"}}, "decode.value"),
        ({"decode": {"sampler": "ddim"}}, "decode.sampler"),
        ({"decode": {"confidence": "min"}}, "decode.confidence"),
        ({"decode": {"guidance": 2.0}, "goal_dropout": 0.0}, "goal_dropout"),
        ({"goal_dropout": 1.0}, "goal_dropout"),
        ({"process": {"schedule": "sine"}}, "process.schedule"),
        ({"bins": {"count": 1}}, "bins.count"),
        ({"encoder": {"patch": 5}}, "encoder.patch"),
        ({"encoder": {"state": "raw"}}, "encoder.state"),
        ({"encoder": {"shift": -1}}, "encoder.shift"),
    ],
)
def test_wrong_settings_are_refused(over: dict, said: str) -> None:
    with pytest.raises(KinoiseError, match=said):
        config(**over)


def test_what_does_not_fit_the_data_is_refused() -> None:
    tiny = replace(SPEC, observations={"image.front": Feature((16, 48, 3), kind="image")})
    with pytest.raises(KinoiseError, match=r"smaller than encoder\.patch=32"):
        build_policy(config(observations=None, encoder={"patch": 32}), tiny, STATS, TEXTS)
    with pytest.raises(KinoiseError, match="quantiles"):
        build_policy(config(), SPEC, {**STATS, "action": replace(STATS["action"], quantiles=())}, TEXTS)
    with pytest.raises(KinoiseError, match="all different"):
        build_policy(config(), SPEC, STATS, (TEXTS[0],) * 2)


# Instructions


def test_instructions_that_share_most_words_are_told_apart(policy: DiscreteVLAPolicy) -> None:
    obs = replace(observation(2), text=torch.tensor([0, 1]))
    values = {key: item[:1].expand_as(item) for key, item in obs.values.items()}
    plans = policy.plan(replace(obs, values=values), generators(1) * 2).actions
    assert not torch.allclose(plans[0], plans[1])


@pytest.mark.parametrize("texts", [TEXTS, (*TEXTS, "press the button"), TEXTS[::-1]], ids=["known", "unknown", "other order"])
def test_padding_of_instructions_does_not_leak_between_rows(policy: DiscreteVLAPolicy, texts: tuple[str, ...]) -> None:
    """Nor from instructions that no row of the batch has."""
    obs = observation(len(texts), texts)
    together = policy.plan(obs, generators(len(texts))).actions
    for index in range(len(texts)):
        one, gen = row(obs, index), generators(len(texts))[index : index + 1]
        for alone in (one, replace(one, texts=(texts[index],), text=torch.tensor([0]))):
            gen = generators(len(texts))[index : index + 1]
            torch.testing.assert_close(policy.plan(alone, gen).actions[0], together[index], atol=1e-5, rtol=1e-4)


def test_a_dropped_instruction_is_the_same_whatever_it_was(policy: DiscreteVLAPolicy) -> None:
    free, obs = changed(policy, guidance=0.0), observation()
    plan = free.plan(obs, generators()).actions
    torch.testing.assert_close(free.plan(replace(obs, text=obs.text.flip(0)), generators()).actions, plan)


def test_an_unknown_instruction_is_looked_up_and_a_long_one_refused(policy: DiscreteVLAPolicy) -> None:
    plans = [policy.plan(observation(1, (text,)), generators(1)).actions for text in (TEXTS[0], "push the puck away", "")]
    assert all(item.isfinite().all() for item in plans)
    assert not torch.equal(plans[0], plans[1])
    with pytest.raises(KinoiseError, match=r"'word word .* has 60 tokens, more than 48: .* policy\.encoder\.words"):
        policy.plan(observation(1, (" ".join(["word"] * 60),)), generators(1))
    with pytest.raises(KinoiseError, match="has 8 tokens"):
        trained(small(encoder={"words": 4}), steps=1)


def test_a_single_word_is_an_instruction() -> None:
    """What one word's embedding is standardised by has no deviation."""
    policy = build_policy(config(), SPEC, STATS, ("push",), seed=0)
    assert all(item.isfinite().all() for item in policy.state_dict().values())
    for text in ("push", "pull it back"):
        tokens, _ = policy.backbone.encoder.words((text,), torch.tensor([0]))
        assert tokens.isfinite().all()
        assert tokens.abs().max() < 100


def test_an_instruction_is_needed_where_the_data_have_them(policy: DiscreteVLAPolicy) -> None:
    with pytest.raises(KinoiseError, match="needs an instruction"):
        policy.plan(replace(observation(), texts=(), text=None), generators())
    silent = build_policy(config(), replace(SPEC, language=False), STATS, (), seed=0)
    assert silent.backbone.encoder.words is None
    assert silent.eval().plan(replace(observation(), texts=(), text=None), generators()).actions.isfinite().all()


# Training and checkpoints


def test_the_share_of_actions_beyond_the_bins_is_shown_and_not_minimised() -> None:
    policy, obs = small(), observation(2)
    actions = torch.zeros(2, CHUNK, 3)
    actions[0, :, 0], actions[..., 2] = 2.0, -1.0
    batch = Batch(obs, actions, torch.ones(2, CHUNK, dtype=torch.bool))
    losses = policy.loss(batch, torch.Generator().manual_seed(0))
    assert losses.shown["clipped"].item() == pytest.approx(CHUNK / actions.numel())
    assert losses.total == losses.per_sample.mean()
    assert not losses.auxiliary


def test_steps_after_an_episode_s_end_are_not_learned_from() -> None:
    policy, obs = small(goal_dropout=0.0), observation(2)
    trained(policy).train()
    valid = torch.tensor([[True] * 2 + [False] * (CHUNK - 2)] * 2)
    actions = torch.zeros(2, CHUNK, 3)
    moved = torch.where(valid[..., None], actions, 0.5)
    # Hidden tokens are all that may differ in what the network sees: hide everything.
    policy.process.corrupt = lambda clean, t, gen, given: policy.process.prior(clean.shape, gen)
    found = [policy.loss(Batch(obs, item, valid), torch.Generator().manual_seed(0)).per_sample for item in (actions, moved)]
    assert torch.equal(*found)
    everything = torch.ones_like(valid)
    assert not torch.equal(found[0], policy.loss(Batch(obs, moved, everything), torch.Generator().manual_seed(0)).per_sample)


def test_a_checkpoint_needs_no_sentence_encoder(
    policy: DiscreteVLAPolicy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_policy(tmp_path, policy, dict(policy.named_parameters()))
    expected = policy.plan(observation(), generators())

    def missing() -> None:
        raise KinoiseError("not installed")

    monkeypatch.setattr(words, "sentence_encoder", missing)
    for decode in ({}, {"guidance": 2.0, "steps": 3}):
        loaded = load_policy(tmp_path, decode=decode)
        plan = loaded.plan(observation(), generators())
        assert torch.equal(plan.actions, expected.actions) == (not decode)
    with pytest.raises(KinoiseError, match="not installed"):
        loaded.plan(observation(1, ("an unknown one",)), generators(1))


def test_weights_bring_their_own_instructions() -> None:
    """What is remembered of texts goes when weights are loaded, whose embeddings may be others."""
    one, other = small().eval(), small().eval()
    one.plan(observation(), generators())
    state = other.state_dict()
    state["backbone.encoder.words.embeddings"] = state["backbone.encoder.words.embeddings"].flip(0)
    state["backbone.encoder.words.lengths"] = state["backbone.encoder.words.lengths"].flip(0)
    one.load_state_dict(state)
    before, after = (item.backbone.encoder.words(TEXTS, torch.arange(3)) for item in (other, one))
    assert torch.equal(before[1].flip(0), after[1])
    torch.testing.assert_close(before[0].flip(0)[after[1]], after[0][after[1]])


def test_what_the_bins_cut_off_is_counted_before_training() -> None:
    policy = small()
    inside = torch.tensor(STATS["action"].q01).repeat(5, 1)
    assert policy.remarks(inside) == []
    beyond = inside.clone()
    beyond[2, 0] = STATS["action"].min[0] - 1
    (remark,) = policy.remarks(beyond)
    assert remark.startswith(f"1 of {beyond.numel()} action numbers")
