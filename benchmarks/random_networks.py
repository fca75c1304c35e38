"""torchvision's architectures with random weights that compute something: for what only needs a network's shape.

Needs torchvision for the installed torch (``pip install torchvision``).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

ARCHITECTURES = (
    "vgg11_bn",
    "resnet18",
    "resnet50",
    "resnext50_32x4d",
    "densenet121",
    "googlenet",
    "inception_v3",
    "shufflenet_v2_x1_0",
    "mobilenet_v3_small",
    "mnasnet1_0",
    "regnet_y_400mf",
    "efficientnet_b0",
    "convnext_tiny",
    "lraspp_mobilenet_v3_large",
)
_OPTIONS = {
    "googlenet": {"aux_logits": False, "init_weights": True, "transform_input": False},
    "inception_v3": {"aux_logits": False, "init_weights": True, "transform_input": False},
    "lraspp_mobilenet_v3_large": {"weights_backbone": None},
}


CLASSES = 10


def random_network(name: str, images: Tensor, labels: Tensor, seed: int = 0) -> nn.Module:
    """``name`` of torchvision with random weights and a head that tells ``images`` apart.

    Batch norms are fitted to ``images``, so that values neither vanish nor explode, and a last linear layer is ridge
    regression onto ``labels``: decisions of a random one turn with every rounding.
    """
    import torchvision

    torch.manual_seed(seed)
    module = torchvision.models.get_model(name, weights=None, num_classes=CLASSES, **_OPTIONS.get(name, {}))
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = None  # cumulative
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    *_, last = (part for part in module.modules() if isinstance(part, nn.Linear | nn.Conv2d))
    seen: list[Tensor] = []
    handle = last.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        module.train()(images)
        module.eval()(images)
        handle.remove()
        if isinstance(last, nn.Linear):
            features, wanted = seen[-1].double(), nn.functional.one_hot(labels, CLASSES).double()
            centre = features.mean(0)
            gram = (features - centre) @ (features - centre).T
            gram += 0.1 * gram.diagonal().mean() * torch.eye(len(gram))
            weight = (features - centre).T @ torch.linalg.solve(gram, wanted - wanted.mean(0))
            last.weight.copy_(weight.T)
            last.bias.copy_(wanted.mean(0) - centre @ weight)
    return module
