"""Counter-based randomness: every draw is a function of (seed, purpose, update, sample id, position), of no generator.

The words of a key are absorbed one by one: the next state is the output, at that word, of splitmix64 seeded with the
state so far. splitmix64 is Steele, Lea and Flood, 2014, figure 16 (https://doi.org/10.1145/2660193.2660195).
"""

import hashlib
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

Bits = TypeVar("Bits", int, Tensor)

# In two's complement, since torch has no arithmetic on uint64; int64 wraps around just the same.
_STEP = 0x9E3779B97F4A7C15 - 2**64
_ROUNDS = ((30, 0xBF58476D1CE4E5B9 - 2**64), (27, 0x94D049BB133111EB - 2**64))


def uniforms(
    seed: int, purpose: str, update: int, sample_ids: Int64[Tensor, " B"], num_positions: int
) -> Float64[Tensor, "B {num_positions}"]:
    """Uniform draws from [0, 1), multiples of 2^-53: row b depends on sample_ids[b], column t on t, on nothing else.

    Computed on the CPU whatever the device, so that every machine draws the same.
    """
    rows = _splitmix64(_key(seed, purpose, update), sample_ids.cpu())
    bits = _splitmix64(rows.unsqueeze(1), torch.arange(num_positions))
    return _shifted(bits, 11).to(torch.float64).mul_(2.0**-53).to(sample_ids.device)


def gaussians(uniforms: Float64[Tensor, "*shape"]) -> Float64[Tensor, "*shape"]:
    """Standard normal draws by the inverse of the normal CDF, from uniforms in [0, 1); at most 8.3 in size."""
    # Half a lattice step above 0, where the inverse is minus infinity; the largest uniform is below 1.
    return torch.special.ndtri(uniforms.clamp(min=2.0**-54))


def categorical(logits: Float[Tensor, "*shape V"], uniforms: Float64[Tensor, "*shape K"]) -> Int64[Tensor, "*shape K"]:
    """K draws from each softmax(logits) by the inverse CDF, from uniforms in [0, 1)."""
    cdf = logits.double().softmax(dim=-1).cumsum(dim=-1)
    # Scaling by the last value and clamping: rounding leaves it a hair off 1.
    drawn = torch.searchsorted(cdf, uniforms * cdf[..., -1:], right=True)
    return drawn.clamp(max=cdf.shape[-1] - 1)


def hashed_order(seed: int, purpose: str, update: int, ids: Int64[Tensor, " N"]) -> Int64[Tensor, " N"]:
    """The permutation that sorts `ids` by their hash: the same shuffle however the ids are ordered or split.

    Distinct ids never tie (for one key the hash is a bijection); equal ids stay in their order.
    """
    return hashed_orders(seed, [purpose], update, ids)[0]


def hashed_orders(seed: int, purposes: list[str], update: int, ids: Int64[Tensor, " N"]) -> Int64[Tensor, "P N"]:
    """The `hashed_order` for each purpose; all at once takes little longer than one."""
    keys = torch.tensor([_key(seed, purpose, update) for purpose in purposes]).unsqueeze(1)
    return torch.argsort(_splitmix64(keys, ids.cpu()), dim=1, stable=True).to(ids.device)


def derive_seed(seed: int, purpose: str, *counters: int) -> int:
    """A seed in [0, 2^31) for a foreign generator, such as that of an episode or of initial weights."""
    return _shifted(_key(seed, purpose, *counters), 33)


def _key(seed: int, purpose: str, *counters: int) -> int:
    """A word in the range of int64, so that it can be added to a tensor."""
    digest = hashlib.blake2b(purpose.encode(), digest_size=8).digest()
    state = seed
    for counter in (int.from_bytes(digest, "little"), *counters):
        state = _splitmix64(state, counter)
    return (state + 2**63) % 2**64 - 2**63


def _splitmix64(states: Any, indices: Bits) -> Bits:
    """Output number `indices`, counted from 0, of the generator seeded with `states`, an int or a tensor.

    No step lets a bit above the 64th reach a lower one, so Python's ints need no wrapping on the way. In place on its
    own tensors, which halves the time.
    """
    bits = states + (indices + 1) * _STEP
    for places, factor in _ROUNDS:
        bits ^= _shifted(bits, places)
        bits *= factor
    bits ^= _shifted(bits, 31)
    return bits


def _shifted(bits: Bits, places: int) -> Bits:
    """Logical shift of 64-bit words to the right: the copies of the sign that shift in are cleared."""
    bits = bits >> places
    bits &= 2 ** (64 - places) - 1
    return bits
