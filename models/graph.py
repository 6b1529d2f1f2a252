"""What is deployed as one ONNX graph."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import onnx
import torch
from torch import Tensor, nn

from models.losses import scalarise

if TYPE_CHECKING:
    from models.train import Learned

INPUT = "state"
OUTPUTS = ("q", "behaviour", "values")


class Deployed(nn.Module):
    """state [N, S] raw, NaN where unknown -> (q [N, A], behaviour logits [N, A], values [N, A, K] raw units)."""

    q_weights: Tensor

    def __init__(self, learned: "Learned") -> None:
        super().__init__()
        self.q_network, self.behaviour, self.value_network = learned.q_network, learned.behaviour, learned.values
        self.pessimism = learned.pessimism
        self.register_buffer("q_weights", torch.from_numpy(learned.q_weights).float().unsqueeze(0))

    def forward(self, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q = scalarise(self.q_network(state), self.q_weights)
        # The lower bound of selection.lower_bound; of one member nothing is taken.
        q = q.mean(dim=0) - self.pessimism * q.std(dim=0, correction=0) if self.q_network.members > 1 else q.squeeze(0)
        behaviour = self.behaviour(state).squeeze(0).squeeze(-1)
        values = self.value_network.raw(self.value_network(state)).squeeze(0)
        return q, behaviour, values


def graph_of(learned: "Learned", metadata: Mapping[str, str]) -> bytes:
    """The serialised graph, any number of rows, with `metadata` and without traces of where it was made."""
    module = Deployed(learned).eval()
    example = torch.zeros(2, len(learned.contract.features))
    with contextlib.redirect_stdout(io.StringIO()), _quiet():
        program = torch.onnx.export(
            module,
            (example,),
            dynamo=True,
            dynamic_shapes={INPUT: {0: torch.export.Dim("rows")}},
            input_names=[INPUT],
            output_names=list(OUTPUTS),
            external_data=False,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    # The exporter notes source files and stack traces: paths of this machine, and other bytes on another one.
    for part in (model, model.graph, *model.graph.node, *model.graph.value_info, *model.graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""
    for part in (*model.graph.input, *model.graph.output):
        del part.metadata_props[:]
    onnx.helper.set_model_props(model, dict(metadata))
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString(deterministic=True))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter's notes on its own progress say nothing to whoever trains."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "torch.export")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
