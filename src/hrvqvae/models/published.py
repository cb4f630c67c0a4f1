"""Find and download weights of published networks, for distances between images.

The weights are stored in torch's cache (`$TORCH_HOME/hub/checkpoints`), where the libraries look
for them.
"""

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name

from hrvqvae.data.fetch import quiet_network
from hrvqvae.utils.errors import InputError


@dataclass(frozen=True)
class Published:
    """The weights of a network, and the library that reads them."""

    name: str
    about: str
    package: str  # the library that reads the weights
    url_name: str  # "module:attribute" of the library that holds the URL of the weights

    @property
    def path(self) -> Path:
        """The path of the weights, downloaded or not. Raises InputError if the library is not
        installed.
        """
        import torch

        if importlib.util.find_spec(self.package) is None:
            raise InputError(f"{self.name} needs {self.package}: pip install '.[train]'")
        file_name = str(resolve_name(self.url_name)).rpartition("/")[2]
        return Path(torch.hub.get_dir(), "checkpoints", file_name)

    @property
    def available(self) -> bool:
        """Whether the weights and the library are on this machine."""
        return importlib.util.find_spec(self.package) is not None and self.path.is_file()


LPIPS = Published(
    name="lpips-vgg16",
    about="LPIPS: VGG16's weights, 528 MB; a VQGAN's perceptual loss",
    package="torchvision",
    url_name="torchvision.models:VGG16_Weights.DEFAULT.url",
)
INCEPTION = Published(
    name="inception",
    about="FID: Inception's weights, 91 MB",
    package="torch_fidelity",
    url_name="torch_fidelity.feature_extractor_inceptionv3:URL_INCEPTION_V3",
)
NETWORKS: Mapping[str, Published] = {network.name: network for network in (LPIPS, INCEPTION)}


def download(name: str, report: Callable[[str], None]) -> None:
    """Download a network's weights unless they are on this machine.

    Raises InputError if its library is not installed, or the download fails. `report` is called
    with a line on the outcome.
    """
    network = NETWORKS[name]
    path = network.path
    if path.is_file():
        report(f"{name}: already in {path}")
        return
    import torch

    url = str(resolve_name(network.url_name))
    path.parent.mkdir(parents=True, exist_ok=True)
    # the file names end in the first digits of the SHA-256
    digest = path.stem.rpartition("-")[2]
    try:
        with quiet_network():  # torch writes a temporary file, checks it and renames it
            torch.hub.download_url_to_file(url, str(path), digest, progress=False)
    except (OSError, RuntimeError) as error:
        raise InputError(f"{name} could not be downloaded: {error}; put {url} at {path}") from error
    report(f"{name}: from its publisher, checked, in {path}")
