-- Projections and gates: what is made, where, and when; what does not fit and what the message says.

local resin = require "resin"
local nn = resin.nn
local RS, Record, Apply = nn.ResidualSequential, nn.Record, nn.Apply

local function fails(text, fn, ...)
  local ok, message = pcall(fn, ...)
  assert.is_false(ok, "no error; expected: " .. text)
  assert.is_truthy(message:find(text, 1, true), message)
end

local function skip(...) return Record{name = "r", need_projection = true}, ... end

-- A layer whose output shape nobody knows before it runs.
local function opaque(fn) return nn.Lambda(fn or function(x) return x end) end

local function names(model)
  local out = {}
  for name in model:state_dict()() do out[#out + 1] = name end
  return table.concat(out, " ")
end

describe("projections at construction", function()
  it("Linear with bias, for values with the features last", function()
    local apply = Apply("add", "r")
    local model = RS(skip(nn.Linear(64, 128), nn.ReLU(), apply))
    assert.equal("Linear(64, 128)", apply.projection_layer:label())
    assert.equal("1.weight 1.bias 3.projection_layer.weight 3.projection_layer.bias", names(model))
    assert.same({2, 128}, model(resin.randn(2, 64)).shape)
    assert.same({2, 7, 128}, model(resin.randn(2, 7, 64)).shape)
    assert.same({2, 7, 128}, model:output_shape{2, 7, 64})
    assert.same({false, 128}, model:output_shape{false, 64})
  end)

  it("one per Apply, none where the shapes agree", function()
    local a, b, c = Apply("add", "r"), Apply("add", "r"), Apply("add", "r")
    RS(skip(nn.Linear(4, 6), a, nn.Linear(6, 4), b, nn.Linear(4, 8), c))
    assert.equal("Linear(4, 6)", a.projection_layer:label())
    assert.is_false(b.projection_layer)
    assert.equal("Linear(4, 8)", c.projection_layer:label())
  end)

  it("a 1x1 convolution for channels-first values, strided where the image shrinks", function()
    local function made(...)
      local apply = Apply("add", "r")
      local model = RS(skip(...))
      model:append(apply)
      return apply.projection_layer and apply.projection_layer:label(), model
    end
    assert.equal("Conv2d(3, 8, 1)", (made(nn.Conv2d(3, 8, 3, {padding = 1}))))
    assert.equal("Conv2d(3, 8, 1, {stride = 2})", (made(nn.Conv2d(3, 8, 3, {stride = 2, padding = 1}), nn.BatchNorm2d(8))))
    assert.equal("Conv2d(8, 8, 1, {stride = 2})", (made(nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2))))
    assert.equal("Conv2d(4, 6, 1, {stride = {2, 1}})", (made(nn.Conv2d(4, 6, 3, {stride = {2, 1}, padding = 1}))))
    assert.equal(false, (made(nn.Conv2d(3, 3, 3, {padding = 1}))))
    local _, model = made(nn.Conv2d(3, 8, 3, {stride = 2, padding = 1}), nn.BatchNorm2d(8))
    for _, size in ipairs{8, 9, 15} do
      local half = math.ceil(size / 2)
      assert.same({2, 8, half, half}, model(resin.randn(2, 3, size, size)).shape)
    end
  end)

  it("have the dtype of the layers around them", function()
    local apply = Apply("add", "r")
    RS(skip(nn.Linear(4, 6, {dtype = "f64"}), apply))
    assert.equal("f64", apply.projection_layer.weight.dtype)
  end)

  it("follow the layers through containers inside", function()
    local apply = Apply("add", "far")
    local model = RS(Record{name = "far", need_projection = true}, nn.Sequential(nn.Linear(4, 8), nn.ReLU()),
      RS(nn.Linear(8, 6), apply))
    assert.equal("2.1.projection_layer.weight", names(model):match("2%.1%S+weight"))
    assert.equal("Linear(4, 6)", apply.projection_layer:label())
    assert.same({2, 6}, model(resin.randn(2, 4)).shape)
  end)

  it("a concat with need_projection projects where the shapes differ", function()
    local model = RS(skip(nn.Linear(4, 8), Apply("concat", "r")))
    assert.same({2, 16}, model(resin.randn(2, 4)).shape)
    assert.same({2, 16}, model:output_shape{2, 4})
  end)
end)

describe("shapes that are not known at construction", function()
  it("build makes what is missing, for any batch size", function()
    local apply = Apply("add", "r")
    local model = RS(skip(opaque(function(x) return resin.cat({x, x}, -1) end), apply))
    assert.is_false(apply.projection_layer)
    assert.equal(model, model:build{8, 64})
    assert.equal("Linear(64, 128)", apply.projection_layer:label())
    assert.equal("3", tostring(#model))
    assert.same({3, 128}, model(resin.randn(3, 64)).shape)
    assert.is_true(model.training)
  end)

  it("build works on a model of several containers, and in training mode changes no statistics", function()
    local first = Apply("add", "r")
    local norm = nn.BatchNorm2d(4)
    local model = nn.Sequential(opaque(), RS(skip(nn.Conv2d(3, 4, 3, {stride = 2, padding = 1}), norm, opaque(), first)),
      nn.Flatten(), nn.Linear(4 * 4 * 4, 2))
    model:build{1, 3, 8, 8}
    assert.equal("Conv2d(3, 4, 1, {stride = 2})", first.projection_layer:label())
    assert.equal(0, norm.num_batches_tracked:item())
    assert.same({5, 2}, model(resin.randn(5, 3, 8, 8)).shape)
  end)

  it("the first forward makes it otherwise, and says nothing", function()
    local apply = Apply("add", "r")
    local model = RS(skip(opaque(function(x) return resin.cat({x, x}, -1) end), apply))
    local y = resin.scope(function() return model(resin.randn(2, 4)) end)
    assert.same({2, 8}, y.shape)
    assert.equal("Linear(4, 8)", apply.projection_layer:label())
    assert.same({2, 8}, model(resin.randn(2, 4)).shape)
  end)

  it("a state with projections and gates loads into a model that has not made them yet", function()
    local function describe_model()
      return RS(skip(opaque(function(x) return resin.cat({x, x}, -1) end), Apply("add", "r"), Record("g"), nn.ReLU(),
        Apply("highway", "g")))
    end
    local trained, fresh = describe_model(), describe_model()
    trained(resin.randn(2, 4))
    local state = trained:state_dict()
    assert.equal("2.projection_layer.weight 2.projection_layer.bias 5.gate_layer.transform_gate.weight "
      .. "5.gate_layer.transform_gate.bias 5.gate_layer.carry_gate.weight 5.gate_layer.carry_gate.bias", names(trained))
    fresh:load_state_dict(state)
    local x = resin.randn(3, 4)
    assert.equal(0, (trained(x) - fresh(x)):abs():sum():item())
  end)

  it("the stride of a loaded convolution is found by the first forward", function()
    local function describe_model()
      return RS(Record(true), opaque(function(x) return resin.cat({x, x}, 2):narrow(3, 1, 4):narrow(4, 1, 4) end), Apply())
    end
    local trained, fresh = describe_model(), describe_model()
    local x = resin.randn(2, 3, 8, 8)
    local apply = trained[3]
    apply.dim = 2
    fresh[3].dim = 2
    local y = trained(x)
    assert.equal("Conv2d(3, 6, 1, {stride = 2})", apply.projection_layer:label())
    fresh:load_state_dict(trained:state_dict())
    assert.equal(0, (fresh(x) - y):abs():sum():item())
  end)
end)

describe("gates", function()
  it("of a highway: Linear with biases -1 and +1", function()
    local apply = Apply("highway")
    RS(Record(), nn.Linear(4, 4), apply)
    local T, C = apply.gate_layer.transform_gate, apply.gate_layer.carry_gate
    assert.equal("Linear(4, 4)", T:label())
    assert.same({-1, -1, -1, -1}, T.bias:totable())
    assert.same({1, 1, 1, 1}, C.bias:totable())
    assert.is_true(T.weight:abs():max():item() <= 0.5)
  end)

  it("over the channels of a channels-first value", function()
    local apply = Apply("highway")
    local model = RS(Record(), nn.Conv2d(3, 3, 3, {padding = 1}), apply)
    assert.equal("Conv2d(3, 3, 1)", apply.gate_layer.carry_gate:label())
    assert.same({2, 3, 5, 7}, model(resin.randn(2, 3, 5, 7)).shape)
  end)

  it("coupled: C = 1 - T", function()
    local apply = Apply{operation = "highway", coupled = true}
    local layer = nn.Linear(4, 4)
    local model = RS(Record(), layer, apply)
    assert.is_nil(apply.gate_layer.carry_gate)
    local x = resin.randn(2, 4)
    local h = layer(x)
    local T = apply.gate_layer.transform_gate(h):sigmoid()
    local expected = T * h + (1 - T) * x
    assert.is_true((model(x) - expected):abs():max():item() < 1e-6)
  end)
end)

describe("layouts", function()
  it("concat goes along channels after a convolution and along the last dimension after a Linear", function()
    assert.same({2, 8 + 3, 5, 5}, RS(Record(), nn.Conv2d(3, 8, 1), Apply("concat"))(resin.randn(2, 3, 5, 5)).shape)
    assert.same({2, 3, 5, 8 + 5}, RS(Record(), nn.Linear(5, 8), Apply("concat"))(resin.randn(2, 3, 5, 5)).shape)
    assert.same({2, 6, 5, 5}, RS(Record(), nn.ReLU(), Apply("concat"), nn.Conv2d(6, 6, 1))(resin.randn(2, 3, 5, 5)).shape)
    assert.same({2, 3, 5, 10}, RS(Record(), nn.ReLU(), Apply("concat"))(resin.randn(2, 3, 5, 5)).shape)
    assert.same({2, 3, 10, 5}, RS(Record(), nn.ReLU(), Apply{operation = "concat", dim = 3})(resin.randn(2, 3, 5, 5)).shape)
    assert.same({2, 3, 10, 5}, RS(Record(), nn.Conv2d(3, 3, 1), Apply{operation = "concat", dim = -2})(resin.randn(2, 3, 5, 5)).shape)
  end)

  it("a factor per channel meets the channels", function()
    local model = RS(Record(), nn.Conv2d(2, 2, 1), Apply{scale = resin.tensor{0, 0}, alpha = resin.tensor{1, 10}})
    assert.same({{{{1, 2}}, {{30, 40}}}}, model(resin.tensor{{{{1, 2}}, {{3, 4}}}}):totable())
  end)

  it("dim and projection override", function()
    local apply = Apply{record_name = "r", dim = 4}
    RS(skip(nn.Conv2d(3, 3, {1, 3}), apply)):build{1, 3, 5, 8}
    assert.equal("Linear(8, 6)", apply.projection_layer:label())
    local given = {}
    local own = Apply{record_name = "r", projection = function(inp, out, stride)
      given = {inp, out, stride}
      return nn.Conv2d(inp, out, 1, {stride = stride, bias = false})
    end}
    local model = RS(Record("r"), nn.Conv2d(3, 8, 3, {stride = 2, padding = 1}), own)
    assert.same({3, 8, 2}, given)
    assert.same({1, 8, 4, 4}, model(resin.randn(1, 3, 8, 8)).shape)
    local class = Apply{record_name = "r", projection = nn.Linear}
    RS(Record("r"), nn.Linear(3, 5), class)
    assert.equal("Linear(3, 5)", class.projection_layer:label())
    local always = RS(Record("r"), nn.Identity(), Apply{record_name = "r", projection = nn.Lambda(function(x) return x * 10 end)})
    assert.equal(11, always(resin.ones(1, 1)):item())
  end)
end)

describe("shapes that do not fit", function()
  it("are an error at construction where the layers tell", function()
    fails('Apply 3 (record "input"): recorded [?, 64] but current is [?, 32]; set need_projection=true on Record "input" '
      .. "(layer 1) to project it",
      RS, Record("input"), nn.Linear(64, 32), Apply("add", "input"))
    fails('in ResidualSequential 3 (ResidualSequential): Apply 1 (record "far"): recorded [?, 4] but current is [?, 8]', function()
      return RS(Record("far"), nn.Linear(4, 8), RS(Apply("add", "far")))
    end)
    fails("recorded [?, 3, ?, ?] but current is [?, 8, ?, ?]", RS, Record(), nn.Conv2d(3, 8, 3, {padding = 1}), Apply())
    fails('Apply "join" (record "in")', RS, {{"keep", Record("in")}, {"fc", nn.Linear(4, 5)}, {"join", Apply("gated", "in")}})
  end)

  it("are an error in build and in a forward, with the shapes as they are", function()
    local model = RS(Record("input"), opaque(function(x) return x:narrow(2, 1, 2) end), Apply("add", "input"))
    local text = 'Apply 3 (record "input"): recorded [8, 4] but current is [8, 2]; set need_projection=true on Record "input"'
    fails(text, model, resin.randn(8, 4))
    fails(text, model.build, model, {8, 4})
    fails("in ResidualSequential 1 (ResidualSequential): " .. text, RS(model), resin.randn(8, 4))
    fails("in Sequential 2 (ResidualSequential): " .. text, nn.Sequential.build, nn.Sequential(nn.ReLU(), model), {8, 4})
    fails("in ResidualSequential 2 (Linear): linear:", RS(Record(), nn.Linear(3, 3), Apply()), resin.randn(2, 4))
    fails("in ResidualSequential 2 (Linear): Linear: input [2, 4]", function() RS(Record(), nn.Linear(3, 3), Apply()):build{2, 4} end)
  end)

  it("broadcasting is an error too, unless it is asked for", function()
    fails("recorded [?, 4] but current is [?, 1]", RS, Record(), nn.Linear(4, 1), Apply())
    local model = RS(Record(), nn.Linear(4, 1), Apply{broadcast = true})
    assert.same({2, 4}, model(resin.randn(2, 4)).shape)
    assert.same({2, 4}, model:output_shape{2, 4})
    fails("recorded [2, 4] but current is [2, 3]", RS(Record(), opaque(function(x) return x:narrow(2, 1, 3) end),
      Apply{broadcast = true}), resin.randn(2, 4))
  end)

  it("no projection helps: the message says why", function()
    local function model(fn) return RS(skip(opaque(fn), Apply("add", "r"))) end
    fails("no projection fits, because the numbers of dimensions differ", model(function(x) return x:reshape(2, 12) end),
      resin.randn(2, 3, 4))
    fails("no projection fits, because a projection changes the last dimension only", model(function(x) return x:narrow(2, 1, 2) end),
      resin.randn(2, 3, 4))
    fails("no projection fits, because dimension 3 does not shrink by a whole factor",
      RS(skip(nn.Conv2d(3, 4, 1), opaque(function(x) return x:pad{1, 1, 1, 1} end), Apply("add", "r"))), resin.randn(2, 3, 4, 4))
  end)

  it("a projection that was made for other shapes is named", function()
    local grow = 2
    local model = RS(skip(opaque(function(x)
      local out = {}
      for i = 1, grow do out[i] = x end
      return resin.cat(out, -1)
    end), Apply("add", "r")))
    model(resin.randn(2, 4))
    grow = 3
    fails("its projection Linear(4, 8) does not make them fit", model, resin.randn(2, 4))
  end)

  it("a concat needs equal sizes elsewhere", function()
    fails('Apply 3 (record "record_1"): recorded [2, 3, 4] but current is [2, 2, 4]; set need_projection=true',
      RS(Record(), opaque(function(x) return x:narrow(2, 1, 2) end), Apply("concat")), resin.randn(2, 3, 4))
  end)
end)

describe("names and options that do not fit", function()
  it("say what is known", function()
    fails('Apply 3: there is no Record "inptu" (known: "input", "mid"); did you mean "input"?', RS, Record("input"), Record("mid"),
      Apply("add", "inptu"))
    fails('Apply 3: there is no Record "nope" before it (known: "input"); check the name', RS(Record("input"), nn.ReLU(),
      Apply("add", "nope")), resin.ones(1, 1))
    fails('there is no Record "nope"', function() RS(Record("input"), Apply("add", "nope")):build{1, 1} end)
    fails('Apply 1: Record "late" comes only later (layer 3)', RS, Apply("add", "late"), nn.ReLU(), Record("late"))
    fails('the record name "a" is given twice, by Record 1 and by Record 3', RS, Record("a"), nn.ReLU(), Record("a"))
    fails("ResidualSequential: Apply 2 has no Record before it; put a Record into the container", RS, nn.ReLU(), Apply())
    assert.is_truthy(RS(Record("skip_a"), Record("block1"), Apply("add", "skip_b"), Apply("add", "block2")))
  end)

  it("operations and their options", function()
    fails('Apply: unsupported operation "foo"; choose from add, concat, film, gated, gru, highway, input_gated, max, mean, min, multiply, ',
      Apply, {operation = "foo"})
    fails('a record is named by the second value or by record_name: Apply("add", "input"), Apply{record_name = "input"}', Apply,
      "input")
    fails("Apply: operation must be one of add, concat", Apply, 3)
    fails("Apply: operation concat = cat(x, r) takes no alpha", Apply, "concat", "r", 0.5)
    fails("Apply: operation highway = T(x)*x + C(r)*r takes no alpha", Apply, {operation = "highway", alpha = 1})
    fails("Apply: operation multiply = x * (1 + alpha*r) takes no scale", Apply, {operation = "multiply", scale = 2})
    fails("Apply: operation add = scale*x + alpha*r takes no coupled", Apply, {coupled = true})
    fails("Apply: alpha must be a number, a tensor or a LearnableAlpha, got string \"x\"", Apply, "add", "r", "x")
    fails('Apply: unknown option "opertaion" (known: operation, record_name, alpha, scale, dim, projection, broadcast, outer, coupled, '
      .. "transform, records, weights, drop_path, layer_scale, drop_path_mode)", Apply, {opertaion = "add"})
    fails("Apply: dim 0: dimensions count from 1", Apply, {dim = 0})
    fails("Apply: record_name must be a string, got number 3", Apply, "add", 3)
    fails("Apply: outer = true needs a record_name", Apply, {outer = true})
    fails("Apply: takes at most 3 values by position (operation, record_name, alpha), got 4", Apply, "add", "r", 1, 2)
    fails("Apply: alpha is given twice, by position and by name", Apply, "add", "r", 1, {alpha = 2})
    fails("Apply: projection must be a module, a layer's class or a function(inp, out, stride), got number 1", Apply, {projection = 1})
    fails("Record: need_projection must be a boolean, got number 1", Record, 1)
    fails("Record: name must be a string, got number 1", Record, true, 1)
    fails('Record: unknown option "project" (known: need_projection, name, export, transform)', Record, {project = true})
    fails("Apply must be used inside ResidualSequential", Apply(), resin.ones(1))
    fails("ResidualSequential: input must be a tensor, got number 3", RS(nn.ReLU()), 3)
    fails("Lambda returned nil; it must return a tensor", RS(opaque(function() end)), resin.ones(1))
    fails("in ResidualSequential 1 (Lambda): Lambda returned nil", RS(opaque(function() end)), resin.ones(1))
  end)

  it("every form of the constructors", function()
    assert.equal("r", Record(true, "r").name)
    assert.equal("r", Record("r").name)
    assert.is_true(Record("r", {need_projection = true}).need_projection)
    assert.is_true(Record{true, "r"}.need_projection)
    assert.is_nil(Record().name)
    local a = Apply("gated", "input", 0.5)
    assert.same({"gated", "input", 0.5}, {a.operation, a.record_name, a.alpha})
    local b = Apply{"gated", "input", 0.5}
    assert.same({"gated", "input", 0.5}, {b.operation, b.record_name, b.alpha})
    local c = Apply("add", {record_name = "input", scale = 2})
    assert.same({"add", "input", 2}, {c.operation, c.record_name, c.scale})
    assert.equal("add", Apply(nil, "input").operation)
  end)
end)
