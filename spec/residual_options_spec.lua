-- Options of containers and skips that would otherwise do something else, or nothing, without a word.

local resin = require "resin"
local nn = resin.nn
local S, R, A = nn.ResidualSequential, nn.Record, nn.Apply

local function fails(text, fn, ...)
  local ok, message = pcall(fn, ...)
  assert.is_false(ok, "no error; expected: " .. text)
  assert.is_truthy(message:find(text, 1, true), message)
end

local function distance(a, b) return (a - b):abs():max():item() end

local function times(k) return nn.Lambda(function(x) return x * k end) end

describe("drop_path", function()
  -- What samples of ones turn into, with how often.
  local function outcomes(apply, n)
    local seen, count = {}, 0
    for _, row in ipairs(S(R("r"), times(3), apply)(resin.full({n or 200, 2}, 2)):totable()) do
      assert.is_true(math.abs(row[1] - row[2]) < 1e-6)
      local key = ("%.4g"):format(row[1])
      if not seen[key] then count = count + 1 end
      seen[key] = (seen[key] or 0) + 1
    end
    return seen, count
  end

  it("gives the skip for a sample that is left out, whatever the operation", function()
    for operation, kept in pairs{multiply = 18, product = 12, gated = 4, mean = 4, max = 6, min = 2} do
      local seen = outcomes(A{operation = operation, record_name = "r", drop_path = 0.5})
      assert.equal(200, (seen["2"] or 0) + (kept ~= 2 and seen[("%.4g"):format(kept)] or 0), operation)
      assert.is_true(kept == 2 or (seen["2"] > 50 and seen["2"] < 150), operation)
    end
    local seen = outcomes(A{operation = function(x, r) return x + 0.5 * r end, record_name = "r", drop_path = 0.5})
    assert.equal(200, seen["2"] + seen["7"])
    seen = outcomes(A{record_name = "r", drop_path = 0.5})                                  -- 6/0.5 + 2
    assert.equal(200, seen["2"] + seen["14"])
    seen = outcomes(A{operation = "subtract", record_name = "r", drop_path = 0.5})
    assert.equal(200, seen["-2"] + seen["10"])
    for _, operation in ipairs{"highway", "film", "gru", "input_gated"} do
      local m = S(R("r"), nn.Linear(2, 2), A{operation = operation, record_name = "r", drop_path = 1})
      local x = resin.randn(3, 2)
      assert.equal(0, distance(m(x), x), operation)
      m:eval()
      assert.is_true(distance(m(x), x) > 0, operation)
    end
  end)

  it("is refused where the skip has not the shape of the result", function()
    fails("Apply: operation concat = cat(x, r) takes no drop_path", A, {operation = "concat", drop_path = 0.1})
    assert.equal(0, A{operation = "concat", drop_path = 0}.drop_path)
    fails("Apply: drop_path with records works with operation add, not with mean", A,
      {operation = "mean", records = {"a", "b"}, drop_path = 0.1})
    local m = S(R("r"), nn.ReLU(), A{operation = function(x, r) return resin.cat({x, r}, 2) end, record_name = "r", drop_path = 0.5})
    fails("the recorded value [1, 2] stands for samples that are left out, but the result is [1, 4]", m, resin.ones(1, 2))
  end)

  it("mode batch leaves all samples out together", function()
    local left_out = 0
    for _ = 1, 60 do
      local seen, count = outcomes(A{record_name = "r", drop_path = 0.5, drop_path_mode = "batch"}, 8)
      assert.equal(1, count)
      if seen["2"] then left_out = left_out + 1 end
      local _, gated = outcomes(A{operation = "product", record_name = "r", drop_path = 0.5, drop_path_mode = "batch"}, 8)
      assert.equal(1, gated)
    end
    assert.is_true(left_out > 10 and left_out < 50, tostring(left_out))
    assert.equal('Apply{operation = "add", drop_path = 0.5, drop_path_mode = "batch"}',
      A{drop_path = 0.5, drop_path_mode = "batch"}:label())
    fails("Apply: drop_path_mode must be one of row, batch", A, {drop_path_mode = "rows"})
  end)

  it("1 leaves gradients that are zero, not none", function()
    for _, operation in ipairs{"add", "product"} do
      local layer = nn.Linear(2, 2)
      S(R("r"), layer, A{operation = operation, record_name = "r", drop_path = 1})(resin.randn(3, 2):requires_grad_(true)):sum():backward()
      assert.equal(0, layer.weight.grad:abs():sum():item())
    end
  end)
end)

describe("residualize", function()
  it("leaves unnamed pairs as they were", function()
    local list = {R(), times(2), R("record_3"), times(3), A(), R(), A("add", "record_1")}
    local plain = S(list)
    local m = nn.residualize(plain, {every = 3})
    local function by_hand(x)
      local a, b = x, x * 2            -- record_1, record_3
      local h = (b + x) * 3 + b
      local outer = b + x
      h = h + a
      return h + outer
    end
    local x = resin.randn(2, 2)
    assert.is_true(distance(m(x), by_hand(x)) < 1e-5)
    assert.is_truthy(tostring(m):find('Record{name = "skip_1"', 1, true))
  end)

  it("makes factors for each skip, and refuses to share them", function()
    local plain = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh())
    for _, o in ipairs{{scale = nn.residual.rezero()}, {alpha = nn.LearnableAlpha(0.5)}, {projection = nn.Linear(4, 4)}} do
      local name = next(o)
      fails(("residualize: %s would be one and the same in all 2 skips"):format(name), nn.residualize, plain, o)
      o.last = 2
      assert.equal(5, #nn.residualize(plain, o):parameters() + (name == "projection" and -1 or 0), name)
    end
    local seen = {}
    local m = nn.residualize(plain, {scale = function(k)
      seen[#seen + 1] = k
      return nn.residual.rezero()
    end})
    assert.same({1, 2}, seen)
    assert.equal(6, #m:parameters())
    m = nn.residualize(plain, {options = function(k) return {projection = nn.Linear(4, 4), alpha = k} end, alpha = 5})
    assert.equal(8, #m:parameters())
    assert.equal(2, m.join_2.alpha)
    fails('residualize: options(1): unknown option "alhpa"', nn.residualize, plain, {options = function() return {alhpa = 1} end})
    fails("residualize: options(1) must return a table, got number 3", nn.residualize, plain, {options = function() return 3 end})
  end)

  it("wants a drop_path for each group", function()
    local plain = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh())
    fails("residualize: drop_path must be a number or a list of one for each of the 2 groups, got 1", nn.residualize, plain,
      {drop_path = {0.1}})
    assert.equal(0.2, nn.residualize(plain, {drop_path = {0, 0.2}}).join_2.drop_path)
  end)
end)

describe("options and states", function()
  local x = resin.randn(3, 2, 4)

  it("for layers that take none are an error", function()
    local m = S{{"l", nn.Linear(4, 4)}, {"f", function(t) return t end}, {"c", nn.Checkpoint(nn.ReLU())}, {"lstm", nn.LSTM(4, 4)}}
    fails('ResidualSequential: "l": Linear takes no options', m, x, {l = {foo = 1}})
    fails('ResidualSequential: "f": Lambda takes no options', m, x, {f = {foo = 1}})
    fails('ResidualSequential: "c": Checkpoint takes no options', m, x, {c = {foo = 1}})
    fails('ResidualSequential: hidden: "l": Linear has no state', m, x, {hidden = {l = resin.ones(1)}})
    fails('LSTM: unknown option "foo"', m, x, {lstm = {foo = 1}})
    local told
    S{{"f", function(t, o)
      told = o.k
      return t
    end}}(x, {f = {k = 7}})
    assert.equal(7, told)
  end)

  it("go through Parallel and Dense, and come back", function()
    for _, kind in ipairs{"Parallel", "Dense"} do
      local lstm, gru = nn.LSTM(4, 5), nn.GRU(kind == "Dense" and 9 or 4, 5)
      local both = nn[kind]({{"lstm", lstm}, {"gru", gru}}, kind == "Parallel" and {join = "cat"} or {output = "last"})
      local m = S{{"both", both}, {"out", nn.Linear(kind == "Dense" and 5 or 10, 4)}}
      local y1, s1 = m(x)
      assert.same({1, 2, 5}, s1.both.gru.shape)
      assert.same({1, 2, 5}, s1.both.lstm[2].shape)
      local y2, s2 = m(x, {hidden = s1})
      assert.is_true(distance(y1, y2) > 0)
      local a, state = lstm(x, {s1.both.lstm[1], s1.both.lstm[2]})
      local b = gru(kind == "Dense" and resin.cat({x, a}, 3) or x, s1.both.gru)
      assert.equal(0, distance(m.out(kind == "Dense" and b or resin.cat({a, b}, 3)), y2))
      assert.equal(0, distance(state[1], s2.both.lstm[1]))
      local y3 = m(x, {both = {hidden = s1.both}})
      assert.equal(0, distance(y2, y3))
      fails(kind .. ': there is no child "gro" (children: lstm, gru)', m, x, {both = {gro = {}}})
      fails(kind .. ': hidden: "gro": there is no such child', both, x, {hidden = {gro = {}}})
      m(x):sum():backward()
      assert.is_truthy(lstm.weight_hh_l0.grad)
    end
    local talk = nn.Parallel(function(t, o) return t * (o and o.by or 1) end, nn.Identity())
    assert.equal(0, distance(talk(x, {[1] = {by = 3}}), x * 4))
  end)

  it("a Checkpoint does not lose a second result", function()
    local x2 = resin.randn(3, 2, 4)
    for _, fn in ipairs{nn.LSTM(4, 4), S(nn.GRU(4, 4))} do
      fails(("Checkpoint: %s returned more than its result"):format(fn.type), nn.Checkpoint(fn), x2)
      fails(("Checkpoint: %s returned more than its result"):format(fn.type), resin.no_grad, nn.Checkpoint(fn), x2)
    end
    assert.same({3, 2, 4}, nn.Checkpoint(nn.RecurrentWrapper(nn.LSTM(4, 4)))(x2).shape)
  end)
end)

describe("keep_records", function()
  it("of an inner container keeps its records in calls of the one around it", function()
    local x = resin.randn(2, 3)
    local inner = S{{"z", R("z")}, {"f", times(2)}, {"deep", S(R("y"), times(2), A("add", "y"))}, {"a", A("add", "z")}}
    local outer = S{{"r", R("r")}, {"blk", inner}, {"a", A("add", "r")}}
    local expected = outer(x)
    inner.keep_records = true
    assert.is_true(inner.keep_records)
    assert.equal(0, distance(outer(x), expected))
    assert.equal(0, distance(inner:get_recorded_tensor("z"), x))
    assert.equal(0, distance(inner:get_recorded_tensor("deep.y"), x * 2))
    fails("nothing was kept", outer.get_recorded_tensor, outer, "r")
    local copy = outer:clone()
    copy(x)
    assert.equal(0, distance(copy.blk:get_recorded_tensor("z"), x))
    inner.keep_records = false
    inner:forget_records()
    outer(x)
    fails("nothing was kept", inner.get_recorded_tensor, inner, "z")
    outer:record(x)
    assert.equal(0, distance(outer:get_recorded_tensor("blk.z"), x))
    fails('ResidualSequential: get_recorded_tensor: nothing was recorded as "z" (known: "r", "blk.z", "blk.deep.y")',
      outer.get_recorded_tensor, outer, "z")
    fails("keep_records must be a boolean, got number 1", function() inner.keep_records = 1 end)
    -- with a result besides
    local wide = S{{"lstm", nn.LSTM(3, 3)}, {"blk", S(R("z"), times(2), A("add", "z"))}}
    wide.blk.keep_records = true
    local y, states = wide(resin.randn(2, 1, 3))
    assert.same({2, 1, 3}, y.shape)
    assert.is_truthy(states.lstm)
    assert.is_truthy(wide.blk:get_recorded_tensor("z"))
  end)
end)

describe("a carried state", function()
  it("of another batch is told, and reset() of the container forgets it", function()
    for _, o in ipairs{{batch_first = true}, {}} do
      local m = S{{"in", R("in")}, {"body", nn.Sequential(nn.RecurrentWrapper(nn.LSTM(4, 4, o), {carry = true}))}, A("add", "in")}
      local x = o.batch_first and resin.randn(2, 3, 4) or resin.randn(3, 2, 4)
      local other = o.batch_first and resin.randn(5, 3, 4) or resin.randn(3, 5, 4)
      local first = m(x)
      assert.is_true(distance(m(x), first) > 0)
      fails("the state that it carries is that of a batch of 2, but the input", m, other)
      fails("call reset(), here or on the container", m, resin.randn(3, 4))
      assert.equal(m, m:reset())
      assert.equal(0, distance(m(x), first))
      m:reset()
      m(other)
      m.body:reset()
      assert.equal(0, distance(m(x), first))
    end
  end)
end)

describe("HyperConnections with dynamic = true", function()
  it("takes the channels of convolutions as features", function()
    local conv = nn.Conv2d(3, 3, 3, {padding = 1})
    local m = nn.HyperConnections(conv, nn.ReLU(), {streams = 2, dynamic = true, features = 3})
    local x = resin.randn(2, 3, 5, 4)
    local same = nn.HyperConnections(conv, nn.ReLU(), {streams = 2})
    assert.is_true(distance(m(x), same(x)) < 1e-5)           -- W starts with zeros
    for _, p in ipairs(m:parameters()) do
      if p.ndim <= 2 then resin.no_grad(function() p:copy_(resin.randn(p.shape)) end) end
    end
    -- pixel by pixel it is the same net over features in the last dimension
    local point = nn.Conv2d(3, 3, 1)
    local a = nn.HyperConnections(point, {streams = 2, dynamic = true, features = 3})
    local linear = nn.Linear(3, 3)
    local b = nn.HyperConnections(linear, {streams = 2, dynamic = true, features = 3})
    resin.no_grad(function()
      linear.weight:copy_(point.weight:reshape(3, 3))
      linear.bias:copy_(point.bias)
      for _, name in ipairs{"dynamic_alpha", "dynamic_beta"} do
        a[1][name]:copy_(resin.randn(a[1][name].shape))
        b[1][name]:copy_(a[1][name])
      end
    end)
    assert.is_true(distance(a(x), b(x:permute(1, 3, 4, 2)):permute(1, 4, 2, 3)) < 1e-5)
    assert.is_true(a(x):is_contiguous())
    a(x):sum():backward()
    assert.is_truthy(a[1].dynamic_alpha.grad)
    fails("HyperConnections: input [2, 4, 5, 3] has 4 features (dimension 2), expected 3", a, resin.randn(2, 4, 5, 3))
    assert.same({2, 3, 4}, nn.HyperConnections(nn.Tanh(), {dynamic = true, features = 3, dim = 2})(resin.randn(2, 3, 4)).shape)
    assert.equal("channels_first", a.layout)
  end)
end)
