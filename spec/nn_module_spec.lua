-- nn.Module: registration, walking, state, copies, modes, printing, constructor arguments.

local resin = require "resin"
local nn = resin.nn

local function names_of(iterator)
  local out = {}
  for name in iterator do out[#out + 1] = name end
  return out
end

local function fails(text, fn, ...)
  local ok, message = pcall(fn, ...)
  assert.is_false(ok)
  assert.is_truthy(message:find(text, 1, true), message)
  return message
end

describe("a module", function()
  it("registers children and parameters in the order of assignment", function()
    local Net = nn.class("Net")
    function Net:init(width)
      self.second = nn.Linear(4, width)
      self.scale = nn.Parameter(resin.ones(width))
      self.first = nn.Linear(width, 2, {bias = false})
      self:register_buffer("count", resin.zeros(1))
      self:register_buffer("scratch", resin.zeros(1), false)
      self:register_parameter("absent", nil)
    end
    function Net:forward(x) return self.first(self.second(x) * self.scale) end
    local net = Net(3)
    assert.same({"scale", "second.weight", "second.bias", "first.weight"}, names_of(net:named_parameters()))
    assert.same({"second", "first"}, names_of(net:named_children()))
    assert.same({"", "second", "first"}, names_of(net:named_modules()))
    assert.same({"count", "scratch"}, names_of(net:named_buffers()))
    assert.same({"scale", "count", "second.weight", "second.bias", "first.weight"}, names_of(net:state_dict()()))
    assert.equal(3 + 4 * 3 + 3 + 6, net:num_parameters())
    assert.same({5, 2}, net(resin.randn(5, 4)).shape)
    assert.is_true(net:is(Net))
    assert.is_true(net:is(nn.Module))
    assert.is_false(net:is(nn.Linear))
    assert.equal("Net", net.type)
  end)

  it("finds a module that was assigned to a field that held something else", function()
    local Net = nn.Module:extend("Net")
    function Net:init()
      self.tail = false
      self.tail = nn.Linear(1, 1)
      self.blocks = {nn.Linear(1, 2), nn.Linear(2, 1)}
    end
    assert.same({"blocks.0.weight", "blocks.0.bias", "blocks.1.weight", "blocks.1.bias", "tail.weight", "tail.bias"},
      names_of(Net():named_parameters()))
  end)

  it("lists a shared tensor once, and saves it under both names", function()
    local Tied = nn.class("Tied")
    function Tied:init()
      self.a = nn.Linear(3, 3, {bias = false})
      self.b = nn.Linear(3, 3, {bias = false})
      self.b.weight = self.a.weight
    end
    local tied = Tied()
    assert.same({"a.weight"}, names_of(tied:named_parameters()))
    assert.same({"a.weight", "b.weight"}, names_of(tied:state_dict()()))
    local copy = tied:clone()
    assert.equal(copy.a.weight, copy.b.weight)
    assert.are_not.equal(tied.a.weight, copy.a.weight)
  end)

  it("runs a module at two positions, lists it once, saves it under both names", function()
    local layer = nn.Linear(2, 2)
    local seq = nn.Sequential(layer, nn.ReLU(), layer)
    assert.same({"0.weight", "0.bias"}, names_of(seq:named_parameters()))
    assert.same({"0.weight", "0.bias", "2.weight", "2.bias"}, names_of(seq:state_dict()()))
    local x = resin.randn(3, 2)
    local expected = layer(resin.F.relu(layer(x)))
    assert.same(expected:totable(), seq(x):totable())
    local copy = seq:clone()
    assert.equal(copy[1], copy[3])
    assert.equal(2, #seq:children())
  end)

  it("switches modes below itself", function()
    local seq = nn.Sequential(nn.Dropout(0.5), nn.Sequential(nn.BatchNorm1d(2)))
    assert.is_true(seq[2][1].training)
    assert.equal(seq, seq:eval())
    assert.is_false(seq[1].training)
    assert.is_false(seq[2][1].training)
    seq:train()
    assert.is_true(seq[2][1].training)
    seq:requires_grad_(false)
    assert.equal(0, seq:num_parameters(true))
    assert.is_false(seq[2][1].weight.requires_grad)
  end)

  it("applies a function to children first", function()
    local seen = {}
    nn.Sequential(nn.ReLU(), nn.Sequential(nn.Tanh())):apply(function(m) seen[#seen + 1] = m.type end)
    assert.same({"ReLU", "Tanh", "Sequential", "Sequential"}, seen)
  end)

  it("drops gradients", function()
    local layer = nn.Linear(2, 1)
    layer(resin.ones(3, 2)):sum():backward()
    assert.is_truthy(layer.weight.grad)
    layer:zero_grad()
    assert.is_nil(layer.weight.grad)
    assert.is_nil(layer.bias.grad)
  end)

  it("converts to another dtype in place", function()
    local seq = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    local weight = seq[1].weight
    assert.equal(seq, seq:double())
    assert.equal(weight, seq[1].weight)
    assert.equal("f64", weight.dtype)
    assert.is_true(weight.requires_grad)
    assert.equal("f64", seq[2].running_mean.dtype)
    assert.equal("i64", seq[2].num_batches_tracked.dtype)
    assert.equal("f64", seq(resin.ones({3, 2}, {dtype = "f64"})).dtype)
    assert.equal("f32", seq:float()[1].weight.dtype)
    assert.is_truthy(tostring(seq:double()):find('dtype = "f64"', 1, true))
  end)

  it("prints a tree with options and counts", function()
    local seq = nn.Sequential{
      {"conv", nn.Conv2d(3, 64, 3, {padding = 1, bias = false})}, {"act", nn.ReLU()},
      {"rest", nn.Sequential(nn.Flatten(), nn.Linear(64, 1000))},
    }
    assert.equal(table.concat({
      "Sequential",
      "  conv: Conv2d(3, 64, 3, {padding = 1, bias = false})   1,728",
      "  act: ReLU()",
      "  rest: Sequential",
      "    [1] Flatten()",
      "    [2] Linear(64, 1000)                               65,000",
      "total: 66,728 parameters",
    }, "\n"), tostring(seq))
    seq[1]:requires_grad_(false)
    assert.is_truthy(tostring(seq):find("total: 66,728 parameters (65,000 trainable)", 1, true))
  end)

  it("says what is wrong with a name or a class", function()
    local Net = nn.class("Net")
    fails('Net: "forward" cannot be the name of a child', function() Net().forward = nn.ReLU() end)
    fails('the child name "a.b" must not contain a dot', function() Net():add_module("a.b", nn.ReLU()) end)
    fails('Net: child "x" must be a module, got number 3', function() Net():add_module("x", 3) end)
    fails("Net: forward is not defined; write function Net:forward(x)", function() return Net()(1) end)
    fails("class: the parent of Other must be a class such as nn.Module, got number 3", nn.class, "Other", 3)
    fails("Net: a child needs a name", function() Net()[1] = nn.ReLU() end)
  end)
end)

describe("state_dict", function()
  local function model() return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)) end

  it("uses PyTorch's names in PyTorch's order and shares the tensors", function()
    local m = model()
    local sd = m:state_dict()
    assert.same({
      "0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var", "1.num_batches_tracked", "3.weight", "3.bias",
    }, names_of(sd()))
    assert.equal(m[1].weight, sd["0.weight"])
    local n = 0
    for name, tensor in pairs(sd) do
      assert.is_string(name)
      assert.is_true(resin.is_tensor(tensor))
      n = n + 1
    end
    assert.equal(9, n)
  end)

  it("goes through a file into another model", function()
    local a, b = model(), model()
    a:train()
    a(resin.randn(8, 3))
    local path = os.tmpname()
    resin.save(path, a:state_dict())
    b:load_state_dict(resin.load(path))
    os.remove(path)
    local x = resin.randn(5, 3)
    assert.same(a:eval()(x):totable(), b:eval()(x):totable())
    assert.is_true(b[1].weight.requires_grad)
    assert.equal(1, b[2].num_batches_tracked:item())
  end)

  it("lists everything that does not fit and changes nothing", function()
    local m = model()
    local sd = {}
    for name, tensor in pairs(m:state_dict()) do sd[name] = resin.zeros_like(tensor) end
    sd["0.bias"], sd["3.bias"] = nil, nil
    sd["0.weight"] = resin.zeros(4, 5)
    sd.extra = resin.zeros(1)
    sd["1.weight"] = 7
    local before = m[4].weight:totable()
    local message = fails("Sequential: load_state_dict: the state does not fit the model:", m.load_state_dict, m, sd)
    for _, line in ipairs{
      'missing: "0.bias", "3.bias"', 'unexpected: "extra"', '"0.weight" is [4, 5] in the state but [4, 3] in the model',
      '"1.weight" must be a tensor, got number 7',
    } do
      assert.is_truthy(message:find(line, 1, true), message)
    end
    assert.same(before, m[4].weight:totable())
    sd["0.weight"], sd["1.weight"] = nil, nil
    local report = m:load_state_dict(sd, {strict = false})
    assert.same({"0.weight", "0.bias", "1.weight", "3.bias"}, report.missing)
    assert.same({"extra"}, report.unexpected)
    assert.equal(0, m[4].weight:sum():item())
    fails("the state must be a table {name = tensor}, got number 1", m.load_state_dict, m, 1)
    fails('unknown option "strickt" (known: strict)', m.load_state_dict, m, sd, {strickt = true})
  end)
end)

describe("clone", function()
  it("copies parameters and buffers, not gradients, activations or functions", function()
    local fn = function(x) return x end
    local m = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Lambda(fn))
    m(resin.randn(4, 2)):sum():backward()
    m.note = m[1].weight * 2       -- an activation
    m[1].bias:requires_grad_(false)
    local copy = m:clone()
    assert.is_nil(copy.note)
    assert.is_nil(copy[1].weight.grad)
    assert.is_truthy(m[1].weight.grad)
    assert.equal(fn, copy[3].fn)
    assert.is_true(copy[1].weight.requires_grad)
    assert.is_true(copy[1].weight.is_leaf)
    assert.is_false(copy[1].bias.requires_grad)
    assert.same(m[2].running_var:totable(), copy[2].running_var:totable())
    copy[1].weight:detach():fill_(0)
    assert.are_not.equal(0, m[1].weight:detach():abs():sum():item())
    assert.equal(tostring(m), tostring(copy))
    assert.is_false(m:eval():clone()[1].training)
  end)

  it("works inside a scope", function()
    local copy = resin.scope(function()
      local c = nn.Linear(2, 2):clone()
      c.extra_layer = nn.Linear(1, 1)
      return c
    end)
    assert.same({1, 2}, copy(resin.ones(1, 2)).shape)
  end)
end)

describe("constructor arguments", function()
  it("mix positions and names", function()
    local expected = "Conv2d(3, 64, 3, {padding = 1})\ntotal: 1,792 parameters"
    for _, m in ipairs{
      nn.Conv2d(3, 64, 3, {padding = 1}), nn.Conv2d{3, 64, 3, padding = 1}, nn.Conv2d(3, 64, 3, 1, 1),
      nn.Conv2d{in_channels = 3, out_channels = 64, kernel_size = 3, padding = 1}, nn.Conv2d(3, 64, {3, 3}, {padding = {1, 1}}),
      nn.Conv2d(3, 64, 3, nil, 1),
    } do
      assert.equal(expected, (tostring(m):gsub("  1,792", "")))
    end
    assert.same({5, 10}, nn.LayerNorm{5, 10}.normalized_shape)
    assert.same({5, 10}, nn.LayerNorm({5, 10}, {eps = 1e-3}).normalized_shape)
    assert.same({5}, nn.LayerNorm{5, eps = 1e-3}.normalized_shape)
    assert.same({7, 5}, nn.AdaptiveAvgPool2d{7, 5}.output_size)
    assert.same({3, 5}, nn.Conv2d(1, 1, {3, 5}).kernel_size)
  end)

  it("are checked", function()
    fails("Linear: in_features must be an integer of at least 1, got number 2.5", nn.Linear, 2.5, 3)
    fails("Linear: in_features must be an integer of at least 1, got number 0", nn.Linear, 0, 3)
    fails("Linear: out_features is missing: Linear(in_features, out_features, {bias, dtype})", nn.Linear, 2)
    fails('Linear: unknown option "bais" (known: in_features, out_features, bias, dtype)', nn.Linear, 2, 3, {bais = false})
    fails("Linear: bias must be a boolean, got number 1", nn.Linear, 2, 3, {bias = 1})
    fails("Linear: out_features is given twice, by position and by name", nn.Linear, 2, 3, {out_features = 4})
    fails("Linear: takes at most 4 arguments, got 5", nn.Linear, 2, 3, true, "f32", 5)
    fails("Conv2d: in_channels (3) must be divisible by groups (2)", nn.Conv2d, 3, 4, 3, {groups = 2})
    fails("Conv2d: out_channels (3) must be divisible by groups (2)", nn.Conv2d, 4, 3, 3, {groups = 2})
    fails("Conv2d: kernel_size must be an integer of at least 1 or a table of two, got {3, 3, 3}", nn.Conv2d, 1, 1, {3, 3, 3})
    fails("Conv2d: stride must be an integer of at least 1 or a table of two, got 0", nn.Conv2d, 1, 1, 3, {stride = 0})
    fails("Dropout: p must be a number from 0 to 1, got number 1.5", nn.Dropout, 1.5)
    fails('GELU: approximate must be one of none, tanh; got string "erf"', nn.GELU, "erf")
    fails("Embedding: padding_idx must be from 1 to 4 (or negative, from the end), got 5", nn.Embedding, 4, 2, {padding_idx = 5})
    fails("Flatten: start_dim 0: dimensions count from 1 (-1 is the last)", nn.Flatten, 0)
    fails("Lambda: fn must be a function, got number 3", nn.Lambda, 3)
  end)

  it("fail at the caller's line", function()
    local ok, message = pcall(function() return nn.Linear(2) end)
    assert.is_false(ok)
    assert.is_truthy(message:find("nn_module_spec.lua:%d+: Linear: out_features"), message)
  end)
end)
