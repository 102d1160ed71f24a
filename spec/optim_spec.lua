-- Optimisers against PyTorch 2.13 over five steps (double precision), groups, adoption, state, clipping.
-- Parameters a = fill(1) [2, 3] and b = fill(2) [4]; loss = sum((a c - d)^2) / 2 + sum(b^3), c = 4 fill(3), d = fill(4).

local resin = require "resin"
local nn, optim = resin.nn, resin.optim

local F64 = {dtype = "f64"}

local function fill(seed, ...)
  local n = 1
  for _, size in ipairs{...} do n = n * size end
  local values = {}
  for k = 0, n - 1 do values[k + 1] = ((k * 7919 + seed * 104729) % 1000) / 1000 - 0.5 end
  return resin.tensor(values, F64):reshape(...)
end

local function leaf(t) return resin.tensor(t, F64):requires_grad_(true) end

local function near(expected, tensor, tolerance)
  if type(expected) == "number" then expected = {expected} end
  local got = tensor:detach():reshape(-1):totable()
  assert.equal(#expected, #got)
  for i = 1, #got do
    local difference = math.abs(expected[i] - got[i])
    if difference ~= difference or difference > (tolerance or 2e-8) then
      error(("element %d: expected %.10g, got %.10g"):format(i, expected[i], got[i]), 2)
    end
  end
end

local function fails(text, fn, ...)
  local ok, message = pcall(fn, ...)
  assert.is_false(ok)
  assert.is_truthy(message:find(text, 1, true), message)
end

local c, d = fill(3, 2, 3) * 4, fill(4, 2, 3)

local function problem()
  local a, b = leaf(fill(1, 2, 3)), leaf(fill(2, 4))
  return a, b, function() return ((a * c - d) ^ 2):sum() / 2 + (b ^ 3):sum() end
end

local function five_steps(make, first, last)
  local a, b, loss = problem()
  local o = make({a, b})
  for _ = first or 1, last or 5 do
    o:zero_grad()
    loss():backward()
    o:step()
  end
  return a, b, o
end

local EXPECTED = {
  {"SGD", {lr = 0.1},
    {-0.0929636376, -0.126070588, -0.112303728, 0.0806584574, 0.0148879097, -0.0843095573},
    {-0.0447854811, -0.149531691, -0.285739396, -0.46537771}},
  {"SGD", {lr = 0.1, momentum = 0.9, dampening = 0.1, weight_decay = 0.01},
    {-0.521938736, -0.458029077, -0.292518895, 0.184278513, 0.154187636, 0.0416366176},
    {-0.0482933247, -0.187048978, -0.406196168, -0.74034372}},
  {"SGD", {lr = 0.05, momentum = 0.9, nesterov = true},
    {-0.304440659, -0.296964398, -0.213043947, 0.136471644, 0.0851016438, -0.0233778113},
    {-0.0466925726, -0.167807883, -0.342483125, -0.591752096}},
  {"SGD", {lr = 0.05, maximize = true},
    {0.486234161, 0.434844417, 0.326406179, -0.134287135, -0.198020754, -0.243098723},
    {-0.0407096188, -0.112439543, -0.176235349, -0.233126085}},
  {"Adam", {lr = 0.1},
    {-0.248940876, -0.295988751, -0.251103156, 0.125555482, 0.15026801, 0.118863218},
    {-0.474189487, -0.582054289, -0.67867366, -0.768948148}},
  {"Adam", {lr = 0.1, betas = {0.8, 0.95}, eps = 1e-6, weight_decay = 0.1},
    {-0.240273108, -0.280101666, -0.221898447, 0.0963700819, 0.119180334, 0.0931860161},
    {-0.484933076, -0.593034643, -0.689122795, -0.778508061}},
  {"AdamW", {lr = 0.1, weight_decay = 0.1},
    {-0.249888946, -0.29315085, -0.246535908, 0.122296799, 0.146614845, 0.11604547},
    {-0.463919826, -0.56758066, -0.66011624, -0.746317625}},
  {"AdamW", nil,
    {0.223989433, 0.142993925, 0.06199898, -0.00900351727, -0.0899982008, -0.170993718},
    {-0.0470132749, -0.128000162, -0.208993711, -0.289988565}},
}

describe("an optimiser", function()
  for i, case in ipairs(EXPECTED) do
    it("agrees with PyTorch: " .. i .. " " .. case[1], function()
      local a, b = five_steps(function(p) return optim[case[1]](p, case[2]) end)
      near(case[3], a)
      near(case[4], b)
    end)
  end

  it("works in f32", function()
    local a = resin.tensor(fill(1, 2, 3), {dtype = "f32"}):requires_grad_(true)
    local b = resin.tensor(fill(2, 4), {dtype = "f32"}):requires_grad_(true)
    local o = optim.Adam({a, b}, {lr = 0.1})
    local c32, d32 = c:float(), d:float()
    for _ = 1, 5 do
      o:zero_grad()
      local loss = ((a * c32 - d32) ^ 2):sum() / 2 + (b ^ 3):sum()
      loss:backward()
      o:step()
    end
    near(EXPECTED[5][3], a, 1e-5)
    near(EXPECTED[5][4], b, 1e-5)
  end)

  it("continues from a saved state as if it had not stopped", function()
    for _, case in ipairs(EXPECTED) do
      local make = function(p) return optim[case[1]](p, case[2]) end
      local a, b, first = five_steps(make, 1, 2)
      local path = os.tmpname()
      resin.save(path, first:state_dict())
      local a2, b2, loss = problem()
      resin.no_grad(function() a2:copy_(a); b2:copy_(b) end)
      local second = optim[case[1]]({a2, b2}, {lr = 0.7})
      second:load_state_dict(resin.load(path))
      os.remove(path)
      for _ = 1, 3 do
        second:zero_grad()
        loss():backward()
        second:step()
      end
      near(case[3], a2)
      near(case[4], b2)
    end
  end)

  it("reads and writes the learning rate", function()
    local a, b = problem()
    local o = optim.SGD({{params = {a}, lr = 0.5}, {params = {b}}}, {lr = 0.25})
    assert.equal(0.5, o.lr)
    assert.equal(0.25, o.param_groups[2].lr)
    o.lr = 0
    a.grad, b.grad = resin.ones({2, 3}, F64), resin.ones({4}, F64)
    o:step()
    near(fill(1, 2, 3):totable()[1], a:detach():narrow(1, 1, 1))
    o.param_groups[2].lr = 1
    o:step()
    near(fill(1, 2, 3):totable()[1], a:detach():narrow(1, 1, 1))
    near({-1.042 + 0.0, -1.123, -1.204, -1.285}, b)
    local rest = "momentum = 0, dampening = 0, weight_decay = 0, nesterov = false, maximize = false"
    assert.equal(("SGD(\n  group 1: 1 tensor; lr = 0, %s\n  group 2: 1 tensor; lr = 1, %s\n)"):format(rest, rest),
      tostring(o))
  end)

  it("skips what has no gradient and keeps separate counts of steps", function()
    local a, b = problem()
    local o = optim.Adam({a, b}, {lr = 0.1})
    a.grad = resin.ones({2, 3}, F64)
    o:step()
    assert.equal(0, (b - fill(2, 4)):abs():sum():item())
    o:zero_grad()
    assert.is_nil(a.grad)
    b.grad = resin.ones({4}, F64)
    local before = a:clone()
    o:step()
    assert.equal(0, (a - before):abs():sum():item())
    near({-0.142, -0.223, -0.304, -0.385}, b)     -- a first step: lr against the sign
  end)

  it("adopts parameters that appear after it was made", function()
    local Lazy = nn.class("Lazy")
    function Lazy:init() self.first = nn.Linear(2, 3) end
    function Lazy:forward(x)
      local y = self.first(x)
      if not self.second then self.second = nn.Linear(3, 1) end
      return self.second(y)
    end
    local m = Lazy()
    local o = optim.SGD(m, {lr = 0.1, momentum = 0.9})
    assert.equal(2, #o.param_groups[1].params)
    m(resin.ones(1, 2)):sum():backward()
    local before = m.second.bias:item()
    o:step()
    assert.equal(4, #o.param_groups[1].params)
    assert.is_true(math.abs(m.second.bias:item() - (before - 0.1)) < 1e-6)
    assert.is_truthy(o:state_dict()["state.1.second.bias.momentum_buffer"])
    o:zero_grad()
    assert.is_nil(m.second.weight.grad)
  end)

  it("takes groups of modules", function()
    local m = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    local o = optim.AdamW({{params = m[1], lr = 0.1}, {params = m[2], weight_decay = 0}})
    m(resin.ones(1, 2)):sum():backward()
    o:step()
    local names = {}
    for name in o:state_dict()() do names[#names + 1] = name end
    assert.equal("group.1.lr", names[1])
    assert.is_truthy(o:state_dict()["state.2.bias.exp_avg_sq"])
    assert.equal(0.01, o.param_groups[1].weight_decay)
    assert.equal(0, o.param_groups[2].weight_decay)
    fails("AdamW: parameter 1 of group 3 is also in group 1 (as weight)", o.add_param_group, o, {params = {m[1].weight}})
  end)

  it("does not disturb gradients or the graph", function()
    local a, b, loss = problem()
    local o = optim.SGD({a, b}, {lr = 0.1})
    loss():backward()
    local g = a.grad:clone()
    o:step()
    assert.equal(0, (a.grad - g):abs():sum():item())
    assert.is_true(a.requires_grad and a.is_leaf)
  end)

  it("says what is wrong", function()
    local a, b = problem()
    fails("SGD: lr must be a number of at least 0, got number -1", optim.SGD, {a}, {lr = -1})
    fails('Adam: unknown option "beta" (known: lr, betas, eps, weight_decay, maximize)', optim.Adam, {a}, {beta = 1})
    fails("Adam: betas must be a table of two numbers from 0 to 1 (1 excluded)", optim.Adam, {a}, {betas = {0.9, 1}})
    fails("SGD: nesterov needs momentum above 0 and no dampening", optim.SGD, {a}, {nesterov = true})
    fails("SGD: the first argument must be a module, a list of tensors or a list of groups", optim.SGD, 3)
    fails("got an empty table", optim.SGD, {})
    fails("SGD: parameter 2, tensor [2, 3] f64, is the result of an op", optim.SGD, {b, a * 2})
    fails("SGD: parameter 2 must be a tensor, got number 3", optim.SGD, {b, 3})
    fails("SGD: parameter group 1: unknown option", optim.SGD, {{params = {a}, rate = 1}})
    fails("SGD: lr must be a number", function() optim.SGD({a}).lr = "fast" end)
    fails('SGD: there is no option "lrr" (known: lr, momentum,', function() optim.SGD({a}).lrr = 5 end)
    fails('SGD: there is no option "lrr" (known: lr, momentum,', function() optim.SGD({a}).param_groups[1].lrr = 5 end)
    fails("SGD: momentum belongs to a group; write optimiser.param_groups[1].momentum", function() optim.SGD({a}).momentum = 1 end)
    local model = nn.Linear(2, 2)
    local adam = optim.Adam(model)
    model(resin.ones(1, 2)):sum():backward()
    adam:step()
    model:double()
    model:zero_grad()
    model(resin.ones({1, 2}, F64)):sum():backward()
    fails("but its parameter f64; make a new optimiser after changing the dtype", adam.step, adam)
    local o = optim.Adam({a})
    local sd = o:state_dict()
    sd["group.1.lr"] = nil
    sd["state.1.1.exp_avg"] = resin.zeros(7)
    sd.extra = resin.zeros(1)
    local ok, message = pcall(o.load_state_dict, o, sd)
    assert.is_false(ok)
    for _, line in ipairs{'missing: "group.1.lr"', '"state.1.1.exp_avg" is [7] but the parameter is [2, 3]', 'unexpected: "extra"'} do
      assert.is_truthy(message:find(line, 1, true), message)
    end
  end)
end)

describe("clipping", function()
  local function gradients()
    local a, b = problem()
    a.grad, b.grad = fill(5, 2, 3) * 6, fill(6, 4) * 6
    return a, b
  end

  it("agrees with PyTorch", function()
    for _, case in ipairs{
      {2, 3.85349971, {0.22576874, 0.0996496508, -0.0264694385, -0.152588528, -0.278707617, -0.404826706},
        {-0.19618525, -0.322304339, -0.448423429, -0.574542518}},
      {1, 10.518, {0.0827153373, 0.0365088385, -0.00969766023, -0.055904159, -0.102110658, -0.148317156},
        {-0.0718767758, -0.118083275, -0.164289773, -0.210496272}},
      {math.huge, 2.214, {0.392953752, 0.173441656, -0.0460704399, -0.265582536, -0.485094632, -0.704606728},
        {-0.34146326, -0.560975356, -0.780487452, -0.999999548}},
    } do
      local a, b = gradients()
      near(case[2], nn.utils.clip_grad_norm_({a, b}, 1, {norm_type = case[1]}))
      near(case[3], a.grad)
      near(case[4], b.grad)
    end
  end)

  it("leaves small gradients alone and limits values", function()
    local a, b = gradients()
    local before = a.grad:clone()
    nn.utils.clip_grad_norm_({a, b}, 100)
    near(before:reshape(-1):totable(), a.grad)
    nn.utils.clip_grad_value_(a, 0.5)
    assert.is_true(a.grad:abs():max():item() <= 0.5)
    assert.is_nil(nn.utils.clip_grad_norm_(nn.Linear(1, 1), 1))
    fails("clip_grad_norm_: max_norm must be a number of at least 0", nn.utils.clip_grad_norm_, {a}, -1)
  end)
end)
