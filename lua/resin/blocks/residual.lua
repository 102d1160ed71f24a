--- Residual, ResidualAdd, ResidualCat, ResidualCat2d: residual connections around given blocks.
-- Each lowers to a residual plan: block by block a Record, the block, and an Apply with the function; level by level a Record after
-- each layer and an Apply before, or of, each layer of the next level.

local check = require "resin.check"
local class = require "resin.nn.class"
local ModuleList = require("resin.nn.sequential").ModuleList
local shapes = require "resin.nn.shapes"
local Apply = require "resin.residual.apply"
local Record = require "resin.residual.record"
local Front = require "resin.blocks.front"
local Join = require "resin.blocks.join"
local joins = require "resin.blocks.joins"
local Blocks = require "resin.blocks.list"

-- ---- arguments ------------------------------------------------------------------------------------------------------------

-- The list of elements: modules, and lists of modules for levels.
local function read_blocks(self, given)
  if class.is_module(given) and getmetatable(given) ~= ModuleList then given = {given} end
  if type(given) == "function" then given = {given} end
  local list = {}
  if type(given) == "table" and (class.is_plain(given) or getmetatable(given) == ModuleList) then
    for i = 1, class.is_plain(given) and table.maxn(given) or #given do
      local element = given[i]
      if class.is_plain(element) or (type(element) == "table" and getmetatable(element) == ModuleList) then
        local level = {}
        for k = 1, #element do level[k] = Blocks.module(element[k], ("%s: level %d, layer %d"):format(self.type, i, k)) end
        if #level == 0 then check.fail("%s: level %d is empty", self.type, i) end
        list[i] = level
      else
        list[i] = Blocks.module(element, ("%s: block %d"):format(self.type, i))
      end
    end
  end
  if #list == 0 then
    check.fail("%s: blocks must be a module, a list of modules, or a list of levels {{…}, {…}}, got %s", self.type,
      class.is_plain(given) and "an empty list" or check.describe(given))
  end
  return list
end

-- Blocks and options of a call: (blocks, options), (blocks, res_func, shortcut), or one table that holds both.
local function read(self, known, blocks, a, b)
  local options = {}
  if class.is_plain(blocks) then
    local list = {}
    for key, value in pairs(blocks) do
      if type(key) == "number" then list[key] = value else options[key] = value end
    end
    blocks = list
  end
  if class.is_plain(a) then
    for name, value in pairs(a) do
      if options[name] ~= nil then check.fail("%s: %s is given twice", self.type, tostring(name)) end
      options[name] = value
    end
  elseif a ~= nil or b ~= nil then
    local first = known[1]
    options[first] = a
    if first == "shortcut" then
      if b ~= nil then check.fail("%s: takes the blocks and a shortcut, or options by name; got %s too", self.type, check.describe(b)) end
    else
      options.shortcut = b
    end
  end
  check.options(options, known, self.type)
  return read_blocks(self, blocks), options
end

-- ---- lowering -------------------------------------------------------------------------------------------------------------

-- Both shapes do not fit: says so in this container's words.
local function mismatch(self, name, _, saved, current)
  check.fail("%s: the residual %s does not fit the result %s of %s; give a shortcut that makes them equal%s", self.type,
    shapes.text(saved), shapes.text(current), name, self.operation == "add" and ", or broadcast = true" or "")
end

local function make_apply(self, options, operation, record, block)
  options.made = options.made + 1
  local given = options.joins(options.made)
  given.operation, given.record_name, given.projection = operation, record, self.shortcut or nil
  given.dim, given.broadcast = options.dim, options.broadcast
  local apply = Apply(given)
  rawset(apply, "mismatch", function(_, _, entry, saved, current)
    mismatch({type = self.type, operation = operation}, block, entry, saved, current)
  end)
  return apply
end

-- The steps of blocks that follow each other.
local function add_block(self, steps, options, i, block)
  local record, key = "residual_" .. i, "block_" .. i
  steps[#steps + 1] = {"record_" .. i, Record(record)}
  if options.res_func == nil then       -- the block itself takes the residual
    steps[#steps + 1] = {key, make_apply(self, options, block, record, "block " .. i)}
  else
    steps[#steps + 1] = {key, block}
    steps[#steps + 1] = {"apply_" .. i, make_apply(self, options, options.res_func, record, "block " .. i)}
  end
end

-- The steps of a level. `saved` names the Records of the level before: its first ones as many as this level has layers, the last of
-- them for the first layer. Layers past their number get none. Returns the names of its own Records.
local function add_level(self, steps, options, l, level, saved)
  local n, names = math.min(#level, #saved), {}
  for i, layer in ipairs(level) do
    local record, at = saved[n + 1 - i], ("%d_%d"):format(l, i)
    local what = ("level %d, layer %d"):format(l, i)
    if record and options.res_func == nil then
      steps[#steps + 1] = {"layer_" .. at, make_apply(self, options, layer, record, what)}
    else
      if record then steps[#steps + 1] = {"apply_" .. at, make_apply(self, options, options.res_func, record, what)} end
      steps[#steps + 1] = {"layer_" .. at, layer}
    end
    names[i] = "level_" .. at
    steps[#steps + 1] = {"record_" .. at, Record(names[i])}
  end
  return names
end

-- How many Applys a list of blocks and levels gets.
local function count_applys(list)
  local n, before = 0, 0
  for _, element in ipairs(list) do
    n = n + (class.is_module(element) and 1 or math.min(#element, before))
    before = class.is_module(element) and before or #element
  end
  return n
end

local function build(self, list, options)
  options.made, options.joins = 0, joins.read(options, self.type, count_applys(list))
  if options.shortcut ~= nil then rawset(self, "shortcut", Blocks.module(options.shortcut, self.type .. ": shortcut")) end
  local steps, elements, saved = {}, {}, {}
  for i, element in ipairs(list) do
    if class.is_module(element) then
      elements[i] = element
      add_block(self, steps, options, i, element)
    else
      elements[i] = Blocks(element)
      saved = add_level(self, steps, options, i, element, saved)
    end
  end
  local shown = {{"blocks", Blocks(elements)}}
  if self.shortcut then shown[2] = {"shortcut", self.shortcut} end
  self:fill(steps, shown)
end

-- ---- the containers -------------------------------------------------------------------------------------------------------

--- Joins the input of each block with its output: x = res_func(block(x), shortcut(x)), for one block after the other.
---   Residual(block, {res_func = function(x, res) return x + res end, shortcut = conv})
---   Residual({block1, block2}, "add")          the name of an operation as Apply has it
---   Residual{down, up}                         levels: lists of layers
--- Without res_func a block gets the residual as its second argument: x = block(x, shortcut(x)).
---
--- Levels, for U shapes: each layer of a level receives what a layer of the level before gave out, the last one first:
--- x = layer(x, shortcut(res)), or layer(res_func(x, shortcut(res))) with res_func. A level of n layers receives the first n
--- results of the level before; layers past their number receive x alone.
--- shortcut is a module or a function; broadcast = true lets "add" broadcast. drop_path (a number, or a table of one for each skip),
--- layer_scale, scale and alpha are Apply's, where the operation takes them; with several skips a trained scale or alpha is given as
--- function(k, n), which makes one for skip k of n.
---@class resin.blocks.Residual: resin.blocks.Front
local Residual = class.define("Residual", Front, true)
Residual.shortcut = false

function Residual:init(blocks, a, b)
  local list, options = read(self, {"res_func", "shortcut", "broadcast", unpack(joins.names)}, blocks, a, b)
  if options.res_func ~= nil and type(options.res_func) ~= "string" and type(options.res_func) ~= "function"
    and not class.is_module(options.res_func) then
    check.fail("%s: res_func must be a function of (x, res), a module or the name of an operation, got %s", self.type,
      check.describe(options.res_func))
  end
  rawset(self, "res_func", options.res_func)
  build(self, list, options)
end

--- x = block(x) + shortcut(x) for each block: ResidualAdd(block), ResidualAdd{block1, block2},
--- ResidualAdd{block, shortcut = conv_bn(32, 64, 1, 2)}. Options as for Residual: drop_path, layer_scale, scale, alpha.
---@class resin.blocks.ResidualAdd: resin.blocks.Residual
local ResidualAdd = class.define("ResidualAdd", Residual, true)

function ResidualAdd:init(blocks, a, b)
  local list, options = read(self, {"shortcut", "broadcast", unpack(joins.names)}, blocks, a, b)
  options.res_func = "add"
  build(self, list, options)
end

--- x = cat({block(x), shortcut(x)}, dim) for each block; dim = 1 unless given, as in torchlego.
---@class resin.blocks.ResidualCat: resin.blocks.Residual
local ResidualCat = class.define("ResidualCat", Residual, true)

function ResidualCat:init(blocks, a, b)
  local list, options = read(self, {"shortcut", "dim"}, blocks, a, b)
  options.res_func = "concat"
  if options.dim == nil then options.dim = 1 end
  rawset(self, "dim", options.dim)
  build(self, list, options)
end

function ResidualCat:label() return self.dim and ("%s{dim = %d}"):format(self.type, self.dim) or self.type end

--- x = cat({block(x), shortcut(x)}, channels) for each block. Where the images differ in size, the residual is cropped or padded
--- evenly to the size of the block's result.
---@class resin.blocks.ResidualCat2d: resin.blocks.Residual
local ResidualCat2d = class.define("ResidualCat2d", Residual, true)

function ResidualCat2d:init(blocks, a, b)
  local list, options = read(self, {"shortcut"}, blocks, a, b)
  options.res_func = Join{dim = -3, crop = true}
  build(self, list, options)
end

return {Residual = Residual, ResidualAdd = ResidualAdd, ResidualCat = ResidualCat, ResidualCat2d = ResidualCat2d}
