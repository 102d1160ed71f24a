--- nn.Linear and nn.Embedding: parameters applied along the last dimension.

local check = require "resin.check"
local class = require "resin.nn.class"
local args = require "resin.nn.args"
local init = require "resin.nn.initialise"
local Module = require "resin.nn.module"
local ops = require "resin.ops"
local scope = require "resin.scope"
local create = require "resin.create"
local shapes = require "resin.nn.shapes"

--- y = x·Wᵀ + b over the last dimension.
--- nn.Linear(in_features, out_features, {bias = true, dtype = "f32"}); initial values U(-1/√in, 1/√in).
---@class resin.nn.Linear: resin.nn.Module
---@field weight resin.Tensor  [out_features, in_features]
---@field bias resin.Tensor?   [out_features]
local Linear = class.define("Linear", Module, true)

Linear.layout = "features_last"
Linear.arguments = {
  {"in_features", "integer", min = 1},
  {"out_features", "integer", min = 1},
  {"bias", "boolean", default = true, hidden = true},
  {"dtype", "dtype", default = "f32", hidden = true},
}

function Linear:init(...)
  local o = args.accept(self, Linear.arguments, ...)
  local bound = 1 / math.sqrt(o.in_features)
  self:register_parameter("weight", init.uniform_parameter({o.out_features, o.in_features}, o.dtype, bound))
  self:register_parameter("bias", o.bias and init.uniform_parameter({o.out_features}, o.dtype, bound) or nil)
end

function Linear:forward(x)
  return ops.linear(x, self.weight, self.bias)
end

function Linear:output_shape(shape)
  shapes.check(shape, self.type, 1)
  local last = shape[#shape]
  if last and last ~= self.in_features then
    check.fail("%s: input %s has %d features in its last dimension, expected %d", self.type, shapes.text(shape), last,
      self.in_features)
  end
  local out = shapes.copy(shape)
  out[#out] = self.out_features
  return out
end

--- A table of vectors, looked up by ids that count from 1.
--- nn.Embedding(num_embeddings, embedding_dim, {padding_idx, dtype}); initial values N(0, 1). The vector of padding_idx is
--- zero at first and gets no gradient.
---@class resin.nn.Embedding: resin.nn.Module
---@field weight resin.Tensor  [num_embeddings, embedding_dim]
local Embedding = class.define("Embedding", Module, true)

Embedding.layout = "features_last"
Embedding.arguments = {
  {"num_embeddings", "integer", min = 1},
  {"embedding_dim", "integer", min = 1},
  {"padding_idx", "integer", optional = true},
  {"dtype", "dtype", default = "f32", hidden = true},
}

local function zero_row(weight, row)
  ops.narrow(weight, 1, row, 1):zero_()
end

function Embedding:init(...)
  local o = args.accept(self, Embedding.arguments, ...)
  local weight = scope.promote(create.empty({o.num_embeddings, o.embedding_dim}, {dtype = o.dtype}))
  weight:normal_(0, 1)
  local padding = o.padding_idx
  self.padding_index = -1            -- as the op counts: from 0, -1 for none
  if padding then
    if padding < 0 then padding = o.num_embeddings + 1 + padding end
    if padding < 1 or padding > o.num_embeddings then
      check.fail("%s: padding_idx must be from 1 to %d (or negative, from the end), got %d", self.type, o.num_embeddings,
        o.padding_idx)
    end
    self.padding_idx = padding
    self.padding_index = padding - 1
    scope.run(zero_row, weight, padding)
  end
  self:register_parameter("weight", weight:requires_grad_(true))
end

function Embedding:forward(ids)
  return ops.embedding(self.weight, ids, self.padding_index)
end

function Embedding:output_shape(shape)
  local out = shapes.copy(shapes.check(shape, self.type))
  out[#out + 1] = self.embedding_dim
  return out
end

return {Linear = Linear, Embedding = Embedding}
