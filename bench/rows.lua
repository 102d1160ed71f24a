-- The rows of the benchmark.
--   workload, variant   the variant is a way of writing the same for resin
--   group               a name for ONLY that stands for several rows
--   dtype               "f32" unless given
--   measure             "time" (unless given), "memory" (peak of the process) or "start" (process start to first result)
--   peers               those that the row has a counterpart for
--   per                 what is timed does this many of what is reported
--   gflop               work, for rows that are compared with the machine's peak
--   program, figure     resin's side is a program that prints "FIGURE NANOSECONDS"
--   goal                ratios, time (memory) of the peer over ours: `eager` is PyTorch's better layout, `best` the best peer;
--                       `us` is a time, `peak` a share of the machine's peak

local PLAIN, IMAGES = { "eager", "compile" }, { "eager", "channels_last", "compile" }
local PLAIN_ONNX, IMAGES_ONNX = { "eager", "compile", "onnxruntime" }, { "eager", "channels_last", "compile", "onnxruntime" }
local BLOCK = { "eager", "torch-circuit", "torchresidual" }

local rows = {
  { workload = "mlp-tiny", peers = PLAIN_ONNX, goal = { eager = 20, onnxruntime = 5, us = 1 } },
  { workload = "mlp-small", peers = PLAIN_ONNX, goal = { eager = 6, onnxruntime = 2 } },
  { workload = "res-mlp-step", peers = PLAIN, goal = { best = 20 } },
  { workload = "resnet18-step", peers = IMAGES, goal = { best = 2.0 } },
  { workload = "resnet50-b1", peers = IMAGES_ONNX, goal = { eager = 2.0, onnxruntime = 1.2 } },
  { workload = "resnet50-b8", peers = IMAGES_ONNX, goal = { eager = 2.0, onnxruntime = 1.2 } },
  { workload = "lstm-lm-step", peers = PLAIN, goal = { best = 1.35 } },
  { workload = "lstm-1", peers = PLAIN_ONNX, goal = { eager = 12, onnxruntime = 2 } },
  { workload = "gpt-step", peers = PLAIN, goal = { eager = 1.4, compile = 1.2 } },
  { workload = "gpt-decode64", peers = { "eager" }, goal = { eager = 1.5 } },
  { workload = "unet-infer", peers = IMAGES_ONNX, goal = { eager = 1.9, best = 1.5 } },
  { workload = "unet-step", peers = IMAGES, goal = { best = 1.8 } },
  { workload = "mobilenetv2-b1", peers = IMAGES_ONNX, goal = { eager = 3, onnxruntime = 1.1 } },

  { workload = "resnet18-step", dtype = "bf16", peers = IMAGES, goal = { best = 1.4 } },
  { workload = "unet-infer", dtype = "bf16", peers = IMAGES, goal = { best = 1.8 } },
  { workload = "unet-step", dtype = "bf16", peers = IMAGES, goal = { best = 1.5 } },
  { workload = "gpt-step", dtype = "bf16", peers = PLAIN, goal = { best = 1.4 } },
  -- The weights are bf16, the rest may be: PyTorch in f32 is a peer too, the one that the goal was set by.
  { workload = "gpt-decode64", dtype = "bf16", peers = { "eager", "eager-f32" }, goal = { best = 2.5 } },

  { workload = "matmul-1024", peers = PLAIN, gflop = 2 * 1024 ^ 3 / 1e9, goal = { peak = 0.85 } },
  { workload = "conv1x1", peers = IMAGES, gflop = 2 * 8 * 28 * 28 * 256 * 512 / 1e9, goal = { peak = 0.85 } },

  { workload = "mlp-small", measure = "start", peers = { "eager", "onnxruntime" }, goal = { us = 30000 } },
  { workload = "resnet18-step", measure = "memory", peers = { "eager", "channels_last" }, goal = { best = 1 / 0.6 } },
  { workload = "gpt-step", measure = "memory", peers = { "eager" }, goal = { best = 1 / 0.6 } },

  { workload = "eager-op", variant = "C", group = "eager", program = "eager", figure = "forward", peers = {}, goal = { us = 0.150 } },
  { workload = "eager-backward-node", variant = "C", group = "eager", program = "eager", figure = "backward", peers = {},
    goal = { us = 0.100 } },
  { workload = "eager-op", variant = "finaliser", group = "eager", per = 100, peers = { "eager" }, goal = { us = 1.0 } },
  { workload = "eager-op", variant = "scope", group = "eager", per = 100, peers = { "eager" }, goal = { us = 0.200 } },
  { workload = "eager-op-backward", group = "eager", per = 100, peers = { "eager" } },
  { workload = "residual-block", variant = "container", group = "residual", peers = BLOCK },
  { workload = "residual-block", variant = "hand", group = "residual", peers = BLOCK },
  { workload = "residual-block-step", variant = "container", group = "residual", peers = BLOCK },
  { workload = "residual-block-step", variant = "hand", group = "residual", peers = BLOCK },
}

for _, row in ipairs(rows) do
  row.dtype, row.measure, row.goal = row.dtype or "f32", row.measure or "time", row.goal or {}
end

return rows
