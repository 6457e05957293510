"""What the discrete-diffusion VLA adds to a policy's contract: instructions word by word, settings, training, checkpoints."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from kinoise.policies import build_policy
from kinoise.policies.checkpoint import load_policy, save_policy
from kinoise.policies.discrete_vla import DiscreteVLAPolicy
from kinoise.policies.encoders import words
from kinoise.spec import Batch, Feature, KinoiseError
from tiny_vla import CHUNK, KEYS, SPEC, STATS, TEXTS, changed, config, generators, observation, row, small, trained


@pytest.fixture(scope="module")
def policy() -> DiscreteVLAPolicy:
    return trained(small())


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
