"""From the start of a process to a first result, as bench/start.lua. usage: start.py eager|onnxruntime FILE

FILE holds mlp-small as safetensors, for ONNX Runtime as ONNX. Prints the sum of the result.
"""
import sys

peer, path = sys.argv[1:]
if peer == "onnxruntime":
    import numpy
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    print(session.run(None, {session.get_inputs()[0].name: numpy.ones((1, 64), numpy.float32)})[0].sum())
else:
    import torch
    from safetensors.torch import load_file
    from torch import nn

    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 18)).eval()
    model.load_state_dict({key[6:]: value for key, value in load_file(path).items() if key.startswith("model.")})
    with torch.inference_mode():
        print(model(torch.ones(1, 64)).sum().item())
