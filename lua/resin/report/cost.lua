--- What a layer costs: multiply-adds of matrix products and convolutions, and bytes of its result.
-- Element-wise work, norms and pooling are not counted, as is usual. A layer of one's own says its number by a method
-- multiply_adds(input_shape, output_shape).

local lib = require "resin.lib"
local Tensor = require "resin.tensor"

local C = lib.C
local cost = {}

local BYTES = {f32 = 4, f64 = 8, bf16 = 2, f16 = 2, i64 = 8, i32 = 4, u8 = 1, bool = 1}

--- Number of elements; nil when a size is not known.
---@param shape (integer|false)[]?
---@return number?
function cost.numel(shape)
  if not shape then return nil end
  local n = 1
  for i = 1, #shape do
    if not shape[i] then return nil end
    n = n * shape[i]
  end
  return n
end
local numel = cost.numel

---@param shape (integer|false)[]?
---@param dtype string
---@return number?
function cost.bytes(shape, dtype)
  local n = numel(shape)
  return n and n * (BYTES[dtype] or 4)
end

local function size_of(t) return tonumber(C.rs_tensor_numel(t.h)) end

-- The elements of all matrices among a module's own parameters.
local function matrices(module)
  local n = 0
  for _, name in ipairs(module._parameters) do
    local t = rawget(module, name)
    if t ~= nil and t.ndim == 2 then n = n + size_of(t) end
  end
  return n
end

local function conv(module, input, output)
  if module.type:find("Transpose", 1, true) then return numel(input) * size_of(module.weight) / module.in_channels end
  return numel(output) * size_of(module.weight) / module.out_channels
end

local function attention(module, input)
  local width = module.embed_dim
  local tokens = numel(input) / width
  local length = #input == 2 and input[1] or input[module.batch_first and 2 or 1]
  local projections = 0
  for _, p in ipairs(module:parameters()) do
    if p.ndim == 2 then projections = projections + size_of(p) end
  end
  return tokens * projections + 2 * tokens * length * width
end

--- Multiply-adds of one call; nil for a layer that is not known to have any.
---@param module resin.nn.Module
---@param input (integer|false)[]?
---@param output (integer|false)[]?
---@return number?
function cost.multiply_adds(module, input, output)
  if not (numel(input) and numel(output)) then return nil end
  if type(module.multiply_adds) == "function" then return module:multiply_adds(input, output) end
  local kind = module.type
  local weight = rawget(module, "weight")
  if Tensor.is(weight) and module.in_channels and module.out_channels and kind:find("Conv", 1, true) then
    return conv(module, input, output)
  elseif Tensor.is(weight) and module.in_features and weight.ndim == 2 then
    return numel(output) * module.in_features
  elseif module.hidden_size and module.input_size then
    return numel(input) / module.input_size * matrices(module)
  elseif module.embed_dim and module.num_heads then
    return attention(module, input)
  end
  return nil
end

return cost
