"""Which operators compute a network's outputs, in ONNX graphs, OpenVINO's IR and torch's programs.

An output's own operator often only moves numbers about. The one that computed them tells whether they are
logits, probabilities, or chosen already. Knows no tensors and no tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

# Operators that leave numbers as they are, by names without underscores and versions, in small letters.
MOVING = frozenset(
    [
        *(
            "alias",
            "cast",
            "cat",
            "clone",
            "concat",
            "concatenate",
            "contiguous",
            "convert",
            "copy",
            "detach",
        ),
        *("dequantizelinear", "dictconstruct", "dropout", "expand", "fakequantize", "flatten", "float"),
        *("gather", "getitem", "identity", "listconstruct", "listunpack", "movedim", "permute"),
        *("quantizelinear", "reshape", "result", "select", "slice", "split", "squeeze", "stack"),
        *("stridedslice", "to", "tobatch", "tocopy", "transpose", "tupleconstruct", "unflatten"),
        *("unsafeview", "unsqueeze", "variadicsplit", "view"),
    ]
)
JOINING = frozenset(["cat", "concat", "concatenate", "listconstruct", "stack", "tupleconstruct"])
# Operators of several names.
SAME = {
    "logsoftmax": "softmax_log",
    "specialsoftmax": "softmax",
    "convolution": "conv",
    "groupconvolution": "conv",
    "conv2d": "conv",
    "addmm": "gemm",
    "linear": "gemm",
    "matmul": "gemm",
    "bmm": "gemm",
    "interpolate": "resize",
    "upsample": "resize",
    "upsamplebilinear2d": "resize",
    "hardsigmoid": "sigmoid",
    "normalizel2": "lpnormalization",
}
# What one output is concatenated of.
MOST_PARTS = 64

# A node as what is behind it: its operator's name, and the nodes that it reads.
Node = Any
Look = Callable[[Node], tuple[str, Sequence[Node]]]


def operator_of(node: Node, look: Look) -> str:
    """What computes the numbers of an output, through all that only moves them; several are joined by `+`."""
    found: dict[str, None] = {}
    waiting, seen = [node], 0
    while waiting and seen < MOST_PARTS:
        seen += 1
        name, reads = look(waiting.pop(0))
        short = name.lower().replace("_", "").removesuffix("default")
        short = SAME.get(short, short)
        if short in MOVING:
            # Of what is gathered or sliced, only the first input holds the numbers.
            waiting += list(reads if short in JOINING else reads[:1])
        elif short:
            found[short] = None
    return "+".join(found)


def onnx_operators(graph: Any) -> Mapping[str, str]:
    """The operator of each output of an ONNX graph, by the output's name."""
    makers = {name: node for node in graph.node for name in node.output}

    def look(name: str) -> tuple[str, Sequence[str]]:
        node = makers.get(name)
        return ("", ()) if node is None else (node.op_type, [one for one in node.input if one])

    return {output.name: operator_of(output.name, look) for output in graph.output}


def ir_operators(outputs: Iterable[Any]) -> list[str]:
    """The operator of each output of an OpenVINO model, in order."""

    def look(node: Any) -> tuple[str, Sequence[Any]]:
        reads = [node.input_value(place).get_node() for place in range(node.get_input_size())]
        return node.get_type_name(), reads

    return [operator_of(output.get_node(), look) for output in outputs]


def script_operators(program: Any) -> list[str]:
    """The operator of each output of a TorchScript program, in order; a tuple or dict counts as its parts."""

    def look(node: Any) -> tuple[str, Sequence[Any]]:
        return node.kind().rpartition("::")[2], [value.node() for value in node.inputs()]

    found = []
    for output in program.inlined_graph.outputs():
        node = output.node()
        values = list(node.inputs())
        if node.kind() == "prim::DictConstruct":
            values = values[1::2]
        parts = values if node.kind() in ("prim::TupleConstruct", "prim::DictConstruct") else [output]
        found += [operator_of(part.node(), look) for part in parts]
    return found


def exported_operators(program: Any) -> list[str]:
    """The operator of each output of a program of torch.export, in order."""
    nodes = {node.name: node for node in program.graph.nodes}

    def look(node: Any) -> tuple[str, Sequence[Any]]:
        name = str(getattr(node.target, "__name__", node.target)).partition(".")[0]
        return ("" if node.op == "placeholder" else name), node.all_input_nodes

    names = program.graph_signature.user_outputs
    return [operator_of(nodes[name], look) if name in nodes else "" for name in names]
