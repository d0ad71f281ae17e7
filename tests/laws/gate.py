"""A layer class of the caller's own, whose default only its own method knows."""

import torch


class Gate(torch.nn.Module):
    """Three values that `reset_parameters` draws."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.empty(3))
        self.reset_parameters()

    def reset_parameters(self):
        torch.nn.init.normal_(self.scale)


class Affine(Gate):
    """Three values more, drawn after the others."""

    def __init__(self):
        super().__init__()
        self.shift = torch.nn.Parameter(torch.empty(3))
        self.reset_parameters()

    def reset_parameters(self):
        super().reset_parameters()
        if hasattr(self, "shift"):
            torch.nn.init.normal_(self.shift)


class Half(torch.nn.Module):
    """Values that `reset_parameters` draws, and others that only the constructor writes."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.empty(3))
        self.shift = torch.nn.Parameter(torch.full((3,), 7.0))
        self.codes = torch.nn.Parameter(torch.arange(3), requires_grad=False)
        self.reset_parameters()

    def reset_parameters(self):
        torch.nn.init.normal_(self.scale)


class Whole(Half):
    """The same of which every value is drawn again, whole numbers as well, and others of a byte."""

    def __init__(self):
        super().__init__()
        self.small = torch.nn.Parameter(torch.empty(3, dtype=torch.float8_e4m3fn), requires_grad=False)
        self.reset_parameters()

    def reset_parameters(self):
        super().reset_parameters()
        with torch.no_grad():
            self.shift.fill_(7.0)
            self.codes.random_(5)
            if hasattr(self, "small"):
                self.small.copy_(self.scale)


class Pair(torch.nn.Module):
    """A layer that draws its own values and, once more, those of the layer in it."""

    def __init__(self):
        super().__init__()
        self.shift = torch.nn.Parameter(torch.empty(3))
        self.inner = Gate()
        self.reset_parameters()

    def reset_parameters(self):
        torch.nn.init.normal_(self.shift)
        self.inner.reset_parameters()


class Container(torch.nn.Module):
    """No value of its own: it scales the weight of one layer of torch that is in it, and draws what it draws itself."""

    def __init__(self):
        super().__init__()
        self.inner, self.fc, self.rest = Gate(), torch.nn.Linear(2, 3), torch.nn.Linear(3, 2)
        self.reset_parameters()

    def reset_parameters(self):
        self.fc.weight.data.mul_(0.5)
        torch.nn.init.constant_(self.fc.bias, 0.25)


class Mixed(torch.nn.Module):
    """Two layers in it that lie otherwise in memory, or need arguments, and a buffer that its method draws."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.empty(3))
        self.conv = torch.nn.Conv2d(4, 4, 3).to(memory_format=torch.channels_last)
        self.asking = Asking()
        self.register_buffer("drawn", torch.zeros(3))
        self.reset_parameters()

    def reset_parameters(self):
        torch.nn.init.constant_(self.scale, float("-inf"))
        self.asking.reset_parameters(0.1)
        torch.nn.init.normal_(self.drawn)


class Extended(torch.nn.Linear):
    """A layer of torch that has torch's default, and a parameter more by a method that torch's has not."""

    def __init__(self, in_features, out_features):
        super().__init__(in_features, out_features)
        self.extra = torch.nn.Parameter(torch.empty(3))
        self._reset_parameters()

    def _reset_parameters(self):
        torch.nn.init.ones_(self.extra)


class Follower(Affine):
    """Values that follow others of the same layer."""

    def reset_parameters(self):
        torch.nn.init.normal_(self.scale)
        if hasattr(self, "shift"):
            self.shift.data.copy_(2 * self.scale.data)


class Reader(Follower):
    """The same that leaves the others to a rule."""

    def reset_parameters(self):
        if hasattr(self, "shift"):
            self.shift.data.copy_(2 * self.scale.data)


class Table(torch.nn.Module):
    """Five rows of three values that `reset_parameters` draws."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.empty(5, 3))
        self.reset_parameters()

    def reset_parameters(self):
        torch.nn.init.normal_(self.weight)


class Constant(torch.nn.Linear):
    """A layer of torch with a default of its own."""

    def reset_parameters(self):
        torch.nn.init.constant_(self.weight, 0.5)
        torch.nn.init.constant_(self.bias, 0.25)


class Normed(Constant):
    """The same with a weight that is computed: torch makes a class of its own for it."""

    def __init__(self, in_features, out_features):
        super().__init__(in_features, out_features)
        torch.nn.utils.parametrizations.weight_norm(self)


class Attention(torch.nn.MultiheadAttention):
    """The same of the one whose method has another name."""

    def _reset_parameters(self):
        torch.nn.init.zeros_(self.in_proj_weight)


class GatedNorm(torch.nn.LayerNorm):
    """A layer of torch with a parameter of its own, which only the constructor writes."""

    def __init__(self, width):
        super().__init__(width)
        self.gate = torch.nn.Parameter(torch.ones(width))


class ResetNorm(GatedNorm):
    """The same with a method that writes it."""

    def reset_parameters(self):
        super().reset_parameters()
        if hasattr(self, "gate"):
            torch.nn.init.ones_(self.gate)


class Words(torch.nn.Embedding):
    """A layer of torch under another name."""


class Recurrent(torch.nn.LSTM):
    """And another."""


class Plain(Gate):
    """A method that asks for no context without gradients."""

    def reset_parameters(self):
        self.scale.uniform_(1, 2)


class Failing(Gate):
    """A method that fails as soon as there is memory."""

    def reset_parameters(self):
        if not self.scale.is_meta:
            raise KeyError("no such scale")


class Asking(Gate):
    """A method that cannot be called without an argument."""

    def __init__(self):
        torch.nn.Module.__init__(self)
        self.scale = torch.nn.Parameter(torch.empty(3))
        self.reset_parameters(0.1)

    def reset_parameters(self, std):
        torch.nn.init.normal_(self.scale, std=std)
