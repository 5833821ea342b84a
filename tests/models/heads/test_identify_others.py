"""What networks are that are no detectors, which output is read, and what metadata say."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.models.graph import Port
from pipelines.models.heads.identify import identify
from pipelines.protocol.errors import ModelUnavailable
from tests.support.drawn_outputs import graph_of, port

NAMES = ("cat", "dog", "cow", "hen", "pig")
SIZE = (320, 256)


@pytest.mark.parametrize(
    ("outputs", "said", "expected"),
    [
        ([port("o", 1, 5, operator="softmax")], {}, ("classification", "o", "none", False)),
        ([port("o", 1, 5, operator="sigmoid")], {}, ("classification", "o", "none", False)),
        ([port("o", 1, 1, operator="sigmoid")], {}, ("classification", "o", "none", False)),
        ([port("o", None, 5, operator="gemm")], {"names": NAMES}, ("classification", "o", "softmax", False)),
        (
            [port("o", None, 1, operator="gemm")],
            {"task": "classification"},
            ("classification", "o", "sigmoid", False),
        ),
        (
            [port("o", None, 5, 1, 1, operator="conv")],
            {"names": NAMES},
            ("classification", "o", "softmax", False),
        ),
        ([port("o", None, 1000, operator="add")], {}, ("classification", "o", "softmax", False)),
        ([port("logits", None, 37, operator="add")], {}, ("classification", "logits", "softmax", False)),
        ([port("o", None, 5, operator="relu")], {"names": NAMES}, ("classification", "o", None, False)),
        ([port("o", None, 512, operator="relu")], {}, ("embedding", "o", "none", False)),
        ([port("o", None, 384, operator="lpnormalization")], {}, ("embedding", "o", "none", False)),
        ([port("embeddings", None, 128, operator="gemm")], {}, ("embedding", "embeddings", "none", False)),
        ([port("o", None, 512, operator="gemm")], {}, (None, "", None, False)),
        ([port("o", None, 512, operator="gemm")], {"task": "embedding"}, ("embedding", "o", "none", False)),
        (
            [port("features", None, 9), port("logits", None, 5, operator="add")],
            {},
            ("classification", "logits", "softmax", False),
        ),
        (
            [port("output", None, 5, operator="add"), port("net/logits:0", None, 5, operator="add")],
            {"names": NAMES},
            ("classification", "net/logits:0", "softmax", False),
        ),
        (
            [port("fc1_output", None, 9), port("other", None, 5)],
            {"task": "embedding"},
            ("embedding", "fc1_output", "none", False),
        ),
        (
            [port("a", None, 9, operator="add"), port("b", None, 5, operator="add")],
            {"names": NAMES},
            ("classification", "b", "softmax", False),
        ),
        (
            [port("features", None, 9), port("logits", None, 5)],
            {"task": "embedding"},
            ("embedding", "features", "none", False),
        ),
        ([port("o", 1, 21, 320, 256, operator="resize")], {}, ("segmentation", "o", "softmax", False)),
        ([port("o", 1, 320, 256, 21, operator="resize")], {}, ("segmentation", "o", "softmax", False)),
        (
            [port("o", 1, 5, 80, 64, operator="conv")],
            {"names": NAMES},
            ("segmentation", "o", "softmax", False),
        ),
        (
            [port("o", 1, 320, 256, operator="argmax", dtype="int64")],
            {},
            ("segmentation", "o", "none", False),
        ),
        ([port("o", 1, 1, 320, 256, operator="sigmoid")], {}, ("segmentation", "o", "none", False)),
        ([port("o", 1, 3, 320, 256, operator="add")], {}, (None, "", None, False)),
        ([port("o", 1, 320, 256, operator="sigmoid")], {}, ("segmentation", "o", "none", False)),
        (
            [port("o", 1, 160, 128, operator="conv")],
            {"names": ("cat",)},
            ("segmentation", "o", "sigmoid", False),
        ),
        (
            [port("o", 1, 1, operator="gemm")],
            {"names": ("no", "yes")},
            ("classification", "o", "sigmoid", False),
        ),
        ([port("o", 1, operator="sigmoid")], {}, ("classification", "o", "none", False)),
        ([port("values", 1, 5, operator="topk")], {"names": NAMES}, (None, "", None, False)),
        (
            [port("out", 1, 21, 320, 256), port("aux", 1, 21, 320, 256)],
            {"task": "segmentation"},
            ("segmentation", "out", None, False),
        ),
    ],
)
def test_what_is_no_detector(
    outputs: list[Port], said: dict[str, Any], expected: tuple[str | None, str, str | None, bool]
) -> None:
    found = identify(graph_of(*outputs), **{"size_hw": SIZE, **said})
    assert (found.task, found.output, found.activation, found.multi_label) == expected
    assert found.head is None


@pytest.mark.parametrize("last", [False, True])
def test_where_a_maps_channels_are(last: bool) -> None:
    dims = (1, 80, 64, 21) if last else (1, 21, 80, 64)
    found = identify(graph_of(port("o", *dims, operator="resize")), size_hw=SIZE)
    assert found.channels_last is last


@pytest.mark.parametrize("values", [[0.7, 0.2, 0.1], [0.7, 0.9, 0.1], [0.7, 3.2, -0.1]])
@pytest.mark.parametrize("labels", [NAMES[:3], NAMES[:1]])
def test_an_activation_that_only_values_tell_is_left_to_more_pictures(
    values: list[float], labels: tuple[str, ...]
) -> None:
    """Logits of two pictures may lie in 0..1 by chance."""
    row = torch.tensor([values])[:, : len(labels)]
    found = identify(graph_of(port("o", 1, len(labels)), values={"o": row}), size_hw=SIZE, names=labels)
    assert (found.task, found.activation, found.multi_label) == ("classification", None, False)


def test_a_vector_of_length_1_is_an_embedding() -> None:
    vector = torch.nn.functional.normalize(torch.randn(1, 96))
    found = identify(graph_of(port("o", 1, 96, operator="div"), values={"o": vector}), size_hw=SIZE)
    assert found.task == "embedding"
    assert any("--model" in text for text in found.assumed)


def test_several_outputs_are_attributes() -> None:
    outputs = [
        port("type", 1, 3, 1, 1, operator="softmax"),
        port("extras", 1, 2, 1, 1, operator="sigmoid"),
        port("heat", 1, 9, 10, 8, operator="conv"),
    ]
    found = identify(
        graph_of(*outputs), size_hw=SIZE, task="classification", names=("car", "bus", "van", "roof", "hook")
    )
    assert [(one.name, one.output, one.labels, one.start, one.stop) for one in found.attributes] == [
        ("type", "type", ("car", "bus", "van"), 0, None),
        ("roof", "extras", ("yes", "no"), 0, 1),
        ("hook", "extras", ("yes", "no"), 1, 2),
    ]
    assert any("heat" in text for text in found.assumed)
    chosen = identify(graph_of(*outputs), size_hw=SIZE, task="classification", output="type")
    assert (chosen.output, chosen.attributes) == ("type", ())


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"names": "{0: 'person', 1: \"it's\"}"}, {"labels": ("person", "it's")}),
        ({"names": "['a', 'b']"}, {"labels": ("a", "b")}),
        ({"names": "{0: 'a', 2: 'b'}"}, {"labels": ()}),
        ({"names": "{0: 'a', 1: 3}"}, {"labels": ()}),
        ({"names": "[" * 300 + "]" * 300}, {"labels": ()}),
        ({"names": "__import__('os').getcwd()"}, {"labels": ()}),
        ({"names": "['a\\x1b[2J']"}, {"labels": ()}),
        ({"imgsz": "[320, 256]"}, {"size_hw": (320, 256)}),
        ({"imgsz": "640"}, {"size_hw": (640, 640)}),
        ({"imgsz": "[1e999, 3]"}, {"size_hw": None}),
        ({"imgsz": "[-1, 99999999]"}, {"size_hw": None}),
        ({"kpt_shape": "[17, 3]"}, {"keypoints": (17, 3)}),
        ({"kpt_shape": "[17, 9]"}, {"keypoints": None}),
        ({"license": "AGPL-3.0"}, {"licence": "AGPL-3.0"}),
        ({"task": "classify", "names": "['a', 'b']"}, {"task": "classification"}),
        (
            {"model_info labels": "person dog_house", "model_info model_type": "Classification"},
            {"labels": ("person", "dog_house"), "task": "classification"},
        ),
        ({"model_info confidence_threshold": "0.35"}, {"score_threshold": 0.35}),
        ({"model_info confidence_threshold": "nan"}, {"score_threshold": None}),
        (
            {
                "model_info multilabel": "True",
                "model_info model_type": "Classification",
                "model_info output_raw_scores": "True",
            },
            {"activation": "sigmoid", "multi_label": True},
        ),
        (
            {"model_info model_type": "Classification", "model_info output_raw_scores": "True"},
            {"activation": "softmax", "multi_label": False},
        ),
    ],
)
def test_metadata(metadata: dict[str, str], expected: dict[str, Any]) -> None:
    found = identify(graph_of(port("o", None, 2, operator="softmax"), metadata=metadata), size_hw=None)
    assert {name: getattr(found, name) for name in expected} == expected


@settings(deadline=None, max_examples=60)
@given(
    st.dictionaries(
        st.sampled_from(["names", "task", "imgsz", "stride", "kpt_shape", "args", "head", "end2end"]),
        st.text() | st.builds(repr, st.recursive(st.none() | st.integers() | st.text(), st.lists)),
    )
)
def test_any_metadata_are_read_or_ignored(metadata: dict[str, str]) -> None:
    identify(graph_of(port("o", None, 2, operator="softmax"), metadata=metadata), size_hw=None)


def test_a_program_without_shapes_needs_a_size() -> None:
    """As of TorchScript: only a pass tells the outputs, and a pass needs a size."""
    graph = graph_of(values={"0": torch.randn(1, 5)})
    with pytest.raises(ModelUnavailable, match="--resize-px"):
        identify(graph, size_hw=None)
    unseen = identify(graph, size_hw=None, task="classification", names=NAMES)
    assert (unseen.task, unseen.activation, unseen.labels) == ("classification", None, NAMES)
    assert identify(graph, size_hw=SIZE, names=NAMES).task == "classification"


def test_logits_are_attributes_where_each_column_has_a_name() -> None:
    outputs = (port("type", 1, 2, operator="gemm"), port("smile", 1, 1, operator="gemm"))
    found = identify(graph_of(*outputs), size_hw=SIZE, names=("car", "bus", "smiles"))
    assert found.task == "classification"
    assert [(one.name, one.labels, one.activation) for one in found.attributes] == [
        ("type", ("car", "bus"), "softmax"),
        ("smiles", ("yes", "no"), "sigmoid"),
    ]
    with pytest.raises(ModelUnavailable, match="several of its outputs fit"):
        identify(
            graph_of(*outputs), size_hw=SIZE, names=("car", "bus", "van", "lorry"), task="classification"
        )


def test_hidden_states_beside_a_vector_are_no_queries() -> None:
    outputs = {"last_hidden_state": torch.randn(1, 197, 192) * 3, "pooler_output": torch.randn(1, 192)}
    ports = [port(name, *one.shape) for name, one in outputs.items()]
    found = identify(graph_of(*ports, values=outputs), size_hw=SIZE)
    assert (found.task, found.output) == ("embedding", "pooler_output")


def test_attributes_hold_the_labels_that_are_given() -> None:
    """With labels beside them a later pass would share these out once more, and say so again."""
    outputs = [port("type", 1, 2, operator="softmax"), port("colour", 1, 3, operator="softmax")]
    found = identify(graph_of(*outputs), size_hw=SIZE, names=NAMES)
    assert [one.labels for one in found.attributes] == [NAMES[:2], NAMES[2:]]
    assert found.labels == ()
