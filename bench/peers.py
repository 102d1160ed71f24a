"""The peers of bench/run.lua: PyTorch eager (plain and channels_last), torch.compile, ONNX Runtime.

A process that lives as long as one row of the benchmark. It reads commands from standard input and answers each with one line:
    export NAME FILE                      weights, input and PyTorch's own result as a safetensors file, for resin to load
    onnx NAME FILE                        the model as an ONNX file
    build PEER NAME DTYPE THREADS FILE    a run of NAME, compared with the result in FILE ("-": not compared): "ready DIFFERENCE"
    run PEER SECONDS                      "us MEDIAN LEAST CPU RUNS": microseconds of a run, processor seconds of all runs
    memory                                "kb PEAK" of this process
Names of parameters are those that resin gives them. Tokens and labels are written counted from 1, as resin takes them.
"""
import contextlib
import functools
import io
import statistics
import sys
import time

import torch
import torch.nn as nn
import torch.nn.functional as F

# ---- models -----------------------------------------------------------------------------------------------------------------


class Residual(nn.Module):
    def __init__(self, fn):
        super().__init__()
        self.fn = fn

    def forward(self, x):
        return x + self.fn(x)


def mlp(*sizes):
    layers = []
    for inp, out in zip(sizes, sizes[1:]):
        layers += [nn.Linear(inp, out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def residual_mlp():
    blocks = [Residual(nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.LayerNorm(64))) for _ in range(4)]
    return nn.Sequential(*blocks, nn.Linear(64, 10))


def conv(inp, out, kernel, stride=1, groups=1):
    return nn.Conv2d(inp, out, kernel, stride, kernel // 2, groups=groups, bias=False)


def downsample(inp, out, stride):
    return nn.Identity() if stride == 1 and inp == out else nn.Sequential(conv(inp, out, 1, stride), nn.BatchNorm2d(out))


class BasicBlock(nn.Module):
    expansion = 1

    def __init__(self, inp, planes, stride):
        super().__init__()
        self.conv1, self.bn1 = conv(inp, planes, 3, stride), nn.BatchNorm2d(planes)
        self.conv2, self.bn2 = conv(planes, planes, 3), nn.BatchNorm2d(planes)
        self.downsample = downsample(inp, planes, stride)

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.downsample(x))


class Bottleneck(nn.Module):
    expansion = 4

    def __init__(self, inp, planes, stride):
        super().__init__()
        self.conv1, self.bn1 = conv(inp, planes, 1), nn.BatchNorm2d(planes)
        self.conv2, self.bn2 = conv(planes, planes, 3, stride), nn.BatchNorm2d(planes)
        self.conv3, self.bn3 = conv(planes, 4 * planes, 1), nn.BatchNorm2d(4 * planes)
        self.downsample = downsample(inp, 4 * planes, stride)

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + self.downsample(x))


class ResNet(nn.Module):
    def __init__(self, block, counts, classes, small):
        super().__init__()
        self.conv1, self.bn1 = conv(3, 64, 3 if small else 7, 1 if small else 2), nn.BatchNorm2d(64)
        self.small, channels = small, 64
        for stage, count in enumerate(counts):
            planes, blocks = 64 << stage, []
            for i in range(count):
                blocks.append(block(channels, planes, 2 if stage and not i else 1))
                channels = planes * block.expansion
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(channels, classes)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        if not self.small:
            x = F.max_pool2d(x, 3, 2, 1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


def conv_bn_relu6(inp, out, kernel, stride=1, groups=1):
    return nn.Sequential(conv(inp, out, kernel, stride, groups), nn.BatchNorm2d(out), nn.ReLU6())


class InvertedResidual(nn.Module):
    def __init__(self, inp, out, stride, expand):
        super().__init__()
        hidden = inp * expand
        first = [] if expand == 1 else [conv_bn_relu6(inp, hidden, 1)]
        self.conv = nn.Sequential(*first, conv_bn_relu6(hidden, hidden, 3, stride, hidden), conv(hidden, out, 1), nn.BatchNorm2d(out))
        self.skip = stride == 1 and inp == out

    def forward(self, x):
        return x + self.conv(x) if self.skip else self.conv(x)


class MobileNetV2(nn.Module):
    STAGES = (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)

    def __init__(self):
        super().__init__()
        layers, channels = [conv_bn_relu6(3, 32, 3, 2)], 32
        for expand, out, count, stride in self.STAGES:
            for i in range(count):
                layers.append(InvertedResidual(channels, out, 1 if i else stride, expand))
                channels = out
        self.features = nn.Sequential(*layers, conv_bn_relu6(320, 1280, 1))
        self.classifier = nn.Sequential(nn.Identity(), nn.Linear(1280, 1000))

    def forward(self, x):
        return self.classifier(torch.flatten(F.adaptive_avg_pool2d(self.features(x), 1), 1))


class LSTMLanguageModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.lstm, self.output = nn.Embedding(96, 128), nn.LSTM(128, 512, 2, batch_first=True), nn.Linear(512, 96)

    def forward(self, ids):
        return self.output(self.lstm(self.embedding(ids))[0])


class Attention(nn.Module):
    def __init__(self, size, heads):
        super().__init__()
        self.heads, self.qkv, self.proj = heads, nn.Linear(size, 3 * size), nn.Linear(size, size)

    def forward(self, x, cache):
        batch, length, size = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, self.heads, size // self.heads).permute(2, 0, 3, 1, 4)
        if cache is not None:
            if cache:
                k, v = torch.cat([cache[0], k], 2), torch.cat([cache[1], v], 2)
            cache[:] = [k, v]
        y = F.scaled_dot_product_attention(q, k, v, is_causal=cache is None)
        return self.proj(y.transpose(1, 2).reshape(batch, length, size))


class GPTLayer(nn.Module):
    def __init__(self, size, heads):
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(size), Attention(size, heads)
        self.norm2, self.fc, self.out = nn.LayerNorm(size), nn.Linear(size, 4 * size), nn.Linear(4 * size, size)

    def forward(self, x, cache=None):
        x = x + self.attn(self.norm1(x), cache)
        return x + self.out(F.gelu(self.fc(self.norm2(x))))


class GPT(nn.Module):
    def __init__(self, layers=6, heads=6, size=384, length=256, vocabulary=96):
        super().__init__()
        self.token, self.position = nn.Embedding(vocabulary, size), nn.Embedding(length, size)
        self.layers = nn.ModuleList(GPTLayer(size, heads) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(size), nn.Linear(size, vocabulary, bias=False)

    def forward(self, ids, caches=None, before=0):
        x = self.token(ids) + self.position.weight[before:before + ids.shape[1]]
        for i, layer in enumerate(self.layers):
            x = layer(x, None if caches is None else caches[i])
        return self.head(self.norm(x))


class Decode(nn.Module):
    """64 symbols one after another, each the likeliest after those before it, or those of `ids`. Gives all scores."""

    def __init__(self):
        super().__init__()
        self.gpt = GPT()

    def forward(self, first, ids=None):
        caches, symbol, scores = [[] for _ in self.gpt.layers], first, []
        for i in range(64):
            if ids is not None:
                symbol = ids[:, i:i + 1]
            scores.append(self.gpt(symbol, caches, i)[:, -1])
            symbol = scores[-1].argmax(-1, keepdim=True)
        return torch.stack(scores, 1)


def pair(inp, out):
    block = lambda i, o: nn.Sequential(conv(i, o, 3), nn.BatchNorm2d(o), nn.ReLU())
    return [block(inp, out), block(out, out)]


class Up(nn.Module):
    def __init__(self, inp, out):
        super().__init__()
        self.up, self.blocks = nn.ConvTranspose2d(inp, out, 2, 2), nn.Sequential(*pair(2 * out, out))

    def forward(self, x, skip):
        return self.blocks(torch.cat([skip, self.up(x)], 1))


class UNet(nn.Module):
    def __init__(self, base=32):
        super().__init__()
        c = [base << i for i in range(5)]
        self.down = nn.ModuleList([nn.Sequential(*pair(3, c[0]))])
        self.down += [nn.Sequential(nn.MaxPool2d(2), *pair(c[i], c[i + 1])) for i in range(4)]
        self.up = nn.ModuleList(Up(c[i + 1], c[i]) for i in (3, 2, 1, 0))
        self.head = nn.Conv2d(base, 2, 1)

    def forward(self, x):
        skips = []
        for layer in self.down:
            x = layer(x)
            skips.append(x)
        for i, layer in enumerate(self.up):
            x = layer(x, skips[3 - i])
        return self.head(x)


class MatMul(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1024, 1024))

    def forward(self, x):
        return torch.matmul(x, self.weight)


class Chain(nn.Module):
    """100 products in a row."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(16))

    def forward(self, x):
        for _ in range(100):
            x = x * self.weight
        return x


class Block(nn.Module):
    """The block of torchresidual's README by hand."""

    def __init__(self):
        super().__init__()
        self.linear, self.norm = nn.Linear(64, 64), nn.LayerNorm(64)

    def forward(self, x):
        return self.norm(torch.relu(self.linear(x))) + x


def torchresidual_block():
    from torchresidual import Apply, Record, ResidualSequential

    return ResidualSequential(Record(name="r"), nn.Linear(64, 64), nn.ReLU(), nn.LayerNorm(64), Apply(record_name="r"))


def torch_circuit_block():
    from torch_circuit import Circuit, GetInput, SaveInput

    return Circuit(SaveInput("r"), nn.Linear(64, 64), nn.ReLU(), nn.LayerNorm(64), GetInput("r"))


# ---- workloads --------------------------------------------------------------------------------------------------------------

def image(batch, size):
    return torch.randn(batch, 3, size, size)


def tokens(batch, length):
    return torch.randint(0, 96, (batch, length))


def labels(classes, *shape):
    return torch.randint(0, classes, shape)


def class_loss(scores, target):
    return F.cross_entropy(scores.reshape(-1, scores.shape[-1]), target.reshape(-1))


SGD = lambda p: torch.optim.SGD(p, 1e-3, momentum=0.9, fused=True)
ADAM = lambda p: torch.optim.Adam(p, 1e-3, fused=True)
ADAMW = lambda p: torch.optim.AdamW(p, 1e-3, fused=True)

# model, input, and for a training step target, loss and optimiser
WORKLOADS = {
    "mlp-tiny": (lambda: mlp(8, 32, 32, 4), lambda: torch.randn(1, 8)),
    "mlp-small": (lambda: mlp(64, 256, 256, 18), lambda: torch.randn(1, 64)),
    "res-mlp-step": (residual_mlp, lambda: torch.randn(8, 64), lambda: labels(10, 8), class_loss, ADAM),
    "resnet18-step": (lambda: ResNet(BasicBlock, (2, 2, 2, 2), 10, True), lambda: image(32, 32), lambda: labels(10, 32), class_loss, SGD),
    "resnet50-b1": (lambda: ResNet(Bottleneck, (3, 4, 6, 3), 1000, False), lambda: image(1, 224)),
    "resnet50-b8": (lambda: ResNet(Bottleneck, (3, 4, 6, 3), 1000, False), lambda: image(8, 224)),
    "lstm-lm-step": (LSTMLanguageModel, lambda: tokens(32, 64), lambda: tokens(32, 64), class_loss, SGD),
    "lstm-1": (lambda: nn.LSTM(64, 128, batch_first=True), lambda: torch.randn(1, 1, 64)),
    "gpt-step": (GPT, lambda: tokens(8, 256), lambda: tokens(8, 256), class_loss, ADAMW),
    "gpt-decode64": (Decode, lambda: torch.zeros(1, 1, dtype=torch.long)),
    "unet-infer": (UNet, lambda: image(1, 256)),
    "unet-step": (UNet, lambda: image(4, 128), lambda: labels(2, 4, 128, 128), F.cross_entropy, SGD),
    "mobilenetv2-b1": (MobileNetV2, lambda: image(1, 224)),
    "matmul-1024": (MatMul, lambda: torch.randn(1024, 1024)),
    "conv1x1": (lambda: conv(256, 512, 1), lambda: torch.randn(8, 256, 28, 28)),
    "eager-op": (Chain, lambda: torch.ones(16)),
    "eager-op-backward": (Chain, lambda: torch.ones(16)),
    "residual-block": (Block, lambda: torch.randn(8, 64)),
    "residual-block-step": (Block, lambda: torch.randn(8, 64), lambda: torch.randn(8, 64), F.mse_loss, ADAM),
}
DECODE = "gpt-decode64"
WITH_GRADIENT = {"eager-op", "eager-op-backward"}
# The same model from a library of its own; the order of its parameters is the same.
OTHER_MODELS = {"torchresidual": torchresidual_block, "torch-circuit": torch_circuit_block}


def export_onnx(model, x, file):
    torch.onnx.export(model, (x,), file, dynamo=False, opset_version=17)


class Run:
    """One workload: forward() for inference, or a training step that gives its loss."""

    def __init__(self, name, peer, bf16):
        make, inp, *training = WORKLOADS[name]
        torch.manual_seed(1)
        self.name, self.model, self.x = name, OTHER_MODELS.get(peer, make)(), inp()
        self.y = training[0]() if training else None
        if training:
            self.loss, self.optimiser = training[1], training[2](self.model.parameters())
        if peer == "channels_last" or (peer == "compile" and self.x.dim() == 4):
            self.model, self.x = self.model.to(memory_format=torch.channels_last), self.x.to(memory_format=torch.channels_last)
        bf16 = bf16 and peer != "eager-f32"
        self.autocast = bf16
        if bf16 and not training and self.x.dim() != 4:
            self.model, self.autocast = self.model.bfloat16(), False
            self.x = self.x.bfloat16() if self.x.is_floating_point() else self.x
        if not training:
            self.model.eval()
        self.call = torch.compile(self.model) if peer == "compile" else self.model
        # Without gradients, unless they are what is measured.
        self.mode = functools.partial(torch.inference_mode, not training and name not in WITH_GRADIENT)

    def __call__(self):
        if self.name == "eager-op":
            return self.model(self.x)
        if self.name == "eager-op-backward":
            self.model(self.x).backward(self.x)
            return self.model.weight.grad
        return self.forward() if self.y is None else self.step()

    def forward(self, *more):
        with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            return self.call(self.x, *more)

    def step(self):
        self.optimiser.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            loss = self.loss(self.call(self.x), self.y)
        loss.backward()
        self.optimiser.step()
        return loss.detach()

    def result(self, ids=None):
        """Of a step: its losses after one and after three steps."""
        if self.y is None:
            out = self() if ids is None else self.forward(ids)
            return (out[0] if isinstance(out, tuple) else out).float().contiguous()
        losses = [self.step().float() for _ in range(4)]
        return torch.stack([losses[1], losses[3]])


class OnnxRun:
    def __init__(self, name, threads):
        import onnxruntime

        run, file = Run(name, "eager", False), io.BytesIO()
        export_onnx(run.model, run.x, file)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(file.getvalue(), options, providers=["CPUExecutionProvider"])
        self.mode = contextlib.nullcontext
        self.feed = {self.session.get_inputs()[0].name: run.x.numpy()}

    def __call__(self):
        return self.session.run(None, self.feed)

    def result(self, ids=None):
        return torch.from_numpy(self()[0])


# ---- commands ---------------------------------------------------------------------------------------------------------------

def export(name, path):
    from safetensors.torch import save_file

    run = Run(name, "eager", False)
    tensors = {"model." + key: value.detach().clone().contiguous() for key, value in run.model.state_dict().items()}
    tensors["x"] = run.x if run.x.is_floating_point() else run.x + 1
    if run.y is not None:
        tensors["y"] = run.y if run.y.is_floating_point() else run.y + 1
    with run.mode():
        tensors["result"] = run.result().detach().clone()
    if name == DECODE:      # the symbols fed in: later ones depend on rounding
        tensors["ids"] = torch.cat([run.x, tensors["result"].argmax(-1)[:, :-1]], 1) + 1
    save_file({key: value.contiguous() for key, value in tensors.items()}, path)
    return "written"


def onnx(name, path):
    run = Run(name, "eager", False)
    export_onnx(run.model, run.x, path)
    return "written"


def difference(got, want):
    return ((got - want).abs().max() / want.abs().max()).item()


def build(peer, name, dtype, threads, path):
    torch.set_num_threads(int(threads))
    torch._dynamo.reset()
    run = OnnxRun(name, int(threads)) if peer == "onnxruntime" else Run(name, peer, dtype == "bf16")
    runs[peer] = run
    if path == "-":
        return "ready 0"
    from safetensors.torch import load_file

    file = load_file(path)
    ids = file["ids"] - 1 if "ids" in file else None
    with run.mode():
        return f"ready {difference(run.result(ids), file['result']):.3g}"


def measure(peer, seconds):
    run, seconds = runs[peer], float(seconds)
    with run.mode():
        once, count, cpu = known.get(peer, 0), 0, time.process_time()
        if once < 0.1:      # warm up
            begin = time.perf_counter()
            run()
            once, count = time.perf_counter() - begin, 1
        inner = max(1, int(0.002 / once))
        times, begin = [], time.perf_counter()
        last = begin
        while not times or last - begin < seconds:
            for _ in range(inner):
                run()
            now = time.perf_counter()
            times.append((now - last) / inner)
            last = now
        cpu = time.process_time() - cpu
    known[peer] = statistics.median(times)
    return f"us {known[peer] * 1e6:.6f} {min(times) * 1e6:.6f} {cpu:.4f} {count + len(times) * inner}"


def memory():
    with open("/proc/self/status") as status:
        return "kb " + next(line.split()[1] for line in status if line.startswith("VmHWM"))


runs, known = {}, {}
COMMANDS = {"export": export, "onnx": onnx, "build": build, "run": measure, "memory": memory}
answers, sys.stdout = sys.stdout, sys.stderr      # libraries print; answers are lines of their own

for line in sys.stdin:
    command, *words = line.split()
    if command == "quit":
        break
    try:
        answer = COMMANDS[command](*words)
    except Exception as problem:      # the row goes on without this peer
        answer = "failed " + " ".join(f"{type(problem).__name__}: {problem}".split())[:300]
    print(answer, file=answers, flush=True)
