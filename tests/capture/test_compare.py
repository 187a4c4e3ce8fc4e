from __future__ import annotations

import pytest
import torch

from fxtrace.capture.compare import bit_equal, largest_difference

FLOATS = [
    *(torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
]


@pytest.mark.parametrize("dtype", FLOATS)
def test_numbers_of_every_width_are_compared(dtype: torch.dtype) -> None:
    x, y = torch.tensor([1.0, 2.0, float("nan")]).to(dtype), torch.tensor([1.0, 2.5, float("nan")]).to(dtype)
    assert largest_difference({"a": x, "b": 1}, {"a": y, "b": 1}) == 0.5
    assert largest_difference(x, x) == 0
    assert bit_equal(x, x.clone())
    assert not bit_equal(x, y)
