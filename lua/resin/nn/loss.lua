--- Losses: m(prediction, target) gives a 0-d tensor, or one value per element with reduction = "none".

local class = require "resin.nn.class"
local args = require "resin.nn.args"
local Module = require "resin.nn.module"
local ops = require "resin.ops"
local scope = require "resin.scope"

local REDUCTIONS = {"mean", "sum", "none"}

--- Softmax followed by the negative log-likelihood of class labels that count from 1.
--- nn.CrossEntropyLoss({weight, ignore_index, reduction = "mean", label_smoothing = 0}).
---@class resin.nn.CrossEntropyLoss: resin.nn.Module
---@field weight resin.Tensor?  one weight per class
local CrossEntropyLoss = class.define("CrossEntropyLoss", Module, true)

CrossEntropyLoss.arguments = {
  {"weight", "tensor", optional = true, hidden = true},
  {"ignore_index", "integer", default = -100},
  {"reduction", "enum", choices = REDUCTIONS, default = "mean"},
  {"label_smoothing", "number", min = 0, max = 1, default = 0},
}

function CrossEntropyLoss:init(...)
  local o = args.accept(self, CrossEntropyLoss.arguments, ...)
  self:register_buffer("weight", o.weight and scope.promote(o.weight) or nil)
end

function CrossEntropyLoss:forward(input, target)
  return ops.cross_entropy(input, target, self.weight, self.reduction, self.label_smoothing, self.ignore_index)
end

--- The mean of the squared differences. nn.MSELoss({reduction = "mean"}).
---@class resin.nn.MSELoss: resin.nn.Module
local MSELoss = class.define("MSELoss", Module, true)

MSELoss.arguments = {{"reduction", "enum", choices = REDUCTIONS, default = "mean"}}

function MSELoss:init(...)
  args.accept(self, MSELoss.arguments, ...)
end

function MSELoss:forward(input, target)
  return ops.mse_loss(input, target, self.reduction)
end

return {CrossEntropyLoss = CrossEntropyLoss, MSELoss = MSELoss}
