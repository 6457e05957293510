"""The matrix products of a plan: as many as its network asks for, and in the stage in which it does."""

from __future__ import annotations

import pytest
import torch
from kinoise.deploy.floor import Product, floor, products
from kinoise.policies import choices
from small_policies import small

WIDTH, CHUNK, STATE = 32, 4, 5


@pytest.mark.parametrize("name", choices())
def test_every_policy_has_a_floor(name: str) -> None:
    policy = small(name, decode={"steps": 2}).eval()
    found = products(policy)
    assert {item.stage for item in found} == {"encode", "evaluate"}
    assert 0 < floor(policy, 0.01) < 10


def test_they_are_counted_by_hand() -> None:
    network = {"depth": 1, "width": WIDTH, "heads": 4, "ff": 2.0, "noise_token": False}
    policy = small("diffusion", network=network, decode={"steps": 3, "sampler": "ddim"}).eval()
    found = products(policy)
    tokens, hidden, steps = CHUNK + 2, 2 * WIDTH, 3  # of the observation: the instruction and the state
    assert [item for item in found if item.stage == "evaluate"] == [
        Product(1, CHUNK, 3, WIDTH, steps, "evaluate"),
        Product(1, tokens, WIDTH, 3 * WIDTH, steps, "evaluate"),
        Product(4, tokens, WIDTH // 4, tokens, steps, "evaluate"),
        Product(4, tokens, tokens, WIDTH // 4, steps, "evaluate"),
        Product(1, CHUNK, WIDTH, WIDTH, steps, "evaluate"),
        Product(1, CHUNK, WIDTH, hidden, 2 * steps, "evaluate"),
        Product(1, CHUNK, hidden, WIDTH, steps, "evaluate"),
        Product(1, CHUNK, WIDTH, 3, steps, "evaluate"),
    ]
    assert Product(1, 1, STATE, 2 * WIDTH, 1, "encode") in found
    assert found[0].flops == 2 * found[0].m * found[0].k * found[0].n * found[0].count


def test_convolutions_are_products_of_unfolded_images() -> None:
    policy = small("diffusion", observations=["image.front"], encoder={"shared_cameras": True}).eval()
    stem = Product(1, 64, 3 * 7 * 7, 24 * 24, 1, "encode")
    assert stem in products(policy)


def test_the_products_are_those_of_a_policy_that_is_not_compiled() -> None:
    policy = small("mode").eval()
    plain = products(policy)
    assert products(policy.compiled()) == plain
    assert policy._graphs is not None
    assert len(policy._graphs) == 0
    assert torch.is_grad_enabled()
