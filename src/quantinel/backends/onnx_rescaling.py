"""What an integer product is multiplied with to become a float: the scales that execute, whatever they are called."""

from __future__ import annotations

from collections.abc import Container, Mapping

import onnx

from quantinel.backends.onnx_bias import Readers


def rescaling_scale(
    node: onnx.NodeProto, producers: Mapping[str, onnx.NodeProto], readers: Readers, tensors: Container[str]
) -> str | None:
    """product -> Cast -> Mul(product, Mul(input scale, weight scale)): the stored one of the two scales.

    Args:
        node: ConvInteger or MatMulInteger.
        producers: of every computed tensor.
        readers: see `quantinel.backends.onnx_bias.readers_by_name`.
        tensors: names of the stored tensors.

    Returns:
        Its name; None where the product is read in another way, or more than once.
    """
    cast = _only_reader(node, "Cast", readers)
    product = None if cast is None else _only_reader(cast, "Mul", readers)
    if cast is None or product is None:
        return None
    factors = (producers.get(name) for name in product.input if name != cast.output[0])
    scales = next((factor.input for factor in factors if factor is not None and factor.op_type == "Mul"), ())
    stored = [name for name in scales if name in tensors]
    return stored[0] if len(stored) == 1 else None


def _only_reader(node: onnx.NodeProto, operator: str, readers: Readers) -> onnx.NodeProto | None:
    found = readers.get(node.output[0], ())
    return found[0] if len(found) == 1 and found[0].op_type == operator else None
