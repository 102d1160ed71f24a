-- torch-circuit: the samples of its README, and where resin is right and it is not (systems.md, ledger 1, 7, 9, 10, 14).

local resin = require "resin"
local nn = resin.nn
local Circuit, SaveInput, GetInput, StartBlock, EndBlock = nn.Circuit, nn.SaveInput, nn.GetInput, nn.StartBlock, nn.EndBlock

local function fails(text, fn, ...)
  local ok, message = pcall(fn, ...)
  assert.is_false(ok, "no error; expected: " .. text)
  assert.is_truthy(message:find(text, 1, true), message)
end

local function times(k) return nn.Lambda(function(x) return x * k end) end

local function plus(k) return function(x) return x + k end end

local function value(model, x) return model(resin.tensor{{x}}):item() end

-- The README's ResNet.
local function readme(repeats)
  return Circuit(
    nn.Conv2d(3, 64, 3, {padding = 1}),
    nn.BatchNorm2d(64),
    nn.ReLU(),

    StartBlock("resnet", {num_repeats = repeats}),
    SaveInput("residual"),
    nn.Conv2d(64, 64, 3, {padding = 1}),
    nn.BatchNorm2d(64),
    nn.ReLU(),
    nn.Conv2d(64, 64, 3, {padding = 1}),
    nn.BatchNorm2d(64),
    nn.ReLU(),
    GetInput("residual", {op = "add"}),
    EndBlock("resnet"),

    nn.AdaptiveAvgPool2d(1),
    nn.Flatten(),
    nn.Linear(64, 10))
end

describe("README", function()
  it("the ResNet: 76,682 parameters for one repeat and for three, 14 tensors, 51 entries of state", function()
    for repeats, entries in pairs{[1] = 23, [3] = 51} do
      local model = readme(repeats)
      assert.equal(76682, model:num_parameters())
      assert.equal(14, #model:parameters())
      assert.same({1, 10}, model(resin.randn(1, 3, 32, 32)).shape)
      local n = 0
      for _ in pairs(model:state_dict()) do n = n + 1 end
      assert.equal(entries, n)
      assert.same({2, 10}, model:output_shape{2, 3, 32, 32})
    end
  end)

  it("it computes what the layers written out compute", function()
    local model = readme(3):eval()
    local x = resin.randn(1, 3, 8, 8)
    local h = model[3](model[2](model[1](x)))
    for _ = 1, 3 do
      local saved = h
      for i = 5, 10 do h = model[i](h) end
      h = h + saved
    end
    local by_hand = model[#model](h:mean({3, 4}))
    assert.is_true((model(x) - by_hand):abs():max():item() < 1e-5)
  end)

  it("custom operations", function()
    local function run(op) return value(Circuit(SaveInput("residual"), times(3), GetInput("residual", {op = op})), 2) end
    assert.equal(12, run(resin.F.mul))
    assert.equal(12, run("mul"))
    assert.equal(7, run(function(x, y) return x + 0.5 * y end))
    assert.equal(4, run("sub"))
    assert.equal(8, run())
    assert.same({{6, 2}}, Circuit(SaveInput("residual"), times(3), GetInput("residual", "cat"))(resin.tensor{{2}}):totable())
  end)

  it("the Key Components: a lambda layer, functions and named children", function()
    local twice = nn.LambdaLayer(function(x) return x * 2 end)
    local model = Circuit{{"twice", twice}, {"save", SaveInput("r")}, plus(1), {"get", GetInput("r")}}
    assert.equal(13, value(model, 3))
    assert.is_true(model.save == model[2] and model.get == model[4])
  end)
end)

describe("SaveInput and GetInput", function()
  it("take a transform on either end; the value itself goes on", function()
    local model = Circuit(SaveInput("r", {transform = times(10)}), plus(1), GetInput("r", {transform = function(x) return x + 0.5 end}))
    assert.equal(3 + 20.5, value(model, 2))
    local trained = Circuit(SaveInput("r", nn.Linear(4, 6)), nn.Linear(4, 6), GetInput("r", "add", nn.Linear(6, 6)))
    assert.same({2, 6}, trained(resin.randn(2, 4)).shape)
    assert.same({2, 6}, trained:output_shape{2, 4})
    assert.equal(6, #trained:parameters())
    assert.is_truthy(trained:state_dict()["0.transform.weight"])
    assert.is_truthy(trained:state_dict()["2.transform.weight"])
    local x = resin.randn(2, 4):requires_grad_()
    local by_hand = trained[2](x) + trained[3].transform(trained[1].transform(x))
    assert.equal(0, (trained(x) - by_hand):abs():sum():item())
  end)

  it("take a module as op, which belongs to the model", function()
    local Join = nn.class("Join")
    function Join:init() self.layer = nn.Linear(8, 4) end
    function Join:forward(current, saved) return self.layer(resin.cat({current, saved}, 2)) end
    local model = Circuit(SaveInput("r"), nn.Linear(4, 4), GetInput("r", {op = Join()}))
    assert.same({2, 4}, model(resin.randn(2, 4)).shape)
    assert.is_truthy(model:state_dict()["2.op.layer.weight"])
  end)

  it("a name may be read many times and saved again", function()
    assert.equal(2 * 3 + 2 + 2, value(Circuit(SaveInput("a"), times(3), GetInput("a"), GetInput("a")), 2))
    assert.equal(36, value(Circuit(SaveInput("a"), plus(1), GetInput("a"), SaveInput("a"), plus(4), GetInput("a"), times(2)), 3))
  end)

  it("check shapes before anything runs", function()
    fails('GetInput 3 (record "r"): recorded [?, 4] but current is [?, 8]; set need_projection=true on SaveInput "r" (layer 1)',
      function() return Circuit(SaveInput("r"), nn.Linear(4, 8), GetInput("r")) end)
    local projected = Circuit(SaveInput{"r", need_projection = true}, nn.Linear(4, 8), GetInput("r"))
    assert.same({2, 8}, projected(resin.randn(2, 4)).shape)
  end)

  it("work in any container, beside Record and Apply", function()
    local model = nn.ResidualSequential(SaveInput("a"), nn.Record("b"), times(3), nn.Apply("add", "a"), GetInput("b", "sub"))
    assert.equal(3 * 2, value(model, 2))
  end)

  it("an inner Circuit has names of its own and sees those around it", function()
    local inner = Circuit(SaveInput("r"), plus(1), GetInput("r"), GetInput("outer"))
    local model = Circuit(SaveInput("outer"), times(10), inner)
    assert.equal(21 + 20 + 2, value(model, 2))
  end)
end)

describe("blocks", function()
  it("share weights by default, batch norm's statistics included", function()
    local norm = nn.BatchNorm1d(3)
    local model = Circuit(StartBlock("b", 3), nn.Linear(3, 3), norm, EndBlock("b"))
    assert.equal(4, #model:parameters())
    model(resin.randn(5, 3))
    assert.equal(3, norm.num_batches_tracked:item())
    assert.equal(6, #model)
  end)

  it("have weights of their own with share = false", function()
    local layer = nn.Linear(3, 3)
    local model = Circuit(StartBlock("b", 3, {share = false}), layer, layer, nn.ReLU(), EndBlock("b"))
    assert.equal(6, #model:parameters())
    assert.is_true(model[1] == layer and model[2] == layer and model[4] == model[5] and model[4] ~= layer)
    for k = 4, 7, 3 do      -- they are drawn anew
      assert.is_true((model[k - 3].weight - model[k].weight):abs():amin():item() > 0)
      assert.is_true(model[k].weight:abs():amax():item() <= 3 ^ -0.5)
    end
    model(resin.randn(2, 3)):sum():backward()
  end)

  it("with share = false start as their constructors say, layers of one's own as they say, the rest as it was", function()
    local Own = nn.class("Own")
    function Own:init()
      self.inner, self.gain = nn.Linear(2, 2), nn.Parameter(resin.full({1}, 3))
      self.draws = 0
    end
    function Own:reset_parameters()
      self.draws = self.draws + 1
      resin.no_grad(function() self.gain:fill_(self.gain:item() + 1) end)
    end
    function Own:forward(x) return self.inner(x) * self.gain end
    local Wide = nn.Linear:extend("Wide")
    local norm, frozen, attention = nn.BatchNorm1d(4), nn.Linear(4, 4):requires_grad_(false), nn.MultiheadAttention(4, 2)
    resin.no_grad(function()
      norm.weight:fill_(5)
      norm.running_mean:fill_(5)
    end)
    local model = Circuit(StartBlock("b", 2, {share = false}), nn.LSTM(4, 4, {num_layers = 2}), norm, frozen, attention, nn.Embedding(5, 4),
      Wide(4, 4), Own(), nn.LayerNorm({4}), SaveInput("r"), GetInput{"r", alpha = nn.LearnableAlpha(0.3)},
      EndBlock("b"))
    local function second(i) return model[10 + i] end
    local function differs(a, b) return (a - b):abs():amin():item() > 0 end
    assert.is_true(differs(model[1].weight_hh_l1, second(1).weight_hh_l1))
    assert.same({1, 0}, {second(2).weight[1]:item(), second(2).running_mean[1]:item()})
    assert.equal(5, norm.weight[1]:item())
    assert.is_false(differs(frozen.weight, second(3).weight))
    assert.is_true(differs(attention.in_proj_weight, second(4).in_proj_weight))
    assert.equal(0, second(4).out_proj.bias:abs():amax():item())              -- as attention draws it, not as Linear does
    assert.is_true(differs(model[5].weight, second(5).weight))
    assert.is_true(differs(model[6].weight, second(6).weight))
    assert.is_true(differs(model[7].inner.weight, second(7).inner.weight))
    assert.same({3, 4}, {model[7].gain:item(), second(7).gain:item()})
    assert.is_near(0.3, second(10).alpha():item(), 1e-6)
  end)

  it("nested repeats multiply", function()
    local runs = 0
    local function count(x)
      runs = runs + 1
      return x + 1
    end
    local model = Circuit(StartBlock("outer", 2), plus(10), StartBlock("inner", 3), count, EndBlock("inner"), EndBlock("outer"))
    assert.equal(26, value(model, 0))
    assert.equal(6, runs)
    local deep = Circuit(StartBlock("a", 2, {share = false}), StartBlock("b", 2), StartBlock("c", 2, {share = false}), nn.Linear(1, 1),
      EndBlock("c"), EndBlock("b"), EndBlock("a"))
    assert.equal(8, #deep)
    assert.equal(2 * 4, #deep:parameters())       -- two layers by c, shared by b, copied by a
    assert.is_true(deep[1] == deep[3] and deep[2] == deep[4] and deep[1] ~= deep[2] and deep[5] ~= deep[1] and deep[5] == deep[7])
  end)

  it("a body may be a function of the index", function()
    local seen = {}
    local model = Circuit(
      StartBlock{"widths", num_repeats = 3, body = function(i)
        seen[#seen + 1] = i
        return nn.Linear(2 ^ i, 2 ^ (i + 1)), nn.ReLU()
      end},
      nn.Linear(16, 1))
    assert.same({1, 2, 3}, seen)
    assert.same({5, 1}, model(resin.randn(5, 2)).shape)
    assert.equal(8, #model:parameters())
    local table_body = Circuit(StartBlock{"b", num_repeats = 2, body = function(i)
      return {SaveInput("r"), StartBlock("twice", 2), times(i + 1), EndBlock("twice"), GetInput("r")}
    end})
    assert.equal(5 * 10, value(table_body, 1))
  end)

  it("names get _repeat_k only when there is more than one repeat, and are found from their own repeat", function()
    local one = Circuit(StartBlock("b", 1), SaveInput("r"), plus(1), EndBlock("b"), GetInput("r"))
    assert.equal(5, value(one, 2))
    local three = Circuit(StartBlock("b", 3), SaveInput("r"), plus(1), GetInput("r"), EndBlock("b"), GetInput("r_repeat_0"),
      GetInput("r_repeat_2"))
    -- 1 → 3 → 7 → 15, plus 1, plus 7
    assert.equal(23, value(three, 1))
    -- a name from outside, inside
    assert.equal(1 + 2 * (1 + 1), value(Circuit(SaveInput("x"), StartBlock("b", 2), plus(1), GetInput("x"), EndBlock("b")), 1))
    -- the repeat before
    local before = Circuit(StartBlock("first", 1), SaveInput("r_repeat_0"), EndBlock("first"), StartBlock("b", 2), times(2),
      SaveInput("r"), EndBlock("b"), GetInput("r_repeat_0"))
    assert.equal(4 + 2, value(before, 1))
    -- blocks in blocks: the innermost number first; from the outer repeat the inner one is named by its own number
    local nested = Circuit(StartBlock("o", 2), StartBlock("i", 2), SaveInput("r"), plus(1), EndBlock("i"), GetInput("r_repeat_1"),
      EndBlock("o"), GetInput("r_repeat_0_repeat_1"))
    -- 0 → 1 → 2, + 1 = 3 → 4 → 5, + 4 = 9, + 3
    assert.equal(12, value(nested, 0))
  end)

  it("several records of one GetInput are found in the same way", function()
    local model = Circuit(StartBlock("b", 2), SaveInput("a"), times(2), SaveInput("c"), times(2),
      GetInput{records = {"a", "c"}}, EndBlock("b"))
    assert.equal(49, value(model, 1))
  end)

  it("gates that follow from shapes are shared by the repeats too", function()
    local model = Circuit(StartBlock("b", 2), SaveInput("r"), nn.Linear(3, 3), GetInput("r", "highway"), EndBlock("b"))
    assert.equal(6, #model:parameters())
    assert.is_true(model[3].gate_layer == model[6].gate_layer)
    local other = Circuit(StartBlock("b", 2), SaveInput("r"), nn.Linear(3, 3), GetInput("r", "highway"), EndBlock("b"))
    other:load_state_dict(model:state_dict())
    local x = resin.randn(2, 3)
    assert.equal(0, (other(x) - model(x)):abs():sum():item())
    assert.equal(0, (model:clone()(x) - model(x)):abs():sum():item())
  end)

  it("children's names follow the same rule", function()
    local model = Circuit{StartBlock("b", 2), {"layer", nn.Linear(2, 2)}, EndBlock("b"), {"head", nn.Linear(2, 1)}}
    assert.is_true(model.layer_repeat_0 == model.layer_repeat_1)
    assert.is_truthy(model:state_dict()["layer_repeat_1.weight"])
    assert.is_truthy(model.head)
  end)
end)

describe("structure", function()
  it("is data and text", function()
    local model = Circuit(nn.Linear(4, 4), StartBlock("res", 2), SaveInput("r"), nn.ReLU(), GetInput("r", "mul"), EndBlock("res"))
    local structure = model:expanded_structure()
    assert.equal(7, #structure)
    assert.equal("SaveInput", structure[5].type)
    assert.equal('SaveInput("r_repeat_1")', structure[5].label)
    assert.same({{block = "res", index = 2, of = 2}}, structure[5].repeats)
    assert.same({}, structure[1].repeats)
    assert.equal(table.concat({
      '1: Linear(4, 4)',
      '2: SaveInput("r_repeat_0")                  res 1 of 2',
      '3: ReLU()                                   res 1 of 2',
      '4: GetInput("r_repeat_0", {op = "product"}) res 1 of 2',
      '5: SaveInput("r_repeat_1")                  res 2 of 2',
      '6: ReLU()                                   res 2 of 2',
      '7: GetInput("r_repeat_1", {op = "product"}) res 2 of 2'}, "\n"), (tostring(structure):gsub("  res", " res")))
    assert.same({{name = "res", num_repeats = 2, depth = 1, repeats = {{first = 2, last = 4}, {first = 5, last = 7}}}}, model:blocks())
  end)

  it("blocks inside blocks are listed for each time", function()
    local model = Circuit(StartBlock("o", 2), plus(1), StartBlock("i", 3), plus(2), EndBlock("i"), EndBlock("o"), plus(3))
    local list = {}
    for _, b in ipairs(model:blocks()) do
      list[#list + 1] = ("%s %d %d-%d"):format(b.name, b.depth, b.repeats[1].first, b.repeats[#b.repeats].last)
    end
    assert.same({"o 1 1-8", "i 2 2-4", "i 2 6-8"}, list)
  end)

  it("a Circuit can be edited like any container", function()
    local model = Circuit(StartBlock("b", 2), plus(1), times(2), EndBlock("b"))
    model:insert(2, plus(10)):append(plus(100))
    assert.equal(((0 + 11) * 2 + 1) * 2 + 100, value(model, 0))
    assert.same({{first = 1, last = 3}, {first = 4, last = 5}}, model:blocks()[1].repeats)
    model:remove(2)
    assert.same({{first = 1, last = 2}, {first = 3, last = 4}}, model:blocks()[1].repeats)
    fails("blocks are unrolled when the Circuit is made; a StartBlock cannot be added later", model.append, model, StartBlock("x"))
    assert.equal(2, #model:slice(1, 2))
  end)
end)

describe("errors", function()
  it("blocks that do not match", function()
    fails("StartBlock: num_repeats must be >= 1, got 0", StartBlock, "a", {num_repeats = 0})
    fails('Circuit: no matching EndBlock found for StartBlock "a"', Circuit, StartBlock("a"), nn.ReLU())
    fails('Circuit: EndBlock "a" without matching StartBlock', Circuit, nn.ReLU(), EndBlock("a"))
    fails('Circuit: no matching EndBlock found for StartBlock "b" (found EndBlock "a" instead)', Circuit, StartBlock("a"), StartBlock("b"),
      EndBlock("a"), EndBlock("b"))
    fails('StartBlock "a" only stands between the layers that a Circuit is made of', StartBlock("a"), resin.ones(1))
    fails('StartBlock "a": body(1) returned no layers', Circuit, StartBlock{"a", body = function() end})
    fails("share is for layers up to an EndBlock", StartBlock, {"a", body = print, share = false})
  end)

  it("names that are not there, at construction or before the first layer runs", function()
    fails('Circuit: GetInput 3: there is no SaveInput "r" before it (known: "r_repeat_0", "r_repeat_1")',
      Circuit(StartBlock("b", 2), SaveInput("r"), EndBlock("b"), GetInput("r")), resin.ones(1))
    fails('Circuit: GetInput 1: SaveInput "r" comes only later (layer 2); a SaveInput must run before the GetInput that reads it', Circuit,
      GetInput("r"), SaveInput("r"))
    fails('did you mean "residual"?', Circuit, SaveInput("residual"), GetInput("residul"))
    fails("GetInput must be used inside Circuit", GetInput("r"), resin.ones(1))
  end)

  it("arguments", function()
    fails("SaveInput: name is missing", SaveInput)
    fails("GetInput: name is missing", GetInput)
    fails('GetInput: unknown option "opp"', GetInput, "r", {opp = "add"})
    fails('GetInput: unsupported operation "foo"', GetInput, "r", {op = "foo"})
    fails("GetInput: op must be a name, a function of (current, saved) or a module, got number 3", GetInput, "r", {op = 3})
    fails("SaveInput: transform must be a module or a function, got number 3", SaveInput, "r", {transform = 3})
  end)
end)

describe("ledger", function()
  it("1: a Circuit may be entered again while it runs", function()
    local model = Circuit(SaveInput("r"), function(x)
      coroutine.yield()
      return x * 2
    end, GetInput("r"))
    local results, threads = {}, {}
    for i = 1, 8 do threads[i] = coroutine.wrap(function() results[i] = value(model, i) end) end
    for _ = 1, 2 do
      for i = 1, 8 do threads[i]() end
    end
    assert.same({3, 6, 9, 12, 15, 18, 21, 24}, results)
  end)

  it("9: it can be copied after a training step, and nothing is kept", function()
    local model, x = Circuit(StartBlock("b", 2), SaveInput("r"), nn.Linear(3, 3), GetInput("r"), EndBlock("b")), resin.randn(2, 3)
    model(x):sum():backward()
    assert.equal(0, (model:clone()(x) - model(x)):abs():sum():item())
  end)

  it("10: an in-place layer does not change what was saved", function()
    assert.same({-1, 4}, Circuit(SaveInput("r"), nn.ReLU{inplace = true}, GetInput("r"))(resin.tensor{-1, 2}):totable())
  end)

  it("14: every GetInput shows its own operation", function()
    local text = tostring(Circuit(SaveInput("r"), nn.ReLU(), GetInput("r", "mul"), GetInput("r", "cat")))
    assert.is_truthy(text:find('GetInput("r", {op = "product"})', 1, true), text)
    assert.is_truthy(text:find('GetInput("r", {op = "concat"})', 1, true), text)
  end)
end)
