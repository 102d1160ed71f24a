"""Compares resin with torchresidual and torch-circuit on random residual models.

    python3 spec/seeds/compare.py [--count 200] [--seed 1] [--only KIND] [--case N] [--keep FOLDER]

Each model is built twice from one description: by PyTorch with the library, and by resin from Lua text. The first forward makes
the library's lazy layers; then its state_dict travels through safetensors and is loaded strictly, so names must agree as well.
Both get the same inputs and upstream gradients. Results, gradients of the input and of every parameter, and the buffers
afterwards must agree within 1e-4 of their scale (1e-8 in f64), or, where PyTorch's f32 differs from its f64 by more than a
tenth of that, within ten times this difference. Exit status 1 when a model differs, 2 when something is missing.
$RESIN names the launcher (build/resin).

KIND: features, image, signal, nested, recurrent, attention, circuit.

A case draws from its own random numbers, made of --seed and its number: --case N repeats one alone.

Left out, because resin differs on purpose (docs/migration.md): gated without alpha; alpha with concat and highway; concat,
highway and projections of channels-first values, except along the last dimension with `dim = -1`; a module instance at two
positions of a ResidualSequential; two records of one name; Records in a plain Sequential; initial values of LearnableAlpha
outside its bounds; broadcasting without `broadcast = true`; one hidden state for several recurrent layers; attention called
with one tensor; nested repeats; names across the edge of a block with one repeat; activations in place.
"""

import argparse
import copy
import math
import os
import random
import subprocess
import sys
import tempfile
from collections import OrderedDict

try:
    import torch
    from torch import nn
    from safetensors.torch import load_file, save_file
    from torchresidual import Apply, LearnableAlpha, Record, RecurrentWrapper, ResidualSequential
    os.environ.setdefault("MPLBACKEND", "Agg")
    from torch_circuit import Circuit, EndBlock, GetInput, SaveInput, StartBlock
except ImportError as error:
    print(f"compare.py needs PyTorch, safetensors, torchresidual and torch-circuit: {error}")
    sys.exit(2)

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))


# ---- descriptions -----------------------------------------------------------------------------------------------------------
# A part is (module, lua, shape of its result). The shape counts the batch.

def lua(value):
    """A Python value as Lua text."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, (tuple, list)):
        return "{" + ", ".join(lua(v) for v in value) + "}"
    return repr(value)


def options(given):
    """{key = value, …}, or nothing for an empty dictionary."""
    return "{" + ", ".join(f"{key} = {lua(value)}" for key, value in given.items()) + "}" if given else ""


def layer(name, *args, **kw):
    """The same layer in both: PyTorch's module and resin's constructor text."""
    values = [lua(a) for a in args] + ([options(kw)] if kw else [])
    return getattr(nn, name)(*args, **kw), f"nn.{name}({', '.join(values)})"


def indented(text):
    return "\n".join("  " + line for line in text.split("\n"))


class Container:
    """A container under construction: its parts so far, the shape, and what has been recorded."""

    def __init__(self, shape):
        self.shape = shape
        self.items = []          # (name or None, module, lua)
        self.records = {}        # name -> (shape, need_projection)
        self.last = None
        self.count = 0

    def put(self, module, text, shape=None, name=None):
        self.items.append((name, module, text))
        if shape is not None:
            self.shape = tuple(shape)

    def finish(self, kind, lua_kind, named):
        modules = [m for _, m, _ in self.items]
        if named:
            names = [n or f"part{i}" for i, (n, _, _) in enumerate(self.items)]
            texts = [f'{{"{n}", {t}}}' for n, (_, _, t) in zip(names, self.items)]
            return kind(OrderedDict(zip(names, modules))), f"nn.{lua_kind}{{\n" + indented(",\n".join(texts)) + "}"
        return kind(*modules), f"nn.{lua_kind}(\n" + indented(",\n".join(t for _, _, t in self.items)) + ")"


class Maker:
    """Draws one case. Fields of the result: module, text, inputs, kwargs (for PyTorch), call (Lua text of the options or None)."""

    def __init__(self, seed, kind):
        self.r = random.Random(seed)
        self.kind = kind
        self.train = self.r.random() < 0.6
        self.dtype = "f64" if self.r.random() < 0.15 else "f32"
        self.kwargs, self.call, self.more = {}, None, {}

    def chance(self, p):
        return self.r.random() < p

    # -- layers ------------------------------------------------------------------------------------------------------

    def activation(self):
        r = self.r
        name = r.choice(["ReLU", "ReLU", "GELU", "GELU", "Tanh", "Sigmoid", "SiLU", "ELU", "LeakyReLU", "SELU", "Softplus", "ReLU6",
                         "Identity", "Mish", "Hardswish"])
        if name == "GELU" and self.chance(0.5):
            return layer(name, approximate="tanh")
        if name == "LeakyReLU":
            return layer(name, negative_slope=0.2)
        if name == "ELU":
            return layer(name, alpha=0.7)
        return layer(name)

    def features_layer(self, c, keep=False):
        """Puts a layer on [..., features]; `keep`: the number of features stays."""
        r, shape = self.r, c.shape
        f = shape[-1]
        roll = r.random()
        if roll < 0.45:
            out = f if keep or self.chance(0.4) else r.choice([3, 4, 5, 6, 8])
            kw = {"bias": False} if self.chance(0.2) else {}
            c.put(*layer("Linear", f, out, **kw), shape[:-1] + (out,))
        elif roll < 0.75:
            c.put(*self.activation())
        elif roll < 0.85 and f > 2:
            c.put(*layer("LayerNorm", f, **({"elementwise_affine": False} if self.chance(0.3) else {})))
        elif roll < 0.90:
            c.put(*layer("RMSNorm", f, eps=1e-5))
        elif roll < 0.96 and len(shape) == 2:
            c.put(*layer("BatchNorm1d", f))
        else:
            c.put(*layer("Dropout", 0.0 if self.train else 0.4))

    def image_layer(self, c, keep=False):
        """Puts a layer on [N, C, H, W], or on [N, C, L]."""
        r, shape = self.r, c.shape
        n = len(shape) - 2
        channels, size = shape[1], shape[2:]
        roll = r.random()
        if 0.65 <= roll < 0.88 and c.items and "Norm" in c.items[-1][2]:
            roll = 0.5      # a channel that ReLU made constant would be the norms' rounding error, many times enlarged
        if roll < 0.4:
            out = channels if keep or self.chance(0.5) else r.choice([2, 3, 4, 6])
            dilation = r.choice([1, 1, 2])
            kernel = r.choice([1, 3, 3])
            kw = {"padding": dilation * (kernel // 2)}
            if dilation > 1:
                kw["dilation"] = dilation
            if not keep and self.chance(0.15) and min(size) >= 5:
                kw["stride"] = 2
            groups = math.gcd(channels, out)
            if groups > 1 and self.chance(0.3):
                kw["groups"] = groups
            if self.chance(0.3):
                kw["bias"] = False
            m, text = layer(f"Conv{n}d", channels, out, kernel, **kw)
            c.put(m, text, m(torch.zeros(shape)).shape)
        elif roll < 0.65:
            c.put(*self.activation())
        elif roll < 0.78:
            c.put(*layer(f"BatchNorm{n}d", channels))
        elif roll < 0.84:
            c.put(*layer("GroupNorm", r.choice([g for g in (1, 2, 3) if channels % g == 0]), channels))
        elif roll < 0.88:
            c.put(*layer(f"InstanceNorm{n}d", channels, affine=True))
        elif roll < 0.93 and not keep and min(size) >= 5:
            if n == 2 and self.chance(0.4):
                m, text = layer("ConvTranspose2d", channels, channels, 2, stride=2)
                if max(size) > 10:
                    return
            else:
                m, text = layer(r.choice([f"MaxPool{n}d", f"AvgPool{n}d"]), 2)
            c.put(m, text, m(torch.zeros(shape)).shape)
        elif roll < 0.96 and not keep and n == 2:
            size = (r.choice([3, 4, 5]), r.choice([3, 4, 6]))
            m = nn.AdaptiveAvgPool2d(size)
            c.put(m, f"nn.AdaptiveAvgPool2d{lua(size)}", shape[:2] + size)
        else:
            c.put(*self.activation())

    # -- records and applies -----------------------------------------------------------------------------------------

    def record(self, c, named=None):
        c.count += 1
        name = named
        if name is None and self.chance(0.6):
            name = self.r.choice("abcdefgh") + str(c.count)
        projection = self.chance(0.6)
        kw = {"need_projection": True} if projection else {}
        if name:
            kw["name"] = name
        c.put(Record(**kw), f"nn.Record{options(kw) or '()'}")
        name = name or f"record_{c.count}"
        c.records[name] = (c.shape, projection)
        c.last = name

    def alpha(self, operation, f, last):
        """(PyTorch's, Lua's) alpha, or (None, None)."""
        r = self.r
        if operation in ("concat", "highway"):
            return None, None
        roll = r.random()
        if roll < 0.25 and operation != "gated":
            return None, None
        if roll < 0.5:
            value = round(r.uniform(0.1, 0.9) if operation == "gated" else r.uniform(-1.5, 1.5), 3)
            return value, lua(value)
        if roll < 0.9:
            low, high, kw = r.choice([(0.0, 1.0, {}), (0.0, 1.0, {}), (-1.0, 2.0, {}), (1e-3, 1.0, {}), (0.1, 0.9, {}),
                                      (0.1, 0.9, {"use_log_space": True}), (1e-3, 1.0, {"use_log_space": False})])
            value = round(r.uniform(max(low, 0.01), high), 3)
            text = f"nn.LearnableAlpha({value}, {low}, {high}" + (f", {lua(kw['use_log_space'])})" if kw else ")")
            return LearnableAlpha(value, low, high, **kw), text
        values = [round(r.uniform(0.1, 0.9), 3) for _ in range(f)] if last and self.chance(0.5) else round(r.uniform(0.1, 0.9), 3)
        return nn.Parameter(torch.tensor(values)), f"nn.Parameter(tensor({lua(values)}))"

    def apply(self, c, scope, keep=False):
        """Puts an Apply that reads a record of `scope` (c itself, or the container around a plain Sequential)."""
        r, choices = self.r, []
        last = self.kind not in ("image", "signal")
        for name, (shape, projection) in scope.records.items():
            if len(shape) != len(c.shape):
                continue
            same, near = shape == c.shape, shape[:-1] == c.shape[:-1]
            for operation in ("add", "add", "multiply", "gated", "highway", "concat"):
                features = operation in ("highway", "concat")
                if same and not (features and not last and self.chance(0.6)):
                    choices.append((name, operation, "same"))
                elif near and projection:
                    choices.append((name, operation, "project"))
                elif near and operation == "concat":
                    choices.append((name, operation, "cat"))
                elif near and 1 in (shape[-1], c.shape[-1]) and operation != "highway" and not projection:
                    choices.append((name, operation, "broadcast"))
        if keep:
            choices = [k for k in choices if k[1] != "concat" and k[2] != "broadcast"]
        if not choices:
            return False
        name, operation, how = r.choice(choices)
        f, rf = c.shape[-1], scope.records[name][0][-1]
        kw = {}
        if operation != "add" or self.chance(0.5):
            kw["operation"] = operation.upper() if self.chance(0.1) else operation
        if name != scope.last or self.chance(0.7):
            kw["record_name"] = name
        ours = {key: lua(value) for key, value in kw.items()}
        a, text = self.alpha(operation, f, last and how == "same")
        if a is not None:
            kw["alpha"], ours["alpha"] = a, text
        if how == "broadcast":
            ours["broadcast"] = "true"
        if not last and (operation in ("highway", "concat") or how != "same"):
            ours["dim"] = "-1"
        out = f
        if operation == "concat":
            out = 2 * f if how == "project" else f + rf
        elif how == "broadcast":
            out = max(f, rf)
        inner = ", ".join(f"{key} = {value}" for key, value in ours.items())
        c.put(Apply(**kw), f"nn.Apply{{{inner}}}" if inner else "nn.Apply()", c.shape[:-1] + (out,))
        return True

    # -- containers --------------------------------------------------------------------------------------------------

    def any_layer(self, c, keep=False):
        (self.image_layer if self.kind in ("image", "signal") else self.features_layer)(c, keep)

    def plain(self, outer):
        """A plain Sequential; Applies in it read the records of the container around it."""
        c = Container(outer.shape)
        for _ in range(self.r.randint(1, 4)):
            if not (self.chance(0.4) and outer.records and self.apply(c, outer)):
                self.any_layer(c)
        m, text = c.finish(nn.Sequential, "Sequential", False)
        outer.put(m, text, c.shape)

    def residual(self, shape, depth, length):
        c = Container(shape)
        if self.chance(0.2):
            self.any_layer(c)
        self.record(c)
        for _ in range(length):
            roll = self.r.random()
            if depth > 0 and roll < 0.2:
                m, text, out = self.residual(c.shape, depth - 1, self.r.randint(2, 5))
                c.put(m, text, out)
            elif depth > 0 and roll < 0.3:
                self.plain(c)
            elif depth > 0 and roll < 0.36:
                m, text, out = self.circuit(c.shape, 0)
                c.put(m, text, out)
            elif roll < 0.48:
                self.record(c)
            elif roll < 0.75:
                if not self.apply(c, c):
                    self.any_layer(c)
            else:
                self.any_layer(c)
        self.apply(c, c)
        m, text = c.finish(ResidualSequential, "ResidualSequential", self.chance(0.3))
        return m, text, c.shape

    # -- kinds -------------------------------------------------------------------------------------------------------

    def features(self):
        shape = (8, self.r.choice([1, 4, 5, 6])) if self.chance(0.6) else (3, 4, self.r.choice([4, 5, 6]))
        return shape, self.residual(shape, 0, self.r.randint(4, 12))

    def nested(self):
        shape = (8, self.r.choice([4, 5, 6])) if self.chance(0.6) else (3, 4, self.r.choice([4, 5, 6]))
        return shape, self.residual(shape, 2, self.r.randint(4, 9))

    def image(self):
        shape = (3, self.r.choice([2, 3, 4, 6]), self.r.choice([5, 6, 7]), self.r.choice([5, 6, 8]))
        m, text, out = self.residual(shape, 1 if self.chance(0.3) else 0, self.r.randint(4, 10))
        if self.chance(0.3):
            c = Container(out)
            c.put(m, text)
            c.put(nn.AdaptiveAvgPool2d(1), "nn.AdaptiveAvgPool2d(1)")
            c.put(nn.Flatten(), "nn.Flatten()", (shape[0], out[1]))
            c.put(*layer("Linear", out[1], 5), (shape[0], 5))
            m, text = c.finish(nn.Sequential, "Sequential", False)
            out = c.shape
        return shape, (m, text, out)

    def signal(self):
        shape = (3, self.r.choice([2, 3, 4, 6]), self.r.choice([7, 9, 12]))
        return shape, self.residual(shape, 0, self.r.randint(4, 10))

    def recurrent_layer(self, f, width):
        r = self.r
        name = r.choice(["LSTM", "LSTM", "GRU", "RNN"])
        kw = {"batch_first": True}
        if self.chance(0.4):
            kw["num_layers"] = 2
        if self.chance(0.3) and width % 2 == 0:
            kw["bidirectional"] = True
        if self.chance(0.2):
            kw["bias"] = False
        if name == "RNN" and self.chance(0.5):
            kw["nonlinearity"] = "relu"
        hidden = width // (2 if "bidirectional" in kw else 1)
        m, text = layer(name, f, hidden, **kw)
        return m, text, name, (kw.get("num_layers", 1) * (2 if "bidirectional" in kw else 1), hidden)

    def recurrent(self):
        r = self.r
        shape = (3, 5, r.choice([4, 5, 6]))
        c = Container(shape)
        c.count += 1
        c.put(Record(need_projection=True, name="in"), 'nn.Record{need_projection = true, name = "in"}')
        c.records["in"], c.last = (shape, True), "in"
        for _ in range(r.randint(0, 2)):
            self.any_layer(c)
        width = r.choice([4, 6, c.shape[-1]])
        m, text, name, (layers, hidden) = self.recurrent_layer(c.shape[-1], width)
        position = len(c.items)
        if self.chance(0.6):
            kw = {"return_hidden": True} if self.chance(0.5) else {}
            c.put(RecurrentWrapper(m, **kw), f"nn.RecurrentWrapper({text}{', ' + options(kw) if kw else ''})",
                  c.shape[:-1] + (width,), name="rnn")
            wrapped = True
        else:
            c.put(m, text, c.shape[:-1] + (width,), name="rnn")
            wrapped = False
        if self.chance(0.3):
            self.record(c)
        self.apply(c, c)
        for _ in range(r.randint(0, 4)):
            if self.chance(0.6) or not self.apply(c, c):
                self.any_layer(c)
        named = self.chance(0.4)
        if self.chance(0.5):
            state = (layers, 3, hidden)
            key = '"rnn"' if named else f'"{position}"'
            if name == "LSTM":
                self.more["h"], self.more["c"] = state, state
                value, ours = lambda t: (t["h"], t["c"]), "{t.h, t.c}"
            else:
                self.more["h"] = state
                value, ours = lambda t: t["h"], "t.h"
            if wrapped:
                self.kwargs = lambda t: {"hidden": value(t)}
            else:
                self.kwargs = lambda t: {"rnn" if named else str(position): {"hx": value(t)}}
            self.call = f"{{hidden = {{[{key}] = {ours}}}}}"
        m, text = c.finish(ResidualSequential, "ResidualSequential", named)
        if self.chance(0.75):
            return shape, (m, text, c.shape)
        outer, inner_kwargs = Container(shape), self.kwargs
        self.record(outer)
        outer.put(m, text, c.shape, name="inner")
        self.apply(outer, outer)
        if self.call:
            self.kwargs = lambda t: {"inner": inner_kwargs(t)}
            self.call = f"{{hidden = {{inner = {{[{key}] = {ours}}}}}}}"
        m, text = outer.finish(ResidualSequential, "ResidualSequential", True)
        return shape, (m, text, outer.shape)

    def attention(self):
        r = self.r
        heads = r.choice([1, 2, 3])
        size, batch_first = heads * r.choice([2, 4]), self.chance(0.5)
        batch, length, source = 2, 5, r.choice([4, 5])
        shape = (batch, length, size) if batch_first else (length, batch, size)
        c = Container(shape)
        c.count += 1
        c.put(Record(name="in"), 'nn.Record("in")')
        c.records["in"], c.last = (shape, False), "in"
        if self.chance(0.5):
            c.put(*layer("LayerNorm", size))
        kw = {"batch_first": True} if batch_first else {}
        other = r.choice([None, None, 3])
        if other:
            kw["kdim"] = kw["vdim"] = other
        if self.chance(0.2):
            kw["bias"] = False
        c.put(*layer("MultiheadAttention", size, heads, **kw), name="attn")
        c.put(Apply("add", "in"), 'nn.Apply("add", "in")')
        for _ in range(r.randint(1, 6)):
            roll = r.random()
            if roll < 0.3:
                self.record(c)
            elif not (roll < 0.6 and self.apply(c, c)):
                self.any_layer(c)
        self.apply(c, c)
        memory = other or size
        self.more["memory"] = (batch, source, memory) if batch_first else (source, batch, memory)
        need = self.chance(0.6)
        given = {"need_weights": need}
        if need and self.chance(0.4):
            given["average_attn_weights"] = False
        masks = []
        if self.chance(0.3):
            self.more["mask"] = (length, source)
            masks.append("attn_mask")
        elif self.chance(0.3):
            self.more["padding"] = "padding"
            masks.append("key_padding_mask")
        names = {"attn_mask": "mask", "key_padding_mask": "padding"}
        self.padding = (batch, source)
        self.kwargs = lambda t: {"attn": {"key": t["memory"], "value": t["memory"], **given, **{m: t[names[m]] for m in masks}}}
        ours = ["key = t.memory", "value = t.memory"] + [f"{k} = {lua(v)}" for k, v in given.items()]
        ours += [f"{m} = t.{names[m]}" for m in masks]
        self.call = "{attn = {" + ", ".join(ours) + "}}"
        m, text = c.finish(ResidualSequential, "ResidualSequential", True)
        return shape, (m, text, c.shape)

    # -- torch-circuit -----------------------------------------------------------------------------------------------

    def join(self, dim):
        """(op, Lua's op, does it concatenate)."""
        return self.r.choice([
            (torch.add, None, False), (torch.add, '"add"', False), (torch.mul, '"mul"', False), (torch.mul, "F.mul", False),
            (torch.sub, '"sub"', False), (torch.maximum, "F.maximum", False),
            (lambda x, y: x + 0.5 * y, "function(x, y) return x + 0.5 * y end", False),
            (lambda x, y: torch.cat((x, y), dim), f"function(x, y) return F.cat({{x, y}}, {dim + 1}) end", True),
            (lambda x, y: torch.cat((x, y), dim), '"cat"', True)])

    def circuit_get(self, c, name, shape, keep):
        at = 1 if len(c.shape) == 4 else len(c.shape) - 1
        op, text, cat = self.join(at)
        if keep and cat:
            op, text, cat = torch.add, None, False
        fits = len(shape) == len(c.shape) and all(a == b for i, (a, b) in enumerate(zip(shape, c.shape)) if i != at)
        if not fits:
            return False
        transform = transform_text = None
        size = shape[at]
        if size != c.shape[at] and not cat or self.chance(0.25):
            size = c.shape[at]
            transform, transform_text = layer("Conv2d", shape[at], size, 1) if len(shape) == 4 else layer("Linear", shape[at], size)
        more = ([f"op = {text}"] if text else []) + ([f"transform = {transform_text}"] if transform else [])
        given = [f'"{name}"'] + (["{" + ", ".join(more) + "}"] if more else [])
        out = list(c.shape)
        if cat:
            out[at] += size
        c.put(GetInput(name, op=op, transform=transform), f"nn.GetInput({', '.join(given)})", out)
        return True

    def circuit_save(self, c, name):
        at = 1 if len(c.shape) == 4 else len(c.shape) - 1
        shape = list(c.shape)
        if self.chance(0.25):
            out = self.r.choice([shape[at], 3, 4])
            transform, text = layer("Conv2d", shape[at], out, 1) if len(shape) == 4 else layer("Linear", shape[at], out)
            shape[at] = out
            c.put(SaveInput(name, transform), f'nn.SaveInput("{name}", {text})')
        else:
            c.put(SaveInput(name), f'nn.SaveInput("{name}")')
        c.records[name] = (tuple(shape), False)

    def circuit_part(self, c, k):
        """A save, layers and reads."""
        name = self.r.choice(["a", "b", f"c{k}"])
        self.circuit_save(c, name)
        if len(c.shape) < 4 and self.chance(0.2):
            m, text, out = self.residual(c.shape, 0, self.r.randint(2, 5))
            c.put(m, text, out)
        for _ in range(self.r.randint(1, 4)):
            self.circuit_layer(c)
        for _ in range(self.r.choice([1, 1, 2])):
            name = self.r.choice(list(c.records))
            self.circuit_get(c, name, c.records[name][0], False)

    def circuit_layer(self, c, keep=False):
        (self.image_layer if len(c.shape) == 4 else self.features_layer)(c, keep)

    def circuit_block(self, c, k):
        n = self.r.choice([1, 2, 2, 3])
        start, inner = c.shape, Container(c.shape)
        names = []
        for i in range(self.r.choice([1, 1, 2])):
            name = f"r{k}_{i}"
            before = inner.shape
            self.circuit_save(inner, name)
            for _ in range(self.r.randint(1, 4)):
                self.circuit_layer(inner, True)
            self.circuit_get(inner, name, inner.records[name][0], True)
            assert inner.shape == before == start
            names.append(name)
        c.put(StartBlock(f"block{k}", n), f'nn.StartBlock("block{k}", {n})')
        c.items += inner.items
        c.put(EndBlock(f"block{k}"), f'nn.EndBlock("block{k}")')
        if n > 1 and self.chance(0.4):
            name = self.r.choice(names)
            self.circuit_get(c, f"{name}_repeat_{self.r.randrange(n)}", inner.records[name][0], False)

    def circuit(self, shape=None, depth=1):
        given = shape       # of a circuit inside something else
        if shape is None:
            shape = self.r.choice([(8, 5), (3, 4, 6), (3, 4, 6, 7)])
        c = Container(shape)
        if len(shape) == 4:         # says that the channels come first
            c.put(*layer("Conv2d", shape[1], shape[1], 3, padding=1))
        for k in range(self.r.randint(1, 3 if given is None else 2)):
            roll = self.r.random()
            if roll < 0.45:
                self.circuit_block(c, k)
            elif roll < 0.85 or depth == 0:
                self.circuit_part(c, k)
            else:
                m, text, out = self.circuit(c.shape, depth - 1)
                c.put(m, text, out)
        m, text = c.finish(Circuit, "Circuit", False)
        return (shape, (m, text, c.shape)) if given is None else (m, text, c.shape)

    # -- a case ------------------------------------------------------------------------------------------------------

    def make(self):
        shape, (self.module, text, self.out) = getattr(self, self.kind)()
        self.text = text
        self.inputs = {"x": torch.randn(shape)}
        for name, size in self.more.items():
            if name == "padding":
                mask = torch.zeros(self.padding, dtype=torch.bool)
                mask[0, -1] = True
                self.inputs[name] = mask
            else:
                self.inputs[name] = torch.randn(size)
        return self

    def describe(self):
        lines = [f"return {{train = {lua(self.train)}, dtype = {lua(self.dtype)},",
                 f"options = function(t) return {self.call} end," if self.call else "",
                 "model = function() return " + self.text + " end}"]
        return "\n".join(line for line in lines if line) + "\n"


# ---- PyTorch's side ---------------------------------------------------------------------------------------------------------

def flatten(value, out):
    if torch.is_tensor(value):
        out.append(value)
    elif isinstance(value, (tuple, list)):
        for v in value:
            flatten(v, out)
    return out


def key(name):
    """resin's name of a parameter: the children of a Circuit are its own, without a list between."""
    return name.replace("expanded_layers.", "")


def other_values(module):
    """Norms start as the identity and biases of gates are equal: give them values that show mistakes."""
    with torch.no_grad():
        for name, p in module.named_parameters():
            if p.dim() == 1 and "alpha" not in name:
                p.add_(0.2 * torch.randn_like(p))
        for name, b in module.named_buffers():
            if name.endswith("running_mean"):
                b.copy_(0.3 * torch.randn_like(b))
            elif name.endswith("running_var"):
                b.copy_(0.5 + torch.rand_like(b))


def without_records(module):
    """The libraries keep activations of the last call on their modules, which hinders a copy."""
    for m in module.modules():
        if isinstance(m, ResidualSequential):
            m.recorded_tensors, m.extra_output = {}, []
        elif isinstance(m, Record):
            m.recorded_tensor = None
        elif isinstance(m, Circuit):
            m.skip_tensors = {}
    return module


def forward(case, module, inputs):
    kwargs = case.kwargs(inputs) if case.kwargs else {}
    return flatten(module(inputs["x"], **kwargs), [])


def run(case, module, inputs, upstream):
    """A forward and a backward; returns {name: tensor} and the upstream gradients, which are drawn when none are given."""
    inputs = {name: t.detach().clone() for name, t in inputs.items()}
    x = inputs["x"].requires_grad_(True)
    outputs = forward(case, module, inputs)
    if upstream is None:
        upstream = [torch.randn_like(o).contiguous() for o in outputs]
    flowing = [(o, g) for o, g in zip(outputs, upstream) if o.requires_grad]
    torch.autograd.backward([o for o, _ in flowing], [g for _, g in flowing])
    found = {f"out.{i}": o.detach() for i, o in enumerate(outputs)}
    found["grad.x"] = x.grad
    for name, p in module.named_parameters():
        found["grad." + key(name)] = p.grad if p.grad is not None else torch.zeros_like(p)
    for name, b in module.named_buffers():
        if name.rsplit(".", 1)[-1] in ("running_mean", "running_var", "num_batches_tracked"):
            found["state." + key(name)] = b.detach().clone()
    return found, upstream


def prepare(case, path):
    """Writes what resin reads; returns what PyTorch computed, and for f32 the same computed in f64."""
    module = case.module.train(case.train)
    with torch.no_grad():
        forward(case, module, case.inputs)
    if case.dtype == "f64":
        module.double()
        case.inputs = {k: v if v.dtype == torch.bool else v.double() for k, v in case.inputs.items()}
    other_values(module)
    travel = {"state." + key(k): v.detach().clone().contiguous() for k, v in module.state_dict().items()
              if not k.endswith("skip_tensors")}
    for name, value in case.inputs.items():
        travel["input." + name] = value.clone().contiguous()

    exact = copy.deepcopy(without_records(module)).double() if case.dtype == "f32" else None
    wanted, upstream = run(case, module, case.inputs, None)
    for i, g in enumerate(upstream):
        travel[f"upstream.{i}"] = g
    save_file(travel, path + ".in.safetensors")
    with open(path + ".lua", "w", encoding="utf-8") as f:
        f.write(case.describe())
    if exact is not None:
        inputs = {k: v if v.dtype == torch.bool else v.double() for k, v in case.inputs.items()}
        exact, _ = run(case, exact, inputs, [g.double() for g in upstream])
    return wanted, exact


# ---- comparing --------------------------------------------------------------------------------------------------------------

def difference(wanted, exact, got):
    """The first difference as text, or None. Where PyTorch's own f32 is far from its f64, resin may be ten times as far."""
    tolerance = 1e-4 if exact else 1e-8
    largest = max(t.abs().max().item() for name, t in wanted.items() if name.startswith("grad.") and t.numel() > 0)
    for name, a in wanted.items():
        b = got.get(name)
        if b is None:
            if name.startswith("grad.") and not a.any():
                continue        # no gradient, which PyTorch may give as zeros
            return f"{name}: resin has none; PyTorch's is {tuple(a.shape)}, largest {a.abs().max().item():.4g}"
        if tuple(a.shape) != tuple(b.shape):
            return f"{name}: shape {tuple(b.shape)}, PyTorch's is {tuple(a.shape)}"
        if a.numel() == 0:
            continue
        a, b = a.double(), b.double()
        error = (a - b).abs()
        scale = max(1.0, a.abs().max().item())
        if exact and name.startswith("grad.") and exact[name].abs().max().item() < 1e-9 * largest:
            scale = max(1.0, largest)       # zero by cancellation, as the bias in front of a norm: only rounding is left
        bound = tolerance * scale
        if exact:
            bound = max(bound, 10 * (a - exact[name].double()).abs().max().item())
        if not bool((error <= bound).all()):
            at = int(error.nan_to_num(math.inf).argmax())
            return (f"{name}: {b.flatten()[at].item():.8g} at flat index {at}, PyTorch's is {a.flatten()[at].item():.8g}; "
                    f"largest error {error.max().item():.3g}, allowed {bound:.3g}")
    extra = [n for n in got if n.startswith("out.") and n not in wanted]
    return f"{extra[0]}: PyTorch returned no such value" if extra else None


def run_lua(folder, first, last):
    """Runs the described models. A crash ends the process: what it was at is marked, and the next one goes on."""
    launcher = os.environ.get("RESIN", os.path.join(ROOT, "build", "resin"))
    if not os.access(launcher, os.X_OK):
        print(f"compare.py: there is no {launcher}; run `make build`, or set RESIN to the launcher")
        sys.exit(2)
    while first <= last:
        done = subprocess.run([launcher, os.path.join(HERE, "compare.lua"), folder, str(first), str(last)],
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, check=False)
        ran = done.stdout.count("\n")
        if first + ran > last:
            return
        with open(os.path.join(folder, f"{first + ran}.error"), "w", encoding="utf-8") as f:
            f.write(f"the process ended with status {done.returncode}: {done.stderr[-800:]}")
        first += ran + 1


KINDS = ["features", "image", "signal", "nested", "recurrent", "attention", "circuit"]
SHARE = ["features"] * 4 + ["image"] * 4 + ["signal"] * 2 + ["nested"] * 4 + ["recurrent"] * 3 + ["attention"] * 3 + ["circuit"] * 5


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", choices=KINDS)
    parser.add_argument("--case", type=int)
    parser.add_argument("--keep", help="a folder for the descriptions and tensors")
    given = parser.parse_args()
    torch.set_num_threads(1)

    folder = given.keep or tempfile.mkdtemp(prefix="compare")
    os.makedirs(folder, exist_ok=True)
    numbers = [given.case] if given.case is not None else list(range(1, given.count + 1))
    cases, wanted = {}, {}
    for n in numbers:
        seed = given.seed * 1000003 + n
        torch.manual_seed(seed)
        kind = given.only or SHARE[n % len(SHARE)]
        cases[n] = Maker(seed, kind).make()
        wanted[n] = prepare(cases[n], os.path.join(folder, str(n)))
    run_lua(folder, numbers[0], numbers[-1])

    failures, by_kind = [], {}
    for n in numbers:
        path = os.path.join(folder, str(n))
        if os.path.exists(path + ".error"):
            with open(path + ".error", encoding="utf-8") as f:
                why = "resin failed: " + f.read()
        elif os.path.exists(path + ".out.safetensors"):
            why = difference(*wanted[n], load_file(path + ".out.safetensors"))
        else:
            why = "resin wrote nothing"
        counts = by_kind.setdefault(cases[n].kind, [0, 0])
        counts[1 if why else 0] += 1
        if why:
            failures.append((n, why))
    for n, why in failures[:5]:
        print(f"---- case {n} ({cases[n].kind}; repeat with --seed {given.seed} --case {n}"
              + (f" --only {given.only}" if given.only else "") + f")\n{why}\n{cases[n].describe()}")
    if len(failures) > 5:
        print("further cases that differ: " + ", ".join(str(n) for n, _ in failures[5:]))
    for kind in KINDS:
        if kind in by_kind:
            print(f"{kind}: {by_kind[kind][0]} equal, {by_kind[kind][1]} not")
    if not given.keep:
        for name in os.listdir(folder):
            os.remove(os.path.join(folder, name))
        os.rmdir(folder)
    print(f"{len(numbers) - len(failures)} passed, {len(failures)} failed")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
