--- Networks of linear layers: mlp, highway_mlp, and the two networks of the guide to residual connections.

local check = require "resin.check"
local class = require "resin.nn.class"
local nn = require "resin.nn"
local activation = require("resin.blocks.make").activation
local Blocks = require "resin.blocks.list"
local Front = require "resin.blocks.front"
local joins = require "resin.blocks.joins"
local options = require "resin.models.options"

local mlp = {}

--- Linear layers with an activation between them: mlp({64, 256, 10}, {act = "ReLU", dropout = 0}). act is a name, a class, a
--- function that makes a module, or a module.
---@param sizes integer[]
---@param given? {act?: any, dropout?: number}
---@return resin.nn.Sequential
function mlp.mlp(sizes, given)
  sizes = options.sizes(sizes, "mlp: sizes", 2)
  given = check.options(given, {"act", "dropout"}, "mlp")
  local dropout = given.dropout == nil and 0 or check.number(given.dropout, "mlp: dropout", 0, 1)
  local model = nn.Sequential()
  for i = 1, #sizes - 1 do
    model:append(nn.Linear(sizes[i], sizes[i + 1]))
    if i < #sizes - 1 then
      model:append(activation(given.act == nil and "ReLU" or given.act, "mlp: act"))
      if dropout > 0 then model:append(nn.Dropout(dropout)) end
    end
  end
  return model
end

--- A deep network with gates (Srivastava and others 2015): a linear layer to `width`, `depth` highway layers, a linear layer.
--- highway_mlp(in_features, width, depth, out_features, {act = "ReLU", coupled = true}). coupled: one gate T and 1 - T; otherwise
--- two gates of their own.
---   local model = resin.models.highway_mlp(784, 50, 20, 10)
---@return resin.nn.Sequential
function mlp.highway_mlp(in_features, width, depth, out_features, given)
  check.integer(in_features, "highway_mlp: in_features", 1)
  check.integer(width, "highway_mlp: width", 1)
  check.integer(depth, "highway_mlp: depth", 1)
  check.integer(out_features, "highway_mlp: out_features", 1)
  given = check.options(given, {"act", "coupled"}, "highway_mlp")
  local coupled = given.coupled
  if coupled == nil then coupled = true end
  check.boolean(coupled, "highway_mlp: coupled")
  local model = nn.Sequential()
  model:add_module("input", nn.Linear(in_features, width))
  for i = 1, depth do
    model:add_module("highway" .. i, nn.ResidualSequential{
      {"save_input", nn.Record("input")}, {"linear", nn.Linear(width, width)},
      {"act", activation(given.act == nil and "ReLU" or given.act, "highway_mlp: act")},
      {"join", nn.Apply{operation = "highway", record_name = "input", coupled = coupled or nil}}})
  end
  model:add_module("output", nn.Linear(width, out_features))
  return model
end

-- ---- the guide ------------------------------------------------------------------------------------------------------------

local GUIDE = {"use_shortcut", "approximate", unpack(joins.names)}

-- (sizes, use_shortcut) or (sizes, {use_shortcut = …, approximate = …, …}). Gives sizes, use_shortcut, what makes a GELU, and the
-- options of the skips.
local function read(what, sizes, least, given)
  sizes = options.sizes(sizes, what .. ": sizes", least)
  local use_shortcut, approximate = given, "none"
  if class.is_plain(given) then
    check.options(given, GUIDE, what)
    use_shortcut, approximate = given.use_shortcut, given.approximate or "none"
    check.enum(approximate, what .. ": approximate", {"none", "tanh"})
  end
  if use_shortcut == nil then use_shortcut = true end
  check.boolean(use_shortcut, what .. ": use_shortcut")
  return sizes, use_shortcut, function() return nn.GELU{approximate = approximate} end, class.is_plain(given) and given or {}
end

--- Layers Linear, GELU; with use_shortcut the input of each is added to its result, through a Linear of its own where the sizes
--- differ. ImprovedResidualNetwork({128, 64, 32, 16, 8, 1}, {use_shortcut = true}): 22,018 parameters, 11,009 without shortcuts.
--- Parameters layers.<i>.0.weight and projections.<i>.weight, i from 0. approximate = "tanh" takes that form of GELU. Options of the
--- skips as for resnet18: drop_path, layer_scale, scale, alpha.
---@class resin.models.ImprovedResidualNetwork: resin.blocks.Front
local ImprovedResidualNetwork = class.define("ImprovedResidualNetwork", Front, true)

function ImprovedResidualNetwork:init(sizes, given)
  local use_shortcut, make_gelu, skips
  sizes, use_shortcut, make_gelu, skips = read("ImprovedResidualNetwork", sizes, 2, given)
  local layers, projections, names, steps = {}, {}, {}, {}
  local join = options.joins(skips, "ImprovedResidualNetwork", #sizes - 1)
  for i = 1, #sizes - 1 do
    layers[i] = nn.Sequential(nn.Linear(sizes[i], sizes[i + 1]), make_gelu())
    local projection
    if use_shortcut then
      if sizes[i] ~= sizes[i + 1] then
        projection = nn.Linear(sizes[i], sizes[i + 1])
        projections[#projections + 1] = projection
        names[#projections] = tostring(i - 1)
      end
      steps[#steps + 1] = {"record_" .. i, nn.Record("identity_" .. i)}
    end
    steps[#steps + 1] = {"layer_" .. i, layers[i]}
    if use_shortcut then
      steps[#steps + 1] = {"add_" .. i, Front.join("identity_" .. i, projection, join(i))}
    end
  end
  self.use_shortcut = use_shortcut
  local shown = {{"layers", Blocks(layers)}}
  if #projections > 0 then shown[2] = {"projections", Blocks(projections, names)} end
  self:fill(steps, shown)
end

--- Five layers Linear, GELU; with use_shortcut the input is added only where the sizes are equal.
--- ExampleDeepNeuralNetwork({3, 3, 3, 3, 3, 1}, {use_shortcut = true}) takes six sizes.
---@class resin.models.ExampleDeepNeuralNetwork: resin.blocks.Front
local ExampleDeepNeuralNetwork = class.define("ExampleDeepNeuralNetwork", Front, true)

function ExampleDeepNeuralNetwork:init(sizes, given)
  local use_shortcut, make_gelu, skips
  sizes, use_shortcut, make_gelu, skips = read("ExampleDeepNeuralNetwork", sizes, 6, given)
  if #sizes > 6 then check.fail("ExampleDeepNeuralNetwork: sizes: has five layers, which need 6 sizes, got %d", #sizes) end
  local layers, steps = {}, {}
  local join = options.joins(skips, "ExampleDeepNeuralNetwork", 5)
  for i = 1, 5 do
    layers[i] = nn.Sequential(nn.Linear(sizes[i], sizes[i + 1]), make_gelu())
    local adds = use_shortcut and sizes[i] == sizes[i + 1]
    if adds then steps[#steps + 1] = {"record_" .. i, nn.Record("identity_" .. i)} end
    steps[#steps + 1] = {"layer_" .. i, layers[i]}
    if adds then steps[#steps + 1] = {"add_" .. i, Front.join("identity_" .. i, nil, join(i))} end
  end
  self.use_shortcut = use_shortcut
  self:fill(steps, {{"layers", Blocks(layers)}})
end

mlp.ImprovedResidualNetwork = ImprovedResidualNetwork
mlp.ExampleDeepNeuralNetwork = ExampleDeepNeuralNetwork

return mlp
