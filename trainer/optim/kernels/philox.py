"""Normal noise for compiled loops on the CPU: Philox 4x32-10 and Box-Muller, a block (naming.py) at a time.

Philox (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") is a function of a 128-bit counter and a
64-bit key, without state: any thread makes any part of the noise. One call gives four 32-bit words, two pairs for
Box-Muller (1958): (x, y) = √(-2 ln u)·(cos 2πv, sin 2πv). The tails reach √(2 ln 2³³) = 6.8; beyond lies 1e-11.

Written so that the loops become vector instructions: no branches, no calls, logarithm and sine as polynomials.
"""

from __future__ import annotations

import math

import numpy as np
from numba import float32, int32, njit, uint32, uint64, void

from trainer.optim.kernels.naming import LANES

# Philox's multipliers and Weyl increments, from the paper.
_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = np.uint32(0x9E3779B9), np.uint32(0xBB67AE85)
_NUM_ROUNDS = 10
_HALF_WORD = np.uint64(32)

_UNIT = np.float32(2.0**-32)
_HALF, _ONE, _MINUS_TWO = np.float32(0.5), np.float32(1), np.float32(-2)
_SQRT_HALF_BITS = np.int32(np.float32(math.sqrt(0.5)).view(np.int32))
_MANTISSA, _MANTISSA_BITS = np.int32(0x7FFFFF), np.int32(23)
_LN_2 = np.float32(math.log(2))
_QUADRANT_BITS, _IN_QUADRANT, _MIDDLE = np.uint32(30), np.uint32(2**30 - 1), np.int32(2**29)
_RADIANS = np.float32(math.pi / 2 * 2.0**-30)
_BIT_0, _BIT_1 = np.uint32(1), np.uint32(2)

# Chebyshev fits: ln(1+z) = z - z²/2 + z³·L(z), sin w = w + w³·S(w²), cos w = 1 - w²/2 + w⁴·C(w²).
_L = tuple(
    np.float32(c)
    for c in (
        0.333333286,
        -0.250002965,
        0.200014686,
        -0.166422476,
        0.142021738,
        -0.129722389,
        0.12712308,
        -0.0810155889,
    )
)
_S = tuple(np.float32(c) for c in (-0.166666647, 0.00833274863, -0.000195879499))
_C = tuple(np.float32(c) for c in (0.0416666646, -0.00138883024, 2.45478752e-05))

FAST = {"contract", "nsz", "arcp", "reassoc"}
"""What the compiler may assume of float arithmetic: not that there is no NaN or infinity."""


@njit(inline="always")
def philox4x32(c0, c1, c2, c3, k0, k1):  # type: ignore[no-untyped-def]  # numba's scalars have no Python types
    """Four words from four words of counter and two of key."""
    for _ in range(_NUM_ROUNDS):
        p0, p1 = _M0 * uint64(c0), _M1 * uint64(c2)
        c0, c1 = uint32(uint32(p1 >> _HALF_WORD) ^ c1 ^ k0), uint32(p1)
        c2, c3 = uint32(uint32(p0 >> _HALF_WORD) ^ c3 ^ k1), uint32(p0)
        k0, k1 = uint32(k0 + _W0), uint32(k1 + _W1)
    return c0, c1, c2, c3


@njit(inline="always")
def _log(x):  # type: ignore[no-untyped-def]  # as above
    """ln x of a positive normal float32: x = 2ⁿ(1+z), √½ ≤ 1+z < √2."""
    bits = int32(np.float32(x).view(np.int32) - _SQRT_HALF_BITS)
    n = float32(int32(bits >> _MANTISSA_BITS))
    z = np.int32(np.int32(bits & _MANTISSA) + _SQRT_HALF_BITS).view(np.float32) - _ONE
    series = _L[7]
    for power in (6, 5, 4, 3, 2, 1, 0):
        series = series * z + _L[power]
    return z * z * (z * series - _HALF) + z + n * _LN_2


@njit(inline="always")
def _box_muller(word_a, word_b):  # type: ignore[no-untyped-def]  # as above
    """Two independent normal numbers from two random words: one gives the radius, the other the direction."""
    radius = np.sqrt(_MINUS_TWO * _log((float32(word_a) + _HALF) * _UNIT))
    # The two highest bits choose a quarter of the circle; the others an angle w from its middle, |w| ≤ π/4.
    quadrant = uint32(word_b >> _QUADRANT_BITS)
    w = float32(int32(int32(word_b & _IN_QUADRANT) - _MIDDLE)) * _RADIANS
    w2 = w * w
    sine = w * w2 * ((_S[2] * w2 + _S[1]) * w2 + _S[0]) + w
    cosine = w2 * w2 * ((_C[2] * w2 + _C[1]) * w2 + _C[0]) - _HALF * w2 + _ONE
    is_odd = uint32(quadrant & _BIT_0) != uint32(0)
    x = sine if is_odd else cosine
    y = cosine if is_odd else sine
    sign_x = uint32(uint32(uint32(quadrant + _BIT_0) & _BIT_1) << _QUADRANT_BITS)
    sign_y = uint32(uint32(quadrant & _BIT_1) << _QUADRANT_BITS)
    x = np.uint32(np.float32(x).view(np.uint32) ^ sign_x).view(np.float32)
    y = np.uint32(np.float32(y).view(np.uint32) ^ sign_y).view(np.float32)
    return radius * x, radius * y


@njit(void(uint32[::1], uint32[::1], uint32, float32[::1]), nogil=True, error_model="numpy", fastmath=FAST, cache=True)
def fill_block(key, name, block, out):  # type: ignore[no-untyped-def]  # numba's signature is above
    """Write block number `block` of the noise: `key` is two words, `name` the three upper words of the counter."""
    for i in range(LANES):
        lane = uint32(uint32(block * uint32(LANES)) + uint32(i))
        w0, w1, w2, w3 = philox4x32(lane, name[0], name[1], name[2], key[0], key[1])
        a, b = _box_muller(w0, w1)
        c, d = _box_muller(w2, w3)
        out[i], out[i + LANES], out[i + 2 * LANES], out[i + 3 * LANES] = a, b, c, d
