--- Recurrent layers: RNN, LSTM, GRU over sequences; RNNCell, LSTMCell, GRUCell for one step.
-- One op runs one layer in one direction over all steps; layers and directions are chained here. Names, shapes, order of gates and
-- initial values are PyTorch's. A state comes back as it goes in, so it can be passed on:
--   local y, state = lstm(x)
--   y, state = lstm(more, state)

local check = require "resin.check"
local class = require "resin.nn.class"
local args = require "resin.nn.args"
local init = require "resin.nn.initialise"
local Module = require "resin.nn.module"
local ops = require "resin.ops"
local scope = require "resin.scope"
local shapes = require "resin.nn.shapes"
local Tensor = require "resin.tensor"

local getmetatable = getmetatable

-- ---- states ---------------------------------------------------------------------------------------------------------------

-- The state that a layer was given: itself, or an option as containers pass it.
local function given_state(self, state)
  if class.is_plain(state) and state[1] == nil then return check.options(state, {"hidden"}, self.type).hidden end
  return state
end

-- h of a layer whose state is one tensor.
local function one_state(self, state)
  state = given_state(self, state)
  if state == nil then return nil end
  if getmetatable(state) ~= Tensor then check.fail("%s: the state must be a tensor h, got %s", self.type, check.describe(state)) end
  return state
end

-- h and c of an LSTM.
local function two_states(self, state)
  state = given_state(self, state)
  if state == nil then return nil end
  local h, c = nil, nil
  if class.is_plain(state) then h, c = state[1], state[2] end
  if getmetatable(h) ~= Tensor or getmetatable(c) ~= Tensor then
    check.fail("%s: the state must be a table of two tensors {h, c}, got %s", self.type, check.describe(state))
  end
  return h, c
end

-- ---- layers over sequences ------------------------------------------------------------------------------------------------

local GATES = {rnn = 1, gru = 3, lstm = 4}

local function arguments_of(extra)
  local list = {{"input_size", "integer", min = 1}, {"hidden_size", "integer", min = 1}, {"num_layers", "integer", min = 1, default = 1}}
  if extra then list[#list + 1] = extra end
  for _, entry in ipairs{
    {"bias", "boolean", default = true},
    {"batch_first", "boolean", default = false},
    {"dropout", "number", min = 0, max = 1, default = 0},
    {"bidirectional", "boolean", default = false},
    {"proj_size", "integer", min = 0, default = 0, hidden = true},
    {"dtype", "dtype", default = "f32", hidden = true},
  } do list[#list + 1] = entry end
  return list
end

-- The names of the parameters of each layer and direction: {w_ih, w_hh, b_ih, b_hh}.
local function add_parameters(self, gates, dtype)
  local hidden, bound, names = self.hidden_size, 1 / math.sqrt(self.hidden_size), {}
  local size = self.input_size
  for layer = 0, self.num_layers - 1 do
    for direction = 1, self.bidirectional and 2 or 1 do
      local suffix = ("_l%d%s"):format(layer, direction == 2 and "_reverse" or "")
      local set = {"weight_ih" .. suffix, "weight_hh" .. suffix, "bias_ih" .. suffix, "bias_hh" .. suffix}
      names[#names + 1] = set
      self:register_parameter(set[1], init.uniform_parameter({gates * hidden, size}, dtype, bound))
      self:register_parameter(set[2], init.uniform_parameter({gates * hidden, hidden}, dtype, bound))
      for i = 3, 4 do
        self:register_parameter(set[i], self.bias and init.uniform_parameter({gates * hidden}, dtype, bound) or nil)
      end
    end
    size = hidden * (self.bidirectional and 2 or 1)
  end
  self._sets = names
  self._single = #names == 1
end

local function check_layers(self, t, name, n)
  check.tensor(t, ("%s: state %s"):format(self.type, name))
  local shape = t.shape
  if shape[1] ~= n then
    check.fail("%s: the state %s %s must have %d layers in its first dimension (num_layers %d, %s)", self.type, name,
      check.shape_text(t), n, self.num_layers, self.bidirectional and "two directions" or "one direction")
  end
end

-- All layers and directions. Gives the output, the last h and, of an LSTM, the last c.
local function run_layers(self, x, h, c)
  local sets, batch_first = self._sets, self.batch_first
  local two, n = self.bidirectional, #self._sets
  local last_h, last_c = {}, {}
  if h then check_layers(self, h, "h", n) end
  if c then check_layers(self, c, "c", n) end
  local dropout = self.training and self.dropout > 0 and self.dropout
  for k = 1, n, two and 2 or 1 do
    if k > 1 and dropout then x = ops.dropout(x, dropout, true) end
    local halves = {}
    for i = k, two and k + 1 or k do
      local y
      y, last_h[i], last_c[i] = self.step(self, sets[i], x, h and ops.narrow(h, 1, i, 1), c and ops.narrow(c, 1, i, 1), i > k,
        batch_first)
      halves[#halves + 1] = y
    end
    x = two and ops.cat(halves, -1) or halves[1]
  end
  if n == 1 then return x, last_h[1], last_c[1] end
  return x, ops.cat(last_h, 1), last_c[1] and ops.cat(last_c, 1)
end

local Recurrent = class.define("Recurrent", Module, true)

Recurrent.layout = "features_last"

-- What every layer's constructor does.
local function build(self, kind, ...)
  local o = args.accept(self, self.arguments, ...)
  if o.proj_size ~= 0 then
    check.fail("%s: proj_size is not supported; put a Linear(%d, %d) after the layer instead", self.type, o.hidden_size, o.proj_size)
  end
  if o.dropout > 0 and o.num_layers == 1 then
    check.fail("%s: dropout acts between layers, but num_layers is 1; put an nn.Dropout after the layer instead", self.type)
  end
  add_parameters(self, GATES[kind], o.dtype)
end

function Recurrent:output_shape(shape)
  shapes.check(shape, self.type, 2, 3)
  local last = shape[#shape]
  if last and last ~= self.input_size then
    check.fail("%s: input %s has %d features in its last dimension, expected %d", self.type, shapes.text(shape), last,
      self.input_size)
  end
  local out = shapes.copy(shape)
  out[#out] = self.hidden_size * (self.bidirectional and 2 or 1)
  return out
end

--- nn.RNN(input_size, hidden_size, {num_layers = 1, nonlinearity = "tanh" or "relu", bias, batch_first, dropout, bidirectional}).
--- rnn(x, h) gives y and h; x: [T, B, in], [B, T, in] with batch_first, or [T, in]; h: [layers * directions, B, hidden].
---@class resin.nn.RNN: resin.nn.Module
local RNN = class.define("RNN", Recurrent, true)

RNN.arguments = arguments_of{"nonlinearity", "enum", choices = {"tanh", "relu"}, default = "tanh"}

function RNN:init(...) return build(self, "rnn", ...) end

function RNN.step(self, names, x, h, _, reverse, batch_first)
  return ops.rnn(x, self[names[1]], self[names[2]], self[names[3]], self[names[4]], h, reverse, batch_first, self.nonlinearity)
end

function RNN:forward(x, state)
  local h = state ~= nil and one_state(self, state) or nil
  if self._single then
    return ops.rnn(x, self.weight_ih_l0, self.weight_hh_l0, self.bias_ih_l0, self.bias_hh_l0, h, false, self.batch_first,
      self.nonlinearity)
  end
  return scope.run(run_layers, self, x, h)
end

--- nn.GRU(input_size, hidden_size, {num_layers, bias, batch_first, dropout, bidirectional}); gates r, z, n. gru(x, h) gives y and h.
---@class resin.nn.GRU: resin.nn.Module
local GRU = class.define("GRU", Recurrent, true)

GRU.arguments = arguments_of()

function GRU:init(...) return build(self, "gru", ...) end

function GRU.step(self, names, x, h, _, reverse, batch_first)
  return ops.gru(x, self[names[1]], self[names[2]], self[names[3]], self[names[4]], h, reverse, batch_first)
end

function GRU:forward(x, state)
  local h = state ~= nil and one_state(self, state) or nil
  if self._single then
    return ops.gru(x, self.weight_ih_l0, self.weight_hh_l0, self.bias_ih_l0, self.bias_hh_l0, h, false, self.batch_first)
  end
  return scope.run(run_layers, self, x, h)
end

--- nn.LSTM(input_size, hidden_size, {num_layers, bias, batch_first, dropout, bidirectional}); gates i, f, g, o.
--- lstm(x, {h, c}) gives y and {h, c}.
---@class resin.nn.LSTM: resin.nn.Module
local LSTM = class.define("LSTM", Recurrent, true)

LSTM.arguments = arguments_of()

function LSTM:init(...) return build(self, "lstm", ...) end

function LSTM.step(self, names, x, h, c, reverse, batch_first)
  return ops.lstm(x, self[names[1]], self[names[2]], self[names[3]], self[names[4]], h, c, reverse, batch_first)
end

function LSTM:forward(x, state)
  local h, c, y
  if state ~= nil then h, c = two_states(self, state) end
  if self._single then
    y, h, c = ops.lstm(x, self.weight_ih_l0, self.weight_hh_l0, self.bias_ih_l0, self.bias_hh_l0, h, c, false, self.batch_first)
  else
    y, h, c = scope.run(run_layers, self, x, h, c)
  end
  return y, {h, c}
end

-- ---- one step -------------------------------------------------------------------------------------------------------------

local function cell_arguments(extra)
  local list = {{"input_size", "integer", min = 1}, {"hidden_size", "integer", min = 1}, {"bias", "boolean", default = true, hidden = true}}
  if extra then list[#list + 1] = extra end
  list[#list + 1] = {"dtype", "dtype", default = "f32", hidden = true}
  return list
end

local Cell = class.define("Cell", Module, true)

Cell.layout = "features_last"

local function build_cell(self, kind, ...)
  local o = args.accept(self, self.arguments, ...)
  local hidden, bound, rows = o.hidden_size, 1 / math.sqrt(o.hidden_size), GATES[kind] * o.hidden_size
  self:register_parameter("weight_ih", init.uniform_parameter({rows, o.input_size}, o.dtype, bound))
  self:register_parameter("weight_hh", init.uniform_parameter({rows, hidden}, o.dtype, bound))
  self:register_parameter("bias_ih", o.bias and init.uniform_parameter({rows}, o.dtype, bound) or nil)
  self:register_parameter("bias_hh", o.bias and init.uniform_parameter({rows}, o.dtype, bound) or nil)
end

-- x: [B, in] or [in] as a sequence of one step, and a state to go with it.
local function one_step(self, x)
  check.tensor(x, self.type .. ": input")
  if x.ndim ~= 1 and x.ndim ~= 2 then
    check.fail("%s: input %s must be [B, features] or [features]", self.type, check.shape_text(x))
  end
  return ops.unsqueeze(x, 1)
end

function Cell:output_shape(shape)
  shapes.check(shape, self.type, 1, 2)
  if shape[#shape] and shape[#shape] ~= self.input_size then
    check.fail("%s: input %s has %d features in its last dimension, expected %d", self.type, shapes.text(shape), shape[#shape],
      self.input_size)
  end
  local out = shapes.copy(shape)
  out[#out] = self.hidden_size
  return out
end

--- nn.RNNCell(input_size, hidden_size, {bias, nonlinearity}): h = cell(x, h) for one step; x: [B, in] or [in].
---@class resin.nn.RNNCell: resin.nn.Module
local RNNCell = class.define("RNNCell", Cell, true)

RNNCell.arguments = cell_arguments{"nonlinearity", "enum", choices = {"tanh", "relu"}, default = "tanh"}

function RNNCell:init(...) return build_cell(self, "rnn", ...) end

local function rnn_cell(self, x, h)
  local _, last = ops.rnn(one_step(self, x), self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh, h and ops.unsqueeze(h, 1),
    false, false, self.nonlinearity)
  return ops.squeeze(last, 1)
end

function RNNCell:forward(x, state)
  return scope.run(rnn_cell, self, x, state ~= nil and one_state(self, state) or nil)
end

--- nn.GRUCell(input_size, hidden_size, {bias}): h = cell(x, h) for one step.
---@class resin.nn.GRUCell: resin.nn.Module
local GRUCell = class.define("GRUCell", Cell, true)

GRUCell.arguments = cell_arguments()

function GRUCell:init(...) return build_cell(self, "gru", ...) end

local function gru_cell(self, x, h)
  local _, last = ops.gru(one_step(self, x), self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh, h and ops.unsqueeze(h, 1))
  return ops.squeeze(last, 1)
end

function GRUCell:forward(x, state)
  return scope.run(gru_cell, self, x, state ~= nil and one_state(self, state) or nil)
end

--- nn.LSTMCell(input_size, hidden_size, {bias}): h, c = cell(x, {h, c}) for one step.
---@class resin.nn.LSTMCell: resin.nn.Module
local LSTMCell = class.define("LSTMCell", Cell, true)

LSTMCell.arguments = cell_arguments()

function LSTMCell:init(...) return build_cell(self, "lstm", ...) end

local function lstm_cell(self, x, h, c)
  local _, last_h, last_c = ops.lstm(one_step(self, x), self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh,
    h and ops.unsqueeze(h, 1), c and ops.unsqueeze(c, 1))
  return ops.squeeze(last_h, 1), ops.squeeze(last_c, 1)
end

function LSTMCell:forward(x, state)
  local h, c
  if state ~= nil then h, c = two_states(self, state) end
  return scope.run(lstm_cell, self, x, h, c)
end

return {RNN = RNN, GRU = GRU, LSTM = LSTM, RNNCell = RNNCell, GRUCell = GRUCell, LSTMCell = LSTMCell}
