"""Linear layers that do not learn, held in 4 bits (QLoRA; Dettmers et al., 2023, https://arxiv.org/abs/2305.14314,
section 3): each weight as one of 16 levels (NF4) times the largest of its block of 64, which is held in 8 bits.

The own layer of bitsandbytes takes other kernels for acting than for learning, and on a CPU (0.50) one that has no
gradient once a layer has acted. So only its packing is used: here one product serves both.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from rlhf.lm.extras import needed

_BLOCK = 64


def hold_in_four_bits(model: PreTrainedModel) -> None:
    """Replaces, in place, the linear layers but the head; what shares its weights with an embedding stays whole.

    Raises:
        InputError: bitsandbytes is not installed.
    """
    kept = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    head = model.get_output_embeddings()
    for name, module in list(model.named_modules()):
        if type(module) in (nn.Linear, Conv1D) and module is not head and id(module.weight) not in kept:
            model.set_submodule(name, FourBitLinear(module))


class FourBitLinear(nn.Linear):
    """A linear layer whose weight is packed, two numbers to a byte, and unpacked at every pass, also backward."""

    def __init__(self, layer: nn.Linear | Conv1D) -> None:
        nn.Module.__init__(self)
        self.stored_transposed = isinstance(layer, Conv1D)
        weight = layer.weight.detach().T.contiguous() if self.stored_transposed else layer.weight.detach()
        self.out_features, self.in_features = weight.shape
        # Rows of a block each: where rows are no multiple of it, the library unpacks something else on a CPU.
        blocks = F.pad(weight.flatten(), (0, -weight.numel() % _BLOCK)).view(-1, _BLOCK)
        packed, self._scales = _library().quantize_4bit(
            blocks, blocksize=_BLOCK, compress_statistics=True, quant_type="nf4"
        )
        self.weight = nn.Parameter(packed, requires_grad=False)
        self.bias = layer.bias
        if self.bias is not None:
            self.bias.requires_grad_(False)

    def unpacked(self, dtype: torch.dtype) -> Tensor:
        """`(out_features, in_features)` weight that the layer multiplies by."""
        self._scales.dtype = dtype
        # FSDP2 moves parameters one by one.
        if self._scales.absmax.device != self.weight.device:
            self._scales.to(self.weight.device)
        blocks: Tensor = _library().dequantize_4bit(self.weight, self._scales)
        return blocks.flatten()[: self.out_features * self.in_features].view(self.out_features, self.in_features)

    def whole(self) -> nn.Linear:
        """The same layer, unpacked, in float32."""
        layer = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        layer.weight, layer.bias = nn.Parameter(self.unpacked(torch.float32)), self.bias
        return layer

    def forward(self, input: Tensor) -> Tensor:
        product: Tensor = _Product.apply(input, self)
        return product if self.bias is None else product + self.bias.to(product.dtype)


def _library() -> Any:
    return needed("bitsandbytes", extra="qlora").functional


class _Product(torch.autograd.Function):
    """input @ weight.T, which keeps neither for the gradient but what the weight is unpacked from."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, layer: FourBitLinear) -> Tensor:
        ctx.layer = layer
        device = input.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else input.dtype
        return F.linear(input, layer.unpacked(dtype))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient @ ctx.layer.unpacked(gradient.dtype), None
