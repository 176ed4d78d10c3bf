"""The first convolution in bf16 and fp16."""

import pytest
import torch

from sjepa.s_jepa.modules.frontend import _in_two_parts


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2**-15), (torch.float16, 2**-20)])
def test_a_product_of_values_in_two_parts_is_almost_exact(dtype, tolerance):
    """The rest of a rounded value has as many bits again; what is left out is the product of two
    rests. Gradients are rounded once."""
    torch.manual_seed(0)
    patches = torch.randn(2, 50, 11, requires_grad=True)
    kernel = torch.randn(2, 8, 11, requires_grad=True)
    ours, theirs = (
        a.float() @ b.float().transpose(1, 2) for a, b in (_in_two_parts(patches, kernel, dtype), (patches, kernel))
    )
    assert (ours - theirs).norm() < tolerance * theirs.norm()
    assert (ours - theirs).norm() > 0
    direction = torch.randn_like(ours)
    for one, other in zip(*(torch.autograd.grad(y, (patches, kernel), direction) for y in (ours, theirs)), strict=True):
        assert (one - other).norm() < torch.finfo(dtype).eps * other.norm()
