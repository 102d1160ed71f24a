--- Networks over sequences with recurrent layers: residual_lstm_tagger, lstm_lm. They are residual containers, so states go in and out by
--- the layers' names.

local check = require "resin.check"
local class = require "resin.nn.class"
local nn = require "resin.nn"
local options = require "resin.models.options"

local recurrent = {}

---@class resin.models.ResidualLSTMTagger: resin.nn.ResidualSequential
local ResidualLSTMTagger = class.define("ResidualLSTMTagger", nn.ResidualSequential, true)

local TAGGER = options.with_joins{
  {"vocabulary", "integer", min = 1},
  {"tags", "integer", min = 1},
  {"size", "integer", min = 1, default = 128},
  {"layers", "integer", min = 1, default = 2},
  {"bidirectional", "boolean", default = true},
  {"dropout", "number", min = 0, max = 1, default = 0},
}

--- One tag for each word: an embedding, LSTM layers each with a skip around it, a linear layer.
--- residual_lstm_tagger(vocabulary, tags, {size = 128, layers = 2, bidirectional = true, dropout = 0, drop_path, layer_scale, scale,
--- alpha}), the last four as for resnet18. Takes ids [B, T] that count from 1 and gives scores [B, T, tags]; the second result holds
--- the states of the LSTMs by name (lstm1, lstm2, …).
---   local model = resin.models.residual_lstm_tagger(1000, 12)
---   local scores = model(resin.randint(1, 1000, {4, 20}))     -- [4, 20, 12]
function recurrent.residual_lstm_tagger(...)
  local o = options.read("residual_lstm_tagger", TAGGER, ...)
  if o.bidirectional and o.size % 2 ~= 0 then
    check.fail("residual_lstm_tagger: size must be even with two directions, got %d", o.size)
  end
  local steps = {{"embedding", nn.Embedding(o.vocabulary, o.size)}}
  local function add(name, module) steps[#steps + 1] = {name, module} end
  local join = options.joins(o, "residual_lstm_tagger", o.layers)
  for i = 1, o.layers do
    add("save" .. i, nn.Record("input" .. i))
    add("lstm" .. i, nn.LSTM(o.size, o.bidirectional and o.size / 2 or o.size, {batch_first = true, bidirectional = o.bidirectional}))
    if o.dropout > 0 then add("dropout" .. i, nn.Dropout(o.dropout)) end
    local given = join(i)
    given.record_name = "input" .. i
    add("add" .. i, nn.Apply(given))
  end
  add("output", nn.Linear(o.size, o.tags))
  return ResidualLSTMTagger(steps)
end

---@class resin.models.LSTMLanguageModel: resin.nn.ResidualSequential
local LSTMLanguageModel = class.define("LSTMLanguageModel", nn.ResidualSequential, true)

local LM = {
  {"vocabulary", "integer", min = 1},
  {"embedding", "integer", min = 1, default = 128},
  {"hidden", "integer", min = 1, default = 512},
  {"layers", "integer", min = 1, default = 2},
  {"dropout", "number", min = 0, max = 1, default = 0},
}

--- Scores of the next symbol: an embedding, an LSTM of several layers, a linear layer. lstm_lm(vocabulary, {embedding = 128,
--- hidden = 512, layers = 2, dropout = 0}). Takes ids [B, T] from 1 and gives [B, T, vocabulary]; the second result is the state,
--- for the next call.
---   local scores, states = model(ids)
---   scores, states = model(more, {hidden = states})
function recurrent.lstm_lm(...)
  local o = options.read("lstm_lm", LM, ...)
  return LSTMLanguageModel{
    {"embedding", nn.Embedding(o.vocabulary, o.embedding)},
    {"lstm", nn.LSTM(o.embedding, o.hidden, {num_layers = o.layers, batch_first = true, dropout = o.layers > 1 and o.dropout or 0})},
    {"output", nn.Linear(o.hidden, o.vocabulary)}}
end

recurrent.ResidualLSTMTagger = ResidualLSTMTagger
recurrent.LSTMLanguageModel = LSTMLanguageModel

return recurrent
