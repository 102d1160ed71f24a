--- Transformers (Vaswani and others 2017): EncoderLayer, transformer_encoder, gpt. Each layer is a residual plan of two skips, so
--- their paths have names.

local check = require "resin.check"
local class = require "resin.nn.class"
local create = require "resin.create"
local grad = require "resin.grad"
local init = require "resin.nn.initialise"
local nn = require "resin.nn"
local ops = require "resin.ops"
local scope = require "resin.scope"
local make = require "resin.blocks.make"
local Blocks = require "resin.blocks.list"
local Front = require "resin.blocks.front"
local joins = require "resin.blocks.joins"
local options = require "resin.models.options"

local transformer = {}

-- ---- one layer ------------------------------------------------------------------------------------------------------------

-- Steps of one branch with its skip: the norm before the layers, or after the addition.
local function branch(steps, i, norm, layers, dropout, norm_first, given)
  local function add(entry) steps[#steps + 1] = entry end
  add{"save" .. i, nn.Record("input" .. i)}
  if norm_first then add(norm) end
  for _, entry in ipairs(layers) do add(entry) end
  if dropout > 0 then add{"dropout" .. i, nn.Dropout(dropout)} end
  add{"add" .. i, Front.join("input" .. i, nil, given)}
  if not norm_first then add(norm) end
end

--- Self-attention and two linear layers, each with a skip and a norm: EncoderLayer{size, heads, feedforward, dropout, act, norm_first,
--- drop_path, layer_scale, scale, alpha} for sequences [B, T, size]. Parameters have the names of nn.TransformerEncoderLayer.
---@class resin.models.EncoderLayer: resin.blocks.Front
local EncoderLayer = class.define("EncoderLayer", Front, true)

local LAYER = options.with_joins{
  {"size", "integer", min = 1},
  {"heads", "integer", min = 1},
  {"feedforward", "integer", min = 1, optional = true},
  {"dropout", "number", min = 0, max = 1, default = 0.1},
  {"act", "enum", choices = {"relu", "gelu"}, default = "relu"},
  {"norm_first", "boolean", default = true},
}

function EncoderLayer:init(...)
  local o = options.read("EncoderLayer", LAYER, ...)
  local attention = {"self_attn", nn.MultiheadAttention(o.size, o.heads, {dropout = o.dropout, batch_first = true})}
  local hidden = o.feedforward or 4 * o.size
  local linear1, linear2 = {"linear1", nn.Linear(o.size, hidden)}, {"linear2", nn.Linear(hidden, o.size)}
  local norm1, norm2 = {"norm1", nn.LayerNorm(o.size)}, {"norm2", nn.LayerNorm(o.size)}
  local steps, inner = {}, {linear1, {"act", make.activation(o.act, "EncoderLayer: act")}, linear2}
  if o.dropout > 0 then table.insert(inner, 3, {"dropout", nn.Dropout(o.dropout)}) end
  if class.is_plain(o.drop_path) then check.fail("EncoderLayer: drop_path must be a number, got a table") end
  local join = joins.read(o, "EncoderLayer", 2)
  branch(steps, 1, norm1, {attention}, o.dropout, o.norm_first, join(1))
  branch(steps, 2, norm2, inner, o.dropout, o.norm_first, join(2))
  self:fill(steps, {attention, linear1, linear2, norm1, norm2, inner[2], unpack(EncoderLayer.dropouts(steps))})
end

-- The steps that must be seen because evaluation stops them.
function EncoderLayer.dropouts(steps)
  local list = {}
  for _, entry in ipairs(steps) do
    if entry[2]:is(nn.Dropout) then list[#list + 1] = entry end
  end
  return list
end

-- ---- what both networks share ---------------------------------------------------------------------------------------------

-- Vectors of ids [B, T] plus those of their positions.
local function embed(self, ids, before)
  check.tensor(ids, self.type .. ": ids")
  local shape = ids.shape
  if #shape ~= 2 then check.fail("%s: ids must be [B, T], got %s", self.type, check.shape_text(ids)) end
  if before + shape[2] > self.max_length then
    check.fail("%s: %d positions are more than max_length %d", self.type, before + shape[2], self.max_length)
  end
  return ops.add(self.token:forward(ids), ops.narrow(self.position.weight, 1, before + 1, shape[2]))
end

local function add_embeddings(self, o)
  rawset(self, "max_length", o.max_length)
  self.token = nn.Embedding(o.vocabulary, o.size)
  self.position = nn.Embedding(o.max_length, o.size)
end

-- For drawings: what runs, in a row. Positions are counted from the shape of the ids.
local function drawn(self)
  local list = {{add = {{"token", self.token}, {"position", self.position, dotted = true}}}}
  for i, layer in ipairs(self.layers) do list[i + 1] = {i, layer} end
  list[#list + 1] = {"norm", self.norm}
  if self.head then list[#list + 1] = {"head", self.head} end
  return list
end

local function run_layer(self, i, layer, x, given)
  local mark = check.push(self.type, "layer " .. i, layer.type)
  local y = layer:forward(x, given)
  check.pop(mark)
  return y
end

local function check_ids(self, shape)
  if type(shape) ~= "table" or #shape ~= 2 then check.fail("%s: output_shape: ids must be [B, T]", self.type) end
end

local COMMON = {
  {"vocabulary", "integer", min = 1},
  {"size", "integer", min = 1, default = 256},
  {"layers", "integer", min = 1, default = 4},
  {"heads", "integer", min = 1, default = 4},
  {"max_length", "integer", min = 1, default = 512},
  {"dropout", "number", min = 0, max = 1, default = 0.1},
}

local function with_common(more)
  local list = {}
  for i, entry in ipairs(COMMON) do list[i] = entry end
  for _, entry in ipairs(more) do list[#list + 1] = entry end
  return options.with_joins(list)
end

-- The options of the skips of layer i, as a function of i. drop_path counts layers; the factors count skips, two for each layer.
local function layer_options(o, what)
  local drop = options.joins({drop_path = o.drop_path}, what, o.layers)
  joins.read({scale = o.scale, alpha = o.alpha}, what, 2 * o.layers)      -- says what cannot be shared
  return function(i)
    local function of(value)
      if type(value) ~= "function" then return value end
      return function(k) return value(2 * i - 2 + k, 2 * o.layers) end
    end
    return {drop_path = drop(i).drop_path, drop_path_mode = o.drop_path_mode, layer_scale = o.layer_scale, scale = of(o.scale),
            alpha = of(o.alpha)}
  end
end

-- ---- encoder --------------------------------------------------------------------------------------------------------------

---@class resin.models.TransformerEncoder: resin.nn.Module
local TransformerEncoder = class.define("TransformerEncoder", nn.Module, true)

TransformerEncoder.layout = "features_last"

local ENCODER = with_common{
  {"feedforward", "integer", min = 1, optional = true},
  {"act", "enum", choices = {"relu", "gelu"}, default = "gelu"},
  {"norm_first", "boolean", default = true},
  {"num_classes", "integer", min = 1, optional = true},
}

function TransformerEncoder:init(...)
  local o = options.read("transformer_encoder", ENCODER, ...)
  add_embeddings(self, o)
  rawset(self, "out_features", o.num_classes or o.size)
  local layers, given = {}, layer_options(o, "transformer_encoder")
  for i = 1, o.layers do
    local layer = given(i)
    for _, name in ipairs{"size", "heads", "feedforward", "dropout", "act", "norm_first"} do layer[name] = o[name] end
    layers[i] = EncoderLayer(layer)
  end
  self.layers = Blocks(layers)
  self.norm = nn.LayerNorm(o.size)
  if o.num_classes then self.head = nn.Linear(o.size, o.num_classes) end
end

local function encode(self, ids, masks)
  local x = embed(self, ids, 0)
  for i, layer in ipairs(self.layers) do x = run_layer(self, i, layer, x, masks) end
  x = self.norm:forward(x)
  return self.head and self.head:forward(x) or x
end

TransformerEncoder.drawn = drawn

local MASKS = {"attn_mask", "key_padding_mask", "is_causal"}

function TransformerEncoder:forward(ids, masks)
  if masks ~= nil then masks = {self_attn = check.options(masks, MASKS, self.type)} end
  return scope.run(encode, self, ids, masks)
end

function TransformerEncoder:output_shape(shape)
  check_ids(self, shape)
  return {shape[1], shape[2], self.out_features}
end

--- Vectors, or scores, for each symbol of a sequence, from all of them.
--- transformer_encoder(vocabulary, {size = 256, layers = 4, heads = 4, max_length = 512, dropout = 0.1, feedforward = 4 size,
--- act = "gelu", norm_first = true, num_classes, drop_path, layer_scale, scale, alpha}). drop_path is the probability at the last
--- layer, from 0 at the first, or a table of one for each layer; the factors are numbers or function(k, n) for skip k of n, two for each
--- layer. Post-norm layers take DeepNorm's alpha: {norm_first = false, alpha = nn.residual.deepnorm(layers).alpha}. Takes
--- ids [B, T] from 1; gives [B, T, size], or [B, T, num_classes].
--- model(ids, {key_padding_mask = …, attn_mask = …, is_causal = …}) passes masks to each layer's attention.
---   local model = resin.models.transformer_encoder(1000, {size = 64, num_classes = 5})
---   local scores = model(resin.randint(1, 1000, {2, 10}))     -- [2, 10, 5]
function transformer.transformer_encoder(...) return TransformerEncoder(...) end

-- ---- gpt ------------------------------------------------------------------------------------------------------------------

--- Self-attention in which each position sees itself and those before it: CausalAttention(size, heads, dropout). With {cache = c}
--- the keys and values of earlier calls, kept in the table c, come first.
---@class resin.models.CausalAttention: resin.nn.Module
local CausalAttention = class.define("CausalAttention", nn.Module, true)

CausalAttention.layout = "features_last"

function CausalAttention:init(size, heads, dropout)
  if size % heads ~= 0 then check.fail("gpt: size %d must be a multiple of heads %d", size, heads) end
  self.heads, self.dropout = heads, dropout
  self.qkv = nn.Linear(size, 3 * size)
  self.proj = nn.Linear(size, size)
end

-- [B, T, 3 D] → view [B, heads, T, D / heads] of part 1, 2 or 3
local function part(self, all, i)
  local shape = all.shape
  local size = shape[3] / 3
  return ops.permute(ops.reshape(ops.narrow(all, 3, (i - 1) * size + 1, size), {shape[1], shape[2], self.heads, size / self.heads}),
    {1, 3, 2, 4})
end

-- true where row i of the last T of S positions may look
local function causal_mask(rows, columns)
  local at = ops.unsqueeze(create.arange(columns - rows + 1, columns), 2)
  return ops.le(ops.unsqueeze(create.arange(1, columns), 1), at)
end

local function attend(self, x, cache)
  local shape = x.shape
  local all = self.qkv:forward(x)
  local q, k, v = part(self, all, 1), part(self, all, 2), part(self, all, 3)
  local mask, causal = nil, true
  if cache then
    if cache.k then k, v = ops.cat({cache.k, k}, 3), ops.cat({cache.v, v}, 3) else k, v = ops.copy(k), ops.copy(v) end
    cache.k, cache.v = scope.promote(k:detach()), scope.promote(v:detach())
    local length = k.shape[3]
    if length > shape[2] then
      causal = false
      if shape[2] > 1 then mask = causal_mask(shape[2], length) end
    end
  end
  local y = ops.scaled_dot_product_attention(q, k, v, mask, self.training and self.dropout or 0, causal)
  return self.proj:forward(ops.reshape(ops.permute(y, {1, 3, 2, 4}), shape))
end

function CausalAttention:forward(x, given)
  check.tensor(x, "CausalAttention: input")
  return scope.run(attend, self, x, given and given.cache)
end

function CausalAttention:output_shape(shape) return self.qkv.output_shape(self.proj, shape) end

function CausalAttention:label() return ("CausalAttention{heads = %d}"):format(self.heads) end

--- One layer of gpt: x + attn(norm1(x)), x + out(gelu(fc(norm2(x)))).
---@class resin.models.GPTLayer: resin.blocks.Front
local GPTLayer = class.define("GPTLayer", Front, true)

function GPTLayer:init(size, heads, dropout, given)
  local norm1, attention = {"norm1", nn.LayerNorm(size)}, {"attn", CausalAttention(size, heads, dropout)}
  local norm2, fc, out = {"norm2", nn.LayerNorm(size)}, {"fc", nn.Linear(size, 4 * size)}, {"out", nn.Linear(4 * size, size)}
  local steps, gelu, join = {}, {"gelu", nn.GELU()}, joins.read(given or {}, "GPTLayer", 2)
  branch(steps, 1, norm1, {attention}, dropout, true, join(1))
  branch(steps, 2, norm2, {fc, gelu, out}, dropout, true, join(2))
  self:fill(steps, {norm1, attention, norm2, fc, gelu, out, unpack(EncoderLayer.dropouts(steps))})
end

---@class resin.models.GPT: resin.nn.Module
local GPT = class.define("GPT", nn.Module, true)

GPT.layout = "features_last"

local DECODER = with_common{{"bias", "boolean", default = false}}

function GPT:init(...)
  local o = options.read("gpt", DECODER, ...)
  add_embeddings(self, o)
  rawset(self, "vocabulary", o.vocabulary)
  local layers, given = {}, layer_options(o, "gpt")
  for i = 1, o.layers do layers[i] = GPTLayer(o.size, o.heads, o.dropout, given(i)) end
  self.layers = Blocks(layers)
  self.norm = nn.LayerNorm(o.size)
  self.head = nn.Linear(o.size, o.vocabulary, {bias = o.bias})
  for name, p in self:named_parameters() do
    if p.ndim == 2 then
      local last = name:find("%.proj%.weight$") or name:find("%.out%.weight$")
      init.normal_(p, 0, last and 0.02 / math.sqrt(2 * o.layers) or 0.02)
    elseif name:find("bias$") then
      init.zeros_(p)
    end
  end
end

--- An empty cache for model(ids, {cache = cache}): with it each call takes up where the last one ended.
---@return table
function GPT:new_cache()
  local cache = {length = 0}
  for i = 1, #self.layers do cache[i] = {} end
  return cache
end

GPT.drawn = drawn

local function decode(self, ids, cache)
  local x = embed(self, ids, cache and cache.length or 0)
  for i, layer in ipairs(self.layers) do x = run_layer(self, i, layer, x, cache and {attn = {cache = cache[i]}}) end
  if cache then cache.length = cache.length + ids.shape[2] end
  return self.head:forward(self.norm:forward(x))
end

function GPT:forward(ids, given)
  local cache
  if given ~= nil then cache = check.options(given, {"cache"}, self.type).cache end
  if cache ~= nil and (type(cache) ~= "table" or not cache.length or #cache ~= #self.layers) then
    check.fail("%s: cache must come from model:new_cache(), got %s", self.type, check.describe(cache))
  end
  return scope.run(decode, self, ids, cache)
end

function GPT:output_shape(shape)
  check_ids(self, shape)
  return {shape[1], shape[2], self.vocabulary}
end

local function continue(self, ids, count)
  local cache, list, step = self:new_cache(), {ids}, ids
  for i = 1, count do
    local scores = self:forward(step, {cache = cache})
    step = ops.argmax(ops.narrow(scores, 2, scores.shape[2], 1), -1)
    list[i + 1] = step
  end
  return ops.cat(list, 2)
end

local function continue_in_scope(self, ids, count) return scope.run(continue, self, ids, count) end

--- ids [B, T] with `count` more, each the likeliest after those before it. Runs without gradients and without dropout.
---@param ids resin.Tensor
---@param count integer
---@return resin.Tensor
function GPT:generate(ids, count)
  check.tensor(ids, "GPT: generate: ids")
  check.integer(count, "GPT: generate: count", 0)
  local training = self.training
  self:eval()
  local ok, out = pcall(grad.no_grad, continue_in_scope, self, ids, count)
  self:train(training)
  if not ok then error(out, 0) end
  return out
end

--- A decoder over symbols (Radford and others 2019): gpt(vocabulary, {size = 256, layers = 4, heads = 4, max_length = 512,
--- dropout = 0.1, bias = false, drop_path, layer_scale, scale, alpha}); bias is that of the last layer, the last four are as for
--- transformer_encoder. Takes ids [B, T] from 1 and gives scores [B, T, vocabulary] of
--- the symbol after each. model:generate(ids, count) continues a text.
---   local model = resin.models.gpt(96, {size = 384, layers = 6, heads = 6, max_length = 256, dropout = 0})
---   local more = model:generate(resin.randint(1, 96, {1, 4}), 60)     -- [1, 64]
function transformer.gpt(...) return GPT(...) end

transformer.EncoderLayer = EncoderLayer
transformer.TransformerEncoder = TransformerEncoder
transformer.CausalAttention = CausalAttention
transformer.GPTLayer = GPTLayer
transformer.GPT = GPT

return transformer
