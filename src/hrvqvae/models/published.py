"""Find and download weights of published networks, for distances between images.

The weights are stored in torch's cache (`$TORCH_HOME/hub/checkpoints`), where the libraries look
for them.
"""

import importlib.util
import pickle
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name

from hrvqvae.data.fetch import quiet_network
from hrvqvae.utils.errors import InputError, one_line


@dataclass(frozen=True)
class Published:
    """The weights of a network, and the library that reads them."""

    name: str
    about: str
    package: str  # the library that reads the weights
    extra: str  # the extra of hrvqvae that installs the library
    url_name: str  # "module:attribute" of the library that holds the URL of the weights

    @property
    def install_commands(self) -> str:
        """The commands that download the weights."""
        install = f"pip install '.[{self.extra}]', then " if not self._has_library() else ""
        return f"{install}hrvqvae data get {self.name}"

    def _has_library(self) -> bool:
        return importlib.util.find_spec(self.package) is not None

    @property
    def path(self) -> Path:
        """The path of the weights, downloaded or not. Raises InputError if the library is not
        installed.
        """
        import torch

        if not self._has_library():
            raise InputError(f"{self.name} needs {self.package}: {self.install_commands}")
        file_name = str(resolve_name(self.url_name)).rpartition("/")[2]
        return Path(torch.hub.get_dir(), "checkpoints", file_name)

    @property
    def available(self) -> bool:
        """Whether the weights and the library are on this machine."""
        return self._has_library() and self.path.is_file()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Return a context for code that reads the weights. Raises InputError if the weights are
        missing, or if that code finds them damaged.
        """
        if not self.available:
            raise InputError(f"{self.name} is not on this machine: {self.install_commands}")
        try:
            yield
        except (RuntimeError, EOFError, OSError, ValueError, pickle.UnpicklingError) as error:
            problem = f"{self.path} is damaged ({one_line(error)})"
            raise InputError(f"{problem}; delete it, then {self.install_commands}") from error


LPIPS = Published(
    name="lpips-vgg16",
    about="LPIPS: VGG16's weights, 528 MB; a VQGAN's perceptual loss",
    package="torchvision",
    extra="train",
    url_name="torchvision.models:VGG16_Weights.DEFAULT.url",
)
INCEPTION = Published(
    name="inception",
    about="FID: Inception's weights, 91 MB",
    package="torch_fidelity",
    extra="train",
    url_name="torch_fidelity.feature_extractor_inceptionv3:URL_INCEPTION_V3",
)
NETWORKS: Mapping[str, Published] = {network.name: network for network in (LPIPS, INCEPTION)}


def download(name: str, report: Callable[[str], None]) -> Path:
    """Download a network's weights unless they are on this machine, and return the path of the
    weights.

    Raises InputError if the network is unknown, its library is not installed, or the download
    fails. `report` is called with a line on the outcome.
    """
    if name not in NETWORKS:
        raise InputError(f"unknown network {name!r}; there are {', '.join(NETWORKS)}")
    network = NETWORKS[name]
    path = network.path
    if path.is_file():
        report(f"{name}: already in {path}")
        return path
    import torch

    url = str(resolve_name(network.url_name))
    path.parent.mkdir(parents=True, exist_ok=True)
    # a file name may end in the first digits of the SHA-256
    digest = re.search(r"-([0-9a-f]{8,})\.[a-z]+$", path.name)
    try:
        with quiet_network():  # torch writes a temporary file, checks it and renames it
            torch.hub.download_url_to_file(
                url, str(path), digest[1] if digest else None, progress=False
            )
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"{name} could not be downloaded: {one_line(error)}; put {url} at {path}"
        ) from error
    report(f"{name}: from its publisher, checked, in {path}")
    return path
