local resin = require "resin"
local nn = resin.nn

local function row(summary, name)
  for _, r in ipairs(summary.layers) do
    if r.name == name then return r end
  end
  error("no row " .. name)
end

local function total_parameters(summary)
  local n = 0
  for _, r in ipairs(summary.layers) do n = n + r.parameters end
  return n
end

local function message(fn, ...)
  local ok, err = pcall(fn, ...)
  assert.is_false(ok)
  return err
end

describe("model:summary", function()
  local function residual()
    return nn.ResidualSequential(
      nn.Record{name = "input", need_projection = true},
      nn.Conv2d(3, 16, 3, {stride = 2, padding = 1}), nn.BatchNorm2d(16), nn.ReLU(),
      nn.Apply{record_name = "input"},
      nn.Flatten(), nn.Linear(4096, 10))
  end

  it("lists layers in the order in which they run", function()
    local s = residual():summary{8, 3, 32, 32}
    local names, types = {}, {}
    for i, r in ipairs(s.layers) do names[i], types[i] = r.name, r.type end
    assert.same({"1", "2", "3", "4.projection_layer", "4", "5", "6"}, names)
    assert.same({"Conv2d", "BatchNorm2d", "ReLU", "Conv2d", "Apply", "Flatten", "Linear"}, types)
    assert.same({8, 10}, s.output)
    assert.same({8, 3, 32, 32}, s.input)
    assert.same({8, 16, 16, 16}, row(s, "4").output)
  end)

  it("counts parameters, multiply-adds and bytes", function()
    local model = residual()
    local s = model:summary{8, 3, 32, 32}
    assert.equal(448, row(s, "1").parameters)
    assert.equal(8 * 16 * 16 * 16 * 27, row(s, "1").multiply_adds)
    assert.equal(8 * 16 * 16 * 16 * 3, row(s, "4.projection_layer").multiply_adds)
    assert.equal(8 * 4096 * 10, row(s, "6").multiply_adds)
    assert.equal(8 * 16 * 16 * 16 * 4, row(s, "2").bytes)
    assert.equal(0, row(s, "5").bytes)
    assert.equal(model:num_parameters(), s.parameters)
    assert.equal(s.parameters, total_parameters(s))
    assert.equal(4 * s.parameters, s.parameter_bytes)
    local products, bytes = 0, 0
    for _, r in ipairs(s.layers) do products, bytes = products + r.multiply_adds, bytes + r.bytes end
    assert.equal(products, s.multiply_adds)
    assert.equal(bytes, s.activation_bytes)
  end)

  it("is the same for a shape and for a tensor", function()
    local model = residual()
    assert.equal(tostring(model:summary{8, 3, 32, 32}), tostring(model:summary(resin.randn(8, 3, 32, 32))))
  end)

  it("looks into modules of one's own", function()
    local Block = nn.class("Block")
    function Block:init()
      self.a, self.b, self.act = nn.Linear(4, 4), nn.Linear(4, 2), nn.ReLU()
    end
    function Block:forward(x) return self.b(self.act(self.a(self.act(self.a(x))) + x)) end
    local model = nn.Sequential(nn.Linear(3, 4), Block(), nn.Dropout(0.5))
    local s = model:summary{7, 3}
    local titles = {}
    for i, r in ipairs(s.layers) do titles[i] = ("  "):rep(r.depth) .. r.title end
    assert.same({"Linear(3, 4)", "Block", "  Linear(4, 4)", "  ReLU()", "  Linear(4, 4)", "  ReLU()", "  Linear(4, 2)", "Dropout()"},
      titles)
    assert.equal(model:num_parameters(), total_parameters(s))
    assert.equal(7 * (12 + 16 + 16 + 8), s.multiply_adds)
    assert.is_true(s.layers[5].shared)
    assert.is_true(model.training and model[2].a.training)
    assert.is_nil(rawget(model[2].a, "forward"))
  end)

  it("counts a shared layer's parameters once", function()
    local l = nn.Linear(4, 4)
    local s = nn.Sequential(l, l):summary{2, 4}
    assert.equal(20, s.parameters)
    assert.equal(20, total_parameters(s))
    assert.equal(2 * 32, s.multiply_adds)
    assert.truthy(tostring(s):find("Linear(4, 4) (again)", 1, true))
  end)

  it("knows recurrent layers, attention and gates", function()
    assert.equal(2 * 5 * (4 * 16 * 8 + 4 * 16 * 16), nn.LSTM(8, 16, {batch_first = true}):summary{2, 5, 8}.multiply_adds)
    local s = nn.ResidualSequential(nn.Record(), nn.Linear(8, 8), nn.Apply("highway")):summary{2, 8}
    assert.equal(144, row(s, "2").parameters)
    assert.equal(2 * 2 * 64, row(s, "2").multiply_adds)
    assert.equal(2 * 5 * 4 * 64 + 2 * 10 * 5 * 8, nn.MultiheadAttention(8, 2, {batch_first = true}):summary{2, 5, 8}.multiply_adds)
  end)

  it("runs a model of words on ids", function()
    local Tagger = nn.class("Tagger")
    function Tagger:init() self.words, self.out = nn.Embedding(50, 4), nn.Linear(4, 3) end
    function Tagger:forward(ids) return self.out(self.words(ids)) end
    assert.same({2, 6, 3}, Tagger():summary{2, 6}.output)
    assert.same({2, 6, 3}, nn.Sequential(nn.Embedding(50, 4), nn.Linear(4, 3)):summary{2, 6}.output)
  end)

  it("takes a layer's own count", function()
    local Twice = nn.class("Twice")
    function Twice:forward(x) return x * 2 end -- luacheck: no self
    function Twice:multiply_adds(input) return input[1] * 100 end -- luacheck: no self
    assert.equal(300, Twice():summary{3, 2}.multiply_adds)
  end)

  it("knows ResNet-18", function()
    local s = resin.models.resnet18():summary{1, 3, 224, 224}
    assert.equal(11689512, s.parameters)
    assert.equal(11689512, total_parameters(s))
    assert.equal(1814073344, s.multiply_adds)
    assert.same({1, 1000}, s.output)
  end)

  it("says what is wrong", function()
    local model = nn.Sequential(nn.Linear(3, 4))
    assert.truthy(message(model.summary, model):find(
      "Sequential: summary: give the shape of an input, such as model:summary{1, 3, 32, 32}, or an input", 1, true))
    assert.truthy(message(model.summary, model, 3):find(
      "Sequential: summary: the input must be a shape such as {8, 64} or a tensor, got number 3", 1, true))
    assert.truthy(message(model.summary, model, {2, 5}):find("in Sequential 1 (Linear): linear: ", 1, true))
    assert.is_nil(rawget(model[1], "forward"))
  end)

  it("prints a table", function()
    local text = tostring(nn.Sequential(nn.Linear(8, 4), nn.ReLU()):summary{2, 8})
    assert.equal(table.concat({
      "Sequential, input [2, 8]",
      "name   layer         output  parameters  multiply-adds  memory",
      "--------------------------------------------------------------",
      "0      Linear(8, 4)  [2, 4]          36             64    32 B",
      "1      ReLU()        [2, 4]                               32 B",
      "--------------------------------------------------------------",
      "total                [2, 4]          36             64    64 B",
      "parameters: 36, 144 B; results that training keeps: 64 B",
    }, "\n"), text)
  end)
end)
