-- torchresidual: the samples of its README and FAQ, and where resin is right and it is not (systems.md, ledger 1, 2, 4, 5, 6, 8 to 11,
-- 13, 15).

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
    for name, size in pairs{Conv1d = {7}, Conv2d = {5, 7}} do
      local Conv, Norm = nn[name], nn[name:gsub("Conv", "BatchNorm")]
      local encoder = RS{
        {"record_input", Record{need_projection = true, name = "input"}},
        {"conv1", Conv(64, 128, 3, {padding = 1})},
        {"relu1", nn.ReLU()},
        {"record_mid", Record{name = "mid"}},
        {"conv2", Conv(128, 128, 3, {padding = 1})},
        {"relu2", nn.ReLU()},
        {"apply_long", Apply{record_name = "input"}},
        {"norm", Norm(128)},
        {"conv3", Conv(128, 64, 1)},
        {"apply_short", Apply{record_name = "mid", operation = "concat"}},
      }
      assert.equal(name .. "(64, 128, 1)", encoder.apply_long.projection_layer:label())
      assert.same({2, 64 + 128, unpack(size)}, shape_of(encoder, 2, 64, unpack(size)))
      assert.is_truthy(encoder:state_dict()["apply_long.projection_layer.weight"])
    end
  end)

  it("LSTM with a residual", function()
    local lstm = nn.LSTM(32, 32, {num_layers = 2, batch_first = true})
    local block = RS(
      Record{name = "r"},
      nn.RecurrentWrapper(lstm, {return_hidden = false}),
      Apply{record_name = "r"})
    local x = resin.randn(4, 10, 32)
    local y, extras = block(x)
    assert.same({4, 10, 32}, y.shape)
    assert.is_nil(extras)
    assert.is_true((y - (lstm(x) + x)):abs():max():item() < 1e-6)
  end)

  it("RecurrentWrapper gives the state when asked", function()
    local block = RS(Record(), nn.RecurrentWrapper(nn.LSTM(64, 64, {batch_first = true}), {return_hidden = true}), Apply())
    local y, extras = block(resin.randn(2, 3, 64))
    assert.same({2, 3, 64}, y.shape)
    assert.same({1, 2, 64}, extras[1][1].shape)
  end)

  it("transformer-style block: attention over one tensor is self-attention", function()
    local attention = nn.MultiheadAttention(32, 4)
    local block = RS(
      Record{name = "input"},
      attention,
      Apply{record_name = "input"},
      nn.LayerNorm(32),

      Record{name = "attn_out"},
      nn.Linear(32, 128),
      nn.ReLU(),
      nn.Linear(128, 32),
      Apply{record_name = "attn_out"},
      nn.LayerNorm(32))
    local x = resin.randn(5, 2, 32)                   -- [sequence, batch, features], as the seed has it
    local y = block(x)
    local h = block[4]((attention(x, x, x)) + x)
    local by_hand = block[10](block[8](block[6](h):relu()) + h)
    assert.is_true((y - by_hand):abs():max():item() < 1e-5)
    assert.equal(32 * 96 + 96 + 32 * 32 + 32 + 2 * 64 + 32 * 128 + 128 + 128 * 32 + 32, block:num_parameters())
    y:sum():backward()
    for _, p in ipairs(block:parameters()) do assert.is_truthy(p.grad) end
  end)

  it("the table of operations", function()
    local x = resin.randn(2, 4)
    local layer = nn.Linear(4, 4)
    local f = layer(x)
    local function run(operation, alpha)
      return RS(Record{name = "input"}, layer, Apply{operation = operation, record_name = "input", alpha = alpha})(x)
    end
    for operation, expected in pairs{add = f + 0.5 * x, multiply = f * (1 + 0.5 * x), gated = 0.5 * f + 0.5 * x} do
      assert.is_true((run(operation, 0.5) - expected):abs():max():item() < 1e-6, operation)
    end
    assert.equal(0, (run("concat") - resin.cat({f, x}, 2)):abs():sum():item())
    assert.same({2, 4}, run("highway").shape)
  end)

  it("an alpha by itself: alpha() is its value", function()
    local alpha = LearnableAlpha(0.5, {min_value = 0, max_value = 1})
    local x, residual = resin.ones(2), resin.ones(2) * 4
    assert.same({3, 3}, (x + alpha() * residual):totable())
  end)

  it("thread safety: calls that overlap do not see each other", function()
    local model = RS(Record{name = "r"}, nn.Linear(4, 4), function(x)
      coroutine.yield()
      return x
    end, Apply{record_name = "r"})
    local inputs, results, threads = {}, {}, {}
    for i = 1, 8 do
      inputs[i] = resin.randn(3, 4)
      threads[i] = coroutine.wrap(function() results[i] = model(inputs[i]) end)
    end
    for _ = 1, 2 do
      for i = 1, 8 do threads[i]() end
    end
    for i = 1, 8 do assert.is_true((results[i] - (model[2](inputs[i]) + inputs[i])):abs():max():item() < 1e-6) end
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

  it("the form of an alpha: by the ratio of its bounds, or as told", function()
    assert.is_true(LearnableAlpha(0.01, {min_value = 0.001, max_value = 1}).use_log:item())
    assert.is_false(LearnableAlpha(0.5, {min_value = 0, max_value = 1}).use_log:item())
    assert.is_false(LearnableAlpha(0.01, {min_value = 0.001, max_value = 1, use_log_space = false}).use_log:item())
  end)

  it("a transformer", function()
    local block = RS(
      Record{name = "attn_in"},
      nn.MultiheadAttention(16, 8),
      Apply{record_name = "attn_in"},
      nn.LayerNorm(16),

      Record{name = "ffn_in"},
      nn.Linear(16, 64),
      nn.ReLU(),
      nn.Linear(64, 16),
      Apply{record_name = "ffn_in"},
      nn.LayerNorm(16))
    assert.same({3, 2, 16}, shape_of(block, 3, 2, 16))
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

describe("what a container tells about itself", function()
  it("get_recorded_tensor and get_residual_info", function()
    local block = RS(Record(), nn.Linear(4, 4), Apply("gated", nil, 0.5))
    local x = resin.randn(2, 4)
    block:record(x)
    local tensor, record = block:get_recorded_tensor("record_1")
    assert.equal(0, (tensor - x):abs():sum():item())
    assert.is_true(record == block[1])
    local info = block:get_residual_info()
    assert.equal("record_1", info.records[1].name)
    assert.is_false(info.records[1].need_projection)
    assert.equal("gated", info.applies[1].operation)
    assert.equal("record_1", info.applies[1].record_name)
    assert.equal(0.5, info.applies[1].alpha)
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

  it("5: attention in a container: one tensor is self-attention, options go by name", function()
    local model = RS{Record("r"), {"attn", nn.MultiheadAttention(8, 2, {batch_first = true})}, Apply("add", "r")}
    local x = resin.randn(2, 5, 8)
    assert.same({2, 5, 8}, model(x).shape)
    local causal = model(x, {attn = {is_causal = true}})
    assert.is_true((causal - model(x)):abs():max():item() > 1e-4)
    local _, extras = model(x, {attn = {need_weights = true}})
    assert.same({2, 5, 5}, extras[1].shape)
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
