"""Student's t and the normal distribution: tails and quantiles, where SciPy's import would cost a second."""

import math
from functools import lru_cache

TINY = 1e-300
STEPS = 10_000


def two_sided_p(t: float, df: float) -> float:
    """P(|T| >= |t|) of Student's t with `df` > 0 degrees of freedom, which need not be whole."""
    if math.isinf(t):
        return 0.0
    return _incomplete_beta(df / 2, 0.5, df / (df + t * t))


def two_sided_normal_p(z: float) -> float:
    """P(|Z| >= |z|) of a standard normal."""
    return math.erfc(abs(z) / math.sqrt(2))


@lru_cache(maxsize=4096)
def quantile(level: float, df: float) -> float:
    """The t with P(|T| < t) = level, level in (0, 1): Newton's method, kept between bounds by halving."""
    low, high = 0.0, 2.0
    while two_sided_p(high, df) > 1 - level:
        low, high = high, 2 * high
    t = (low + high) / 2
    for _ in range(200):
        above = two_sided_p(t, df) - (1 - level)
        low, high = (t, high) if above > 0 else (low, t)
        step = t + above / (2 * _density(t, df))
        step = step if low < step < high else (low + high) / 2
        if abs(step - t) <= 1e-14 * t:
            break
        t = step
    return t


def _density(t: float, df: float) -> float:
    front = math.lgamma((df + 1) / 2) - math.lgamma(df / 2) - 0.5 * math.log(df * math.pi)
    return math.exp(front - (df + 1) / 2 * math.log1p(t * t / df))


def _incomplete_beta(a: float, b: float, x: float) -> float:
    """The regularised I_x(a, b), by its continued fraction where that converges quickly."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):
        return 1 - _incomplete_beta(b, a, 1 - x)
    front = a * math.log(x) + b * math.log1p(-x) - math.log(a)
    front += math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    return math.exp(front) / _fraction(a, b, x)


def _fraction(a: float, b: float, x: float) -> float:
    """1 + d1 / (1 + d2 / (1 + ...)) of DLMF 8.17.22, by Lentz's method."""
    value, c, d = 1.0, 1.0, 0.0
    for step in range(1, STEPS):
        m = step // 2
        top = m * (b - m) if step % 2 == 0 else -(a + m) * (a + b + m)
        term = top * x / ((a + step - 1) * (a + step))
        d = 1 / (1 + term * d or TINY)
        c = 1 + term / c or TINY
        value *= c * d
        if abs(c * d - 1) < 1e-15:
            return value
    raise ArithmeticError(f"incomplete beta of a={a}, b={b}, x={x} did not converge")
