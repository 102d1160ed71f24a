-- The models of examples/ and of resin.models, small, as programs: forward and training steps give what eager gives.

local resin = require "resin"
local compiled = require "spec.support.compiled"

local nn, optim, models = resin.nn, resin.optim, resin.models

local function floats(...)
  local shape = { ... }
  return function() return resin.randn(unpack(shape)) end
end
local function ids(count, ...)
  local shape = { ... }
  return function() return resin.randint(1, count, shape) end
end

-- make, input, with Adam, deep
local CASES = {
  quickstart = { function() return nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2)) end,
    floats(50, 2), true },
  guide = { function() return models.ImprovedResidualNetwork { 32, 16, 8, 4, 1 } end, floats(10, 32) },
  ["guide without shortcuts"] = { function() return models.ImprovedResidualNetwork({ 32, 16, 8, 1 }, { use_shortcut = false }) end,
    floats(10, 32) },
  ["one skip"] = { function()
    return nn.ResidualSequential(nn.Record("input"), nn.Linear(64, 64), nn.ReLU(), nn.LayerNorm(64), nn.Apply { record_name = "input" })
  end, floats(8, 64), true },
  ["a projected skip and two that cross"] = { function()
    return nn.ResidualSequential(nn.Record { name = "input", need_projection = true }, nn.Linear(64, 32), nn.ReLU(),
      nn.Record { name = "mid" }, nn.Linear(32, 64), nn.Apply { record_name = "input" }, nn.LayerNorm(64), nn.Linear(64, 32),
      nn.Apply { record_name = "mid" })
  end, floats(8, 64), true },
  ["gate and highway"] = { function()
    return nn.ResidualSequential(nn.Record("r"), nn.Linear(16, 16),
      nn.Apply { record_name = "r", operation = "gated", alpha = nn.LearnableAlpha(0.3, { min_value = 0, max_value = 1 }) },
      nn.Record("h"), nn.Linear(16, 16), nn.Apply { record_name = "h", operation = "highway" })
  end, floats(4, 16), true },
  nested = { function()
    return nn.ResidualSequential { { "keep", nn.Record("far") },
      { "inner", nn.ResidualSequential(nn.Record(), nn.Linear(32, 32), nn.GELU(), nn.Apply(), nn.Apply("add", "far")) },
      { "head", nn.Linear(32, 32) }, { "join", nn.Apply("add", "far", 0.5) } }
  end, floats(4, 32) },
  resnet18 = { function() return models.resnet18 { num_classes = 3, small_images = true } end, floats(2, 3, 16, 16), false, true },
  resnet50 = { function() return models.resnet50 { num_classes = 3, small_images = true } end, floats(4, 3, 16, 16), false, true },
  preact_resnet = { function() return models.preact_resnet(20, { num_classes = 3 }) end, floats(3, 3, 16, 16), false, true },
  unet = { function() return models.unet { 1, 2, base = 4, depth = 2 } end, floats(1, 1, 16, 16) },
  mobilenet_v2 = { function() return models.mobilenet_v2 { num_classes = 3, dropout = 0 } end, floats(4, 3, 64, 64), false, true },
  densenet121 = { function() return models.densenet121 { num_classes = 3 } end, floats(4, 3, 64, 64), false, true },
  highway_mlp = { function() return models.highway_mlp(12, 16, 4, 3) end, floats(6, 12) },
  residual_lstm_tagger = { function() return models.residual_lstm_tagger(20, 5, { size = 8 }) end, ids(20, 3, 6) },
  lstm_lm = { function() return models.lstm_lm(20, { embedding = 8, hidden = 12 }) end, ids(20, 3, 6) },
  transformer_encoder = { function() return models.transformer_encoder(20, { size = 16, layers = 2, heads = 2, max_length = 8 }) end,
    ids(20, 3, 6) },
  gpt = { function() return models.gpt(20, { size = 16, layers = 2, heads = 2, max_length = 8, dropout = 0.1 }) end, ids(20, 3, 6) },
}

describe("as a program", function()
  local names = {}
  for name in pairs(CASES) do names[#names + 1] = name end
  table.sort(names)
  for i, name in ipairs(names) do
    local case = CASES[name]
    it(name .. " gives what it gives eagerly" .. (case[4] and " #slow" or ""), function()
      if case[4] then compiled.check_deep(case[1], case[2], 1000 + i) else compiled.check(case[1], case[2], 1000 + i, case[3]) end
    end)
  end

  it("the quickstart's training gives the same losses and the same accuracy", function()
    local function train(wrap)
      resin.manual_seed(1)
      local points, labels = {}, {}
      for class = 1, 2 do
        for i = 1, 100 do
          local radius, angle = i / 100, i / 100 * 8 + class * math.pi
          points[#points + 1] = { radius * math.cos(angle), radius * math.sin(angle) }
          labels[#labels + 1] = class
        end
      end
      local x, y = resin.tensor(points), resin.tensor(labels, { dtype = "i64" })
      local model = CASES.quickstart[1]()
      local loader = resin.data.DataLoader(resin.data.TensorDataset(x, y), { batch_size = 30, shuffle = true, seed = 1 })
      local criterion, optimizer = nn.CrossEntropyLoss(), optim.Adam(model, { lr = 0.01 })
      local step = wrap(function(bx, by)
        optimizer:zero_grad()
        local loss = criterion(model(bx), by)
        loss:backward()
        optimizer:step()
        return loss
      end)
      local losses = {}
      for _ = 1, 8 do
        for _, bx, by in loader:iter() do losses[#losses + 1] = step(bx, by):item() end       -- the last batch is smaller
      end
      return losses
    end
    local want = train(function(fn) return fn end)
    assert.same(want, train(function(fn) return resin.compile(fn, compiled.EXACT) end))
    local got = train(resin.compile)
    for i = 1, #want do assert.is_true(math.abs(want[i] - got[i]) < 1e-3, "step " .. i) end
  end)
end)
