"""Counter-based draws, against the published outputs of splitmix64 and against chance."""

import math
import statistics

import pytest
import torch

from rlhf.core import random
from rlhf.core.random import categorical, derive_seed, gaussians, hashed_order, hashed_orders, uniforms

PUBLISHED = [
    6457827717110365317,
    3203168211198807973,
    9817491932198370423,
    4593380528125082431,
    16408922859458223821,
]


def test_splitmix64_of_tensors_matches_published_outputs():
    outputs = random._splitmix64(torch.tensor(1234567), torch.arange(5))
    assert [output % 2**64 for output in outputs.tolist()] == PUBLISHED


def test_splitmix64_of_ints_matches_published_outputs():
    assert [random._splitmix64(1234567, index) % 2**64 for index in range(5)] == PUBLISHED


def test_splitmix64_of_ints_equals_tensors_with_the_sign_bit_set():
    states = [-1, -(2**63), 2**63 - 1, -1234567890123456789]
    outputs = random._splitmix64(torch.tensor(states), torch.full((4,), 2**62))
    assert [random._splitmix64(state, 2**62) % 2**64 for state in states] == [o % 2**64 for o in outputs.tolist()]


def test_uniforms_are_the_high_bits_of_the_chain_of_outputs():
    row = random._splitmix64(random._key(3, "actions", 7), 41)
    cell = random._splitmix64(row, 5) % 2**64
    assert uniforms(3, "actions", 7, torch.tensor([40, 41]), 6)[1, 5].item() == (cell >> 11) * 2.0**-53


def test_uniforms_do_not_change_between_versions():
    # A changed stream breaks the resume of every older run: these are today's draws, written down.
    expected = torch.tensor([[0.17083499722104656]], dtype=torch.float64)
    assert torch.equal(uniforms(0, "actions", 0, torch.tensor([0]), 1), expected)


def test_uniforms_do_not_depend_on_the_batch():
    ids = torch.tensor([5, 0, 10**12, 3, -4])
    together = uniforms(1, "actions", 2, ids, 7)
    alone = torch.cat([uniforms(1, "actions", 2, ids[i : i + 1], 7) for i in range(5)])
    assert torch.equal(together, alone)


def test_uniforms_do_not_depend_on_the_order_of_the_batch():
    ids = torch.arange(10)
    assert torch.equal(uniforms(1, "actions", 2, ids.flip(0), 7), uniforms(1, "actions", 2, ids, 7).flip(0))


def test_uniforms_do_not_depend_on_the_number_of_positions():
    ids = torch.arange(4)
    assert torch.equal(uniforms(1, "actions", 2, ids, 9)[:, :3], uniforms(1, "actions", 2, ids, 3))


def test_uniforms_leave_the_global_generator_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    uniforms(1, "actions", 2, torch.arange(4), 9)
    assert torch.equal(torch.get_rng_state(), before)


def test_uniforms_do_not_change_their_ids():
    ids = torch.arange(4)
    uniforms(1, "actions", 2, ids, 9)
    assert torch.equal(ids, torch.arange(4))


@pytest.mark.parametrize(("seed", "purpose", "update"), [(2, "actions", 3), (1, "prompts", 3), (1, "actions", 4)])
def test_uniforms_of_another_key_share_nothing(seed, purpose, update):
    ids = torch.arange(50)
    draws, others = uniforms(1, "actions", 3, ids, 50).flatten(), uniforms(seed, purpose, update, ids, 50).flatten()
    assert not torch.isin(draws, others).any()
    assert abs(torch.corrcoef(torch.stack([draws, others]))[0, 1]) < 4 / math.sqrt(2500)


def test_uniforms_of_exchanged_words_differ():
    # A key made by xor or addition would not tell these apart.
    ids = torch.arange(8)
    assert not torch.isin(uniforms(1, "actions", 2, ids, 8), uniforms(2, "actions", 1, ids, 8)).any()


def test_uniforms_never_repeat_over_ids_and_positions():
    assert uniforms(0, "actions", 0, torch.arange(512), 256).unique().numel() == 512 * 256


def test_uniforms_lie_in_the_half_open_unit_interval():
    draws = uniforms(0, "actions", 0, torch.arange(1000), 1000)
    assert draws.dtype == torch.float64
    assert draws.min() >= 0.0
    assert draws.max() < 1.0


def test_uniforms_have_the_moments_of_chance():
    draws = uniforms(0, "actions", 0, torch.arange(1000), 1000)
    # Standard errors over n = 10^6 draws: mean sqrt(1/12 / n), variance sqrt(1/180 / n).
    assert abs(draws.mean().item() - 1 / 2) < 4 * math.sqrt(1 / 12 / 1e6)
    assert abs(draws.var(correction=0).item() - 1 / 12) < 4 * math.sqrt(1 / 180 / 1e6)


@pytest.mark.parametrize("places", [0, 20])
def test_uniforms_fill_bins_evenly(places):
    # places 20: the bits below the first 20 must be as even as the first.
    draws = uniforms(0, "actions", 0, torch.arange(500), 200) * 2**places % 1.0
    counts = torch.histc(draws, bins=100, min=0.0, max=1.0)
    chi2 = ((counts - 1000.0).square() / 1000.0).sum().item()
    # 99 degrees of freedom: mean 99, standard deviation sqrt(198).
    assert abs(chi2 - 99.0) < 4 * math.sqrt(198.0)


@pytest.mark.parametrize("axis", [0, 1])
def test_uniforms_of_neighbours_are_uncorrelated(axis):
    draws = uniforms(0, "actions", 0, torch.arange(400), 400)
    pairs = torch.stack([draws.narrow(axis, 0, 399).flatten(), draws.narrow(axis, 1, 399).flatten()])
    assert abs(torch.corrcoef(pairs)[0, 1].item()) < 4 / math.sqrt(400 * 399)


@pytest.mark.parametrize("axis", [0, 1])
def test_uniforms_means_of_rows_and_columns_spread_as_chance(axis):
    means = uniforms(0, "actions", 0, torch.arange(400), 400).mean(dim=axis)
    ratio = (means.var(correction=0) / (1 / 12 / 400)).item()
    # A variance over 400 means has a relative standard error of sqrt(2 / 400).
    assert abs(ratio - 1.0) < 4 * math.sqrt(2 / 400)


def test_gaussians_invert_the_normal_cdf():
    levels = [1e-12, 1e-3, 0.3, 0.5, 0.975, 1 - 1e-9]
    expected = torch.tensor([statistics.NormalDist().inv_cdf(level) for level in levels], dtype=torch.float64)
    torch.testing.assert_close(gaussians(torch.tensor(levels, dtype=torch.float64)), expected, rtol=1e-9, atol=1e-9)


def test_gaussians_are_finite_at_the_ends_of_the_interval():
    draws = gaussians(torch.tensor([0.0, 2.0**-53, 1.0 - 2.0**-53], dtype=torch.float64))
    assert torch.isfinite(draws).all()
    assert draws.abs().max() < 8.3
    assert draws[0] < draws[1]


def test_gaussians_have_the_moments_of_chance():
    draws = gaussians(uniforms(0, "actions", 0, torch.arange(1000), 100))
    assert abs(draws.mean().item()) < 4 / math.sqrt(1e5)
    assert abs(draws.var(correction=0).item() - 1.0) < 4 * math.sqrt(2 / 1e5)


def test_hashed_order_is_a_permutation():
    order = hashed_order(0, "minibatches", 0, torch.arange(1000) * 7)
    assert torch.equal(order.sort().values, torch.arange(1000))


def test_hashed_order_does_not_depend_on_the_order_of_the_ids():
    ids = torch.arange(100)
    shuffled = torch.randperm(100, generator=torch.Generator().manual_seed(0))
    assert torch.equal(
        ids[hashed_order(0, "minibatches", 3, ids)], shuffled[hashed_order(0, "minibatches", 3, shuffled)]
    )


def test_hashed_order_of_a_part_is_the_part_of_the_order():
    # A rank that holds some of the ids meets them in the global order.
    ids = torch.arange(100)
    whole = ids[hashed_order(0, "minibatches", 3, ids)]
    part = ids[30:60]
    assert torch.equal(part[hashed_order(0, "minibatches", 3, part)], whole[(whole >= 30) & (whole < 60)])


def test_hashed_order_keeps_equal_ids_in_their_order():
    order = hashed_order(0, "minibatches", 0, torch.tensor([9, 4, 9, 4, 9]))
    assert order.tolist() in ([0, 2, 4, 1, 3], [1, 3, 0, 2, 4])


def test_hashed_order_differs_between_updates_and_purposes():
    orders = {
        tuple(hashed_order(0, purpose, update, torch.arange(20)).tolist())
        for purpose in ("epoch 0", "epoch 1")
        for update in range(50)
    }
    assert len(orders) == 100


def test_hashed_orders_are_those_of_each_purpose():
    ids = torch.tensor([5, -3, 2**40, 7, 0, 5])
    orders = hashed_orders(9, ["a", "b", "c"], 4, ids)
    for order, purpose in zip(orders, "abc", strict=True):
        # From the words' definition: stable order of the ids' outputs in the chain of seed, purpose and update.
        words = [random._splitmix64(random._key(9, purpose, 4), i) for i in ids.tolist()]
        signed = [word - 2**64 if word >= 2**63 else word for word in (word % 2**64 for word in words)]
        assert order.tolist() == sorted(range(6), key=signed.__getitem__)


def test_hashed_order_puts_every_id_first_equally_often():
    first = torch.tensor([hashed_order(0, "minibatches", update, torch.arange(5))[0].item() for update in range(1000)])
    chi2 = ((first.bincount(minlength=5) - 200.0).square() / 200.0).sum().item()
    # 4 degrees of freedom: above 18.47 once in a thousand.
    assert chi2 < 18.47


def test_derive_seed_is_a_seed_for_any_library():
    seeds = [derive_seed(0, "episodes", number) for number in range(2000)]
    assert all(0 <= seed < 2**31 for seed in seeds)
    # The highest bit is used as well: half of them lie in the upper half.
    assert abs(sum(seed >= 2**30 for seed in seeds) - 1000) < 4 * math.sqrt(2000 / 4)


def test_derive_seed_depends_on_every_word_and_their_order():
    seeds = {
        derive_seed(0, "a"),
        derive_seed(1, "a"),
        derive_seed(0, "b"),
        derive_seed(0, "a", 0),
        derive_seed(0, "a", 0, 0),
        derive_seed(0, "a", 1, 2),
        derive_seed(0, "a", 2, 1),
    }
    assert len(seeds) == 7


@pytest.mark.parametrize("seed", [-1, 2**63, 2**64 + 5])
def test_draws_take_any_int_as_seed(seed):
    assert uniforms(seed, "actions", 0, torch.arange(2), 2).unique().numel() == 4
    assert derive_seed(seed, "episodes", 0) != derive_seed(seed, "episodes", 1)


def test_categorical_inverts_the_cdf_of_each_row():
    """Probabilities .2, .5, .3 in one row and .6, .1, .3 in the other: edges at .2, .7 and .6, .7."""
    logits = torch.tensor([[0.2, 0.5, 0.3], [0.6, 0.1, 0.3]], dtype=torch.float64).log() + 7.0
    draws = torch.tensor([[0.0, 0.19, 0.21, 0.69, 0.71, 1 - 2**-53]] * 2, dtype=torch.float64)
    assert categorical(logits, draws).tolist() == [[0, 0, 1, 1, 2, 2], [0, 0, 0, 1, 2, 2]]


def test_categorical_never_draws_what_cannot_happen():
    logits = torch.tensor([-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf], dtype=torch.float64)
    draws = torch.tensor([0.0, 0.5 - 2**-53, 0.5, 1 - 2**-53], dtype=torch.float64)
    assert categorical(logits, draws).tolist() == [1, 1, 3, 3]
