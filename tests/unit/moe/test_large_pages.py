"""Parameters that are moved are the same, and are trained, saved and loaded as before."""

from __future__ import annotations

import io

import pytest
import torch
from torch import nn

from hivemind.moe.server.large_pages import move_to_large_pages


def make() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(700, 900), nn.Tanh(), nn.Linear(900, 3))


def test_parameters_are_the_same_elsewhere() -> None:
    module, expected = make(), make()
    known, places = list(module.parameters()), [each.data_ptr() for each in module.parameters()]
    move_to_large_pages(module)
    for parameter, before, place, same in zip(module.parameters(), known, places, expected.parameters(), strict=True):
        assert parameter is before
        assert parameter.data_ptr() != place
        assert parameter.data_ptr() % 64 == 0
        assert torch.equal(parameter, same)
    assert next(module.parameters()).data_ptr() % 2**21 == 0
    x = torch.randn(5, 700)
    for each in (module, expected):
        optimizer = torch.optim.SGD(each.parameters(), lr=0.1)
        each(x).square().sum().backward()
        optimizer.step()
    torch.testing.assert_close(module(x), expected(x))


def test_what_is_saved_is_no_larger() -> None:
    module = make()
    move_to_large_pages(module)
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    assert file.tell() < 1.01 * sum(each.nbytes for each in module.parameters()) + 10_000
    file.seek(0)
    other = make()
    move_to_large_pages(other)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("kind", ["small", "views of one", "transposed", "shared"])
def test_what_stays_where_it_is(kind: str) -> None:
    module = nn.Module()
    whole = torch.randn(2, 2**19)
    if kind == "views of one":
        module.a, module.b = nn.Parameter(whole[0]), nn.Parameter(whole[1])
    elif kind == "transposed":
        module.a = nn.Parameter(whole.t())
    elif kind == "shared":
        module.a = nn.Parameter(whole.share_memory_())
    else:
        module.a = nn.Parameter(torch.randn(100))
    places = [each.data_ptr() for each in module.parameters()]
    move_to_large_pages(module)
    assert [each.data_ptr() for each in module.parameters()] == places
