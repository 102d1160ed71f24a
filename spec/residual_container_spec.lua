-- ResidualSequential: what it computes, how names are resolved, containers in containers, editing, options and extra results.

local resin = require "resin"
local nn = resin.nn
local RS, Record, Apply = nn.ResidualSequential, nn.Record, nn.Apply

local function fails(text, fn, ...)
  local ok, message = pcall(fn, ...)
  assert.is_false(ok, "no error; expected: " .. text)
  assert.is_truthy(message:find(text, 1, true), message)
end

local function times(k) return nn.Lambda(function(x) return x * k end) end

-- One number in, one number out.
local function value(model, x, ...) return model(resin.tensor{{x}}, ...):item() end

describe("ResidualSequential", function()
  it("adds the recorded value: a Record, layers, an Apply", function()
    local layer = nn.Linear(4, 4)
    local model = RS(Record("input"), layer, nn.ReLU(), Apply{record_name = "input"})
    local x = resin.randn(3, 4)
    local expected = layer(x):relu() + x
    assert.equal(0, (model(x) - expected):abs():sum():item())
  end)

  it("runs every operation", function()
    -- current 3·2 = 6, recorded 2
    local function run(apply) return value(RS(Record("r"), times(3), apply), 2) end
    assert.equal(8, run(Apply("add", "r")))
    assert.equal(7, run(Apply("add", "r", 0.5)))
    assert.equal(14, run(Apply{record_name = "r", scale = 2}))
    assert.equal(4, run(Apply("subtract", "r")))
    assert.equal(11, run(Apply{operation = "subtract", record_name = "r", alpha = 0.5, scale = 2}))
    assert.equal(18, run(Apply("multiply", "r")))
    assert.equal(12, run(Apply("multiply", "r", 0.5)))
    assert.equal(5, run(Apply("gated", "r", 0.25)))
    assert.equal(4, run(Apply("gated", "r")))             -- alpha is a LearnableAlpha(0.5)
    assert.equal(4, run(Apply("mean", "r")))
    assert.equal(6, run(Apply("max", "r")))
    assert.equal(2, run(Apply("min", "r")))
    assert.same({{6, 2}}, RS(Record("r"), times(3), Apply("concat", "r"))(resin.tensor{{2}}):totable())
    assert.equal(36, run(Apply{operation = function(current, saved) return current * current * saved / 2 end}))
    assert.equal(8, run(Apply("ADD", "r")))
  end)

  it("takes a module as operation and owns it", function()
    local Join = nn.class("Join")
    function Join:init() self.layer = nn.Linear(2, 1) end
    function Join:forward(current, saved) return self.layer(resin.cat({current, saved}, 2)) end
    local model = RS(Record(), times(3), Apply{operation = Join()})
    assert.same({1, 1}, model(resin.ones(1, 1)).shape)
    assert.is_truthy(model:state_dict()["2.op.layer.weight"])
  end)

  it("takes registered operations, by any front, with their factors", function()
    local calls = 0
    nn.register("squash", {formula = "x * sigmoid(alpha*r)", alpha = true, run = function(current, saved, alpha)
      calls = calls + 1
      return current * (saved * alpha):sigmoid()
    end})
    local y = value(RS(Record(), times(2), Apply{operation = "Squash", alpha = 0}), 3)
    assert.equal(3, y)
    assert.equal(1, calls)
    fails('register: there is an operation "squash" already', nn.register, "squash", function() end)
    fails("register: other: run must be a function, got nil", nn.register, "other", {formula = "x"})
    fails('register: other: unknown option "fn" (known: formula, run, alpha, scale, shapes, shape)', nn.register, "other",
      {fn = print})
    fails("Apply: operation squash = x * sigmoid(alpha*r) takes no scale", Apply, {operation = "squash", scale = 2})
  end)

  it("scales the branch with a number, a tensor per channel, a parameter or a LearnableAlpha", function()
    local x = resin.tensor{{1, 2}}
    local function run(options)
      options.record_name = "r"
      return RS(Record("r"), times(10), Apply(options))
    end
    assert.same({{11, 42}}, run{scale = resin.tensor{1, 2}}(x):totable())
    local rezero = run{scale = nn.Parameter(resin.zeros(1))}
    assert.same({{1, 2}}, rezero(x):totable())
    assert.equal(1, #rezero:parameters())
    assert.is_truthy(rezero:state_dict()["2.scale"])
    local learned = run{scale = nn.LearnableAlpha(0.5), alpha = nn.LearnableAlpha(0.25)}
    assert.same({{5.25, 10.5}}, learned(x):totable())
    assert.equal(2, #learned:parameters())
    assert.is_truthy(learned:state_dict()["2.scale.param"])
    assert.is_truthy(learned:state_dict()["2.alpha.param"])
  end)

  it("runs the same instance at both of its positions", function()
    local layer = nn.Linear(1, 1)
    resin.no_grad(function() layer.weight:fill_(2); layer.bias:fill_(0) end)
    assert.equal(4 * 3 + 3, value(RS(Record(), layer, layer, Apply()), 3))
    local act = nn.ReLU()
    assert.equal(6, value(RS(act, times(2), act), 3))
    local inner = RS(Record(), times(2), Apply())            -- x → 3x
    assert.equal(9, value(RS(inner, inner), 1))
    local shared = Record("s")
    assert.equal(5, value(RS(RS(shared, times(2), Apply("add", "s")), RS(shared, Apply("add", "s", 2 / 3))), 1))
  end)

  it("keeps an in-place layer from overwriting what was recorded", function()
    local x = resin.tensor{{-1, 2}}
    local model = RS(nn.Identity(), Record(), nn.ReLU{inplace = true}, Apply())
    assert.same({{-1, 4}}, model(x * 1):totable())
    local behind = RS(times(1), Record(), nn.Identity(), nn.Flatten(), nn.ReLU{inplace = true}, Apply())
    assert.same({{-1, 4}}, behind(x):totable())
    assert.same({{-1, 2}}, x:totable())
    local late = nn.ReLU()
    local switched = RS(times(1), Record(), late, Apply())
    late.inplace = true
    assert.same({{-1, 4}}, switched(x):totable())
  end)

  it("says when user code overwrote it", function()
    local model = RS(times(1), Record("r"), function(x) return x:relu_() end, Apply("add", "r"))
    fails('Apply 4 (record "r"): the recorded value was overwritten in place after Record 2', model, resin.randn(2, 2))
    local fine = RS(times(1), Record("r"), function(x) return x:clone():relu_() end, Apply("add", "r"))
    assert.same({2, 2}, fine(resin.randn(2, 2)).shape)
  end)

  it("sends gradients through both ways: dL/dx = dL/dy (dF/dx + 1)", function()
    local layer = nn.Linear(3, 3)
    local x, g = resin.randn({2, 3}, {requires_grad = true}), resin.randn(2, 3)
    RS(Record(), layer, Apply())(x):backward(g)
    local expected = g:matmul(layer.weight) + g
    assert.is_true((x.grad - expected):abs():max():item() < 1e-6)
  end)

  it("runs without gradients and in other dtypes", function()
    local model = RS(Record(true), nn.Linear(4, 6, {dtype = "f64"}), Apply(), Record(), nn.ReLU(), Apply("highway"))
    local y = resin.no_grad(model, resin.randn({2, 4}, {dtype = "f64"}))
    assert.equal("f64", y.dtype)
    assert.is_false(y.requires_grad)
    local single = RS(Record(true), nn.Linear(4, 6), Apply()):double()
    assert.equal("f64", single(resin.randn({2, 4}, {dtype = "f64"})).dtype)
  end)
end)

describe("names", function()
  it("an unnamed Apply reads the Record that ran last, any number of times", function()
    -- 1 → r1 = 1, ·2 → r2 = 2, ·5 = 10, + 2 = 12, + 2 = 14
    assert.equal(14, value(RS(Record(), times(2), Record(), times(5), Apply(), Apply()), 1))
  end)

  it("unnamed Records are record_1, record_2, …, past names that are taken", function()
    assert.equal(11, value(RS(Record(), times(2), Record(), times(5), Apply("add", "record_1")), 1))
    assert.equal(12, value(RS(Record(), times(2), Record(), times(5), Apply("add", "record_2")), 1))
    local model = RS(Record("record_2"), times(2), Record(), times(5), Apply("add", "record_2"), Apply("add", "record_3"))
    assert.equal(13, value(model, 1))
  end)

  it("children may have names, in order", function()
    local model = RS{{"keep", Record("in")}, {"twice", times(2)}, {"join", Apply("add", "in")}, nn.Identity()}
    assert.equal(3, value(model, 1))
    assert.equal(model[3], model.join)
    assert.equal(model[4], model["3"])
    assert.equal(4, #model)
    fails('ResidualSequential: there are two children called "a"', RS, {{"a", Record()}, {"a", Apply()}})
  end)
end)

describe("containers in containers", function()
  it("have names of their own", function()
    local inner = RS(Record(), times(2), Apply())            -- 3x
    local outer = RS(Record(), inner, times(2), Apply())     -- 6x + x
    assert.equal(7, value(outer, 1))
    local same = RS(Record("a"), RS(Record("a"), times(2), Apply("add", "a")), Apply("add", "a"))
    assert.equal(4, value(same, 1))
  end)

  it("an inner container reads a Record of an outer one by name", function()
    local inner = RS(times(3), Apply("add", "far"))
    fails('there is no Record "far" before it (known: none)', inner, resin.ones(1, 1))
    local outer = RS(Record("far"), times(2), inner)          -- 6 + 1
    assert.equal(7, value(outer, 1))
    local deep = RS(Record("far"), RS(times(2), RS(nn.Sequential(times(3), Apply("add", "far")))))
    assert.equal(7, value(deep, 1))
    assert.equal(9, value(RS(Record("far"), times(2), Record("near"), RS(times(3), Apply("add", "far"), Apply("add", "near"))), 1))
    fails("ResidualSequential: Apply 2 has no Record before it", function() return RS(Record("far"), RS(times(1), Apply())) end)
  end)

  it("the nearest name wins, and outer = true looks further out", function()
    local inner = RS(times(2), Record("s"), Apply("add", "s"))
    assert.equal(4, value(RS(Record("s"), inner), 1))
    local far = RS(times(2), Record("s"), Apply{record_name = "s", outer = true})
    assert.equal(3, value(RS(Record("s"), far), 1))
  end)

  it("outer = true does not find a Record of its own container", function()
    local ok, message = pcall(RS(Record("s"), times(2), Apply{record_name = "s", outer = true}), resin.ones(1))
    assert.is_false(ok)
    assert.truthy(message:find('outer = true looks for Record "s" only in the enclosing containers', 1, true), message)
  end)

  it("an outer container reads an exported Record of an inner one", function()
    local inner = RS(times(2), Record{name = "mid", export = true}, times(5))
    assert.equal(12, value(RS(inner, Apply("add", "mid")), 1))
    assert.equal(12, value(RS(RS(inner), Apply("add", "mid")), 1))
    local hidden = RS(times(2), Record{name = "mid"}, times(5))
    fails('Apply 2: there is no Record "mid" before it (known: none)', RS(hidden, Apply("add", "mid")), resin.ones(1, 1))
    fails('the record name "mid" is given twice', RS, inner, Record("mid"))
    fails("Record: export = true needs a name", Record, {export = true})
  end)

  it("a plain Sequential inside belongs to the container around it", function()
    assert.equal(3, value(RS(Record("r"), nn.Sequential(times(2), Apply("add", "r"))), 1))
    assert.equal(3, value(RS(Record(), nn.Sequential(times(2), Apply())), 1))
    assert.equal(3, value(RS(nn.Sequential(Record{name = "r", export = true}, times(2)), Apply("add", "r")), 1))
    fails("Apply must be used inside ResidualSequential", nn.Sequential(nn.Identity(), Apply()), resin.ones(1, 1))
    assert.equal(1, value(Record("alone"), 1))
  end)

  it("a container may be part of two others, and inside a user's module", function()
    local inner = RS(times(3), Apply("add", "far"))
    local a, b = RS(Record("far"), inner), RS(Record(), Record("far"), times(2), inner)
    assert.equal(4, value(a, 1))
    assert.equal(7, value(b, 1))
    local Wrap = nn.class("Wrap")
    function Wrap:init(block) self.block = block end
    function Wrap:forward(x) return self.block(x) * 10 end
    assert.equal(31, value(RS(Record(), Wrap(RS(Record(), times(2), Apply())), Apply()), 1))
    fails("a container cannot be inside itself", function()
      local model = RS(times(2))
      model:append(model)
    end)
  end)

  it("a class of the user's own that extends ResidualSequential", function()
    local Block = nn.class("Block", RS)
    function Block:init(k) RS.init(self, Record(), times(k), Apply()) end
    assert.equal(3, value(Block(2), 1))
    assert.equal(12, value(RS(Block(2), Block(3)), 1))
  end)
end)

describe("editing", function()
  it("resolves names anew after append, insert, remove and assignment", function()
    local model = RS(Record("a"), times(2))
    assert.equal(2, value(model, 1))
    model:append(Apply("add", "a"))
    assert.equal(3, value(model, 1))
    model:insert(3, times(5))
    assert.equal(11, value(model, 1))
    model:append(Record(), "late")
    model:append(Apply())
    assert.equal(22, value(model, 1))
    model:remove(3)
    assert.equal(6, value(model, 1))
    model[2] = times(7)
    assert.equal(16, value(model, 1))
    assert.equal("late", model.late and "late")
    local part = model:slice(1, 3)
    assert.equal("ResidualSequential", part.type)
    assert.equal(8, value(part, 1))
  end)

  it("refuses a change that cannot be, and stays as it was", function()
    local model = RS(Record("a"), times(2), Apply("add", "a"))
    fails('the record name "a" is given twice', model.append, model, Record("a"))
    assert.equal(3, #model)
    assert.equal(3, value(model, 1))
    fails("has no Record before it", model.slice, RS(Record(), times(2), Apply()), 2)
    model:remove(1)
    fails('Apply 2: there is no Record "a" before it (known: none)', model, resin.ones(1, 1))
  end)

  it("sees a change of a container inside", function()
    local inner = RS(times(2))
    local plain = nn.Sequential(times(1))
    local model = RS(Record("r"), inner, plain, Apply("add", "r"))
    assert.equal(3, value(model, 1))
    inner:append(times(3))
    assert.equal(7, value(model, 1))
    plain:append(Apply("add", "r"))
    assert.equal(8, value(model, 1))
    plain[1] = times(10)
    assert.equal(62, value(model, 1))
  end)
end)

-- Returns its input and what it was told, as attention and recurrent layers do.
local Talker = nn.class("Talker")
function Talker:forward(x, options) return x * (options and options.by or 2), x + 100 end -- luacheck: no self

describe("options and further results", function()
  it("go to children by name or position", function()
    local model = RS{{"r", Record()}, {"talk", Talker()}, {"out", Apply()}}
    local y, extras = model(resin.tensor{{1}}, {talk = {by = 5}})
    assert.equal(6, y:item())
    assert.equal(101, extras[1]:item())
    assert.equal(101, extras.talk:item())
    assert.equal(8, model(resin.tensor{{1}}, {[2] = {by = 7}}):item())
    assert.equal(3, model(resin.tensor{{1}}):item())
  end)

  it("reach containers inside, and come back from them", function()
    local model = RS{{"first", Talker()}, {"inner", RS{{"talk", Talker()}, {"plain", nn.Sequential(Talker())}}}}
    local y, extras = model(resin.tensor{{1}}, {inner = {talk = {by = 3}, plain = {[1] = {by = 5}}}})
    assert.equal(30, y:item())
    assert.equal(101, extras.first:item())
    assert.equal(102, extras.inner.talk:item())
    assert.equal(106, extras.inner.plain[1]:item())
    assert.equal(extras[2], extras.inner)
  end)

  it("unknown children are an error that lists them", function()
    local model = RS{{"r", Record()}, {"talk", Talker()}, {"out", Apply()}}
    fails('ResidualSequential: there is no child "attn" (children: r, talk, out)', model, resin.ones(1, 1), {attn = {}})
    fails('ResidualSequential: "r": a Record or Apply takes no options', model, resin.ones(1, 1), {r = {}})
    fails("ResidualSequential: \"talk\": the options must be a table, got number 3", model, resin.ones(1, 1), {talk = 3})
    fails("ResidualSequential: options must be a table {child = options}, got number 3", model, resin.ones(1, 1), 3)
    local nested = RS{{"inner", RS(times(2))}}
    fails('ResidualSequential: "inner": there is no child "x" (children: 1)', nested, resin.ones(1, 1), {inner = {x = {}}})
  end)
end)

describe("printing", function()
  it("shows names, options and parameter counts", function()
    local model = RS{
      {"keep", Record{name = "in", need_projection = true}}, nn.Linear(4, 6), {"join", Apply("gated", "in", nn.LearnableAlpha(0.3))},
      Apply{operation = "concat", record_name = "in", dim = -1},
    }
    local text = tostring(model)
    for _, line in ipairs{
      "ResidualSequential", '  keep: Record{name = "in", need_projection = true}', "  [2] Linear(4, 6)",
      '  join: Apply{operation = "gated", record_name = "in"}', "    alpha: LearnableAlpha{value = 0.3000, bounds = {0, 1}, linear}",
      "    projection_layer: Linear(4, 6)", '  [4] Apply{operation = "concat", record_name = "in", dim = -1}',
    } do assert.is_truthy(text:find(line, 1, true), text) end
    assert.equal("Record()", Record():label())
    assert.equal('Apply{operation = "add"}', Apply():label())
    assert.equal('Apply{operation = "add", alpha = 0.5, broadcast = true}', Apply{alpha = 0.5, broadcast = true}:label())
  end)
end)
