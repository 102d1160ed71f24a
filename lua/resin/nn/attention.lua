--- Attention: nn.MultiheadAttention and nn.TransformerEncoderLayer, with PyTorch's names, shapes and initial values.
-- Sequences are [T, B, E], or [B, T, E] with batch_first, or [T, E]. One op does the attention; it reads the heads where the
-- projection left them. Only when the weights are asked for, they are computed as a matrix.
--
-- Masks mean what they mean in PyTorch's MultiheadAttention: bool, true is masked out; or floats, which are added. (In
-- F.scaled_dot_product_attention true takes part.)

local check = require "resin.check"
local class = require "resin.nn.class"
local args = require "resin.nn.args"
local init = require "resin.nn.initialise"
local create = require "resin.create"
local Linear = require "resin.nn.linear".Linear
local LayerNorm = require "resin.nn.norm".LayerNorm
local Module = require "resin.nn.module"
local ops = require "resin.ops"
local scope = require "resin.scope"
local shapes = require "resin.nn.shapes"
local Tensor = require "resin.tensor"

local getmetatable = getmetatable

-- ---- multi-head attention -------------------------------------------------------------------------------------------------

--- nn.MultiheadAttention(embed_dim, num_heads, {dropout = 0, bias = true, kdim, vdim, batch_first = false}).
--- attn(x) is self-attention, attn(q, k, v) cross-attention; the last argument may be a table of options: key_padding_mask
--- [B, S], attn_mask [L, S] or [B * num_heads, L, S], is_causal, need_weights (default false: then the weights are the second
--- result), average_attn_weights; and key and value, for calls through a container.
---@class resin.nn.MultiheadAttention: resin.nn.Module
---@field in_proj_weight resin.Tensor?  [3 * embed_dim, embed_dim]; without it q_proj_weight, k_proj_weight, v_proj_weight
---@field in_proj_bias resin.Tensor?    [3 * embed_dim]
---@field out_proj resin.nn.Linear
local MultiheadAttention = class.define("MultiheadAttention", Module, true)

MultiheadAttention.layout = "features_last"
MultiheadAttention.arguments = {
  {"embed_dim", "integer", min = 1},
  {"num_heads", "integer", min = 1},
  {"dropout", "number", min = 0, max = 1, default = 0},
  {"bias", "boolean", default = true, hidden = true},
  {"add_bias_kv", "boolean", default = false, hidden = true},
  {"add_zero_attn", "boolean", default = false, hidden = true},
  {"kdim", "integer", min = 1, optional = true},
  {"vdim", "integer", min = 1, optional = true},
  {"batch_first", "boolean", default = false},
  {"dtype", "dtype", default = "f32", hidden = true},
}

local function xavier_parameter(rows, columns, dtype)
  return init.uniform_parameter({rows, columns}, dtype, math.sqrt(6 / (rows + columns)))
end

function MultiheadAttention:init(...)
  local o = args.accept(self, MultiheadAttention.arguments, ...)
  local size = o.embed_dim
  for _, name in ipairs{"add_bias_kv", "add_zero_attn"} do
    if o[name] then check.fail("%s: %s is not supported", self.type, name) end
  end
  if size % o.num_heads ~= 0 then
    check.fail("%s: embed_dim %d must be a multiple of num_heads %d", self.type, size, o.num_heads)
  end
  local same = (o.kdim or size) == size and (o.vdim or size) == size
  self.head_dim = size / o.num_heads
  self:register_parameter("in_proj_weight", same and xavier_parameter(3 * size, size, o.dtype) or nil)
  self:register_parameter("q_proj_weight", not same and xavier_parameter(size, size, o.dtype) or nil)
  self:register_parameter("k_proj_weight", not same and xavier_parameter(size, o.kdim or size, o.dtype) or nil)
  self:register_parameter("v_proj_weight", not same and xavier_parameter(size, o.vdim or size, o.dtype) or nil)
  self:register_parameter("in_proj_bias", o.bias and init.constant_parameter({3 * size}, o.dtype, 0) or nil)
  self.out_proj = Linear(size, size, {bias = o.bias, dtype = o.dtype})
  if o.bias then init.zeros_(self.out_proj.bias) end
end

-- Rows (count - 1) * embed_dim … of a packed parameter.
local function part(self, t, first, count)
  return t and ops.narrow(t, 1, (first - 1) * self.embed_dim + 1, count * self.embed_dim)
end

-- [L, B, h * d] → [B, h, L, d], a view; [L, h * d] → [h, L, d].
local function split_heads(self, t, length, batch)
  local h, d = self.num_heads, self.head_dim
  if not batch then return ops.permute(ops.reshape(t, {length, h, d}), {2, 1, 3}) end
  if self.batch_first then return ops.permute(ops.reshape(t, {batch, length, h, d}), {1, 3, 2, 4}) end
  return ops.permute(ops.reshape(t, {length, batch, h, d}), {2, 3, 1, 4})
end

local function join_heads(self, t, length, batch)
  if not batch then return ops.reshape(ops.permute(t, {2, 1, 3}), {length, self.embed_dim}) end
  if self.batch_first then return ops.reshape(ops.permute(t, {1, 3, 2, 4}), {batch, length, self.embed_dim}) end
  return ops.reshape(ops.permute(t, {3, 1, 2, 4}), {length, batch, self.embed_dim})
end

local function sizes(self, t)
  local shape = t.shape
  if #shape == 2 then return shape[1], nil end
  if self.batch_first then return shape[2], shape[1] end
  return shape[1], shape[2]
end

-- Queries, keys and values before they are split into heads.
local function project(self, query, key, value)
  local w, b, size = self.in_proj_weight, self.in_proj_bias, self.embed_dim
  if w and key == query and value == query then
    local all = ops.linear(query, w, b)
    return ops.narrow(all, -1, 1, size), ops.narrow(all, -1, size + 1, size), ops.narrow(all, -1, 2 * size + 1, size)
  end
  if w and key == value then
    local all = ops.linear(key, part(self, w, 2, 2), part(self, b, 2, 2))
    return ops.linear(query, part(self, w, 1, 1), part(self, b, 1, 1)), ops.narrow(all, -1, 1, size), ops.narrow(all, -1, size + 1, size)
  end
  local wq, wk, wv = self.q_proj_weight, self.k_proj_weight, self.v_proj_weight
  if w then wq, wk, wv = part(self, w, 1, 1), part(self, w, 2, 1), part(self, w, 3, 1) end
  return ops.linear(query, wq, part(self, b, 1, 1)), ops.linear(key, wk, part(self, b, 2, 1)), ops.linear(value, wv, part(self, b, 3, 1))
end

-- ---- masks ----------------------------------------------------------------------------------------------------------------

-- -inf where a bool mask is true, 0 elsewhere; floats as they are.
local function additive(mask, dtype)
  if mask.dtype == "bool" then mask = ops.where(mask, -math.huge, 0) end
  return mask.dtype == dtype and mask or ops.cast(mask, dtype)
end

local function check_mask(self, mask, name)
  check.tensor(mask, ("%s: %s"):format(self.type, name))
  if mask.dtype ~= "bool" and not mask.dtype:match("f%d+$") then
    check.fail("%s: %s must be bool (true: masked out) or floats that are added, got %s", self.type, name, check.describe(mask))
  end
  return mask
end

local function bad_mask(self, mask, name, wanted)
  check.fail("%s: %s must be %s, got %s", self.type, name, wanted, check.shape_text(mask))
end

-- Both masks in one, in the sense of the op (bool: true takes part), fit to [B, h, L, S]; nil when there is none.
local function join_masks(self, o, length, source, batch, dtype)
  local mask, padding = o.attn_mask, o.key_padding_mask
  local h = self.num_heads
  if mask ~= nil then
    local s = check_mask(self, mask, "attn_mask").shape
    local fits = #s >= 2 and s[#s - 1] == length and s[#s] == source and (#s == 2 or (#s == 3 and s[1] == (batch or 1) * h))
    if not fits then
      bad_mask(self, mask, "attn_mask", ("[%d, %d] or [%d, %d, %d]"):format(length, source, (batch or 1) * h, length, source))
    end
    if #s == 3 and batch then mask = ops.reshape(mask, {batch, h, length, source}) end
  end
  if padding ~= nil then
    local s = check_mask(self, padding, "key_padding_mask").shape
    if batch then
      if #s ~= 2 or s[1] ~= batch or s[2] ~= source then bad_mask(self, padding, "key_padding_mask", ("[%d, %d]"):format(batch, source)) end
      padding = ops.reshape(padding, {batch, 1, 1, source})
    else
      if #s ~= 1 or s[1] ~= source then bad_mask(self, padding, "key_padding_mask", ("[%d]"):format(source)) end
      padding = ops.reshape(padding, {1, 1, source})
    end
  end
  if mask and padding then
    if mask.dtype == "bool" and padding.dtype == "bool" then return ops.logical_not(ops.logical_or(mask, padding)) end
    return ops.add(additive(mask, dtype), additive(padding, dtype))
  end
  mask = mask or padding
  if not mask then return nil end
  return mask.dtype == "bool" and ops.logical_not(mask) or additive(mask, dtype)
end

-- The attention with its weights, step by step.
local function weigh(self, q, k, v, mask, causal, dropout)
  local scores = ops.matmul(ops.mul(q, 1 / math.sqrt(self.head_dim)), ops.transpose(k, -2, -1))
  if causal then
    local rows, columns = create.arange(q.shape[q.ndim - 1]), create.arange(k.shape[k.ndim - 1])
    scores = ops.where(ops.gt(ops.unsqueeze(columns, 1), ops.unsqueeze(rows, 2)), -math.huge, scores)
  end
  if mask then
    scores = mask.dtype == "bool" and ops.where(mask, scores, -math.huge) or ops.add(scores, mask)
  end
  local weights = ops.softmax(scores, -1)
  if dropout > 0 then weights = ops.dropout(weights, dropout, true) end
  return ops.matmul(weights, v), weights
end

local OPTIONS = {"key", "value", "key_padding_mask", "attn_mask", "is_causal", "need_weights", "average_attn_weights"}
local NONE = {}

local function attend(self, query, key, value, o)
  local length, batch = sizes(self, query)
  local source = sizes(self, key)
  local q, k, v = project(self, query, key, value)
  q, k, v = split_heads(self, q, length, batch), split_heads(self, k, source, batch), split_heads(self, v, source, batch)
  local mask = (o.attn_mask ~= nil or o.key_padding_mask ~= nil) and join_masks(self, o, length, source, batch, q.dtype) or nil
  local dropout, causal = self.training and self.dropout or 0, o.is_causal == true
  local y, weights
  if o.need_weights then
    y, weights = weigh(self, q, k, v, mask, causal, dropout)
    if o.average_attn_weights ~= false then weights = ops.mean(weights, batch and 2 or 1) end
  else
    y = ops.scaled_dot_product_attention(q, k, v, mask, dropout, causal)
  end
  return ops.linear(join_heads(self, y, length, batch), self.out_proj.weight, self.out_proj.bias), weights
end

local function check_sequence(self, t, name, size, like)
  check.tensor(t, ("%s: %s"):format(self.type, name))
  local shape = t.shape
  local good = (#shape == 2 or #shape == 3) and shape[#shape] == size
  if good and like then
    local _, batch = sizes(self, t)
    local _, wanted = sizes(self, like)
    good = batch == wanted
  end
  if not good then
    check.fail("%s: %s must be %s or [T, %d]%s, got %s", self.type, name,
      (self.batch_first and "[B, T, %d]" or "[T, B, %d]"):format(size), size,
      like and (" and go with the query %s"):format(check.shape_text(like)) or "", check.shape_text(t))
  end
end

function MultiheadAttention:forward(query, key, value, options)
  if key ~= nil and getmetatable(key) ~= Tensor and class.is_plain(key) then
    key, value, options = nil, value, key
  elseif value ~= nil and getmetatable(value) ~= Tensor and class.is_plain(value) then
    value, options = nil, value
  end
  local o = options == nil and NONE or check.options(options, OPTIONS, self.type)
  if o.is_causal ~= nil then check.boolean(o.is_causal, self.type .. ": is_causal") end
  if o.need_weights ~= nil then check.boolean(o.need_weights, self.type .. ": need_weights") end
  if key == nil then key = o.key end
  if value == nil then value = o.value end
  if key == nil and value ~= nil then check.fail("%s: a value needs a key", self.type) end
  check_sequence(self, query, "query", self.embed_dim)
  if key == nil then
    key = query
    if (self.kdim or self.embed_dim) ~= self.embed_dim then
      check.fail("%s: with kdim %d it needs a key: attn(q, k, v)", self.type, self.kdim)
    end
  end
  if value == nil then value = key end
  if key ~= query then check_sequence(self, key, "key", self.kdim or self.embed_dim, query) end
  if value ~= query then check_sequence(self, value, "value", self.vdim or self.embed_dim, query) end
  if value ~= key and sizes(self, value) ~= sizes(self, key) then
    check.fail("%s: key %s and value %s must have the same length", self.type, check.shape_text(key), check.shape_text(value))
  end
  return scope.run(attend, self, query, key, value, o)
end

function MultiheadAttention:output_shape(shape)
  shapes.check(shape, self.type, 2, 3)
  local last = shape[#shape]
  if last and last ~= self.embed_dim then
    check.fail("%s: input %s has %d features in its last dimension, expected %d", self.type, shapes.text(shape), last,
      self.embed_dim)
  end
  local out = shapes.copy(shape)
  out[#out] = self.embed_dim
  return out
end

-- ---- transformer ----------------------------------------------------------------------------------------------------------

--- nn.TransformerEncoderLayer(d_model, nhead, {dim_feedforward = 2048, dropout = 0.1, activation = "relu" or "gelu",
--- layer_norm_eps = 1e-5, batch_first = false, norm_first = false, bias = true}): self-attention and a network of two layers, each
--- with a skip and a layer norm, after it or, with norm_first, before it. layer(x, {mask, key_padding_mask, is_causal}).
---@class resin.nn.TransformerEncoderLayer: resin.nn.Module
local TransformerEncoderLayer = class.define("TransformerEncoderLayer", Module, true)

TransformerEncoderLayer.layout = "features_last"
TransformerEncoderLayer.arguments = {
  {"d_model", "integer", min = 1},
  {"nhead", "integer", min = 1},
  {"dim_feedforward", "integer", min = 1, default = 2048},
  {"dropout", "number", min = 0, max = 1, default = 0.1},
  {"activation", "enum", choices = {"relu", "gelu"}, default = "relu"},
  {"layer_norm_eps", "number", min = 0, default = 1e-5},
  {"batch_first", "boolean", default = false},
  {"norm_first", "boolean", default = false},
  {"bias", "boolean", default = true, hidden = true},
  {"dtype", "dtype", default = "f32", hidden = true},
}

function TransformerEncoderLayer:init(...)
  local o = args.accept(self, TransformerEncoderLayer.arguments, ...)
  local plain = {bias = o.bias, dtype = o.dtype}
  local norm = {eps = o.layer_norm_eps, bias = o.bias, dtype = o.dtype}
  self.self_attn = MultiheadAttention(o.d_model, o.nhead,
    {dropout = o.dropout, bias = o.bias, batch_first = o.batch_first, dtype = o.dtype})
  self.linear1 = Linear(o.d_model, o.dim_feedforward, plain)
  self.linear2 = Linear(o.dim_feedforward, o.d_model, plain)
  self.norm1 = LayerNorm(o.d_model, norm)
  self.norm2 = LayerNorm(o.d_model, norm)
end

local function drop(self, x)
  return self.training and self.dropout > 0 and ops.dropout(x, self.dropout, true) or x
end

local function feed_forward(self, x)
  local y = self.linear1:forward(x)
  y = self.activation == "gelu" and ops.gelu(y) or ops.relu(y)
  return drop(self, self.linear2:forward(drop(self, y)))
end

local function encode(self, x, options)
  if self.norm_first then
    x = ops.add(x, drop(self, (self.self_attn:forward(self.norm1:forward(x), options))))
    return ops.add(x, feed_forward(self, self.norm2:forward(x)))
  end
  x = self.norm1:forward(ops.add(x, drop(self, (self.self_attn:forward(x, options)))))
  return self.norm2:forward(ops.add(x, feed_forward(self, x)))
end

local ENCODER_OPTIONS = {"mask", "key_padding_mask", "is_causal"}

function TransformerEncoderLayer:forward(x, options)
  local o = nil
  if options ~= nil then
    check.options(options, ENCODER_OPTIONS, self.type)
    o = {attn_mask = options.mask, key_padding_mask = options.key_padding_mask, is_causal = options.is_causal}
  end
  return scope.run(encode, self, x, o)
end

function TransformerEncoderLayer:output_shape(shape) return self.self_attn:output_shape(shape) end

return {MultiheadAttention = MultiheadAttention, TransformerEncoderLayer = TransformerEncoderLayer}
