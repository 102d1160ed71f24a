-- Sequential, ModuleList, Lambda, user classes inside containers, memory of a forward.

local resin = require "resin"
local nn = resin.nn

local function fails(text, fn, ...)
  local ok, message = pcall(fn, ...)
  assert.is_false(ok)
  assert.is_truthy(message:find(text, 1, true), message)
  return message
end

local function types(seq)
  local out = {}
  for i, m in ipairs(seq) do out[i] = m.type end
  return table.concat(out, " ")
end

describe("Sequential", function()
  it("takes modules, one table, or named pairs; a function becomes a Lambda", function()
    local f = function(x) return x * 2 end
    assert.equal("ReLU Tanh Lambda", types(nn.Sequential(nn.ReLU(), nn.Tanh(), f)))
    assert.equal("ReLU Tanh", types(nn.Sequential{nn.ReLU(), nn.Tanh()}))
    local named = nn.Sequential{{"fc1", nn.Linear(2, 3)}, {"act", nn.ReLU()}, nn.Tanh(), {"fc2", nn.Linear(3, 1)}}
    assert.equal(named[1], named.fc1)
    assert.equal(named[4], named["fc2"])
    assert.equal(named[3], named["2"])
    assert.is_nil(named.fc3)
    assert.equal(4, #named)
    assert.equal(4, named:len())
    assert.same({6, 3, 3, 1}, (function()
      local n = {}
      for i, p in ipairs(named:parameters()) do n[i] = p:numel() end
      return n
    end)())
    assert.is_truthy(named:state_dict()["fc2.weight"])
  end)

  it("is changed by append, insert, remove and assignment", function()
    local seq = nn.Sequential()
    seq:append(nn.ReLU()):append(nn.Tanh(), "last"):insert(1, nn.Sigmoid())
    assert.equal("Sigmoid ReLU Tanh", types(seq))
    assert.equal(seq[3], seq.last)
    seq[#seq + 1] = nn.Identity()
    seq[1] = nn.Flatten()
    assert.equal("Flatten ReLU Tanh Identity", types(seq))
    assert.equal("ReLU", seq:remove(2).type)
    assert.equal(seq[2], seq.last)
    assert.equal("Identity", seq:remove().type)
    assert.equal("Flatten Tanh", types(seq))
    assert.equal("Tanh", types(seq:slice(2)))
    assert.equal("Flatten", types(seq:slice(1, -2)))
    assert.equal(seq[2], seq:slice(2).last)
    local visited = 0
    for i, m in seq:iter() do visited = visited + i; assert.is_true(nn.is_module(m)) end
    assert.equal(3, visited)
  end)

  it("gives the numbers of its layers one by one, with gradients", function()
    local seq = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    local x = resin.randn(5, 4)
    local y = seq(x)
    assert.same(seq[3](seq[2](seq[1](x))):totable(), y:totable())
    y:sum():backward()
    assert.same({8, 4}, seq[1].weight.grad.shape)
  end)

  it("returns its input when empty or made of identities", function()
    local x = resin.ones(2)
    assert.equal(x, nn.Sequential()(x))
    assert.equal(x, nn.Sequential(nn.Identity(), nn.Dropout(0.5)):eval()(x))
    assert.equal(2, x:sum():item())
  end)

  it("frees intermediates at once and keeps its input", function()
    local layers = {}
    for i = 1, 20 do layers[i] = nn.Linear(64, 64) end
    local seq = nn.Sequential(layers)
    local x = resin.randn(256, 64)
    resin.no_grad(function()
      seq(x)
      collectgarbage()
      resin.reset_peak()
      local before = resin.memory().live
      local y = seq(x)
      assert.is_true(resin.memory().peak - before <= 3 * 256 * 64 * 4 + 65536)
      assert.same({256, 64}, y.shape)
    end)
    assert.same({256, 64}, x.shape)
  end)

  it("lets user code keep what it makes", function()
    local kept
    local Keeper = nn.class("Keeper")
    function Keeper:forward(x)
      self.seen = x * 1
      return x + 1
    end
    local seq = nn.Sequential(nn.ReLU(), Keeper(), function(x) kept = x * 3; return x * 2 end, nn.Sequential(nn.ReLU()))
    local y = seq(resin.ones(2))
    assert.same({4, 4}, y:totable())
    assert.same({1, 1}, seq[2].seen:totable())
    assert.same({6, 6}, kept:totable())
  end)

  it("passes on what a function returns, also tables", function()
    local seq = nn.Sequential(nn.ReLU(), function(x) return {x, x * 2} end, function(pair) return pair[1] + pair[2] end)
    assert.same({3, 0}, seq(resin.tensor{1, -1}):totable())
    local pair = nn.Sequential(nn.ReLU(), function(x) return {x, x * 2} end)(resin.tensor{1, -1})
    assert.same({{1, 0}, {2, 0}}, {pair[1]:totable(), pair[2]:totable()})
  end)

  it("works inside itself, inside a scope and after an error", function()
    local bad = true
    local seq = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.ReLU(), function(x)
      if bad then error("stop") end
      return x
    end))
    fails("stop", seq, resin.ones(1, 2))
    bad = false
    local y = resin.scope(function() return seq(resin.ones(1, 2)) end)
    assert.same({1, 2}, y.shape)
  end)

  it("names the layer that failed", function()
    local seq = nn.Sequential(nn.Linear(4, 8), nn.Sequential(nn.ReLU(), nn.Linear(7, 2)))
    local message = fails("in Sequential 2 (Sequential), Sequential 2 (Linear): linear: ", seq, resin.ones(3, 4))
    assert.is_truthy(message:find("nn_container_spec.lua:%d+: in Sequential 2"), message)
    fails("Sequential: layer 1 (Lambda) returned nil", nn.Sequential(function() end), resin.ones(1))
    fails("Sequential: entry 2 must be a module or a function, got number 3", nn.Sequential, nn.ReLU(), 3)
    fails("(call the class: nn.ReLU(...))", nn.Sequential, nn.ReLU)
    fails('there are two children called "a"', nn.Sequential, {{"a", nn.ReLU()}, {"a", nn.Tanh()}})
    fails("must be a module, a function or a pair {name, module}", nn.Sequential, {{"a"}})
    fails("children with names are given in order", nn.Sequential, {a = nn.ReLU()})
  end)

  it("tells the shape of its output", function()
    local net = nn.Sequential(nn.Conv2d(1, 8, 3, {stride = 2, padding = 1}), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
      nn.Flatten(), nn.Linear(8 * 49, 10))
    assert.same({16, 10}, net:output_shape{16, 1, 28, 28})
    assert.same({false, 10}, net:output_shape{false, 1, 28, 28})
    assert.same(net(resin.zeros(2, 1, 28, 28)).shape, net:output_shape{2, 1, 28, 28})
    fails("in Sequential 6 (Linear): Linear: input [16, 512] has 512 features in its last dimension, expected 392",
      net.output_shape, net, {16, 1, 32, 32})
    fails("Conv2d: input [16, 3, 28, 28] has 3 channels, expected 1", net.output_shape, net, {16, 3, 28, 28})
    fails("Lambda: the output shape of a function is not known", nn.Lambda(print).output_shape, nn.Lambda(print), {1})
    assert.same({2, 4}, nn.Lambda(print, {shape = function(s) return {s[1], s[2] * 2} end}):output_shape{2, 2})
  end)
end)

describe("ModuleList", function()
  it("holds modules and does not run", function()
    local list = nn.ModuleList{nn.Linear(1, 2), nn.Linear(2, 3)}
    assert.equal(2, #list)
    assert.equal(4, #list:parameters())
    local x = resin.ones(1, 1)
    for _, m in ipairs(list) do x = m(x) end
    assert.same({1, 3}, x.shape)
    assert.is_truthy(list:state_dict()["1.bias"])
    fails("ModuleList: it only holds modules", list, x)
  end)
end)
