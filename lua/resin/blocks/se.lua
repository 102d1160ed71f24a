--- SELayer: squeeze and excitation (Hu and others 2018).

local check = require "resin.check"
local class = require "resin.nn.class"
local Module = require "resin.nn.module"
local ops = require "resin.ops"
local scope = require "resin.scope"
local shapes = require "resin.nn.shapes"
local Linear = require("resin.nn.linear").Linear
local Sequential = require("resin.nn.sequential").Sequential
local activations = require "resin.nn.activation"

--- Scales each channel of [N, C, …] by sigmoid(W2 relu(W1 mean(channel))): SELayer(channels, reduction = 16), or
--- SELayer(64, {reduction = 8}). Parameters fc.0.weight [C / reduction, C] and fc.2.weight [C, C / reduction].
---@class resin.blocks.SELayer: resin.nn.Module
local SELayer = class.define("SELayer", Module, true)

SELayer.layout = "channels_first"

function SELayer:init(channels, reduction)
  if class.is_plain(reduction) then reduction = check.options(reduction, {"reduction"}, "SELayer").reduction end
  if reduction == nil then reduction = 16 end
  self.channels = check.integer(channels, "SELayer: channels", 1)
  self.reduction = check.integer(reduction, "SELayer: reduction", 1)
  local inner = math.floor(channels / reduction)
  if inner < 1 then check.fail("SELayer: reduction %d leaves nothing of %d channels", reduction, channels) end
  self.fc = Sequential(Linear(channels, inner, {bias = false}), activations.ReLU(), Linear(inner, channels, {bias = false}),
    activations.Sigmoid())
end

local function run(self, x)
  local shape, dims = x.shape, {}
  if #shape < 3 or shape[2] ~= self.channels then
    check.fail("SELayer: input must be [N, %d, …], got %s", self.channels, check.shape_text(x))
  end
  local gate_shape = {shape[1], shape[2]}
  for i = 3, #shape do dims[#dims + 1], gate_shape[i] = i, 1 end
  local gate = self.fc:forward(ops.mean(x, dims))
  return ops.mul(x, ops.reshape(gate, gate_shape))
end

function SELayer:forward(x)
  check.tensor(x, "SELayer: input")
  return scope.run(run, self, x)
end

function SELayer:output_shape(shape)
  shapes.check(shape, self.type, 3)
  if shape[2] and shape[2] ~= self.channels then
    check.fail("SELayer: input %s has %d channels, expected %d", shapes.text(shape), shape[2], self.channels)
  end
  return shapes.copy(shape)
end

function SELayer:label() return ("SELayer(%d, {reduction = %d})"):format(self.channels, self.reduction) end

return {SELayer = SELayer}
