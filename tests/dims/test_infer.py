import random

import numpy as np
import pytest

from fxtrace.dims import Formula, Probe, find_formulas

BASE = {"d": 840, "h": 4, "ff": 256, "s": 6, "t": 5, "v": 6, "img": 64, "p": 8, "L": 401}
HELD_OUT = 6


def probes(seed: int = 0) -> list[Probe]:
    chance = random.Random(seed)
    alone = [Probe({**BASE, name: size * by}, name) for name, size in BASE.items() for by in (2, 3, 5)]
    together = [
        Probe({name: size * chance.choice([1, 2, 3] if name == "h" else [1, 2, 3, 5]) for name, size in BASE.items()})
        for _ in range(12)
    ]
    return [Probe(BASE), *alone, *together]


@pytest.mark.parametrize(
    "truth",
    [
        "7",
        "d",
        "d/h",
        "3*d",
        "s + t",
        "min(10, v)",
        "max(10, t)",
        "2*h*s - h",
        "(img//p)**2 + 1",
        "(L - 10)//5 + 1",
        "L//2//2",
        "2*d + 2*h*ff + s",
    ],
)
def test_a_formula_is_found_again(truth: str) -> None:
    tried = probes()
    observed = np.array([[Formula(truth).value(probe.sizes)] for probe in tried], np.int64)
    (found,) = find_formulas(tried, observed, HELD_OUT)
    assert found.formula is not None
    assert set(found.depends_on) == Formula(truth).names
    assert found.confirmations == HELD_OUT
    for probe in probes(seed=1):  # not only where it was looked for
        assert found.formula.value(probe.sizes) == Formula(truth).value(probe.sizes)


@pytest.mark.parametrize("truth", ["(img//p)**2 + 1", "img//p", "2*(img//p)", "(L - 4)//5"])
def test_a_formula_has_no_brackets_to_spare(truth: str) -> None:
    tried = probes()
    parts = ["img//p", "(img//p)**2", truth]  # as a graph has them: what was found before is part of the rest
    observed = np.array([[Formula(part).value(probe.sizes) for part in parts] for probe in tried], np.int64)
    assert str(find_formulas(tried, observed, HELD_OUT)[-1].formula) == truth


def test_a_size_that_no_formula_gives_stays_a_number() -> None:
    tried = probes()
    chance = random.Random(3)
    observed = np.array([[chance.randrange(1, 1000)] for _ in tried], np.int64)
    (found,) = find_formulas(tried, observed, HELD_OUT)
    assert found.formula is None


def test_a_formula_that_other_configurations_do_not_confirm_is_not_given() -> None:
    tried = probes()
    sizes = [probe.sizes["d"] for probe in tried]
    sizes[-1] += 1
    (found,) = find_formulas(tried, np.array([[size] for size in sizes], np.int64), HELD_OUT)
    assert found.formula is None
    assert found.depends_on == ("d",)
