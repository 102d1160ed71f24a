--- Arithmetic on shapes for output_shape. A size that is not known is false.

local check = require "resin.check"

local shapes = {}

--- "[8, 3, ?, ?]"
---@param shape (integer|false)[]
---@return string
function shapes.text(shape)
  local parts = {}
  for i = 1, #shape do parts[i] = shape[i] and ("%d"):format(shape[i]) or "?" end
  return "[" .. table.concat(parts, ", ") .. "]"
end

--- Checks an input shape and the number of its dimensions.
---@param shape any
---@param what string  the layer's name
---@param min? integer
---@param max? integer
---@return (integer|false)[] shape
function shapes.check(shape, what, min, max)
  if type(shape) ~= "table" or getmetatable(shape) ~= nil then
    check.fail("%s: output_shape: the shape must be a table of sizes, got %s", what, check.describe(shape))
  end
  for i = 1, #shape do
    local size = shape[i]
    if size ~= false then check.integer(size, what .. ": output_shape: size " .. i, 0) end
  end
  if (min and #shape < min) or (max and #shape > max) then
    local wanted = min == max and tostring(min) or max and ("%d to %d"):format(min, max) or ("at least %d"):format(min)
    check.fail("%s: input %s has %d dimensions, expected %s", what, shapes.text(shape), #shape, wanted)
  end
  return shape
end

---@param shape (integer|false)[]
---@return (integer|false)[]
function shapes.copy(shape)
  local out = {}
  for i = 1, #shape do out[i] = shape[i] end
  return out
end

--- An integer or {h, w} as two numbers.
---@param value integer|integer[]
---@return integer h
---@return integer w
function shapes.pair(value)
  if type(value) == "table" then return value[1], value[2] end
  return value, value
end

--- Positions of a window of `kernel` in `size` elements.
---@param size integer|false
---@return integer|false
function shapes.windows(size, kernel, stride, padding, dilation, ceil_mode)
  if not size then return false end
  local span = size + 2 * padding - dilation * (kernel - 1) - 1
  if span < 0 then return 0 end
  local n = math.floor(span / stride)
  if ceil_mode then
    n = math.ceil(span / stride)
    if n * stride >= size + padding then n = n - 1 end   -- a window that starts in the right padding does not count
  end
  return n + 1
end

--- The output of a window that moves over the last two dimensions.
---@param layer table  kernel_size, stride, padding, dilation as an integer or {h, w}
---@param shape (integer|false)[]
---@param channels integer|false
---@return (integer|false)[]
function shapes.slide(layer, shape, channels)
  local kh, kw = shapes.pair(layer.kernel_size)
  local sh, sw = shapes.pair(layer.stride)
  local ph, pw = shapes.pair(layer.padding)
  local dh, dw = shapes.pair(layer.dilation or 1)
  local n = #shape
  local out = shapes.copy(shape)
  out[n - 2] = channels
  out[n - 1] = shapes.windows(shape[n - 1], kh, sh, ph, dh, layer.ceil_mode)
  out[n] = shapes.windows(shape[n], kw, sw, pw, dw, layer.ceil_mode)
  if out[n - 1] == 0 or out[n] == 0 then
    check.fail("%s: input %s is smaller than the kernel [%d, %d] (padding [%d, %d])", layer.type, shapes.text(shape), kh, kw,
      ph, pw)
  end
  return out
end

return shapes
