"""The forms that graphs are written in, and how they are run: ONNX by onnxruntime, torch.export's own by torch."""

from __future__ import annotations

import importlib.util
import io
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from hrvqvae.export.trace import Graph, silent
from hrvqvae.quantize import Codes
from hrvqvae.utils.errors import InputError

ABOUT = "hrvqvae"
"""Under this name a file holds, as JSON, the configuration of the model and the numbers of levels that it decodes."""


class GraphModel(ABC):
    """The encoder and the decoder of a folder, read back and run; on the CPU, with as many threads as torch has.

    Attributes:
        name: of the form, for people.
        suffix: of the files `encoder` and `decoder`.
        needs: modules of other packages.
    """

    name: ClassVar[str]
    suffix: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def require(cls) -> None:
        """Raises InputError where a package that the form needs is missing."""
        missing = [name for name in cls.needs if importlib.util.find_spec(name) is None]
        if missing:
            raise InputError(f"{cls.name} needs {' and '.join(missing)}: pip install 'hrvqvae[onnx]'")

    @staticmethod
    @abstractmethod
    def to_bytes(graph: Graph, about: Mapping[str, Any]) -> bytes:
        """The content of a file of that graph."""

    @abstractmethod
    def __init__(self, folder: Path) -> None: ...

    @abstractmethod
    def encode(self, images: Tensor) -> Codes:
        """Codes of images (B, C, Y, X), float32 in [0, 1]: (B, H_l, W_l) int64 of each level, coarse first."""

    @abstractmethod
    def decode(self, codes: Codes, levels: int) -> Tensor:
        """Images (B, C, Y', X') float32 in [0, 1], as large as the grid; codes are those of every level."""


class OnnxModel(GraphModel):
    """ONNX, run by onnxruntime."""

    name, suffix, needs = "ONNX", ".onnx", ("onnx", "onnxscript", "onnxruntime")

    @staticmethod
    def to_bytes(graph: Graph, about: Mapping[str, Any]) -> bytes:
        with silent():
            exported = torch.onnx.export(
                graph.program, dynamo=True, verbose=False, external_data=False, input_names=graph.inputs,
                output_names=graph.outputs, dynamic_shapes=graph.dynamic,
            )  # fmt: skip
        assert exported is not None
        for node in exported.model.graph.all_nodes():
            node.metadata_props.clear()
        exported.model.metadata_props[ABOUT] = json.dumps(about, sort_keys=True)
        return exported.model_proto.SerializeToString()  # type: ignore[no-any-return]

    def __init__(self, folder: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 4  # its errors are raised
        self._sessions = {
            part: onnxruntime.InferenceSession(folder / f"{part}{self.suffix}", options, ["CPUExecutionProvider"])
            for part in ("encoder", "decoder")
        }

    def _run(self, part: str, *inputs: Tensor) -> list[Tensor]:
        session = self._sessions[part]
        named = zip((one.name for one in session.get_inputs()), inputs, strict=True)
        return [torch.from_numpy(one) for one in session.run(None, {name: one.numpy() for name, one in named})]

    def encode(self, images: Tensor) -> Codes:
        return tuple(self._run("encoder", images))

    def decode(self, codes: Codes, levels: int) -> Tensor:
        return self._run("decoder", *codes, torch.tensor(levels))[0]


class TorchModel(GraphModel):
    """A program of torch.export, run by torch."""

    name, suffix = "torch.export", ".pt2"

    @staticmethod
    def to_bytes(graph: Graph, about: Mapping[str, Any]) -> bytes:
        content = io.BytesIO()
        with silent():
            torch.export.save(graph.program, content, extra_files={ABOUT: json.dumps(about, sort_keys=True)})
        return content.getvalue()

    def __init__(self, folder: Path) -> None:
        with silent():
            self._encoder, self._decoder = (
                torch.export.load(folder / f"{part}{self.suffix}").module() for part in ("encoder", "decoder")
            )

    @torch.inference_mode()
    def encode(self, images: Tensor) -> Codes:
        return tuple(self._encoder(images))

    @torch.inference_mode()
    def decode(self, codes: Codes, levels: int) -> Tensor:
        decoded: Tensor = self._decoder(codes, torch.tensor(levels))
        return decoded


FORMS: dict[str, type[GraphModel]] = {"onnx": OnnxModel, "torch": TorchModel}
