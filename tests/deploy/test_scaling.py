"""docs/scaling.md reckons right: its tables follow from the figures that stand in it."""

import math
import re

import pytest

from tests.deploy.compose import ROOT

PAGE = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")


def figure(name: str) -> float:
    return float(re.search(rf"^\| \*{name}\*.*?\| ([\d,]+)", PAGE, re.MULTILINE)[1].replace(",", ""))


def rows() -> list[tuple[float, ...]]:
    found = re.findall(r"^\| ([\d,]+) \| ([\d.]+) \| (\d+) \| (\d+) \|", PAGE, re.MULTILINE)
    return [tuple(float(each.replace(",", "")) for each in row) for row in found]


@pytest.fixture
def cost() -> tuple[float, float, float]:
    """Core seconds of one request: all of it, the gateway's, Triton's."""
    whole, gateway = 2 / figure("C"), 1 / figure("G")
    return whole, gateway, whole - gateway


def test_the_derived_figures_follow_from_the_measured_ones(cost):
    whole, gateway, triton = cost
    assert f"**{whole * 1000:.1f} ms of one core**" in PAGE
    assert f"**{1 / whole:.0f} requests per second**" in PAGE
    assert f"About 1 / *G* = {gateway * 1000:.1f} ms of it is the gateway's, {triton * 1000:.1f} ms Triton's" in PAGE


def test_the_table_reaches_ten_thousand_requests_per_second_and_is_right(cost):
    whole, gateway, triton = cost
    load = 0.6
    assert rows()[-1][0] == 10_000
    for rate, cores, gateways, servers in rows():
        assert cores == pytest.approx(rate * whole / load, rel=0.05), rate
        least = 2 if rate >= 1000 else 1
        assert gateways == max(least, math.ceil(rate * gateway / load)), rate
        assert servers == max(least, math.ceil(rate * triton / 4 / load)), rate


def test_the_example_of_the_cost_is_right(cost):
    whole, _, _ = cost
    assert f"**{1e6 * whole / 3600 * 0.04 / 0.6:.3f} $**" in PAGE
