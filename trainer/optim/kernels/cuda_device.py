# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"
# Triton has no types, and its values none that Python knows.
"""What runs on the GPU: IVON's passes over all weights of a model, in Triton, one launch each.

A launch serves a list of tensors by two arrays of integers: `places` says which tensor and which chunk of it is whose
program's, `table` has a row of addresses and constants for each tensor. A chunk is NUM_BLOCKS blocks of noise
(naming.py), held as four vectors, one for each of Philox's words. A program loads all that it needs before it makes the
noise, so that memory and arithmetic overlap. Chunks that are full and whose arrays are aligned move 16 bytes a thread.
"""

import triton
import triton.language as tl

from trainer.optim.kernels import naming

_LANES = tl.constexpr(naming.LANES)
_BLOCK = tl.constexpr(naming.BLOCK)
_PRICE, _SQUARED_GRADIENT = tl.constexpr(naming.PRICE), tl.constexpr(naming.SQUARED_GRADIENT)
_GIVEN, _FIXED = tl.constexpr(naming.GIVEN), tl.constexpr(naming.FIXED)
_PERTURB_COLUMNS, _USABLE_COLUMNS, _UPDATE_COLUMNS = tl.constexpr(6), tl.constexpr(2), tl.constexpr(9)

_NAME = ["key_low", "key_high", "step", "purpose", "index"]
"""Whole numbers that name the noise: code is not made anew for their values."""

# ---------------------------------------------------------------------------------------------------------------- noise
# Philox's own rounds are Triton's; what follows are the polynomials of philox.py, so that numbers agree to rounding.

_UNIT = tl.constexpr(2.0**-32)
_SQRT_HALF_BITS = tl.constexpr(0x3F3504F3)
_LN_2 = tl.constexpr(0.6931471805599453)
_RADIANS = tl.constexpr(1.5707963267948966 * 2.0**-30)


@triton.jit
def _log(x):
    """ln x of a positive normal float32: x = 2ⁿ(1+z), √½ ≤ 1+z < √2."""
    bits = x.to(tl.int32, bitcast=True) - _SQRT_HALF_BITS
    n = (bits >> 23).to(tl.float32)
    z = ((bits & 0x7FFFFF) + _SQRT_HALF_BITS).to(tl.float32, bitcast=True) - 1.0
    series = z * -0.0810155889 + 0.12712308
    series = series * z - 0.129722389
    series = series * z + 0.142021738
    series = series * z - 0.166422476
    series = series * z + 0.200014686
    series = series * z - 0.250002965
    series = series * z + 0.333333286
    return z * z * (z * series - 0.5) + z + n * _LN_2


@triton.jit
def _box_muller(word_a, word_b):
    """Two independent normal numbers from two random words: one gives the radius, the other the direction."""
    radius = tl.sqrt(-2.0 * _log((word_a.to(tl.float32) + 0.5) * _UNIT))
    # The two highest bits choose a quarter of the circle; the others an angle w from its middle, |w| ≤ π/4.
    quadrant = word_b >> 30
    w = ((word_b & 0x3FFFFFFF).to(tl.int32) - 0x20000000).to(tl.float32) * _RADIANS
    w2 = w * w
    sine = w * w2 * ((w2 * -0.000195879499 + 0.00833274863) * w2 - 0.166666647) + w
    cosine = w2 * w2 * ((w2 * 2.45478752e-05 - 0.00138883024) * w2 + 0.0416666646) - 0.5 * w2 + 1.0
    is_odd = (quadrant & 1) != 0
    x = tl.where(is_odd, sine, cosine)
    y = tl.where(is_odd, cosine, sine)
    x = tl.where(((quadrant + 1) & 2) != 0, -x, x)
    y = tl.where((quadrant & 2) != 0, -y, y)
    return radius * x, radius * y


@triton.jit
def _noise(lane, index, key_low, key_high, step, purpose):
    """e ~ N(0, I) of the chunk's four vectors; `lane` is a vector of uint32, the others are numbers of 32 bits."""
    zero = lane * 0
    w0, w1, w2, w3 = tl.philox_impl(
        lane,
        zero + index.to(tl.uint32, bitcast=True),
        zero + step.to(tl.uint32, bitcast=True),
        zero + purpose.to(tl.uint32, bitcast=True),
        key_low.to(tl.uint32, bitcast=True),
        key_high.to(tl.uint32, bitcast=True),
    )
    a, b = _box_muller(w0, w1)
    c, d = _box_muller(w2, w3)
    return a, b, c, d


# --------------------------------------------------------------------------------------------------------------- memory


@triton.jit
def _place(places):
    """The program's tensor, and the number of its chunk there."""
    program = tl.program_id(0)
    return tl.load(places + 2 * program), tl.load(places + 2 * program + 1)


@triton.jit
def _lanes(chunk, count, NUM_BLOCKS: tl.constexpr):
    """The chunk's counters for Philox.

    Triton spreads values over threads as the memory that they come from: 0, 1, 2, … read from `count` make the noise
    where the weights will be, four neighbours a thread. Made by `arange`, it would cross shared memory to get there.
    """
    lane = tl.load(count + tl.arange(0, NUM_BLOCKS * _LANES))
    return (chunk * (NUM_BLOCKS * _LANES) + lane).to(tl.uint32)


@triton.jit
def _offsets(NUM_BLOCKS: tl.constexpr):
    """Where in the chunk the first of its four vectors stands; each further one is LANES on."""
    lane = tl.arange(0, NUM_BLOCKS * _LANES)
    return lane // _LANES * _BLOCK + lane % _LANES


@triton.jit
def _pointer(address, start, IS_FAST: tl.constexpr):
    """Where the chunk begins, of an array of float32; `start` in weights."""
    pointer = (address + start * 4).to(tl.pointer_type(tl.float32))
    if IS_FAST:
        pointer = tl.multiple_of(pointer, 16)
    return pointer


@triton.jit
def _load(pointer, offsets, left, IS_FAST: tl.constexpr):
    """The chunk's four vectors; `left` weights are left of the tensor, and beyond stand harmless ones."""
    if IS_FAST:
        a = tl.load(pointer + offsets)
        b = tl.load(pointer + offsets + _LANES)
        c = tl.load(pointer + offsets + 2 * _LANES)
        d = tl.load(pointer + offsets + 3 * _LANES)
    else:
        a = tl.load(pointer + offsets, offsets < left, 1.0)
        b = tl.load(pointer + offsets + _LANES, offsets + _LANES < left, 1.0)
        c = tl.load(pointer + offsets + 2 * _LANES, offsets + 2 * _LANES < left, 1.0)
        d = tl.load(pointer + offsets + 3 * _LANES, offsets + 3 * _LANES < left, 1.0)
    return a, b, c, d


@triton.jit
def _store(pointer, offsets, left, a, b, c, d, IS_FAST: tl.constexpr):
    if IS_FAST:
        tl.store(pointer + offsets, a)
        tl.store(pointer + offsets + _LANES, b)
        tl.store(pointer + offsets + 2 * _LANES, c)
        tl.store(pointer + offsets + 3 * _LANES, d)
    else:
        tl.store(pointer + offsets, a, offsets < left)
        tl.store(pointer + offsets + _LANES, b, offsets + _LANES < left)
        tl.store(pointer + offsets + 2 * _LANES, c, offsets + 2 * _LANES < left)
        tl.store(pointer + offsets + 3 * _LANES, d, offsets + 3 * _LANES < left)


@triton.jit
def _ess_and_decay(packed):
    """λ and δ, two float32 in one int64."""
    ess = (packed >> 32).to(tl.int32).to(tl.float32, bitcast=True)
    return ess, packed.to(tl.int32).to(tl.float32, bitcast=True)


# ---------------------------------------------------------------------------------------------------------- one tensor


@triton.jit(do_not_specialize=_NAME)
def normal(out, size, count, index, key_low, key_high, step, purpose, NUM_BLOCKS: tl.constexpr):
    """out ← e."""
    chunk = tl.program_id(0)
    start = chunk.to(tl.int64) * (NUM_BLOCKS * _BLOCK)
    a, b, c, d = _noise(_lanes(chunk, count, NUM_BLOCKS), index, key_low, key_high, step, purpose)
    _store(out + start, _offsets(NUM_BLOCKS), size - start, a, b, c, d, False)


@triton.jit(do_not_specialize=_NAME)
def price(
    grads, hess, out, size, count, index, ess, decay, sign, key_low, key_high, step, purpose, NUM_BLOCKS: tl.constexpr
):
    """out ← sign·e·ĝ·√(λ(h+δ))."""
    chunk = tl.program_id(0)
    start = chunk.to(tl.int64) * (NUM_BLOCKS * _BLOCK)
    offsets, left = _offsets(NUM_BLOCKS), size - start
    g0, g1, g2, g3 = _load(grads + start, offsets, left, False)
    h0, h1, h2, h3 = _load(hess + start, offsets, left, False)
    e0, e1, e2, e3 = _noise(_lanes(chunk, count, NUM_BLOCKS), index, key_low, key_high, step, purpose)
    f0 = sign * e0 * g0 * tl.sqrt(ess * (h0 + decay))
    f1 = sign * e1 * g1 * tl.sqrt(ess * (h1 + decay))
    f2 = sign * e2 * g2 * tl.sqrt(ess * (h2 + decay))
    f3 = sign * e3 * g3 * tl.sqrt(ess * (h3 + decay))
    _store(out + start, offsets, left, f0, f1, f2, f3, False)


# -------------------------------------------------------------------------------------------------------- many tensors


@triton.jit(do_not_specialize=_NAME)
def perturb(places, table, count, sign, key_low, key_high, step, purpose, NUM_BLOCKS: tl.constexpr):
    """means ← weights; weights ← weights + sign·e/√(λ(h+δ))."""
    tensor, chunk = _place(places)
    row = table + tensor * _PERTURB_COLUMNS
    left = tl.load(row) - chunk.to(tl.int64) * (NUM_BLOCKS * _BLOCK)
    index = tl.load(row + 1).to(tl.int32)
    ess, decay = _ess_and_decay(tl.load(row + 2))
    w, h, m = tl.load(row + 3), tl.load(row + 4), tl.load(row + 5)
    if (left >= NUM_BLOCKS * _BLOCK) & (((w | h | m) & 15) == 0):
        _perturb_chunk(
            w, h, m, chunk, left, count, index, ess, decay, sign, key_low, key_high, step, purpose, NUM_BLOCKS, True
        )
    else:
        _perturb_chunk(
            w, h, m, chunk, left, count, index, ess, decay, sign, key_low, key_high, step, purpose, NUM_BLOCKS, False
        )


@triton.jit
def _perturb_chunk(
    w, h, m, chunk, left, count, index, ess, decay, sign, key_low, key_high, step, purpose,
    NUM_BLOCKS: tl.constexpr, IS_FAST: tl.constexpr,
):  # fmt: skip
    offsets, start = _offsets(NUM_BLOCKS), chunk.to(tl.int64) * (NUM_BLOCKS * _BLOCK)
    weights = _pointer(w, start, IS_FAST)
    w0, w1, w2, w3 = _load(weights, offsets, left, IS_FAST)
    h0, h1, h2, h3 = _load(_pointer(h, start, IS_FAST), offsets, left, IS_FAST)
    _store(_pointer(m, start, IS_FAST), offsets, left, w0, w1, w2, w3, IS_FAST)
    e0, e1, e2, e3 = _noise(_lanes(chunk, count, NUM_BLOCKS), index, key_low, key_high, step, purpose)
    w0 += sign * e0 * tl.rsqrt(ess * (h0 + decay))
    w1 += sign * e1 * tl.rsqrt(ess * (h1 + decay))
    w2 += sign * e2 * tl.rsqrt(ess * (h2 + decay))
    w3 += sign * e3 * tl.rsqrt(ess * (h3 + decay))
    _store(weights, offsets, left, w0, w1, w2, w3, IS_FAST)


@triton.jit
def usable(places, table, flag, largest, NUM_BLOCKS: tl.constexpr):
    """flag ← 0 where an element is NaN, infinite or not smaller than `largest`."""
    tensor, chunk = _place(places)
    row = table + tensor * _USABLE_COLUMNS
    left, g = tl.load(row) - chunk.to(tl.int64) * (NUM_BLOCKS * _BLOCK), tl.load(row + 1)
    if (left >= NUM_BLOCKS * _BLOCK) & ((g & 15) == 0):
        _usable_chunk(g, chunk, left, flag, largest, NUM_BLOCKS, True)
    else:
        _usable_chunk(g, chunk, left, flag, largest, NUM_BLOCKS, False)


@triton.jit
def _usable_chunk(g, chunk, left, flag, largest, NUM_BLOCKS: tl.constexpr, IS_FAST: tl.constexpr):
    offsets, start = _offsets(NUM_BLOCKS), chunk.to(tl.int64) * (NUM_BLOCKS * _BLOCK)
    g0, g1, g2, g3 = _load(_pointer(g, start, IS_FAST), offsets, left, IS_FAST)
    fits = (tl.abs(g0) < largest) & (tl.abs(g1) < largest) & (tl.abs(g2) < largest) & (tl.abs(g3) < largest)
    tl.store(flag, 0, mask=tl.min(fits.to(tl.int32), 0) == 0)  # no comparison holds for NaN


@triton.jit(do_not_specialize=_NAME)
def update(
    places, table, flag, count, sign, rest1, log2_beta1, rest2, decay_now, lr, radius, key_low, key_high, step, purpose,
    SOURCE: tl.constexpr, DEBIAS: tl.constexpr, NUM_BLOCKS: tl.constexpr,
):  # fmt: skip
    """Lines 2 to 5 of IVON, where `flag` isn't 0; rest is 1-β."""
    tensor, chunk = _place(places)
    row = table + tensor * _UPDATE_COLUMNS
    left = tl.load(row) - chunk.to(tl.int64) * (NUM_BLOCKS * _BLOCK)
    index = tl.load(row + 1).to(tl.int32)
    ess, decay = _ess_and_decay(tl.load(row + 2))
    w, h, v, g, f = tl.load(row + 3), tl.load(row + 4), tl.load(row + 5), tl.load(row + 6), tl.load(row + 7)
    gain = 1.0  # 1/(1-β₁ᵗ)
    if DEBIAS:
        t = tl.load(tl.load(row + 8).to(tl.pointer_type(tl.float64)))
        gain = (1.0 / (1.0 - tl.exp2(t * log2_beta1))).to(tl.float32)
    if tl.load(flag) != 0:
        if (left >= NUM_BLOCKS * _BLOCK) & (((w | h | v | g | f) & 15) == 0):
            _update_chunk(
                w, h, v, g, f, chunk, left, count, index, ess, decay, sign, key_low, key_high, step, purpose,
                rest1, rest2, decay_now, gain, lr, radius, SOURCE, NUM_BLOCKS, True,
            )  # fmt: skip
        else:
            _update_chunk(
                w, h, v, g, f, chunk, left, count, index, ess, decay, sign, key_low, key_high, step, purpose,
                rest1, rest2, decay_now, gain, lr, radius, SOURCE, NUM_BLOCKS, False,
            )  # fmt: skip


@triton.jit
def _update_chunk(
    w, h, v, g, f, chunk, left, count, index, ess, decay, sign, key_low, key_high, step, purpose,
    rest1, rest2, decay_now, gain, lr, radius,
    SOURCE: tl.constexpr, NUM_BLOCKS: tl.constexpr, IS_FAST: tl.constexpr,
):  # fmt: skip
    offsets, start = _offsets(NUM_BLOCKS), chunk.to(tl.int64) * (NUM_BLOCKS * _BLOCK)
    weights, hess, momenta = _pointer(w, start, IS_FAST), _pointer(h, start, IS_FAST), _pointer(v, start, IS_FAST)
    g0, g1, g2, g3 = _load(_pointer(g, start, IS_FAST), offsets, left, IS_FAST)
    h0, h1, h2, h3 = _load(hess, offsets, left, IS_FAST)
    v0, v1, v2, v3 = _load(momenta, offsets, left, IS_FAST)
    w0, w1, w2, w3 = _load(weights, offsets, left, IS_FAST)
    if SOURCE == _PRICE:
        f0, f1, f2, f3 = _noise(_lanes(chunk, count, NUM_BLOCKS), index, key_low, key_high, step, purpose)
        f0 *= sign * g0 * tl.sqrt(ess * (h0 + decay))
        f1 *= sign * g1 * tl.sqrt(ess * (h1 + decay))
        f2 *= sign * g2 * tl.sqrt(ess * (h2 + decay))
        f3 *= sign * g3 * tl.sqrt(ess * (h3 + decay))
    elif SOURCE == _SQUARED_GRADIENT:
        f0, f1, f2, f3 = ess * g0 * g0, ess * g1 * g1, ess * g2 * g2, ess * g3 * g3
    elif SOURCE == _GIVEN:
        f0, f1, f2, f3 = _load(_pointer(f, start, IS_FAST), offsets, left, IS_FAST)
    if SOURCE != _FIXED:
        h0 = _next_hessian(h0, f0, rest2, decay_now)
        h1 = _next_hessian(h1, f1, rest2, decay_now)
        h2 = _next_hessian(h2, f2, rest2, decay_now)
        h3 = _next_hessian(h3, f3, rest2, decay_now)
        _store(hess, offsets, left, h0, h1, h2, h3, IS_FAST)
    v0, v1, v2, v3 = v0 + rest1 * (g0 - v0), v1 + rest1 * (g1 - v1), v2 + rest1 * (g2 - v2), v3 + rest1 * (g3 - v3)
    _store(momenta, offsets, left, v0, v1, v2, v3, IS_FAST)
    w0 = _next_mean(w0, v0, h0, gain, decay_now, lr, radius)
    w1 = _next_mean(w1, v1, h1, gain, decay_now, lr, radius)
    w2 = _next_mean(w2, v2, h2, gain, decay_now, lr, radius)
    w3 = _next_mean(w3, v3, h3, gain, decay_now, lr, radius)
    _store(weights, offsets, left, w0, w1, w2, w3, IS_FAST)


@triton.jit
def _next_hessian(h, f, rest2, decay):
    change = rest2 * (f - h)
    return h + change + 0.5 * change * change / (h + decay)


@triton.jit
def _next_mean(m, v, h, gain, decay, lr, radius):
    direction = (v * gain + decay * m) / (h + decay)
    direction = tl.where(direction > radius, radius, direction)
    direction = tl.where(direction < -radius, -radius, direction)
    return m - lr * direction
