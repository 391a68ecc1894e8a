"""The nets of `nets.py` of plain PyTorch modules."""

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import fuse_conv_bn_eval

from benchmarks.speed import nets
from benchmarks.speed.job import CLASSES


class ConvBatchNorm(nn.Module):
    """A `nets.Conv`."""

    def __init__(self, channels: int, unit: nets.Conv, description: nets.Description):
        super().__init__()
        padding = [(n - 1) // 2 for n in unit.size] if unit.padding == "same" else 0
        self.conv = nn.Conv2d(channels, unit.filters, unit.size, unit.strides, padding, bias=False)
        momentum = 1 - description.momentum  # Of the new values.
        self.norm = nn.BatchNorm2d(unit.filters, description.epsilon, momentum)
        self.relu = unit.relu

    def forward(self, x):
        x = self.norm(self.conv(x))
        return functional.relu(x, inplace=True) if self.relu else x


class Concatenated(nn.Module):
    """A `nets.Branches`."""

    def __init__(self, branches: list[nn.Module]):
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x):
        return torch.cat([branch(x) for branch in self.branches], 1)


class Residual(nn.Module):
    """A `nets.Residual`."""

    def __init__(self, residual: nn.Module, shortcut: nn.Module):
        super().__init__()
        self.residual, self.shortcut = residual, shortcut

    def forward(self, x):
        return functional.relu(self.residual(x) + self.shortcut(x), inplace=True)


class Subsampling(nn.Module):
    """A `nets.Subsampling`."""

    def __init__(self, missing: int):
        super().__init__()
        self.missing = missing

    def forward(self, x):
        return functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, self.missing))


class Net(nn.Module):
    """A net, from normalized images [batch, channels, height, width] to float32 logits.

    Args:
        description: of the net.

    Attributes:
        named: the modules of each `Conv`, and the dense layer, by path.
    """

    def __init__(self, description: nets.Description):
        super().__init__()
        self._description = description
        self.named: dict[str, nn.Module] = {}
        channels, stages = 3, []
        for name, stage in description.stages.items():
            module, channels = self._make(stage, channels, name)
            stages.append(module)
        self.stages = nn.Sequential(*stages)
        self.dropout = description.dropout
        self.dense = nn.Linear(channels, CLASSES)
        self.named["head/dense"] = self.dense

    def forward(self, images):
        x = self.stages(images).float().mean((2, 3))
        if self.dropout and self.training:
            x = functional.dropout(x, self.dropout)
        with torch.autocast(x.device.type, enabled=False):
            return self.dense(x)

    def _make(self, unit, channels: int, path: str) -> tuple[nn.Module, int]:
        """The module of a part of the description, and the channels of its output."""
        if isinstance(unit, nets.Conv):
            module = ConvBatchNorm(channels, unit, self._description)
            nn.init.kaiming_normal_(module.conv.weight)
            self.named[path] = module
            return module, unit.filters
        if isinstance(unit, nets.Pool):
            return _pool(unit), channels
        if isinstance(unit, nets.Subsampling):
            return Subsampling(unit.filters - channels), unit.filters
        if isinstance(unit, nets.Branches):
            found = [
                self._make(branch, channels, f"{path}/branch_{i}")
                for i, branch in enumerate(unit.branches)
            ]
            return Concatenated([module for module, _ in found]), sum(n for _, n in found)
        if isinstance(unit, nets.Residual):
            residual, outputs = self._make(unit.residual, channels, f"{path}/residual")
            shortcut = nn.Identity()
            if unit.shortcut is not None:
                shortcut, _ = self._make(unit.shortcut, channels, f"{path}/shortcut")
            return Residual(residual, shortcut), outputs
        modules = []
        for i, part in enumerate(unit):
            module, channels = self._make(part, channels, f"{path}/block_{i}")
            modules.append(module)
        return nn.Sequential(*modules), channels


def _pool(unit: nets.Pool) -> nn.Module:
    padding = 0 if unit.padding == "valid" else 1
    if unit.kind == "mean":
        return nn.AvgPool2d(3, unit.strides, padding, count_include_pad=False)
    pool = nn.MaxPool2d(3, unit.strides, 0 if unit.padding == "zeros" else padding)
    return nn.Sequential(nn.ZeroPad2d(1), pool) if unit.padding == "zeros" else pool


def fold(net: Net) -> Net:
    """Folds each BatchNorm of a net in evaluation mode into its convolution; returns the net."""
    for module in net.modules():
        if isinstance(module, ConvBatchNorm):
            module.conv = fuse_conv_bn_eval(module.conv, module.norm)
            module.norm = nn.Identity()
    return net


def set_weights(named: dict[str, nn.Module], weights) -> None:
    """Copies the weights of the same net of another framework (see `ours.check`)."""

    def copy(target, name):
        value = torch.from_numpy(weights[name])
        target.data.copy_(value.permute(3, 2, 0, 1) if value.ndim == 4 else value.t())

    for path, module in named.items():
        if isinstance(module, nn.Linear):
            copy(module.weight, f"{path}/kernel")
            copy(module.bias, f"{path}/bias")
            continue
        copy(module.conv.weight, f"{path}/kernel")
        norm = module.norm
        for target, name in (
            (norm.weight, "gamma"),
            (norm.bias, "beta"),
            (norm.running_mean, "moving_mean"),
            (norm.running_var, "moving_variance"),
        ):
            copy(target, f"{path}/{name}")


def multiply_adds(net: Net, image_size: int) -> int:
    """Of convolutions and the dense layer, for one image."""
    total = 0

    def count(module, inputs, output):
        nonlocal total
        places = output[0, 0].numel() if output.ndim == 4 else 1
        total += places * module.weight.numel()

    modules = [m for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    handles = [module.register_forward_hook(count) for module in modules]
    with torch.no_grad():
        net.eval()(torch.zeros(1, 3, image_size, image_size))
    for handle in handles:
        handle.remove()
    return total
