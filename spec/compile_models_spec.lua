-- 300 random models (residual, recurrent, attention, convolutional), forward and training steps: programs give what eager gives.
-- Shapes are small; what a case consists of follows from its number alone.

local resin = require "resin"
local ffi = require "ffi"
local compiled = require "spec.support.compiled"
local samples = require "spec.support.samples"
local C = require("resin.lib").C

local nn, F, models = resin.nn, resin.F, resin.models

local CASES = 300

-- ---- random choices -------------------------------------------------------------------------------------------------------

local state = 1
local function random(n)
  state = (state * 16807) % 2147483647
  return state % n + 1
end
local function pick(list) return list[random(#list)] end
local function chance(percent) return random(100) <= percent end

local ACTIVATIONS = { nn.ReLU, nn.GELU, nn.Tanh, nn.Sigmoid, nn.SiLU, nn.ELU, nn.LeakyReLU, nn.Softplus }

-- ---- kinds of models: each returns a function that makes the model, and one that makes an input ------------------------------

local function features()
  local width, depth, batch = pick { 5, 8, 16, 33 }, random(3), random(6) + 1
  local plan = {}
  for i = 1, depth do
    plan[i] = { hidden = pick { 4, 8, 24 }, act = pick(ACTIVATIONS), norm = random(4), drop = chance(30) and 0.3,
      skip = pick { "add", "none", "gated", "multiply", "concat", "subtract" }, bias = chance(80) }
  end
  return function()
    local model = nn.ResidualSequential()
    local w = width
    for i, p in ipairs(plan) do
      local name = "r" .. i
      if p.skip ~= "none" then model:append(nn.Record(name)) end
      model:append(nn.Linear(w, p.hidden, { bias = p.bias }))
      model:append(p.act())
      if p.norm == 1 then model:append(nn.LayerNorm(p.hidden)) end
      if p.norm == 2 then model:append(nn.BatchNorm1d(p.hidden)) end
      if p.norm == 3 then model:append(nn.RMSNorm(p.hidden)) end
      if p.drop then model:append(nn.Dropout(p.drop)) end
      model:append(nn.Linear(p.hidden, w))
      if p.skip == "gated" then model:append(nn.Apply { record_name = name, operation = "gated", alpha = nn.LearnableAlpha(0.4) })
      elseif p.skip == "concat" then
        model:append(nn.Apply { record_name = name, operation = "concat" })
        w = 2 * w
      elseif p.skip ~= "none" then model:append(nn.Apply { record_name = name, operation = p.skip }) end
      model:append(p.act())
    end
    model:append(nn.Linear(w, 3))
    return model
  end, function() return resin.randn(batch, width) end
end

local function images()
  local channels, size, depth, batch = pick { 1, 3 }, pick { 6, 8, 9 }, random(2), random(3)
  local plan, head = {}, random(3)
  for i = 1, depth do
    plan[i] = { out = pick { 4, 6 }, kernel = pick { 1, 3 }, groups = chance(25) and 2 or 1, norm = random(3), act = pick(ACTIVATIONS),
      skip = chance(60), pool = chance(30), bias = chance(50), drop = chance(20) }
  end
  return function()
    local model = nn.ResidualSequential(nn.Conv2d(channels, 4, 3, { padding = 1 }))
    local c = 4
    for i, p in ipairs(plan) do
      local out = p.skip and c or p.out
      if p.skip then model:append(nn.Record("r" .. i)) end
      model:append(nn.Conv2d(c, out, p.kernel, { padding = (p.kernel - 1) / 2, groups = p.groups, bias = p.bias }))
      if p.norm == 1 then model:append(nn.BatchNorm2d(out)) elseif p.norm == 2 then model:append(nn.GroupNorm(2, out)) end
      model:append(p.act())
      if p.skip then
        model:append(nn.Conv2d(out, c, 3, { padding = 1 }))
        model:append(nn.BatchNorm2d(c))
        model:append(nn.Apply { record_name = "r" .. i })
        model:append(nn.ReLU())
        out = c
      end
      if p.drop then model:append(nn.Dropout(0.2)) end
      if p.pool then model:append(nn.MaxPool2d(2)) end
      c = out
    end
    if head == 1 then
      model:append(nn.AdaptiveAvgPool2d(1))
      model:append(nn.Flatten())
      model:append(nn.Linear(c, 3))
    elseif head == 2 then
      model:append(nn.Conv2d(c, 2, 1))
    else
      model:append(nn.ConvTranspose2d(c, 2, 2, { stride = 2 }))
    end
    return model
  end, function() return resin.randn(batch, channels, size, size) end
end

local function recurrent()
  local kind, input, hidden = pick { "RNN", "GRU", "LSTM" }, pick { 3, 6 }, pick { 4, 9 }
  local layers, both, first = random(2), chance(40), chance(50)
  local dropout = layers == 2 and chance(40) and 0.2 or 0
  local batch, length = random(4), random(6)
  return function()
    local layer = nn[kind](input, hidden, { num_layers = layers, bidirectional = both, batch_first = first, dropout = dropout })
    local Model = nn.class("Tagger")
    function Model:init()
      self.rnn = layer
      self.norm = nn.LayerNorm(hidden * (both and 2 or 1))
      self.head = nn.Linear(hidden * (both and 2 or 1), 3)
    end
    function Model:forward(x)
      local y = self.rnn(x)
      return self.head(self.norm(y))
    end
    return Model()
  end, function()
    if first then return resin.randn(batch, length, input) end
    return resin.randn(length, batch, input)
  end
end

local function attention()
  local heads, each, batch, length = random(3), pick { 2, 4 }, random(3), random(6)
  local size, causal, pre, dropout, act = heads * each, chance(50), chance(50), chance(40) and 0.2 or 0, pick { "relu", "gelu" }
  local layer = chance(50)
  return function()
    if layer then
      return nn.Sequential(nn.TransformerEncoderLayer(size, heads, { dim_feedforward = 2 * size, dropout = dropout, activation = act,
        norm_first = pre, batch_first = true }), nn.Linear(size, 3))
    end
    local Model = nn.class("Attender")
    function Model:init()
      self.norm = nn.LayerNorm(size)
      self.attend = nn.MultiheadAttention(size, heads, { batch_first = true, dropout = dropout })
      self.head = nn.Linear(size, 3)
    end
    function Model:forward(x)
      local y = self.norm(x)
      local q = y:reshape(y.shape[1], y.shape[2], heads, each):transpose(2, 3)
      local direct = F.scaled_dot_product_attention(q, q, q, { is_causal = causal })
      y = self.attend(y, y, y, { need_weights = false })
      if type(y) == "table" and getmetatable(y) == nil then y = y[1] end
      return self.head(x + y + direct:transpose(2, 3):reshape(x.shape))
    end
    return Model()
  end, function() return resin.randn(batch, length, size) end
end

local function whole()
  local which, batch = random(4), random(2) + 1
  if which == 1 then
    return function() return models.highway_mlp(6, 8, 3, 3, { act = "relu" }) end, function() return resin.randn(batch, 6) end
  elseif which == 2 then
    return function() return nn.Sequential(nn.Embedding(11, 8), nn.GRU(8, 6, { batch_first = true }), nn.Linear(6, 3)) end,
      function() return resin.randint(1, 11, { batch, 5 }) end
  elseif which == 3 then
    return function() return models.mlp({ 6, 12, 12, 3 }, { act = "gelu", dropout = 0.1 }) end, function() return resin.randn(batch, 6) end
  end
  return function()
    return nn.Sequential(nn.Conv1d(3, 6, 3, { padding = 1 }), nn.BatchNorm1d(6), nn.ReLU(), nn.MaxPool1d(2), nn.Flatten(), nn.Linear(24, 3))
  end, function() return resin.randn(batch, 3, 8) end
end

local KINDS = { features = features, images = images, recurrent = recurrent, attention = attention, whole = whole }
local ORDER = { "features", "images", "recurrent", "attention", "features", "whole" }

-- ---- checking -------------------------------------------------------------------------------------------------------------

local function check_case(number)
  state = number * 7919 % 2147483646 + 1
  for _ = 1, 5 do random(10) end
  local kind = ORDER[number % #ORDER + 1]
  local make, input = KINDS[kind]()
  compiled.check(make, input, number, chance(40))
end

describe("programs equal eager on random models:", function()
  local GROUP = 25
  for first = 1, CASES, GROUP do
    it(("cases %d to %d"):format(first, first + GROUP - 1), function()
      local problems = {}
      for number = first, first + GROUP - 1 do
        local ok, message = pcall(check_case, number)
        if not ok then problems[#problems + 1] = ("case %d (%s): %s"):format(number, ORDER[number % #ORDER + 1], tostring(message)) end
        collectgarbage()
      end
      assert.equal("", table.concat(problems, "\n"))
    end)
  end
end)

describe("passes", function()
  local names = {}
  for i = 0, C.rs_pass_count() - 1 do names[i + 1] = ffi.string(C.rs_pass_name(i)) end

  -- A channel count that images in block form like, and gradients that meet in place.
  local function residual()
    local function block(name)
      return nn.Record(name), nn.Conv2d(16, 16, 3, { padding = 1 }), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 16, 3, { padding = 1 }), nn.BatchNorm2d(16), nn.Apply { record_name = name }, nn.ReLU()
    end
    local model = nn.ResidualSequential(nn.Conv2d(3, 16, 3, { padding = 1 }), nn.BatchNorm2d(16), nn.ReLU())
    for _, name in ipairs { "a", "b" } do
      for _, layer in ipairs { block(name) } do model:append(layer) end
    end
    for _, layer in ipairs { nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3) } do model:append(layer) end
    return model
  end
  local function attending()
    return nn.Sequential(nn.TransformerEncoderLayer(8, 2, { dim_feedforward = 16, dropout = 0, norm_first = true, batch_first = true }),
      nn.Flatten(), nn.Linear(40, 3))
  end

  local function subsets()
    local list = { {} }
    for i = 1, #names do
      local others = {}
      for k = 1, #names do
        if k ~= i then others[#others + 1] = names[k] end
      end
      list[#list + 1] = { names[i] }
      list[#list + 1] = others
    end
    state = 4711
    for _ = 1, 24 do
      local some = {}
      for k = 1, #names do
        if chance(50) then some[#some + 1] = names[k] end
      end
      list[#list + 1] = some
    end
    return list
  end

  local function largest_difference(make, x, y, passes)
    resin.manual_seed(3)
    local a = make()
    resin.manual_seed(3)
    local b = make()
    local function step(m)
      return function()
        m:zero_grad()
        local loss = F.cross_entropy(m(x), y)
        loss:backward()
        return loss
      end
    end
    local eager, fast = step(a), resin.compile(step(b), { passes = passes })
    local worst = 0
    for _ = 1, 3 do worst = samples.difference(eager():detach(), fast():detach()) end
    local params = b:parameters()
    for i, p in ipairs(a:parameters()) do worst = math.max(worst, samples.difference(p.grad, params[i].grad)) end
    return worst
  end

  for title, case in pairs { convolutions = { residual, { 4, 3, 8, 8 } }, attention = { attending, { 4, 5, 8 } } } do
    it("may each be left out or stand alone: " .. title, function()
      resin.manual_seed(9)
      local x, y = resin.randn(unpack(case[2])), resin.randint(1, 3, { 4 })
      for _, passes in ipairs(subsets()) do
        local d = largest_difference(case[1], x, y, passes)
        assert.is_true(d < 1e-4, ("passes {%s}: differs by %g"):format(table.concat(passes, ", "), d))
      end
    end)
  end
end)
