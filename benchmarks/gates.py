"""How often the gates of spread and fine detail accuse the honest, and how often they find loss.

    python benchmarks/gates.py [spread detail] [--n 20 30 50] [--draws 500]

`spread`: features with effective dimension 4, 14 or 153, Gaussian or with heavy tails between
persons (t5, log-normal 0.3), 200 synthetic persons, generators that keep all and 63 % of the
variance; `weak spot` is a Gaussian generator at 63 % against t5 persons; `own power` the mean of
what the gate says of itself. `detail`: fields of 24^3 whose noise, gain and sharpness vary between
persons; generators as sharp, with less power in the high band, blurred, and too crisp. Below each
line of percentages stands what evaluation.md, section 7, measured with its own code.
"""

import argparse
import time

import numpy as np
import numpy.typing as npt
from scipy import fft, ndimage

from rarescan.evaluation.measures import apodised, high_frequency
from rarescan.evaluation.plausibility import high_frequency_gate, spread_gate

Array = npt.NDArray[np.float64]

N_SYNTHETIC, KEPT = 200, 0.63
SPECTRA = {4: (64, 1.6), 14: (64, 1.0), 153: (256, 0.5)}
"""Effective dimension (sum l)^2 / sum l^2 -> number of features, exponent of l_i = i^-exponent."""
TAILS = ("Gaussian", "t5", "log-normal")
ALARM = {(4, "Gaussian"): 3.4, (14, "Gaussian"): 2.8, (4, "t5"): 4.4, (14, "t5"): 4.1}
ALARM |= {(4, "log-normal"): 4.6, (14, "log-normal"): 4.5}
POWER = {(4, "Gaussian"): 99.9, (14, "Gaussian"): 100, (4, "t5"): 90, (14, "t5"): 97}
POWER |= {(4, "log-normal"): 95, (14, "log-normal"): 99}
DETAIL = {
    "as sharp": "8 / 5 / 4",
    "high band at 63 %": "100 / 100 / 100",
    "blur 0.5": "100 / 100 / 100",
    "blur 0.4": "98 / 100 / 100",
    "blur 0.3": "19 / 22 / 26",
}


def main() -> None:
    """Print the tables that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default=["spread", "detail"])
    parser.add_argument("--n", type=int, nargs="+", default=[])
    parser.add_argument("--draws", type=int, default=500)
    given = parser.parse_args()
    start = time.process_time()
    if "spread" in given.parts:
        spread(given.n or [30, 50], given.draws)
    if "detail" in given.parts:
        detail(given.n or [20, 50, 100], given.draws)
    print(f"{time.process_time() - start:.0f} CPU seconds")


def persons(n: int, dimension: int, tails: str, random: np.random.Generator) -> Array:
    """Return n persons, shape (n, d); tails scale a person as a whole.

    Every kind has the same mean variance.
    """
    d, exponent = SPECTRA[dimension]
    spectrum = np.arange(1.0, d + 1) ** -exponent
    rows = random.normal(size=(n, len(spectrum))) * np.sqrt(spectrum)
    scale = {
        "Gaussian": np.ones(n),
        "t5": np.sqrt(3 / random.chisquare(5, n)) if tails == "t5" else np.ones(n),
        "log-normal": np.exp(0.3 * random.normal(size=n) - 0.09),
    }[tails]
    scaled: Array = rows * scale[:, None]
    return scaled


def spread(sizes: list[int], draws: int) -> None:
    """Print false alarms, power and the gate's word about itself."""
    for n in sizes:
        for dimension in SPECTRA:
            for tails in TAILS:
                outcomes = {
                    name: _outcomes(n, dimension, tails, other, kept, draws)
                    for name, other, kept in (
                        ("false alarm", tails, 1.0),
                        ("power", tails, KEPT),
                        ("weak spot", "Gaussian", KEPT),
                    )
                }
                alarm, power, weak = (
                    100 * np.mean([o == "fail" for o, _ in found]) for found in outcomes.values()
                )
                passed = 100 * np.mean([o == "pass" for o, _ in outcomes["false alarm"]])
                wrongly = 100 * np.mean([o == "pass" for o, _ in outcomes["power"]])
                own = 100 * np.mean([p for _, p in outcomes["false alarm"]])
                known = (ALARM.get((dimension, tails)), POWER.get((dimension, tails)))
                reference = f"reference {known[0]} / {known[1]}" if n == 50 and known[0] else ""
                print(
                    f"n = {n:3d} dimension {dimension:3d} {tails:10s} false alarm {alarm:.1f} % "
                    f"power {power:.1f} % {reference} weak spot {weak:.0f} %; passes when perfect "
                    f"{passed:.0f} %, when lost {wrongly:.1f} %; own power {own:.0f} %",
                    flush=True,
                )


def _outcomes(
    n: int, dimension: int, tails: str, other: str, kept: float, draws: int
) -> list[tuple[str, float]]:
    found = []
    for draw in range(draws):
        random = np.random.default_rng([n, dimension, TAILS.index(tails), draw, int(100 * kept)])
        real = persons(n, dimension, tails, random)
        synthetic = np.sqrt(kept) * persons(N_SYNTHETIC, dimension, other, random)
        gate, numbers = spread_gate(real, synthetic, fewest_persons=20)
        found.append((gate.outcome, numbers["power_at_37pct_loss"]))
    return found


def detail(sizes: list[int], draws: int) -> None:
    """Print how often the high-frequency gate fires, and how often it sees an excess."""
    pools = _pools(np.random.default_rng(4))
    real = pools.pop("real")
    for name, pool in pools.items():
        fired, excess = [], []
        for n in sizes:
            gates = [_detail_gate(real, pool, n, draw) for draw in range(draws)]
            fired.append(f"{100 * np.mean([g.outcome == 'fail' for g, _ in gates]):.0f}")
            excess.append(f"{100 * np.mean([numbers['hf_excess'] for _, numbers in gates]):.0f}")
        print(
            f"{name:18s} fires {' / '.join(fired)} % at n = {sizes} (reference "
            f"{DETAIL.get(name, '-')}); hf_excess {' / '.join(excess)} %; mean h "
            f"{pool.mean() - real.mean():+.2f}",
            flush=True,
        )


def _detail_gate(real: Array, pool: Array, n: int, draw: int):  # type: ignore[no-untyped-def]
    random = np.random.default_rng([n, draw])
    return high_frequency_gate(
        random.choice(real, n, replace=False),
        random.choice(pool, N_SYNTHETIC, replace=False),
        fewest_persons=20,
    )


def _pools(random: np.random.Generator, edge: int = 24, size: int = 600) -> dict[str, Array]:
    """Return generator -> h of its volumes; 600 volumes each."""
    window = apodised(np.ones((edge,) * 3, bool))
    makers = {
        "real": lambda v: v,
        "as sharp": lambda v: v,
        "high band at 63 %": _damped,
        "blur 0.5": lambda v: ndimage.gaussian_filter(v, 0.5),
        "blur 0.4": lambda v: ndimage.gaussian_filter(v, 0.4),
        "blur 0.3": lambda v: ndimage.gaussian_filter(v, 0.3),
        "noise 5 %": lambda v: v + 0.05 * v.std() * random.normal(size=v.shape),
    }
    pools = {}
    for name, made in makers.items():
        values = [
            high_frequency(made(_field(random, edge))[None].astype(np.float32), window)[0]
            for _ in range(size)
        ]
        pools[name] = np.array(values)
    return pools


def _field(random: np.random.Generator, edge: int) -> Array:
    sharpness = 0.9 + 0.04 * random.normal()
    field = ndimage.gaussian_filter(random.normal(size=(edge,) * 3), sharpness)
    gain = np.exp(0.1 * random.normal())
    noise = 0.02 * np.exp(0.3 * random.normal()) * random.normal(size=field.shape)
    found: Array = gain * (field / field.std() + noise)
    return found


def _damped(volume: Array) -> Array:
    spectrum = fft.rfftn(volume)
    axes = [np.fft.fftfreq(n) for n in volume.shape[:-1]] + [np.fft.rfftfreq(volume.shape[-1])]
    radius = np.sqrt(sum(f**2 for f in np.meshgrid(*axes, indexing="ij", sparse=True)))
    spectrum[radius >= 0.25] *= np.sqrt(KEPT)
    return np.asarray(fft.irfftn(spectrum, s=volume.shape))


if __name__ == "__main__":
    main()
