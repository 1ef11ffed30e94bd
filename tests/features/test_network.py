"""The transform before a network, against Pillow and torchvision, and the trying out of networks."""

import numpy as np
import pytest
import torch
import torchvision.transforms as T
from PIL import Image

from cedm_ray.errors import InputDataError
from cedm_ray.features.network import NetworkExtractor, Transform, hash_weights, resized, try_out
from cedm_ray.features.published import IMAGENET_224

CPU = torch.device("cpu")


@pytest.mark.parametrize("size", [32, 300])
def test_the_transform_is_torchvisions_pipeline_on_pillow_images(size, image_set):
    """Resize of the shorter side to 224, bicubic, no crop; ImageNet's normalization: method.md 1.1."""
    images = image_set(count=2, size=size).pixels
    pipeline = T.Compose(
        [
            T.Resize(224, interpolation=T.InterpolationMode.BICUBIC),
            T.ToTensor(),
            T.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    expected = torch.stack([pipeline(Image.fromarray(image.transpose(1, 2, 0))) for image in images])
    difference = (IMAGENET_224(torch.from_numpy(images)) - expected).abs()
    # Pillow works in fixed point and may round a value the other way: one of 256 levels, divided by the deviation.
    assert difference.max() < 1.01 / 255 / 0.224
    assert difference.mean() < 1e-4


def test_images_of_the_right_size_are_not_resampled(image_set):
    values = torch.from_numpy(image_set().pixels).float()
    assert resized(values, 6, "bicubic") is values


def test_features_are_float32_and_carry_no_gradient():
    layer = torch.nn.Linear(3, 2, dtype=torch.float64)
    extractor = NetworkExtractor(name="x", dim=2, key="k", device=CPU, forward=lambda x: layer(x.double().mean((2, 3))))
    features = extractor(torch.zeros(4, 3, 5, 5, dtype=torch.uint8))
    assert (features.shape, features.dtype, features.requires_grad) == ((4, 2), torch.float32, False)


def test_a_network_is_tried_out_on_two_images_and_tells_its_width():
    assert try_out(lambda x: x.float().flatten(1), 4, CPU, "it", "mend it") == 48


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (lambda x: x, r"it returned \[2, 3, 4, 4\] for 2 images"),
        (lambda x: x.flatten(1), "it returned torch.uint8"),
        (lambda x: (x, x), "it returned tuple for 2 images"),
        (lambda x: x.float() @ torch.zeros(9, 9), r"it failed on uint8 \[2, 3, 4, 4\]"),
    ],
)
def test_what_does_not_give_features_is_named(forward, message):
    with pytest.raises(InputDataError, match=message) as caught:
        try_out(forward, 4, CPU, "it", "mend it")
    assert caught.value.mend == "mend it"


def test_the_hash_of_weights_follows_names_and_values():
    torch.manual_seed(0)
    network = torch.nn.Linear(3, 3)
    before = hash_weights(network)
    assert hash_weights(network) == before
    with torch.no_grad():
        network.weight[0, 0] += np.float32(1e-3)
    assert hash_weights(network) != before
    assert hash_weights(torch.nn.Sequential(network)) != hash_weights(network)


def test_a_transforms_plain_form_tells_transforms_apart():
    other = Transform(side=224, interpolation="bilinear", mean=IMAGENET_224.mean, std=IMAGENET_224.std)
    assert other.to_plain() != IMAGENET_224.to_plain()
