"""Laws of augmentation: nothing changes unasked, a shift is a pad and a crop, colours stay colours, and a seed says it all."""

from __future__ import annotations

import colorsys
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kinoise.config import UsageError
from kinoise.spec import Batch, Feature, Observation, Spec
from kinoise.train.augment import AugmentConfig, augment, check_augment, coloured, shifted

STRONG = AugmentConfig(shift=3, brightness=0.6, contrast=0.6, saturation=0.6, hue=0.3)


def batch(rows: int = 5, history: int = 2, height: int = 7, across: int = 6, seed: int = 0) -> Batch:
    gen = torch.Generator().manual_seed(seed)
    pictures = {
        key: torch.randint(0, 256, (rows, history, height, across, 3), generator=gen, dtype=torch.uint8)
        for key in ("image.a", "image.b")
    }
    state = torch.randn(rows, history, 4, generator=gen)
    actions = torch.randn(rows, 3, 2, generator=gen)
    return Batch(
        Observation({"state": state, **pictures}, ("go",), torch.zeros(rows, dtype=torch.int64)),
        actions,
        torch.ones(rows, 3, dtype=torch.bool),
    )


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def values(item: Batch) -> dict[str, torch.Tensor]:
    return item.observation.values


def test_no_strength_is_no_change_and_no_draw():
    drawn, given = gen(), batch()
    before = drawn.get_state()
    assert augment(given, AugmentConfig(), drawn) is given
    assert torch.equal(drawn.get_state(), before)


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue"])
def test_a_draw_of_nothing_changes_nothing(name):
    pictures = values(batch())["image.a"]
    config = AugmentConfig(**{name: 0.5})
    assert torch.equal(coloured(pictures, torch.zeros(5, 4), config), pictures)
    other = {"brightness": 0, "contrast": 1, "saturation": 2, "hue": 3}
    draws = torch.ones(5, 4)
    draws[:, other[name]] = 0
    assert torch.equal(coloured(pictures, draws, config), pictures)


@given(seed=st.integers(0, 2**31), history=st.integers(1, 3))
def test_a_seed_says_it_all_and_what_is_no_picture_stays(seed, history):
    given = batch(history=history)
    kept = {key: item.clone() for key, item in values(given).items()}
    one, two = (augment(given, STRONG, gen(seed)) for _ in range(2))
    for key, item in values(one).items():
        assert torch.equal(item, values(two)[key])
        assert item.dtype == kept[key].dtype
        assert item.shape == kept[key].shape
        assert torch.equal(values(given)[key], kept[key])
    assert values(one)["state"] is values(given)["state"]
    assert one.actions is given.actions
    assert one.valid is given.valid
    assert one.observation.texts == given.observation.texts
    assert one.observation.text is given.observation.text


def test_rows_and_cameras_are_changed_each_by_itself():
    same = batch(rows=64)
    values(same)["image.b"].copy_(values(same)["image.a"])
    values(same)["image.a"][1:] = values(same)["image.a"][0].clone()
    for config in (AugmentConfig(shift=3), AugmentConfig(brightness=0.5)):
        found = values(augment(same, config, gen()))
        assert not torch.equal(found["image.a"][0], found["image.b"][0])
        assert len({row.numpy().tobytes() for row in found["image.a"]}) > 20


@settings(max_examples=50)
@given(
    most=st.integers(1, 9),
    offset=st.tuples(st.integers(-9, 9), st.integers(-9, 9)),
    height=st.integers(1, 8),
    across=st.integers(1, 8),
)
def test_a_shift_is_a_pad_and_a_crop(most, offset, height, across):
    down, right = (max(-most, min(most, item)) for item in offset)
    pictures = values(batch(3, 2, height, across))["image.a"]
    padded = np.pad(pictures.numpy(), ((0, 0), (0, 0), (most, most), (most, most), (0, 0)), mode="edge")
    wanted = padded[:, :, most + down :, most + right :][:, :, :height, :across]
    np.testing.assert_array_equal(shifted(pictures, torch.tensor([[down, right]] * 3)).numpy(), wanted)


def test_shifts_reach_every_place_up_to_the_most_and_no_further():
    rows, side, most = 2000, 9, 2
    marked = torch.zeros(rows, 1, side, side, 3, dtype=torch.uint8)
    marked[:, :, side // 2, side // 2] = 255
    given = Batch(Observation({"image.a": marked}), torch.zeros(rows, 1, 1), torch.ones(rows, 1, dtype=torch.bool))
    found = values(augment(given, AugmentConfig(shift=most), gen()))["image.a"][:, 0, :, :, 0].nonzero()[:, 1:] - side // 2
    places, counts = torch.unique(found, dim=0, return_counts=True)
    assert places.tolist() == [[y, x] for y in range(-most, most + 1) for x in range(-most, most + 1)]
    assert counts.min() > rows / 25 / 2


@given(seed=st.integers(0, 2**31))
def test_grey_stays_grey_and_hue_and_saturation_keep_its_lightness(seed):
    grey = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16, 1).expand(3, 2, 16, 16, 3)
    draws = torch.rand(3, 4, generator=gen(seed)) * 2 - 1
    only_colour = AugmentConfig(saturation=1.0, hue=0.5)
    assert torch.equal(coloured(grey, draws, only_colour), grey)
    changed = coloured(grey, draws, STRONG)
    assert (changed.amax(-1).int() - changed.amin(-1).int()).max() <= 1


def test_brightness_contrast_and_saturation_are_what_they_are_called():
    pictures = values(batch(rows=1, seed=3))["image.a"] // 4 + 96
    up = torch.ones(1, 4)
    x = pictures.numpy().astype(np.float64)
    luma = x @ [0.299, 0.587, 0.114]
    np.testing.assert_allclose(coloured(pictures, up, AugmentConfig(brightness=0.2)).numpy(), x * 1.2, atol=0.51)
    contrasted = luma.mean() + (x - luma.mean()) * 1.5
    np.testing.assert_allclose(coloured(pictures, up, AugmentConfig(contrast=0.5)).numpy(), contrasted, atol=0.51)
    np.testing.assert_allclose(
        coloured(pictures, -up, AugmentConfig(saturation=1.0)).numpy(), luma[..., None] + 0 * x, atol=0.51
    )


def test_a_third_of_the_colour_circle_makes_of_red_what_is_green():
    red = torch.tensor([200, 40, 40], dtype=torch.uint8).expand(1, 1, 2, 2, 3)
    turned = coloured(red, torch.full((1, 4), 1.0), AugmentConfig(hue=1 / 3))[0, 0, 0, 0] / 255
    assert abs(abs(colorsys.rgb_to_hsv(*turned.tolist())[0] - 1 / 2) - 1 / 6) < 0.08
    back = coloured(red, torch.full((1, 4), 1.0), AugmentConfig(hue=0.5))
    assert not torch.equal(back, red)


@pytest.mark.parametrize(
    "wrong", [{"shift": -1}, {"brightness": -0.1}, {"contrast": 1.5}, {"saturation": 2.0}, {"hue": 0.6}, {"hue": -0.1}]
)
def test_strengths_out_of_range_are_refused(wrong):
    with pytest.raises(UsageError, match=f"augment.{next(iter(wrong))}="):
        AugmentConfig(**wrong)


def test_data_that_it_can_do_nothing_for_are_refused():
    spec = Spec({"image.top": Feature((8, 6, 3), "image"), "state": Feature((2,))}, Feature((2,)), rate=10.0)
    blind = replace(spec, observations={"state": Feature((2,))})
    check_augment(AugmentConfig(shift=5, hue=0.1), spec)
    check_augment(AugmentConfig(), blind)
    with pytest.raises(UsageError, match=r"shift=6.*'image.top' 8 x 6"):
        check_augment(AugmentConfig(shift=6), spec)
    for config in (AugmentConfig(shift=1), AugmentConfig(hue=0.1)):
        with pytest.raises(UsageError, match="the data have only state"):
            check_augment(config, blind)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same():
    given = batch(rows=8, height=32, across=32)
    moved = {key: item.cuda() for key, item in values(given).items()}
    there = Batch(Observation(moved), given.actions, given.valid)
    here, found = values(augment(given, STRONG, gen())), values(augment(there, STRONG, gen()))
    for key in ("image.a", "image.b"):
        assert found[key].is_cuda
        assert (found[key].cpu().int() - here[key].int()).abs().max() <= 1  # sums are rounded in another order
    assert torch.equal(
        values(augment(there, AugmentConfig(shift=3), gen()))["image.a"].cpu(),
        values(augment(given, AugmentConfig(shift=3), gen()))["image.a"],
    )
