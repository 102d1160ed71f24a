-- torchresidual: the samples of its README and FAQ, and where resin is right and it is not (systems.md, ledger 2, 4, 6, 8, 9, 10, 11,
-- 13, 15). Samples with recurrent layers, attention and Conv1d need layers of their own and come with them.

local resin = require "resin"
local nn, optim = resin.nn, resin.optim
local RS, Record, Apply, LearnableAlpha = nn.ResidualSequential, nn.Record, nn.Apply, nn.LearnableAlpha

local function shape_of(model, ...) return model(resin.randn(...)).shape end

local function fails(text, fn, ...)
  local ok, message = pcall(fn, ...)
  assert.is_false(ok, "no error; expected: " .. text)
  assert.is_truthy(message:find(text, 1, true), message)
end

describe("README", function()
  it("basic residual connection", function()
    local linear, norm = nn.Linear(64, 64), nn.LayerNorm(64)
    local block = RS(
      Record{name = "input"},
      linear,
      nn.ReLU(),
      norm,
      Apply{record_name = "input", operation = "add"})
    local x = resin.randn(8, 64)
    local by_hand = norm(linear(x):relu()) + x
    assert.same({8, 64}, block(x).shape)
    assert.equal(0, (block(x) - by_hand):abs():sum():item())
    assert.equal(64 * 64 + 64 + 2 * 64, block:num_parameters())
  end)

  it("multiple skip connections", function()
    local block = RS(
      Record{name = "input", need_projection = true},
      nn.Linear(64, 32),
      nn.ReLU(),
      Record{name = "mid"},
      nn.Linear(32, 64),
      Apply{record_name = "input"},
      nn.LayerNorm(64),
      nn.Linear(64, 32),
      Apply{record_name = "mid"})
    assert.same({8, 32}, shape_of(block, 8, 64))
    assert.is_false(block[6].projection_layer)        -- 64 meets 64
    assert.equal(64 * 32 + 32 + 32 * 64 + 64 + 128 + 64 * 32 + 32, block:num_parameters())
  end)

  it("learnable mixing coefficient", function()
    local block = RS(
      Record{name = "r"},
      nn.Linear(64, 64),
      Apply{record_name = "r", operation = "gated", alpha = LearnableAlpha(0.3, {min_value = 0, max_value = 1})})
    local optimiser = optim.Adam(block:parameters(), {lr = 1e-3})
    assert.equal(3, #block:parameters())
    block(resin.randn(4, 64)):sum():backward()
    local before = block[3].alpha():item()
    optimiser:step()
    assert.is_near(0.3, before, 1e-6)
    assert.is_true(block[3].alpha():item() ~= before)
  end)

  it("automatic projection for shape changes", function()
    local block = RS(
      Record{name = "r", need_projection = true},
      nn.Linear(64, 128),
      nn.ReLU(),
      Apply{record_name = "r"})
    assert.same({8, 128}, shape_of(block, 8, 64))
    assert.equal(2 * (64 * 128 + 128), block:num_parameters())
  end)

  it("ResidualSequential as a drop-in for Sequential", function()
    local block = RS(nn.Linear(64, 64), Record(), nn.ReLU(), Apply())
    assert.same({8, 64}, shape_of(block, 8, 64))
    assert.equal(4, #block)
    local plain = RS(nn.Linear(4, 3), nn.ReLU())
    local sequential = nn.Sequential(plain[1], plain[2])
    local x = resin.randn(2, 4)
    assert.equal(0, (plain(x) - sequential(x)):abs():sum():item())
  end)

  it("nested residual blocks", function()
    local inner = RS(Record(), nn.Linear(64, 64), nn.ReLU(), Apply())
    local outer = RS(Record(), inner, nn.Linear(64, 64), Apply())
    local x = resin.randn(8, 64)
    local h = inner[2](x):relu() + x
    local by_hand = outer[3](h) + x
    assert.is_true((outer(x) - by_hand):abs():max():item() < 1e-6)
  end)

  it("complex encoder block: named children, long and short skips, concat along the channels", function()
    local encoder = RS{
      {"record_input", Record{need_projection = true, name = "input"}},
      {"conv1", nn.Conv2d(64, 128, 3, {padding = 1})},
      {"relu1", nn.ReLU()},
      {"record_mid", Record{name = "mid"}},
      {"conv2", nn.Conv2d(128, 128, 3, {padding = 1})},
      {"relu2", nn.ReLU()},
      {"apply_long", Apply{record_name = "input"}},
      {"norm", nn.BatchNorm2d(128)},
      {"conv3", nn.Conv2d(128, 64, 1)},
      {"apply_short", Apply{record_name = "mid", operation = "concat"}},
    }
    assert.equal("Conv2d(64, 128, 1)", encoder.apply_long.projection_layer:label())
    assert.same({2, 64 + 128, 5, 7}, shape_of(encoder, 2, 64, 5, 7))
    assert.is_truthy(encoder:state_dict()["apply_long.projection_layer.weight"])
  end)

  it("alpha takes the logarithmic form by itself", function()
    assert.is_true(LearnableAlpha(0.01, {min_value = 1e-4, max_value = 1}).use_log:item())
  end)
end)

describe("FAQ", function()
  it("a plain Sequential inside", function()
    local regular = nn.Sequential(nn.Linear(64, 64), nn.ReLU())
    assert.same({8, 64}, shape_of(RS(Record(), regular, Apply()), 8, 64))
  end)

  it("several Applies on one Record", function()
    local block = RS(Record{name = "r"}, nn.Linear(8, 8), Apply{record_name = "r"}, nn.Linear(8, 8), Apply{record_name = "r"})
    assert.same({2, 8}, shape_of(block, 2, 8))
  end)

  it("LearnableAlpha outside of a container", function()
    local alpha = LearnableAlpha(0.5, 0, 1)
    local base, bonus = resin.tensor(2), resin.tensor(4)
    assert.is_near(3, (base * alpha() + bonus * (1 - alpha())):item(), 1e-6)
  end)

  it("the two errors", function()
    fails("Apply must be used inside ResidualSequential", Apply(), resin.ones(2))
    fails("set need_projection=true on Record", function() return RS(Record(), nn.Linear(4, 8), Apply()) end)
  end)

  it("finding the alphas of a model", function()
    local block = RS(Record(), nn.Linear(4, 4), Apply("gated"))
    block(resin.randn(2, 4)):sum():backward()
    local found = 0
    for _, module in ipairs(block:modules()) do
      if module:is(LearnableAlpha) then
        found = found + 1
        assert.is_near(0.5, module():item(), 1e-6)
        assert.is_truthy(module.param.grad)
      end
    end
    assert.equal(1, found)
  end)
end)

describe("ledger", function()
  local function train(model, x, steps)
    local optimiser = optim.SGD(model:parameters(), {lr = 0.1})      -- before any forward
    local before = {}
    for i, p in ipairs(model:parameters()) do before[i] = p:clone() end
    for _ = 1, steps do
      optimiser:zero_grad()
      local loss = (model(x) ^ 2):mean()
      loss:backward()
      optimiser:step()
    end
    for i, p in ipairs(model:parameters()) do
      assert.is_truthy(before[i], "a parameter appeared after the optimiser was made")
      assert.is_true((p - before[i]):abs():sum():item() > 0, "parameter " .. i)
    end
  end

  it("2: projections and gates exist before the optimiser and are trained", function()
    train(RS(Record(true), nn.Linear(4, 6), Apply(), Record(), nn.Linear(6, 6), Apply("highway")), resin.randn(8, 4), 3)
    train(RS(Record(true), nn.Conv2d(2, 4, 3, {stride = 2, padding = 1}), Apply()), resin.randn(2, 2, 6, 6), 2)
  end)

  it("4: one module at two positions runs at both", function()
    local layer = nn.Linear(3, 3)
    local x = resin.randn(2, 3)
    assert.equal(0, (RS(layer, layer)(x) - layer(layer(x))):abs():sum():item())
    assert.equal(2, #RS(layer, layer):parameters())
  end)

  it("6: convolutions project and concatenate along the channels", function()
    local model = RS(Record(true), nn.Conv2d(3, 8, 3, {stride = 2, padding = 1}), Apply(), Record(), nn.Conv2d(8, 4, 1),
      Apply("concat"))
    assert.same({2, 12, 5, 6}, shape_of(model, 2, 3, 9, 12))
  end)

  it("8: gated without an alpha lets the branch learn", function()
    local model = RS(Record(), nn.Linear(3, 3), Apply("gated"))
    model(resin.randn(2, 3)):sum():backward()
    assert.is_true(model[2].weight.grad:abs():sum():item() > 0)
  end)

  it("9: a model can be copied and saved after a training step, and loads into a fresh one", function()
    local function fresh() return RS(Record(true), nn.Linear(3, 5), Apply(), Record(), nn.Linear(5, 5), Apply("highway")) end
    local model, x = fresh(), resin.randn(4, 3)
    model(x):sum():backward()
    local copy, other = model:clone(), fresh()
    other:load_state_dict(model:state_dict())
    assert.equal(0, (copy(x) - model(x)):abs():sum():item())
    assert.equal(0, (other(x) - model(x)):abs():sum():item())
    local values = 0
    for _, t in model:state_dict()() do values = values + t:numel() end
    assert.equal(model:num_parameters(), values)
  end)

  it("10: an in-place activation does not change what was recorded", function()
    local x = resin.tensor{-1, 2}
    assert.same({-1, 4}, RS(Record(), nn.ReLU{inplace = true}, Apply())(x):totable())
    assert.same({-1, 2}, x:totable())
  end)

  it("11: alpha outside of its bounds is an error, and a state restores the form", function()
    fails("LearnableAlpha: initial_value must be a number from 0 to 1", LearnableAlpha, 1.5)
    local log, linear = LearnableAlpha(0.1, 1e-3, 10), LearnableAlpha(0.5, 0, 1)
    linear:load_state_dict(log:state_dict())
    assert.is_near(0.1, linear():item(), 1e-6)
    assert.is_near(-0.1, (-linear):item(), 1e-6)
  end)

  it("13: no silent broadcasting, no ignored keyword", function()
    fails("recorded [?, 4] but current is [?, 1]", function() return RS(Record(), nn.Linear(4, 1), Apply()) end)
    fails('there is no child "attn"', RS(nn.Linear(4, 4)), resin.ones(1, 4), {attn = {}})
    fails("Apply: operation concat = cat(x, r) takes no alpha", Apply, "concat", nil, 0.5)
  end)

  it("15: an unnamed Apply reads the Record that ran last; one name is given once", function()
    local model = RS(Record(), function(x) return x * 2 end, Record(), function(x) return x * 5 end, Apply(), Apply())
    assert.equal(14, model(resin.ones(1)):item())
    fails('the record name "r" is given twice', function() return RS(Record("r"), Record("r")) end)
    assert.is_truthy(RS(Record("record_2"), Record(), Apply("add", "record_3")))
    local edited = RS(nn.Identity())
    edited:append(Record()):append(Apply())
    assert.equal(2, edited(resin.ones(1)):item())
  end)
end)
